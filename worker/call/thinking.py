"""What is written to a session while it is on the phone: answered in text, by the same agent, between spoken turns."""

import asyncio
import logging
from collections.abc import Callable

import redis.asyncio

from worker.call.agent_llm import AgentLLM
from worker.conversation.text_turns import Correspondent, TextTurn
from worker.conversation.transcript import Transcript
from worker.fleet import chats
from worker.fleet.errors import StaleEpoch, StateUnavailable
from worker.fleet.redis_operations import run_async
from worker.fleet.session import Session

logger = logging.getLogger(__name__)

#: Seconds a text waits for a moment in which nobody speaks, and seconds between two looks.
_QUIET_WITHIN = 20.0
_LOOK = 0.05


class Thinking:
    """Answers texts one after the other; a caller's voice that wants an answer comes first.

    `is_quiet` tells whether neither side is speaking or about to.
    """

    def __init__(
        self,
        session: Session,
        *,
        client: "redis.asyncio.Redis",
        agent_llm: AgentLLM,
        transcript: Transcript,
        is_quiet: Callable[[], bool],
    ) -> None:
        self._session = session
        self._client = client
        self._agent_llm = agent_llm
        self._transcript = transcript
        self._is_quiet = is_quiet
        #: Whether a text is being answered.
        self.is_busy = False

    async def answer_all(self, turn_ids: "asyncio.Queue[str]") -> None:
        """Answer what comes, until cancelled; no text ends the call, whatever becomes of it."""
        while True:
            turn_id = await turn_ids.get()
            self.is_busy = True
            try:
                await self.answer(turn_id)
            except (StateUnavailable, StaleEpoch):
                logger.warning("turn %s is not answered", turn_id, extra={"session": self._session.session_id})
            except Exception:
                logger.exception("turn %s broke", turn_id, extra={"session": self._session.session_id})
            finally:
                self.is_busy = False

    async def answer(self, turn_id: str) -> None:
        """Answer one text, unless nobody waits for that any more; raises `StateUnavailable` and `StaleEpoch`."""
        taken = await run_async(self._client, chats.take(self._session, turn_id))
        if taken is None:
            return
        correspondent = Correspondent(self._session, turn_id, client=self._client)
        turn = TextTurn(
            turn_id,
            taken,
            agent=self._agent_llm.agent,
            transcript=self._transcript,
            correspondent=correspondent,
            turns=self._agent_llm.turn_lock,
        )
        # That the session is lost, the call finds out by itself.
        async with correspondent.waiting(on_lost=_nothing):
            if not await self._quiet():
                await correspondent.tell_error("call_busy", "The call left no room for an answer. Send it again.")
                return
            self._agent_llm.give_way = turn.give_way
            try:
                await turn.give()
            finally:
                self._agent_llm.give_way = _nothing

    async def _quiet(self) -> bool:
        for _ in range(round(_QUIET_WITHIN / _LOOK)):
            if self._is_quiet():
                return True
            await asyncio.sleep(_LOOK)
        return False


def _nothing() -> None:
    pass
