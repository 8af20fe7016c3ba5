"""Both sides of a hand-over of a live call: the owner that gives the baton, and the successor that takes it."""

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import redis.asyncio
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from graphs import entities
from graphs.memory import Memory
from worker.call.agreeing import Verdict
from worker.call.baton import Baton
from worker.call.ending import Ending
from worker.call.moments import Moments
from worker.call.own_record import OwnRecord
from worker.conversation.continuing import replay
from worker.fleet import handing_over, record_moves, records, workers
from worker.fleet.errors import HandOverImpossible, MoveRefused, RecordUnreadable, SessionNotFound, StateUnavailable
from worker.fleet.handing_over import Command
from worker.fleet.publishing import RECOVERY_QUEUE, worker_queue
from worker.fleet.redis_operations import Operation, run_async
from worker.fleet.session import Session
from worker.fleet.times import READY_WITHIN, TAKEN_UP_WITHIN
from worker.fleet.workers import WorkerStatus

logger = logging.getLogger(__name__)

#: Seconds between two attempts while the worker drains.
_RETRY = 1.0
#: Seconds between two looks for the right moment, and between two looks at the record.
_LOOK = 0.01
_CHECK = 1.0
#: Seconds between two attempts to pass, and to learn what became of the last one; while they go on, nobody answers.
_PASS_RETRY = 0.2
#: Milliseconds one read of the turns blocks.
_BLOCK = 1000

_UNKNOWN = (StateUnavailable, RecordUnreadable)


class Wish:
    """Whether this call is to be handed over: because the worker drains, or because somebody asked for it."""

    def __init__(self) -> None:
        self.to = ""
        self._wanted = asyncio.Event()
        self._draining = asyncio.Event()

    @property
    def is_draining(self) -> bool:
        """Whether the worker takes no new session."""
        return self._draining.is_set()

    def drain(self) -> None:
        """The worker takes no new session."""
        self._draining.set()
        self._wanted.set()

    async def wait_for_drain(self) -> None:
        """Until the worker takes no new session."""
        await self._draining.wait()

    def ask(self, to: str) -> None:
        """Somebody wants the call to go to the worker of this name, or to any other one."""
        self.to = to
        self._wanted.set()

    async def wait(self) -> None:
        """Until one of both is so."""
        await self._wanted.wait()

    def give_up(self) -> None:
        """What was asked for could not be done; a drain goes on."""
        self.to = ""
        if not self.is_draining:
            self._wanted.clear()


@dataclass
class Messages:
    """What the session's commands have said about a hand-over."""

    #: The offered epochs whose successor hears the caller.
    ready: set[int]
    #: Set when the baton was passed to this agent; `is_open` tells whether in the middle of the caller's turn.
    passed: asyncio.Event
    is_open: bool = True
    #: The stream id of the command that said so.
    passed_in: str = ""

    @classmethod
    def none(cls) -> "Messages":
        """Nothing yet."""
        return cls(set(), asyncio.Event())

    def hear(self, command: Mapping[str, str], *, epoch: int, wish: Wish) -> bool:
        """Take note of a command for the agent of this epoch; False for commands about something else."""
        kind, meant_for = command.get("kind"), command.get("epoch", "")
        if kind == Command.READY:
            self.ready.add(int(meant_for))
        elif kind == Command.PASSED and meant_for == str(epoch):
            self.is_open, self.passed_in = command.get("open") == "1", command.get("entry", "")
            self.passed.set()
        elif kind == Command.HAND_OVER and meant_for == str(epoch):
            wish.ask(command.get("to", ""))
        return kind in set(Command)


class Ears(Protocol):
    """What a hand-over must know of the call, and may do to it; `lifecycle.Call` is that."""

    @property
    def says_nothing(self) -> bool:
        """Whether the agent neither speaks nor is about to."""
        ...

    def fall_deaf(self) -> None:
        """Hear nothing any more, and forget what the caller has begun to say."""
        ...


class _NotTakenError(Exception):
    """Nobody will answer in the offered epoch, whether or not the record says that it was passed."""


class Giver:
    """The owner's side, for as long as it has the call.

    `is_writing` tells whether a text is being answered, `is_stored` whether no turn waits for Redis. `accept` lets the
    agent of an offered epoch be in the room, `refuse` takes that back, and `ask` asks that agent what became of the
    baton. `publish` puts an offer on a queue and blocks; `place` tells calls apart that leave the worker together.
    """

    def __init__(
        self,
        session: Session,
        *,
        client: "redis.asyncio.Redis",
        baton: Baton,
        ending: Ending,
        call: Ears,
        is_writing: Callable[[], bool],
        is_stored: Callable[[], bool],
        messages: Messages,
        wish: Wish,
        accept: Callable[[int], None],
        refuse: Callable[[int], None],
        ask: Callable[[int], Awaitable[Verdict]],
        publish: Callable[[Session, str], None],
        place: Callable[[], int],
        record: OwnRecord,
        lifetime: float,
    ) -> None:
        self._session = session
        self._client = client
        self._baton = baton
        self._ending = ending
        self._call = call
        self._is_writing = is_writing
        self._is_stored = is_stored
        self._messages = messages
        self._wish = wish
        self._accept = accept
        self._refuse = refuse
        self._ask = ask
        self._publish = publish
        self._place = place
        self._record = record
        self._lifetime = lifetime
        self._told = ""
        self._attempts = 0

    async def run(self) -> None:
        """Hand over whenever it is wished, until it has worked or the call is over."""
        while not self._ending.is_decided:
            await self._wish.wait()
            try:
                await self._attempt()
            except _NotTakenError:
                logger.warning("the baton was taken back", extra={"session": self._session.session_id})
            except (*_UNKNOWN, OperationalError) as error:
                # What became of the last offer is not known; the next one makes it void.
                logger.warning("no hand-over yet: %s", error, extra={"session": self._session.session_id})
            except (MoveRefused, SessionNotFound, HandOverImpossible) as refusal:
                self._tell(str(refusal))
                self._wish.give_up()
            if not self._ending.is_decided:
                await asyncio.sleep(_RETRY)

    async def _attempt(self) -> None:
        worker = await self._choose()
        offered = (await run_async(self._client, record_moves.offer(self._session))).offered_epoch
        self._accept(offered)
        # A draining worker does not consume what it publishes there, and the next free slot takes it. In the first
        # second it may still read.
        is_shared = self._wish.is_draining and not self._wish.to and self._attempts > 0
        self._attempts += 1
        queue = RECOVERY_QUEUE if is_shared else worker_queue(worker.name)
        message = replace(self._session, epoch=offered, published_at=None)
        await asyncio.to_thread(self._publish, message, queue)
        if await self._is_ready(offered, patience=READY_WITHIN if is_shared else TAKEN_UP_WITHIN):
            await self._pass(offered)
        elif not self._ending.is_decided:
            # Nobody is told of this one, and the last one is void.
            await run_async(self._client, record_moves.offer(self._session))
            raise HandOverImpossible("No successor came in time.")

    async def _choose(self) -> WorkerStatus:
        fleet = await run_async(self._client, workers.fleet())
        place = self._place() if self._wish.is_draining else 0
        worker = handing_over.choose(fleet, worker_id=self._session.worker_id, name=self._wish.to, place=place)
        if worker is None:
            raise HandOverImpossible("No other worker is free.")
        return worker

    def _tell(self, refusal: str) -> None:
        """Say why the call stays, once: a drain tries again each second."""
        if refusal != self._told:
            self._told = refusal
            logger.warning("the call stays here: %s", refusal, extra={"session": self._session.session_id})

    async def _is_ready(self, offered: int, *, patience: float) -> bool:
        """Whether a successor hears the caller in time; `patience` is for the first sign that one stands by."""
        offered_at = checked_at = time.monotonic()
        while offered not in self._messages.ready and not self._ending.is_decided:
            await asyncio.sleep(_LOOK)
            now = time.monotonic()
            if now - checked_at > _CHECK:
                checked_at = now
                if await self._require(offered):
                    patience = READY_WITHIN
            if now - offered_at > patience:
                return False
        return not self._ending.is_decided

    async def _require(self, offered: int) -> bool:
        """Whether somebody stands by; raises `HandOverImpossible` when the offer is void, because they are gone."""
        record = await run_async(self._client, records.read(self._session.session_id))
        if record is None or record.offered_epoch != offered:
            raise HandOverImpossible("Nobody stands by any more.")
        return bool(record.standby)

    async def _pass(self, offered: int) -> None:
        heard_since = self._baton.now()
        checked_at = time.monotonic()
        while not self._is_between_turns(heard_since):
            await asyncio.sleep(_LOOK)
            if self._ending.is_decided:
                return
            if time.monotonic() - checked_at > _CHECK:
                checked_at = time.monotonic()
                await self._require(offered)
        # Without an await in between: nothing slips in after the last look.
        is_open = self._baton.is_open
        self._baton.give()
        try:
            await self._give(offered, is_open=is_open)
        except (_NotTakenError, HandOverImpossible):
            self._baton.take_back()
            await self._record.be_sure()
            raise
        except MoveRefused:
            self._ending.supersede()
            raise
        self._baton.lose()
        self._call.fall_deaf()
        self._ending.hand_over()
        logger.info("handed over", extra={"session": self._session.session_id, "epoch": offered})

    async def _give(self, offered: int, *, is_open: bool) -> None:
        """Pass it; raises `_NotTakenError` when it may have been passed in vain, and what `record_moves.give` does.

        While Redis does not say whether it was, only who it was passed to knows whether it will answer. A Redis that
        has lost the session says nothing either: whoever answers registers it again.
        """
        step = record_moves.give(self._session, offered=offered, is_open=is_open, lifetime=self._lifetime)
        while True:
            try:
                await run_async(self._client, step)
                return
            except (StateUnavailable, SessionNotFound) as error:
                logger.warning("is it passed? %s", error, extra={"session": self._session.session_id})
            verdict = await self._ask(offered)
            if verdict is Verdict.TAKEN:
                return
            if verdict is not Verdict.UNKNOWN:
                if verdict is Verdict.GONE:
                    # Should it come back after all, it comes as one that has the session by force.
                    self._refuse(offered)
                self._record.doubt(record_moves.take_back(self._session, offered=offered))
                raise _NotTakenError
            await asyncio.sleep(_PASS_RETRY)

    def _is_between_turns(self, heard_since: float) -> bool:
        # What is not stored yet would have to be while nobody answers.
        is_quiet = self._call.says_nothing and not self._is_writing() and self._is_stored()
        return is_quiet and self._baton.is_between_turns(heard_since=heard_since)


class Successor:
    """The side of the agent that stands by in the room, until it holds the baton or steps back.

    It follows what is said from where the conversation had `begun` when it was loaded.
    """

    def __init__(
        self,
        session: Session,
        *,
        client: "redis.asyncio.Redis",
        listener: "redis.asyncio.Redis",
        baton: Baton,
        ending: Ending,
        messages: Messages,
        begun: entities.Session,
        lifetime: float,
    ) -> None:
        self._session = session
        self._client = client
        self._listener = listener
        self._begun = begun
        self._memory = Memory(begun.messages, active=begun.active)
        self._baton = baton
        self._ending = ending
        self._messages = messages
        self._lifetime = lifetime
        #: When it was passed, as the baton counts.
        self.passed_at = 0.0
        self._moments = Moments(session.session_id, clock=baton.now)
        self._cursor = begun.cursor
        self._is_caught_up = False

    async def stand_by(self) -> None:
        """Say when the caller is heard, then wait until the baton was passed."""
        await self._baton.ear.hears.wait()
        while True:
            try:
                await self._moments.compare_clocks(self._client)
                await run_async(self._client, record_moves.ready(self._session, lifetime=self._lifetime))
                break
            except StateUnavailable:
                await asyncio.sleep(_RETRY)
            except (MoveRefused, SessionNotFound):
                self._ending.supersede()
                return
        await self._messages.passed.wait()
        self.passed_at = self._moments.of(self._messages.passed_in)

    def decide(self) -> Verdict:
        """What the owner may count on that does not know whether it has passed the baton: from here on it is so."""
        if self._baton.is_held:
            return Verdict.TAKEN
        if self._ending.is_decided:
            return Verdict.RENOUNCED if self._ending.renounced else Verdict.UNKNOWN
        self._ending.renounce()
        return Verdict.RENOUNCED

    async def watch(self) -> None:
        """Step back when the offer is void."""
        while not (self._baton.is_held or self._ending.is_decided):
            try:
                record = await run_async(self._client, records.read(self._session.session_id))
                if not (handing_over.is_standby(record, self._session) or handing_over.owns(record, self._session)):
                    logger.info("the offer is void", extra={"session": self._session.session_id})
                    self._ending.supersede()
            except _UNKNOWN:
                logger.warning("the offer cannot be read", extra={"session": self._session.session_id})
            await asyncio.sleep(_CHECK)

    async def listen(self) -> None:
        """Note the turns that the owner makes its own, as soon as they are stored."""
        key = records.turns_key(self._session.session_id)
        is_before = True
        while not (self._is_caught_up or self._ending.is_decided):
            try:
                # What was stored before this agent has listened is no word that it has parked.
                block = None if is_before else _BLOCK
                # The library's type does not say which of its shapes this protocol version answers with.
                answer: Any = await self._listener.xread({key: self._cursor}, block=block)
            except RedisError:
                logger.warning("turns not readable, trying again", extra={"session": self._session.session_id})
                await asyncio.sleep(_RETRY)
                continue
            for _, entries in answer:
                self._note([(entry, json.loads(fields["turn"])) for entry, fields in entries], is_before=is_before)
            is_before = False

    def listen_no_longer(self) -> None:
        """What is stored from here on is this agent's own."""
        self._is_caught_up = True

    def followed(self) -> entities.Session:
        """The conversation as far as it was followed: what there is while Redis is away."""
        return replace(
            self._begun,
            messages=tuple(self._memory.messages),
            active=self._memory.active,
            cursor=self._cursor,
        )

    def notes(self) -> Operation[None]:
        """The step that notes what the owner has stored before it passed the baton, and listens no longer."""
        step = records.turns_after(self._session.session_id, self._cursor)

        def parse(raw: Any) -> None:
            self._note(step.parse(raw))
            self.listen_no_longer()

        return Operation(script=step.script, keys=step.keys, arguments=step.arguments, parse=parse)

    def _note(self, turns: Sequence[tuple[str, Mapping[str, Any]]], *, is_before: bool = False) -> None:
        for entry, turn in turns:
            if self._is_caught_up:
                return
            self._cursor = entry
            # An owner whose Redis has lost its data writes again what it has said before.
            is_known = any(message.id == turn.get("item_id") for message in self._memory.messages)
            replay(turn, self._memory)
            if turn.get("role") == "user" and not (is_before or is_known):
                self._baton.owner_committed(at=self._moments.of(entry))
