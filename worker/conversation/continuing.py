"""How a conversation goes on in another process: from its checkpoint and the turns that were stored after it.

The turn stream is the truth. A checkpoint is a shorter way to the same: all that was said up to one entry of the
stream. It is written again when the entries behind it have outgrown it, so that a turn costs the same however long the
conversation is, and what must be read to continue it stays small.
"""

import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import redis.asyncio

from graphs import entities
from graphs.checkpointer import Fence, RedisCheckpointer, open_checkpointer
from graphs.entities import Message
from graphs.errors import MemoryUnavailable, MemoryUnreadable, StaleWriter
from graphs.memory import Memory
from graphs.ports import AgentPort
from graphs.remembered import SessionMemory
from worker.conversation.transcript import Transcript
from worker.fleet import records
from worker.fleet.redis_operations import run_async
from worker.fleet.session import Session

logger = logging.getLogger(__name__)

#: Where the turn stream begins.
BEGINNING = "0-0"
#: Entries of the stream from which on a checkpoint is worth writing.
WORTHWHILE = 32
#: Seconds that a tool with side effects may go on when its turn is cut off: longer than any takes that keeps its time.
TOOL_LIMIT = 12.0


@dataclass(frozen=True)
class _Stored:
    """A conversation as it was found: `held` messages in its checkpoint, `behind` entries of the stream after it."""

    messages: tuple[Message, ...]
    active: str
    cursor: str
    held: int
    behind: int


class Conversation:
    """What a session's owner needs to go on with its conversation, and to let others go on with it.

    `on_lost` is called when another owner holds the session.
    """

    def __init__(
        self,
        session: Session,
        *,
        client: "redis.asyncio.Redis",
        checkpointer: RedisCheckpointer,
        on_lost: Callable[[], None],
    ) -> None:
        self._session = session
        self._client = client
        self._checkpointer = checkpointer
        self._on_lost = on_lost
        #: Messages in the newest checkpoint, and entries of the stream that it does not contain.
        self._held = 0
        self._behind = 0
        self._is_lost = False

    async def load(self) -> entities.Session:
        """What was said so far, by whichever owner, and in the session that this one continues; `active` may be "".

        Raises MemoryUnavailable, StaleWriter and `StateUnavailable`: an outage must not look like a new conversation.
        """
        stored = await self._read(self._session.session_id)
        if self._session.continues and not stored.held:
            # That session expires earlier than this one, so this one keeps its words, in front of its own.
            old = await self._read(self._session.continues)
            # Who stands by must not write, and with an empty one would try to.
            if old.messages:
                await self._save(self._entity(old.messages, active=old.active, cursor=BEGINNING))
                stored = await self._read(self._session.session_id)
        self._held, self._behind = stored.held, stored.behind
        return self._entity(stored.messages, active=stored.active, cursor=stored.cursor)

    def lose(self) -> None:
        """Nothing that was stored is there any more: the next `compact` stores all that is remembered."""
        self._is_lost = True

    async def compact(self, agent: AgentPort, transcript: Transcript) -> None:
        """Write a checkpoint if the entries behind the last one have outgrown it; to be called when all are written.

        One that cannot be written is no loss: the turns are stored.
        """
        if not self._is_lost and self._behind + transcript.written < max(WORTHWHILE, self._held):
            return
        # In one step of the event loop: the agent remembers just what the stream holds up to the cursor.
        now = self._entity(tuple(agent.history), active=agent.active, cursor=transcript.cursor)
        written = transcript.written
        try:
            await self._save(now)
        except MemoryUnavailable:
            logger.warning("no checkpoint", extra={"session": self._session.session_id})
        except StaleWriter:
            self._on_lost()
        else:
            self._held, self._behind, self._is_lost = len(now.messages), -written, False

    def _entity(self, messages: tuple[Message, ...], *, active: str, cursor: str) -> entities.Session:
        slots = dict(self._session.metadata)
        return entities.Session(self._session.session_id, slots, messages, active=active, cursor=cursor)

    async def _save(self, session: entities.Session) -> None:
        await SessionMemory(self._checkpointer, session_id=session.session_id).save(session)

    async def _read(self, session_id: str) -> _Stored:
        """The session's checkpoint with everything behind it."""
        try:
            checkpoint = await SessionMemory(self._checkpointer, session_id=session_id).load()
        except MemoryUnreadable:
            logger.error("checkpoint not readable, replaying all turns", extra={"session": session_id})
            checkpoint = None
        held = checkpoint.messages if checkpoint else ()
        memory = Memory(held, active=checkpoint.active if checkpoint else "")
        cursor, behind = checkpoint.cursor if checkpoint else BEGINNING, 0
        while page := await run_async(self._client, records.turns_after(session_id, cursor)):
            for _, turn in page:
                replay(turn, memory)
            cursor, behind = page[-1][0], behind + len(page)
        return _Stored(tuple(memory.messages), memory.active, cursor, held=len(held), behind=behind)


@asynccontextmanager
async def open_conversation(
    session: Session,
    *,
    client: "redis.asyncio.Redis",
    redis_url: str,
    lifetime: float,
    on_lost: Callable[[], None],
) -> AsyncIterator[Conversation]:
    """The conversation of a session whose owner calls; what it stores lives `lifetime` seconds after the last write.

    `client` answers text, `redis_url` is the same server's.
    """
    fence = Fence(records.record_key(session.session_id), session.epoch, session.owner)
    async with open_checkpointer(redis_url, ttl=lifetime, keep=1, fence=fence) as checkpointer:
        yield Conversation(session, client=client, checkpointer=checkpointer, on_lost=on_lost)


async def store_rest(agent: AgentPort, transcript: Transcript, *, tool_limit: float, store_limit: float) -> bool:
    """Wait for tools that go on although their turns were cut off, then until everything is stored; True when it is.

    Who forgets what a tool has changed has it changed once more. Both limits are seconds.
    """
    done = await agent.finish_tools(timeout=tool_limit)
    return await transcript.flush(timeout=store_limit) and done


def replay(turn: Mapping[str, Any], memory: Memory) -> None:
    """Remember one entry of the turn stream; what a newer worker wrote in a way not known here is passed over."""
    try:
        _remember(turn, memory)
    except (KeyError, TypeError):
        logger.warning("turn %s is not remembered: it is not readable", turn.get("item_id"))


def _remember(turn: Mapping[str, Any], memory: Memory) -> None:
    if turn["role"] == "user":
        memory.active = turn["specialist"] or memory.active
        memory.commit_user(Message(id=turn["item_id"], role="user", content=turn["text"]))
    elif turn["role"] == "assistant":
        memory.active = turn["specialist"] or memory.active
        memory.commit_assistant(
            turn["turn_id"] or turn["item_id"],
            turn["text"],
            interrupted=turn["interrupted"],
            item_id=turn["item_id"],
        )
    elif turn["messages"]:
        memory.remember(turn["turn_id"], [Message.of(each) for each in turn["messages"]], active=turn["specialist"])
