"""One join: admission first, then the record, then the message; and what is done when Redis fails in between."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from worker.fleet import admission, record_moves, records, workers
from worker.fleet.errors import (
    FleetFull,
    FleetNotReady,
    IdempotencyKeyReused,
    JoinRefused,
    NoWorker,
    RoomChanging,
    SessionNotFound,
    SessionNotOver,
    StateUnavailable,
)
from worker.fleet.patience import too_slow
from worker.fleet.redis_operations import REQUEST_TIMEOUT, Answer, Operation
from worker.fleet.session import Session, State
from worker.fleet.settings import FleetSettings

logger = logging.getLogger(__name__)

#: How often and for how long a join waits for a room's session that is just starting or leaving, in seconds.
_CHANGING_RETRY = 0.1
_CHANGING_WAIT = 1.0
#: Seconds from its start after which a join takes no further step; the last one may then take its `REQUEST_TIMEOUT`.
_LAST_STEP = 1.5
#: Seconds after its admission at which a session without a record never gets one: its join was given up.
ABANDONED = _LAST_STEP + REQUEST_TIMEOUT + 0.5


class Run(Protocol):
    """Takes a step in Redis; raises `StateUnavailable`."""

    def __call__(self, operation: Operation[Answer], /) -> Answer: ...


@dataclass(frozen=True)
class Joined:
    """A join's answer: the session, and whether this request made it."""

    session: Session
    created: bool


class Join:
    """Makes `session`, or finds the one that is there in its place; its time begins to run at once.

    `check` raises when no session must be made. `publish` says whether it put the session's message on the broker; the
    leading keeper publishes what it did not.
    """

    def __init__(
        self,
        session: Session,
        *,
        idempotency_key: str | None,
        check: Callable[[], None],
        run: Run,
        publish: Callable[[Session], bool],
        settings: FleetSettings,
    ) -> None:
        self._session = self._own = session
        self._idempotency_key = idempotency_key
        self._check = check
        self._run = run
        self._publish = publish
        self._settings = settings
        self._started = time.monotonic()
        self._settling = threading.Lock()
        self._made: Joined | None = None
        self._is_given_up = False

    def make(self) -> Joined:
        """Raises what `check` does, a `JoinRefused`, `RoomChanging`, `IdempotencyKeyReused`, `SessionNotFound` or
        `SessionNotOver` for the session to go on with, `RecordUnreadable` or `StateUnavailable`."""
        self._check()
        if self._session.continues:
            self._session = self._own = self._continuing(self._session)
        self._fleet = self._run(workers.fleet())
        # Redis told its time a little earlier, so that the clock made of it is never ahead.
        self._redis_is_ahead = self._fleet.at - time.monotonic()
        while True:
            admitted = self._admit()
            if admitted.outcome in ("full", "closed"):
                raise _refusal(self._fleet, is_open=admitted.outcome == "full")
            if admitted.outcome == "admitted":
                return self._create()
            existing = self._run(records.read(admitted.session_id))
            if existing and admitted.outcome == "same":
                return self._found(existing)
            if existing and not (existing.is_over or existing.state is State.ENDING):
                return Joined(existing, created=False)
            if existing is None and self._steps_in(admitted):
                continue
            # Another request has just admitted it and writes its record, or its agent is just leaving.
            if time.monotonic() - self._started > _CHANGING_WAIT:
                raise RoomChanging()
            time.sleep(_CHANGING_RETRY)

    def give_up(self) -> Joined:
        """Nobody waits any longer for `make`, in another thread: the session if it is there, else nothing will be.

        Raises `StateUnavailable`.
        """
        with self._settling:
            if self._made is None:
                self._is_given_up = True
                raise too_slow()
            return self._made

    def _continuing(self, session: Session) -> Session:
        """The session with what the one that it goes on with knows about its caller, and its agent's configuration."""
        old = self._run(records.read(session.continues))
        if old is None or old.tenant != session.tenant:
            raise SessionNotFound()
        if not old.is_over and old.state is not State.CHAT:
            raise SessionNotOver()
        return replace(
            session,
            metadata={**old.metadata, **session.metadata},
            configuration=session.configuration or old.configuration,
        )

    def _admit(self) -> admission.Admission:
        try:
            return self._insist(
                lambda: admission.admit(
                    self._session.tenant,
                    self._session.room,
                    self._session.session_id,
                    join_ttl=self._settings.join_ttl,
                    limit=self._limit,
                    idempotency_key=self._idempotency_key,
                    not_after=self._not_after(),
                    only_if_open=True,
                )
            )
        except StateUnavailable:
            self._take_back(record=False)
            raise

    def _create(self) -> Joined:
        session = self._session
        lifetime = self._settings.join_ttl + self._settings.session_hold
        try:
            is_new = self._insist(lambda: record_moves.create(session, lifetime=lifetime, not_after=self._not_after()))
            existing = session if is_new else self._run(records.read(session.session_id))
        except StateUnavailable:
            self._take_back(record=True)
            raise
        if existing is None:
            raise RoomChanging()
        if existing != session:
            return self._found(existing)
        joined = self._settle(session)
        if self._is_time_left and self._publish(session):
            self._quietly([records.stamp_published(session.session_id, epoch=session.epoch)])
        return joined

    def _settle(self, session: Session) -> Joined:
        """From here on the session is there, whoever waits; raises `StateUnavailable` when nobody did any more."""
        with self._settling:
            if not self._is_given_up:
                self._made = Joined(session, created=True)
                return self._made
        self._take_back(record=True)
        raise too_slow()

    def _found(self, existing: Session) -> Joined:
        """The session that the idempotency key's first join has made."""
        if (existing.room, existing.user_id) != (self._session.room, self._session.user_id):
            raise IdempotencyKeyReused()
        return Joined(existing, created=False)

    def _steps_in(self, admitted: admission.Admission) -> bool:
        """Make up for a join that was given up before it had a record; False when it may still write it."""
        if admitted.outcome == "same" and admitted.session_id != self._session.session_id:
            # Both requests make one session, whichever of them writes its record.
            self._session = replace(self._session, session_id=admitted.session_id)
            return True
        if admitted.age < ABANDONED:
            return False
        self._run(admission.release(self._session.tenant, self._session.room, admitted.session_id))
        return True

    @property
    def _limit(self) -> int:
        """How many sessions may hold a room; none while joins are closed, so that only existing ones answer."""
        return round(self._fleet.slots * (1 + self._settings.queue_per_slot)) if self._fleet.ready else 0

    @property
    def _is_time_left(self) -> bool:
        return not self._is_given_up and time.monotonic() - self._started <= _LAST_STEP

    def _not_after(self) -> float:
        """When, in Redis' time, nobody waits any more for a step that is taken now; raises `StateUnavailable`."""
        if not self._is_time_left:
            raise too_slow()
        return self._redis_is_ahead + time.monotonic() + REQUEST_TIMEOUT

    def _insist(self, operation: Callable[[], Operation[Answer]]) -> Answer:
        """Take a step that may be repeated, and repeat it once: a lost connection does not tell whether it was done."""
        try:
            return self._run(operation())
        except StateUnavailable:
            return self._run(operation())

    def _take_back(self, *, record: bool) -> None:
        """Undo what may have been done although no answer came: whoever asked is told that nobody comes.

        What another join has admitted is left to that one.
        """
        session, key = self._own, self._idempotency_key
        if session is not self._session or (record and self._is_anothers(session)):
            return
        steps: list[Operation[Any]] = [admission.release(session.tenant, session.room, session.session_id)]
        if key is not None:
            steps.append(admission.forget(session.tenant, key, session.session_id))
        if record:
            steps.append(
                record_moves.leave(session.session_id, command_id=session.session_id, lifetime=self._settings.join_ttl)
            )
        self._quietly(steps)

    def _is_anothers(self, session: Session) -> bool:
        """Whether another request with the same key has written the record meanwhile, and told its caller so."""
        try:
            found = self._run(records.read(session.session_id))
        except StateUnavailable:
            return False
        return found is not None and found.admitted_at != session.admitted_at

    def _quietly(self, steps: Sequence[Operation[Any]]) -> None:
        try:
            for step in steps:
                self._run(step)
        except SessionNotFound:
            logger.info("a join was given up before it had a record", extra={"session": self._session.session_id})
        except StateUnavailable:
            logger.warning("left to the leading keeper", extra={"session": self._session.session_id})


def _refusal(fleet: workers.Fleet, *, is_open: bool) -> JoinRefused:
    if not fleet.open_workers:
        return NoWorker("Every worker is draining." if fleet.workers else None)
    return FleetFull() if fleet.ready and is_open else FleetNotReady()
