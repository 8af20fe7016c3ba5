"""One text of a user, answered through the agent: its events go to whoever wrote it, its words to the turn stream."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field

import redis.asyncio

from graphs.entities import (
    AgentEvent,
    Message,
    PassagesMissed,
    PassagesOffered,
    TextDelta,
    ToolCalled,
    Transferred,
    UsageReported,
    UserTurn,
)
from graphs.errors import LLMUnavailable, MemoryUnavailable
from graphs.ports import AgentPort
from worker.conversation.continuing import TOOL_LIMIT, store_rest
from worker.conversation.errors import NotStored
from worker.conversation.transcript import Citation, Transcript, Turn, event_turn
from worker.fleet import chats
from worker.fleet.chats import BEAT, Reply, ReplyKind, Taken, TurnState
from worker.fleet.errors import ChatTurnNotFound, StaleEpoch, StateUnavailable
from worker.fleet.redis_operations import run_async
from worker.fleet.session import Session

logger = logging.getLogger(__name__)

#: Seconds a whole answer may take.
TURN_LIMIT = 60.0
#: Seconds the words of a turn may take to be stored.
_STORE_LIMIT = 3.0


async def is_written(client: "redis.asyncio.Redis", session_id: str, message_id: str) -> bool:
    """Whether a user's words of the last minutes were written, so that their answer is one in text.

    Raises `StateUnavailable`.
    """
    try:
        await run_async(client, chats.look(session_id, message_id))
    except ChatTurnNotFound:
        return False
    return True


class Correspondent:
    """Whoever wrote a text, as the one who answers it sees him: events reach him as long as the session is ours."""

    def __init__(self, session: Session, turn_id: str, *, client: "redis.asyncio.Redis") -> None:
        self._session = session
        self._turn_id = turn_id
        self._client = client
        self._is_told = False

    async def tell(self, kind: ReplyKind, data: Mapping[str, object], *, after: TurnState | None = None) -> None:
        """Send one event; with `after` it is the last. Raises `StateUnavailable` and `StaleEpoch`."""
        await run_async(self._client, chats.reply(self._session, self._turn_id, Reply(kind, data), after=after))
        self._is_told = after is not None

    async def tell_error(self, code: str, detail: str, *, after: TurnState = TurnState.FAILED) -> None:
        """Send the event that ends an answer for good or for now, if anybody can be told and nobody was."""
        if self._is_told:
            return
        try:
            await self.tell(ReplyKind.ERROR, {"code": code, "detail": detail}, after=after)
        except (StateUnavailable, StaleEpoch):
            logger.warning("whoever wrote turn %s is not told: %s", self._turn_id, code)

    @asynccontextmanager
    async def waiting(self, *, on_lost: Callable[[], object]) -> AsyncIterator[None]:
        """Meanwhile the turn is kept alive; `on_lost` is called when another has it."""

        async def keep() -> None:
            while True:
                await asyncio.sleep(BEAT)
                try:
                    await run_async(self._client, chats.keep(self._session, self._turn_id))
                except StateUnavailable:
                    logger.warning("turn %s is not kept: Redis is away", self._turn_id)
                except StaleEpoch:
                    on_lost()
                    return

        keeping = asyncio.create_task(keep())
        try:
            yield
        finally:
            keeping.cancel()
            with suppress(asyncio.CancelledError):
                await keeping


@dataclass
class _Answer:
    """What was said so far."""

    specialist: str
    pieces: list[str] = field(default_factory=list)
    citations: dict[Citation, None] = field(default_factory=dict)
    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def text(self) -> str:
        return "".join(self.pieces)


class TextTurn:
    """Answers one text; `turns` is held while the agent does, so that it gives one answer at a time.

    `settle` is awaited when everything is stored, before whoever wrote is told that the answer is complete.
    """

    def __init__(
        self,
        turn_id: str,
        taken: Taken,
        *,
        agent: AgentPort,
        transcript: Transcript,
        correspondent: Correspondent,
        turns: asyncio.Lock | None = None,
        settle: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._turn_id = turn_id
        self._answer_id = f"{turn_id}:answer"
        self._text = taken.text
        self._agent = agent
        self._transcript = transcript
        self._correspondent = correspondent
        self._turns = turns or asyncio.Lock()
        self._settle = settle
        self._answer = _Answer(agent.active)
        self._speaking: asyncio.Task[None] | None = None
        self._is_speaking = False
        self._has_given_way = False

    def give_way(self) -> None:
        """Stop answering: a caller's voice wants to be answered. What was said until now is the answer."""
        if self._speaking is not None and self._is_speaking:
            self._has_given_way = True
            self._speaking.cancel()

    async def give(self) -> None:
        """Answer it, whatever happens; raises `StaleEpoch` when the session is another's, and what is a defect."""
        try:
            async with asyncio.timeout(TURN_LIMIT):
                await self._give()
        except LLMUnavailable:
            await self._break_off("model_unavailable", "The model did not answer.")
        except (StateUnavailable, MemoryUnavailable, NotStored) as error:
            await self._correspondent.tell_error("redis_unavailable", str(error))
        except TimeoutError:
            await self._break_off("too_slow", f"The answer took more than {TURN_LIMIT:.0f} s.")
        except StaleEpoch:
            raise
        except Exception:
            await self._break_off("internal_error", "Something broke; the worker's log says what.")
            raise

    async def _give(self) -> None:
        await self._correspondent.tell(ReplyKind.BEGUN, {"specialist": self._agent.active})
        if await self._is_over():
            return
        self._speaking = asyncio.create_task(self._speak())
        try:
            await self._speaking
        except asyncio.CancelledError:
            if not self._has_given_way:
                raise
        finally:
            self._speaking.cancel()
            await asyncio.wait([self._speaking])
            await self._store_tools()
        if self._has_given_way and not self._answer.pieces:
            detail = "A caller's voice came first. The text is remembered."
            await self._correspondent.tell_error("gave_way", detail, after=TurnState.DONE)
            return
        await self._commit(interrupted=self._has_given_way)
        await self._tell_done(interrupted=self._has_given_way)

    async def _store_tools(self) -> None:
        """Let what was begun be done and remembered, before anybody is told that the turn can be asked again."""
        if not await store_rest(self._agent, self._transcript, tool_limit=TOOL_LIMIT, store_limit=_STORE_LIMIT):
            logger.error("what the tools of turn %s have done is not stored", self._turn_id)

    async def _is_over(self) -> bool:
        """Whether an earlier owner has answered it, or the conversation has gone on without an answer."""
        history = self._agent.history
        known = next((i for i, message in enumerate(history) if message.id == self._turn_id), None)
        if known is None:
            return False
        answer = next((message for message in history[known:] if message.id == self._answer_id), None)
        if answer is not None:
            self._answer = _Answer(answer.specialist or self._agent.active, [answer.content])
            await self._correspondent.tell(
                ReplyKind.TEXT, {"text": answer.content, "specialist": self._answer.specialist}
            )
            await self._tell_done(interrupted=answer.interrupted)
            return True
        if any(message.role == "user" for message in history[known + 1 :]):
            detail = "The conversation has gone on without an answer to this text."
            await self._correspondent.tell_error("passed_over", detail, after=TurnState.DONE)
            return True
        return False

    async def _speak(self) -> None:
        async with self._turns:
            self._is_speaking = True
            await self._remember_words()
            turn = UserTurn(self._turn_id, self._text)
            async with aclosing(self._agent.respond(turn)) as events:
                async for event in events:
                    await self._pass_on(event)
            self._is_speaking = False

    async def _remember_words(self) -> None:
        """Store the user's words, unless an earlier owner has."""
        if any(message.id == self._turn_id for message in self._agent.history):
            return
        specialist = self._agent.active
        self._agent.commit_user(Message(id=self._turn_id, role="user", content=self._text, specialist=specialist))
        self._transcript.add(
            Turn(
                item_id=self._turn_id,
                role="user",
                channel="chat",
                at=time.time(),
                turn_id=self._turn_id,
                text=self._text,
                specialist=specialist,
            )
        )
        await self._stored()

    async def _pass_on(self, event: AgentEvent) -> None:
        answer, tell = self._answer, self._correspondent.tell
        match event:
            case TextDelta(text=text, specialist=specialist):
                answer.pieces.append(text)
                answer.specialist = specialist
                await tell(ReplyKind.TEXT, {"text": text, "specialist": specialist})
            case Transferred(source=source, target=target):
                await tell(ReplyKind.TRANSFER, {"from": source, "to": target})
            case ToolCalled(name=name):
                await tell(ReplyKind.TOOL, {"name": name})
            case UsageReported():
                answer.prompt_tokens += event.prompt_tokens
                answer.completion_tokens += event.completion_tokens
            case PassagesOffered(passages=passages):
                answer.citations |= dict.fromkeys(Citation(each.source, each.title, each.id) for each in passages)
            case PassagesMissed(reason=reason):
                self._transcript.add(event_turn(self._turn_id, {"kind": "passages_missed", "name": reason}))

    async def _commit(self, *, interrupted: bool) -> None:
        """Store the answer, as far as it was given."""
        answer = self._answer
        self._agent.commit_assistant(self._turn_id, answer.text, interrupted=interrupted, item_id=self._answer_id)
        self._transcript.add(
            Turn(
                item_id=self._answer_id,
                role="assistant",
                channel="chat",
                at=time.time(),
                turn_id=self._turn_id,
                text=answer.text,
                specialist=answer.specialist,
                interrupted=interrupted,
                citations=tuple(answer.citations),
            )
        )
        await self._stored()
        if self._settle is not None:
            await self._settle()

    async def _break_off(self, code: str, detail: str) -> None:
        """Tell that there is no answer; one that had begun is remembered as far as it was read."""
        try:
            if self._answer.pieces:
                await self._commit(interrupted=True)
        except NotStored as error:
            code, detail = "redis_unavailable", str(error)
        after = TurnState.DONE if self._answer.pieces else TurnState.FAILED
        await self._correspondent.tell_error(code, detail, after=after)

    async def _tell_done(self, *, interrupted: bool) -> None:
        answer = self._answer
        await self._correspondent.tell(
            ReplyKind.DONE,
            {
                "text": answer.text,
                "specialist": answer.specialist,
                "interrupted": interrupted,
                "usage": {"prompt_tokens": answer.prompt_tokens, "completion_tokens": answer.completion_tokens},
                "citations": [asdict(citation) for citation in answer.citations],
                "cursor": self._transcript.cursor,
            },
            after=TurnState.DONE,
        )

    async def _stored(self) -> None:
        if not await self._transcript.flush(timeout=_STORE_LIMIT):
            raise NotStored()
