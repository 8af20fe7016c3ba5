"""What the outside may ask of the fleet: join, leave, list; from any process, through Redis."""

import logging
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from functools import partial, wraps
from typing import Any, Concatenate, ParamSpec

import redis

from worker.fleet import actions, admission, chats, handing_over, record_moves, records, workers
from worker.fleet.breaker import Breaker
from worker.fleet.errors import HandOverImpossible, SessionNotFound, StateUnavailable, WorkerNotFound
from worker.fleet.joining import Join, Joined
from worker.fleet.patience import Patience
from worker.fleet.redis_operations import AT_A_TIME, Answer, Operation, run, run_many
from worker.fleet.redis_server import ServerCheck
from worker.fleet.session import Session, State
from worker.fleet.settings import FleetSettings

logger = logging.getLogger(__name__)

Given = ParamSpec("Given")

#: Seconds after which whoever asks has an answer, whatever Redis and the broker do.
ANSWERED_WITHIN = 2.3


def _in_time(
    method: "Callable[Concatenate[SessionControl, Given], Answer]",
) -> "Callable[Concatenate[SessionControl, Given], Answer]":
    """The same method, which raises `StateUnavailable` when its time is over."""

    @wraps(method)
    def wait(self: "SessionControl", /, *args: Given.args, **kwargs: Given.kwargs) -> Answer:
        return self._patience.wait_for(partial(method, self, *args, **kwargs))

    return wait


class SessionControl:
    """Joins, leaves and lists sessions of one tenant; safe to use from many threads.

    `publish` puts a session's message on the broker and may raise anything of the broker's library named in
    `publish_errors`: the record is the outbox, and the leading keeper publishes what was not. `server_check` looks at
    more than the state's server, when more is to be looked at.
    """

    def __init__(
        self,
        *,
        settings: FleetSettings,
        client: "redis.Redis",
        publish: Callable[[Session], None],
        publish_errors: tuple[type[Exception], ...] = (OSError,),
        server_check: ServerCheck | None = None,
    ) -> None:
        self._settings = settings
        self._client = client
        self._publish = publish
        self._unpublished: tuple[type[Exception], ...] = (StateUnavailable, *publish_errors)
        self._server_check = server_check or ServerCheck({"REDIS_URL": client})
        self._patience = Patience(seconds=ANSWERED_WITHIN, at_a_time=AT_A_TIME)
        self._state_breaker = Breaker(at_a_time=AT_A_TIME)
        self._broker_breaker = Breaker(at_a_time=AT_A_TIME)

    def join(
        self,
        *,
        room: str,
        user_id: str,
        metadata: Mapping[str, Any],
        continue_session: str | None = None,
        configuration: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
    ) -> Joined:
        """Admit a session for the room, or answer with the one that is there.

        A new session goes on with the conversation of `continue_session` and knows its metadata, too. Raises a
        `JoinRefused`, `RoomChanging`, `IdempotencyKeyReused`, `SessionNotFound` or `SessionNotOver` for the one to go
        on with, `RecordUnreadable`, `StateMisconfigured` or `StateUnavailable`; after any of them no agent will come,
        unless Redis wrote the record and its answer was lost twice. Whoever repeats the join with the same key gets one
        session in any case.
        """
        join = Join(
            self._new_session(
                room=room,
                user_id=user_id,
                metadata=metadata,
                configuration=configuration or {},
                continues=continue_session or "",
            ),
            idempotency_key=idempotency_key,
            check=self._check_server,
            run=self._run,
            publish=self._publish_once,
            settings=self._settings,
        )
        return self._patience.wait_for(join.make, give_up=join.give_up)

    @_in_time
    def leave(self, session_id: str) -> record_moves.LeaveAnswer:
        """End a session from any replica: a queued one at once, a running one through its owner."""
        answer = self._run(
            record_moves.leave(session_id, command_id=uuid.uuid4().hex, lifetime=self._settings.session_hold)
        )
        if answer.outcome == "cancelled":
            self._release(answer.session)
        return answer

    @_in_time
    def hand_over(self, session_id: str, *, to: str = "") -> Session:
        """Ask the owner of a live session to hand it over to the worker named `to`, or to the emptiest other one.

        Raises `HandOverImpossible` when the session is not live or no such worker has a free slot, and
        `SessionNotFound`.
        """
        session = self._read(session_id)
        if session.state is State.LIVE and not handing_over.choose(
            self._run(workers.fleet()), worker_id=session.worker_id, name=to
        ):
            raise HandOverImpossible("No other worker of this name is free." if to else "No other worker is free.")
        hold = self._settings.session_hold
        return self._run(record_moves.ask(session_id, to=to, command_id=uuid.uuid4().hex, lifetime=hold))

    @_in_time
    def get(self, session_id: str) -> Session:
        """Raises `SessionNotFound`."""
        return self._read(session_id)

    @_in_time
    def list(self, *, state: State | None = None, count: int = 200) -> Sequence[Session]:
        """Every session that holds a room, and the newest `count` with a room and of text, the newest first.

        `state` keeps only those in it.
        """
        tenant = self._settings.tenant
        ids = dict.fromkeys(
            (
                *self._run(admission.recent(tenant, count=count)),
                *self._run(admission.holders(tenant)),
                *self._run(chats.recent(tenant, count=count)),
            )
        )
        sessions = self._run_many([records.read_any(session_id) for session_id in ids])
        found = [session for session in sessions if session and state in (None, session.state)]
        return sorted(found, key=lambda session: session.admitted_at or 0.0, reverse=True)

    @_in_time
    def turns(self, session_id: str, *, after: str = "0-0") -> Sequence[tuple[str, dict[str, Any]]]:
        """Committed turns after a cursor, each with its own; raises `SessionNotFound`."""
        self._read(session_id)
        return self._run(records.turns_after(session_id, after))

    @_in_time
    def drain(self, name: str) -> Sequence[workers.WorkerStatus]:
        """Ask the workers of this name to drain, as SIGTERM does; each hears of it within a beat.

        Usually that is one; the lease of one that died may last a little longer. Raises `WorkerNotFound`.
        """
        named = [worker for worker in self._run(workers.fleet()).workers if worker.name == name]
        asked = self._run(workers.ask_to_drain([worker.worker_id for worker in named])) if named else []
        if not asked:
            raise WorkerNotFound()
        logger.info("asked to drain", extra={"workers": asked})
        return [worker for worker in named if worker.worker_id in asked]

    @_in_time
    def actions(self) -> Mapping[str, int]:
        """What keepers have done in others' place, and how often."""
        return self._run(actions.read())

    @_in_time
    def fleet(self) -> workers.Fleet:
        """The workers and whether joins are open."""
        return self._run(workers.fleet())

    def _check_server(self) -> None:
        with self._state_breaker.attempt():
            self._server_check.require()

    def _read(self, session_id: str) -> Session:
        session = self._run(records.read(session_id))
        if session is None:
            raise SessionNotFound()
        return session

    def _new_session(
        self,
        *,
        room: str,
        user_id: str,
        metadata: Mapping[str, Any],
        configuration: Mapping[str, Any],
        continues: str,
    ) -> Session:
        now = time.time()
        return Session(
            session_id=uuid.uuid4().hex,
            tenant=self._settings.tenant,
            room=room,
            user_id=user_id,
            metadata=metadata,
            configuration=configuration,
            state=State.QUEUED,
            epoch=1,
            continues=continues,
            join_deadline=now + self._settings.join_ttl,
            admitted_at=now,
        )

    def _publish_once(self, session: Session) -> bool:
        try:
            with self._broker_breaker.attempt():
                self._publish(session)
        except self._unpublished:
            logger.warning("message not published, the leading keeper will", extra={"session": session.session_id})
            return False
        return True

    def _release(self, session: Session) -> None:
        try:
            self._run(admission.release(session.tenant, session.room, session.session_id))
        except StateUnavailable:
            logger.warning("room not given back, the leading keeper will", extra={"session": session.session_id})

    def _run(self, operation: Operation[Answer], /) -> Answer:
        with self._state_breaker.attempt():
            return run(self._client, operation)

    def _run_many(self, operations: Sequence[Operation[Answer]]) -> Sequence[Answer]:
        with self._state_breaker.attempt():
            return run_many(self._client, operations)
