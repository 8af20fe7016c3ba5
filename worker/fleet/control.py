"""What the outside may ask of the fleet: join, leave, list; admission first, then the record, then the message."""

import logging
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import redis

from worker.fleet import admission, records, workers
from worker.fleet.errors import (
    FleetFull,
    FleetNotReady,
    IdempotencyKeyReused,
    JoinRefused,
    NoWorker,
    RoomChanging,
    SessionNotFound,
    StateUnavailable,
)
from worker.fleet.redis_operations import Operation, run, run_many
from worker.fleet.session import Session, State
from worker.fleet.settings import FleetSettings

logger = logging.getLogger(__name__)

#: How often and for how long a join waits for a room's session that is just starting or leaving, in seconds.
_CHANGING_RETRY = 0.1
_CHANGING_WAIT = 1.0


@dataclass(frozen=True)
class Joined:
    """A join's answer: the session, and whether this request made it."""

    session: Session
    created: bool


class SessionControl:
    """Joins, leaves and lists sessions of one tenant; safe to use from many threads.

    `publish` puts a session's message on the broker and may raise anything of the broker's library named in
    `publish_errors`: the record is the outbox, and the leading keeper publishes what was not.
    """

    def __init__(
        self,
        *,
        settings: FleetSettings,
        client: "redis.Redis",
        publish: Callable[[Session], None],
        publish_errors: tuple[type[Exception], ...] = (OSError,),
    ) -> None:
        self._settings = settings
        self._client = client
        self._publish = publish
        self._publish_errors = publish_errors

    def join(
        self,
        *,
        room: str,
        user_id: str,
        metadata: Mapping[str, Any],
        idempotency_key: str | None = None,
    ) -> Joined:
        """Admit a session for the room, or answer with the one that is there.

        Raises a `JoinRefused`, `RoomChanging`, `IdempotencyKeyReused` or `StateUnavailable`; after any of them no
        agent will come.
        """
        session = self._new_session(room=room, user_id=user_id, metadata=metadata)
        fleet = self.fleet()
        deadline = time.monotonic() + _CHANGING_WAIT
        while True:
            admitted = self._admit(session, limit=self._limit(fleet), idempotency_key=idempotency_key)
            if admitted.outcome == "full":
                raise _refusal(fleet)
            if admitted.outcome == "admitted":
                return self._create(session, idempotency_key=idempotency_key)
            existing = run(self._client, records.read(admitted.session_id))
            if existing and admitted.outcome == "same":
                if (existing.room, existing.user_id) != (room, user_id):
                    raise IdempotencyKeyReused()
                return Joined(existing, created=False)
            if existing and not (existing.is_over or existing.state is State.ENDING):
                return Joined(existing, created=False)
            # Another request has just admitted it and writes its record, or its agent is just leaving.
            if time.monotonic() > deadline:
                raise RoomChanging()
            time.sleep(_CHANGING_RETRY)

    def leave(self, session_id: str) -> records.LeaveAnswer:
        """End a session from any replica: a queued one at once, a running one through its owner."""
        answer = run(
            self._client,
            records.leave(session_id, command_id=uuid.uuid4().hex, lifetime=self._settings.session_hold),
        )
        if answer.outcome == "cancelled":
            self._release(answer.session)
        return answer

    def get(self, session_id: str) -> Session:
        """Raises `SessionNotFound`."""
        session = run(self._client, records.read(session_id))
        if session is None:
            raise SessionNotFound()
        return session

    def list(self, *, state: State | None = None, count: int = 200) -> Sequence[Session]:
        """Every session that holds a room, and the newest `count` of the last day; `state` keeps only those in it."""
        tenant = self._settings.tenant
        ids = dict.fromkeys(
            (
                *run(self._client, admission.recent(tenant, count=count)),
                *run(self._client, admission.holders(tenant)),
            )
        )
        sessions = run_many(self._client, [records.read_any(session_id) for session_id in ids])
        return [session for session in sessions if session and state in (None, session.state)]

    def turns(self, session_id: str, *, after: str = "0-0") -> Sequence[tuple[str, dict[str, Any]]]:
        """Committed turns after a cursor, each with its own; raises `SessionNotFound`."""
        self.get(session_id)
        return run(self._client, records.turns_after(session_id, after))

    def fleet(self) -> workers.Fleet:
        """The workers and whether joins are open."""
        return run(self._client, workers.fleet())

    def _limit(self, fleet: workers.Fleet) -> int:
        """How many sessions may hold a room; none while joins are closed, so that only existing ones answer."""
        return round(fleet.slots * (1 + self._settings.queue_per_slot)) if fleet.ready else 0

    def _admit(self, session: Session, *, limit: int, idempotency_key: str | None) -> admission.Admission:
        operation = admission.admit(
            session.tenant,
            session.room,
            session.session_id,
            join_ttl=self._settings.join_ttl,
            limit=limit,
            idempotency_key=idempotency_key,
        )
        try:
            return run(self._client, operation)
        except StateUnavailable:
            # It may have been done although the answer did not come.
            self._forget(session, idempotency_key)
            raise

    def _new_session(self, *, room: str, user_id: str, metadata: Mapping[str, Any]) -> Session:
        now = time.time()
        return Session(
            session_id=uuid.uuid4().hex,
            tenant=self._settings.tenant,
            room=room,
            user_id=user_id,
            metadata=metadata,
            state=State.QUEUED,
            epoch=1,
            join_deadline=now + self._settings.join_ttl,
            admitted_at=now,
        )

    def _create(self, session: Session, *, idempotency_key: str | None) -> Joined:
        lifetime = self._settings.join_ttl + self._settings.session_hold
        try:
            run(self._client, records.create(session, lifetime=lifetime))
        except StateUnavailable:
            # The record may exist although the answer did not come: whoever asked is told that nobody comes.
            self._cancel(session)
            self._forget(session, idempotency_key)
            raise
        try:
            self._publish(session)
        except self._publish_errors:
            logger.warning("message not published, the leading keeper will", extra={"session": session.session_id})
        else:
            self._quietly(records.stamp_published(session.session_id, epoch=session.epoch), session)
        return Joined(session, created=True)

    def _cancel(self, session: Session) -> None:
        try:
            self.leave(session.session_id)
        except (StateUnavailable, SessionNotFound):
            logger.warning("refused join not cancelled, its TTL will", extra={"session": session.session_id})

    def _forget(self, session: Session, idempotency_key: str | None) -> None:
        self._release(session)
        if idempotency_key is not None:
            self._quietly(admission.forget(session.tenant, idempotency_key, session.session_id), session)

    def _release(self, session: Session) -> None:
        self._quietly(admission.release(session.tenant, session.room, session.session_id), session)

    def _quietly(self, operation: Operation[None], session: Session) -> None:
        try:
            run(self._client, operation)
        except StateUnavailable:
            logger.warning("left to the leading keeper", extra={"session": session.session_id})


def _refusal(fleet: workers.Fleet) -> JoinRefused:
    if not fleet.workers:
        return NoWorker()
    return FleetFull() if fleet.ready else FleetNotReady()
