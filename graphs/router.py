"""Who answers a turn: whoever answered last, or whom a small model names while they begin to."""

import logging
from collections.abc import Callable, Sequence
from contextlib import aclosing
from typing import Protocol

from graphs.entities import Message, Token, ToolCall, UsageReported
from graphs.errors import LLMUnavailable, ToolRefused
from graphs.ports import LLMPort
from graphs.roster import TRANSFER, Roster, Specialist, parse_arguments

logger = logging.getLogger(__name__)

#: What a router reads of the conversation: who answers is decided by the last words and what they refer to.
LAST_MESSAGES = 6

STAY = "stay"
INSTRUCTIONS = (
    "You listen in, and only decide who answers the caller's last words. Call the tool if a colleague is clearly "
    "better suited to answer them; words that go on with what was said, agree or thank are for the same agent. "
    f"Otherwise reply with the one word: {STAY}."
)


class AgentRouterPort(Protocol):
    """Decides who answers a turn, without keeping the caller waiting."""

    def begin(self, active: str | None, roster: Roster) -> str:
        """Name at once who begins to answer, given who answered last; calls no model."""

    async def reconsider(
        self,
        active: str,
        roster: Roster,
        history: Sequence[Message],
        *,
        report: Callable[[UsageReported], None],
    ) -> str | None:
        """Name somebody of the roster who should answer instead of `active`; None when `active` should.

        Runs beside the model call of `active` and is cancelled when it takes too long. `history` ends with the user's
        words; `report` is told what it consumed. A model that fails is None.
        """


class StickyRouter:
    """Whoever answered last goes on, until they hand the caller over themselves."""

    def begin(self, active: str | None, roster: Roster) -> str:
        """Whoever answered last, or the first of the roster."""
        return active if active is not None and active in roster else roster.first

    async def reconsider(
        self,
        active: str,
        roster: Roster,
        history: Sequence[Message],
        *,
        report: Callable[[UsageReported], None],
    ) -> str | None:
        """Never anybody else."""
        return None


class SpeculativeRouter(StickyRouter):
    """Whoever answered last begins, and a small model is asked at the same time who should.

    It costs one more model call in each turn, and spares a caller the wait for a specialist who only hands over. A
    verdict to stay counts from its first word, and what that call consumed stays untold.
    """

    def __init__(self, llm: LLMPort) -> None:
        self._llm = llm

    async def reconsider(
        self,
        active: str,
        roster: Roster,
        history: Sequence[Message],
        *,
        report: Callable[[UsageReported], None],
    ) -> str | None:
        """Whom the model hands the caller to, if it names somebody who is there."""
        transfer = roster.transfer_schema(active)
        if transfer is None:
            return None
        named: ToolCall | None = None
        said = ""
        try:
            async with aclosing(self._llm(_question(roster[active], history), [transfer])) as events:
                async for event in events:
                    if isinstance(event, Token):
                        said += event.text
                        if said.lstrip().lower().startswith(STAY):
                            return None
                    elif isinstance(event, UsageReported):
                        report(event)
                    elif isinstance(event, ToolCall) and event.name == TRANSFER:
                        named = named or event
            return str(parse_arguments(named, transfer)["specialist"]) if named else None
        except (LLMUnavailable, ToolRefused) as error:
            logger.warning("no verdict of the router", extra={"error": type(error).__name__})
            return None


#: It has no state: every conversation may share it.
sticky = StickyRouter()


def _question(active: Specialist, history: Sequence[Message]) -> Sequence[Message]:
    """The last words of both sides, without the tools that were used for them."""
    opening = f"A caller is talking with the agent {active.name} ({active.title}): {active.description}."
    words = [message for message in history if message.role in ("user", "assistant") and message.content]
    return [Message(id="system", role="system", content=f"{opening}\n\n{INSTRUCTIONS}"), *words[-LAST_MESSAGES:]]
