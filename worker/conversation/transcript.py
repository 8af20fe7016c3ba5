"""What was said and heard, written to the session's turn stream in order, also across a Redis outage."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import redis.asyncio

from graphs.entities import Exchange, MessageRecord
from graphs.roster import TRANSFER
from worker.fleet import records
from worker.fleet.errors import MoveRefused, SessionNotFound, StateUnavailable
from worker.fleet.redis_operations import run_async
from worker.fleet.session import Session

logger = logging.getLogger(__name__)

#: Seconds between two attempts while Redis is away.
_RETRY = 0.5


@dataclass(frozen=True)
class Citation:
    """A passage of a document; `title` is the path of headings to it."""

    source: str
    title: str
    passage_id: str


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One entry of the turn stream; `at` in Unix seconds, `text` as heard by the other side."""

    item_id: str
    role: Literal["user", "assistant", "event"]
    at: float
    channel: Literal["voice", "chat"] = "voice"
    #: The caller's words that it belongs to, by their own `item_id`; none for a greeting.
    turn_id: str | None = None
    text: str = ""
    specialist: str | None = None
    interrupted: bool = False
    timings: Mapping[str, float] | None = None
    #: For role "assistant": the passages that lay before the model when it answered.
    citations: tuple[Citation, ...] = ()
    #: For role "event": what happened, for instance `{"kind": "transfer", "from": …, "to": …}`.
    event: Mapping[str, Any] | None = None
    #: What the conversation's memory holds of an event, and who is responsible after it.
    messages: tuple[MessageRecord, ...] = ()


class Transcript:
    """A write-behind buffer in front of the turn stream, written by this owner alone; the longest call bounds it.

    `on_lost` is called when another owner holds the session; while that is not known, `is_sure` is not set and nothing
    is written. `writing` is held while a turn is on its way to Redis.
    """

    def __init__(
        self,
        session: Session,
        *,
        client: "redis.asyncio.Redis",
        lifetime: float,
        on_lost: Callable[[], None],
        is_sure: asyncio.Event | None = None,
        writing: asyncio.Lock | None = None,
    ) -> None:
        self._session = session
        self._client = client
        self._lifetime = lifetime
        self._on_lost = on_lost
        self._is_sure = is_sure or _set()
        self._writing = writing or asyncio.Lock()
        self._waiting: deque[Turn] = deque()
        self._added: list[Turn] = []
        self._some = asyncio.Event()
        self._none = asyncio.Event()
        self._none.set()
        #: How many turns this owner has written, and the stream id of the newest one.
        self.written = 0
        self.cursor = "0-0"

    def add(self, turn: Turn) -> None:
        """Queue one turn."""
        self._added.append(turn)
        self._waiting.append(turn)
        self._none.clear()
        self._some.set()

    @property
    def is_stored(self) -> bool:
        """Whether no turn waits."""
        return self._none.is_set()

    def restart(self) -> None:
        """Go on in a server that has lost the stream: this owner's turns are written again, in their order.

        What `write` does when no turn waits is done once more.
        """
        self.cursor = "0-0"
        self._waiting = deque(self._added)
        if self._waiting:
            self._none.clear()
        self._some.set()

    async def flush(self, *, timeout: float) -> bool:
        """Wait until everything is written, at most `timeout` seconds; True when it is."""
        try:
            async with asyncio.timeout(timeout):
                await self._none.wait()
        except TimeoutError:
            return False
        return True

    async def write(self, *, then: Callable[[], Awaitable[None]] | None = None) -> None:
        """Write turns in order until cancelled; each is tried until Redis takes it.

        `then` is awaited whenever no turn waits; those that come meanwhile wait for it.
        """
        this = asyncio.current_task()
        # A checkpoint's client of Redis may swallow a cancellation, as `run_async` tells.
        while this is not None and not this.cancelling() and await self._some.wait():
            await self._is_sure.wait()
            await self._write_next()
            if not self._waiting:
                self._some.clear()
                self._none.set()
                if then is not None:
                    await then()

    async def _write_next(self) -> None:
        async with self._writing:
            waiting = self._waiting
            is_written = not waiting or await self._written(waiting[0])
            # After a loss of data others wait, from the first one on.
            if waiting and is_written and waiting is self._waiting:
                waiting.popleft()
        if not is_written:
            await asyncio.sleep(_RETRY)

    async def _written(self, turn: Turn) -> bool:
        operation = records.append_turn(self._session, asdict(turn), lifetime=self._lifetime)
        try:
            self.cursor = await run_async(self._client, operation)
            self.written += 1
        except (StateUnavailable, SessionNotFound):
            # Without its record the session registers again, or its end is decided.
            logger.warning("turn waits for Redis", extra={"session": self._session.session_id})
            return False
        except MoveRefused:
            self._on_lost()
        return True


def _set() -> asyncio.Event:
    event = asyncio.Event()
    event.set()
    return event


def event_turn(turn_id: str, event: Mapping[str, Any]) -> Turn:
    """A turn that tells what happened between two utterances."""
    return Turn(item_id=turn_id, role="event", at=time.time(), turn_id=turn_id, event=event)


def exchange_turn(exchange: Exchange) -> Turn:
    """A turn that tells of a tool call or a hand-over, and keeps what the conversation remembers of it."""
    request, result = exchange.messages
    event: dict[str, Any] = {"kind": "tool", "name": exchange.call.name, "ok": exchange.is_done}
    if exchange.call.name == TRANSFER and exchange.is_done:
        event = {"kind": "transfer", "from": exchange.specialist, "to": exchange.receiver}
    return Turn(
        item_id=request.id,
        role="event",
        at=time.time(),
        turn_id=exchange.turn_id,
        specialist=exchange.receiver,
        event=event,
        messages=(request.record(), result.record()),
    )
