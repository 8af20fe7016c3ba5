"""A session's record as its owner writes it: its moves, its end, and its restoration in a Redis that has lost it."""

import asyncio
import logging
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import redis.asyncio

from worker.call.baton import Baton
from worker.call.ending import Ending
from worker.fleet import admission, handing_over, record_moves, records
from worker.fleet.child import Child
from worker.fleet.errors import MoveRefused, RecordUnreadable, SessionNotFound, StaleEpoch, StateUnavailable
from worker.fleet.recovery import Recovery
from worker.fleet.redis_operations import Operation, run_async
from worker.fleet.session import Reason, Session, State
from worker.fleet.task_states import HANDED_OVER
from worker.fleet.times import SETTLED, STAMP

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")

#: Seconds between two attempts, and seconds all of them may take, to record an end while Redis is away.
_RETRY = 0.5
_LIMIT = 120.0
#: Seconds the last owner has, once Redis answers, to take back what was passed to an agent that has renounced it.
_TAKEN_BACK_WITHIN = 5.0
#: Seconds between two looks whether the room is held.
_ROOM_CHECK = 3.0


class OwnRecord:
    """Writes one session's record; `hold` is how many seconds it lives after each move.

    `recovery` leaves the session to the next owner. `emptied` is how often the worker had found Redis emptied before
    the session was claimed. `store_again` is called when the record was lost and is there again.
    """

    def __init__(
        self,
        session: Session,
        *,
        client: "redis.asyncio.Redis",
        child: Child,
        ending: Ending,
        baton: Baton,
        recovery: Recovery,
        hold: float,
        emptied: int,
    ) -> None:
        self._session = session
        self._client = client
        self._child = child
        self._ending = ending
        self._baton = baton
        self._recovery = recovery
        self._hold = hold
        self._held_until = time.monotonic() + hold
        self._emptied = emptied
        #: The record as it was last seen.
        self._seen: Session | None = None
        self.is_live = False
        #: The newest epoch that was offered to a successor.
        self.offered = 0
        self.store_again: Callable[[], None] = _nothing
        self._is_recorded = False
        self._is_recorded_by_another = False
        self._is_left = False
        self._has_stood_by = not baton.is_held
        self._has_stepped_back = False
        self._doubt: Operation[Session] | None = None
        #: Set while it is known whose the session is: what is written meanwhile would be taken for another's.
        self.is_sure = asyncio.Event()
        self.is_sure.set()
        #: Held while a turn is written, and while the record is made anew: the first turn in it is the first one.
        self.writing = asyncio.Lock()

    async def insist(self, operation: Operation[Answer]) -> Answer:
        """Run it until Redis has answered; raises `TimeoutError` when it has not for two minutes."""
        async with asyncio.timeout(_LIMIT):
            while True:
                try:
                    return await run_async(self._client, operation)
                except StateUnavailable:
                    self._child.slot.stamp()
                    await asyncio.sleep(_RETRY)

    async def move(self, target: State, *, stamp: str, patient: bool = False) -> None:
        """Move the record on; the call goes on without it when Redis is away, unless it is patient."""
        reason = {"reason": self._ending.reason} if self._ending.reason else {}
        move = record_moves.move(
            self._session.session_id,
            target,
            epoch=self._session.epoch,
            owner=self._session.owner,
            lifetime=self._hold,
            stamp=stamp,
            fields=reason,
        )
        try:
            self._seen = await (self.insist(move) if patient else run_async(self._client, move))
        except (StateUnavailable, SessionNotFound, TimeoutError):
            logger.warning("state not recorded", extra={"session": self._session.session_id, "state": target})
        except MoveRefused:
            # Another owner holds the session, or a keeper has ended it.
            self._ending.supersede()

    def doubt(self, step: Operation[Session]) -> None:
        """Be this session's owner although the record may say otherwise, until `step` was done by `be_sure`."""
        self._doubt = step
        self.is_sure.clear()

    async def be_sure(self) -> None:
        """Do what makes the record say whose the session is, as long as it takes while Redis is away.

        Who has stepped down meanwhile takes nothing back: nobody would be there for it.
        """
        if self._doubt is not None and not self._ending.superseded:
            await self._end_doubt(self._doubt)
        self._doubt = None
        self.is_sure.set()

    async def _end_doubt(self, step: Operation[Session]) -> None:
        try:
            await self.insist(step)
        except SessionNotFound:
            logger.info("registers again", extra={"session": self._session.session_id})
        except MoveRefused:
            # It has another owner, for whom it was recovered from the successor.
            self._ending.supersede()
            self._ending.superseded = True
        except RecordUnreadable:
            # Of a step that was refused there is no record to read: this one was done.
            logger.exception("the record is damaged", extra={"session": self._session.session_id})

    @property
    def goes_on(self) -> bool:
        """Whether the session, whose end was decided here, is left to the next owner.

        So is one that breaks soon after it was taken over: its last owner had no trouble with it.
        """
        return self._ending.given_back or (self._has_stood_by and self._has_broken and not self._has_settled)

    @property
    def _has_broken(self) -> bool:
        reason = self._ending.reason or Reason.INTERNAL_ERROR
        return reason.final_state is State.FAILED and not self._ending.is_told

    @property
    def _has_settled(self) -> bool:
        taken_at = self._baton.taken_at
        return taken_at is not None and time.monotonic() - taken_at > SETTLED

    async def end(self) -> None:
        """Record the end and release the room, or leave the session to the next owner; once, also after an outage."""
        if not self._is_recorded and self._ending.renounced:
            self._is_recorded = True
            await self._see_taken_back()
        await self.settle()
        if self._is_recorded or self._ending.superseded:
            return
        self._is_recorded = True
        if self.goes_on:
            await self._leave_to_the_next(is_lost=self._ending.is_lost or not self._ending.given_back)
        else:
            await self._end(self._ending.reason or Reason.INTERNAL_ERROR)

    async def _end(self, reason: Reason) -> None:
        session = self._session
        try:
            await self.insist(record_moves.end(session, reason))
        except StaleEpoch:
            # Another owner goes on with it, and with the room.
            self._is_recorded_by_another = True
            return
        except (MoveRefused, SessionNotFound):
            self._is_recorded_by_another = True
            logger.warning("the end was recorded by another", extra={"session": session.session_id})
        await self.insist(admission.release(session.tenant, session.room, session.session_id))
        logger.info("session over", extra={"session": session.session_id, "reason": reason})

    async def _leave_to_the_next(self, *, is_lost: bool) -> None:
        self._is_left = True
        async with asyncio.timeout(_LIMIT):
            while True:
                try:
                    await self._recovery.recover(self._session, is_lost=is_lost)
                    return
                except StateUnavailable:
                    self._child.slot.stamp()
                    await asyncio.sleep(_RETRY)

    async def _see_taken_back(self) -> None:
        """Be there until the last owner has the session again; leave it to the next one when there is no last one."""
        session = self._session
        step = record_moves.step_back(session.session_id, offered=session.epoch, owner=session.owner)
        until: float | None = None
        try:
            record = await self.insist(step)
            while handing_over.owns(record, session):
                until = until or time.monotonic() + _TAKEN_BACK_WITHIN
                if time.monotonic() > until:
                    await self._leave_to_the_next(is_lost=True)
                    return
                await asyncio.sleep(STAMP)
                record = await self.insist(step)
        except SessionNotFound:
            logger.info("nothing to take back", extra={"session": session.session_id})

    async def settle(self) -> None:
        """Make sure whose the session is before its end is told.

        Who stands by steps back, unless the baton was passed meanwhile: then the end is its own to record.
        """
        await self.be_sure()
        if self._baton.is_held or self._baton.is_given or self._has_stepped_back or self._ending.renounced:
            return
        session = self._session
        self._has_stepped_back = True
        step = record_moves.step_back(session.session_id, offered=session.epoch, owner=session.owner)
        try:
            record = await self.insist(step)
            self._ending.superseded = not handing_over.owns(record, session)
        except SessionNotFound:
            self._ending.superseded = True

    async def outcome(self) -> Reason | str | None:
        """Why the session is over; None when it goes on with another owner."""
        if self._ending.handed_over or self._is_left:
            return HANDED_OVER
        if not (self._ending.superseded or self._is_recorded_by_another):
            return self._ending.reason
        try:
            session = await run_async(self._client, records.read(self._session.session_id))
        except (StateUnavailable, RecordUnreadable):
            logger.warning("how the session ended is not known here", extra={"session": self._session.session_id})
            return None
        return session.reason if session else None

    async def stay_registered(self) -> None:
        """Take the room again in a Redis that has lost its data, before it opens for other joins."""
        look_at = time.monotonic()
        while not self._ending.is_decided:
            if self._emptied != self._child.emptied and self._baton.is_held:
                self._emptied = self._child.emptied
                await self._register_again()
            elif self._baton.is_held and self.is_sure.is_set() and time.monotonic() >= look_at:
                look_at = time.monotonic() + _ROOM_CHECK
                await self._hold_room()
            await asyncio.sleep(STAMP)

    async def _hold_room(self) -> None:
        """See that the room is held until the end of the call: a server that took over may have missed it."""
        session = self._session
        left = max(self._held_until - time.monotonic(), _ROOM_CHECK)
        confirm = admission.confirm(session.tenant, session.room, session.session_id, hold=left)
        try:
            if await run_async(self._client, confirm):
                return
            record = await run_async(self._client, records.read(session.session_id))
        except (StateUnavailable, RecordUnreadable):
            logger.warning("whether the room is held is not known", extra={"session": session.session_id})
            return
        if not (self._baton.is_held and self.is_sure.is_set()):
            return
        if record is None or (handing_over.owns(record, session) and not record.is_over):
            await self._register_again()
        else:
            self._ending.supersede()

    async def _register_again(self) -> None:
        session = self._session
        admit = admission.admit(
            session.tenant, session.room, session.session_id, join_ttl=self._hold, limit=sys.maxsize
        )
        if (await self.insist(admit)).outcome == "room_taken":
            logger.error("the room was given to another", extra={"session": session.session_id})
            self._ending.supersede()
            return
        async with self.writing:
            if await self.insist(record_moves.create(self._current(), lifetime=self._hold)):
                self.store_again()
        logger.warning("registered again", extra={"session": session.session_id})

    def _current(self) -> Session:
        """The record as it must be, as far as it is known here."""
        state = State.LIVE if self.is_live else State.WAITING
        current = replace(self._seen or self._session, state=state, offered_epoch=self.offered)
        if self.is_live and current.first_audio_at is None:
            return replace(current, first_audio_at=time.time())
        return current


def _nothing() -> None:
    pass
