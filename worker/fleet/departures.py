"""Departures: what LiveKit's word that a caller has left or a room is closed means for the session in that room.

Whoever serves a session is in the room, sees the same and knows more: a lost caller may come back. So only a session
that nobody serves is ended here:

    the room's session                  becomes
    is over, or there is none           nothing
    has an owner whose lease holds      nothing: it is the owner's business
    is queued, nobody has claimed it    `ended` with the departure's reason, `caller_left` or `room_closed`
    waits for another owner             `ended` with the departure's reason
    has an owner whose lease is gone    `ended` with the departure's reason, or the end it was in: there is nobody to go
                                        on for

A lease is gone when Redis, seen without a break for a whole lease, shows none. After an outage of Redis every lease
looks gone until its keeper has renewed it, and just then LiveKit repeats what could not be delivered before.

The departure must be one from this session: of its own caller, or of the whole room. What was in the room before the
session was admitted may be left from an earlier call there, such as an empty room that LiveKit closes just now. It
counts only once `ON_THE_WAY` has passed since the admission: until then the session's caller may be about to come.

The end is one step in Redis that is refused when owner, epoch or state are no longer those that were judged. A claim
in the same instant therefore either finds the session over or keeps it.

Key space (the tenant's slot):
    muster:{t:<tenant>}:departure:<event id>  STRING  set when the event has been dealt with, expires after `REMEMBERED`

An event is remembered after, not before: when something breaks in between, LiveKit's repetition does what was left
undone. Two copies at the same time both judge, and the second changes nothing.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import redis

from worker.fleet import admission, record_moves, records, workers
from worker.fleet.errors import MoveRefused, RecordUnreadable, SessionNotFound
from worker.fleet.lasting import Observation
from worker.fleet.redis_operations import Answer, Operation, run
from worker.fleet.session import Reason, Session
from worker.fleet.times import BEAT

logger = logging.getLogger(__name__)

#: Seconds an event is remembered; longer than anybody accepts its signature.
REMEMBERED = 15 * 60.0
#: Seconds after a session's admission in which its caller may still be on the way. LiveKit, unless configured
#: otherwise, keeps a room for as long after the last caller has left it.
ON_THE_WAY = 20.0

_IS_REMEMBERED = """#!lua flags=no-writes
return redis.call('EXISTS', KEYS[1])"""

_REMEMBER = """#!lua
return redis.call('SET', KEYS[1], 1, 'NX', 'PX', ARGV[1])"""


@dataclass(frozen=True, kw_only=True)
class Departure:
    """A caller has left for good, or a room is closed; times are Unix seconds of LiveKit's clock."""

    event_id: str
    room: str
    #: Why a session that was waiting for it ends.
    reason: Reason
    #: The participant who left; None when it is the room.
    identity: str | None
    #: When the participant had joined, or the room was opened.
    since: float
    #: When it happened.
    at: float

    def is_from(self, session: Session) -> bool:
        """Whether it is this session's caller, or this session's room, and not what an earlier call left behind."""
        if session.admitted_at is None or self.identity not in (None, session.user_id):
            return False
        return session.admitted_at <= self.since or session.admitted_at + ON_THE_WAY <= self.at


@dataclass(frozen=True)
class Handled:
    """What became of a departure; `session_id` is the session it has ended, if any."""

    outcome: Literal["ended", "left_alone", "replayed"]
    session_id: str | None = None


class Departures:
    """Ends the sessions of one tenant that nobody serves when their caller or room is gone; may be used from threads.

    `show` tells operators about the end of a task whose worker is gone; `clock` and `wait` count in seconds.
    """

    def __init__(
        self,
        *,
        client: "redis.Redis",
        tenant: str,
        show: Callable[[Session, Reason], None],
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[float], None] | None = None,
    ) -> None:
        self._client = client
        self._tenant = tenant
        self._show = show
        self._clock = clock
        self._wait = wait or _sleep

    def handle(self, departure: Departure) -> Handled:
        """Do once what the departure means; raises `StateUnavailable`, and then it must be repeated.

        It takes a lease's time when the session's owner seems to be lost.
        """
        if self._run(_is_remembered(self._tenant, departure.event_id)):
            return Handled("replayed")
        ended = self._end(departure)
        self._run(_remember(self._tenant, departure.event_id))
        return Handled("ended", ended.session_id) if ended else Handled("left_alone")

    def _end(self, departure: Departure) -> Session | None:
        session = self._session_in(departure.room)
        if session is None or session.is_over or not departure.is_from(session):
            return None
        reason = departure.reason
        if session.owner:
            if not self._is_lost(session.worker_id):
                return None
            reason = session.reason or reason
        try:
            self._run(record_moves.end(session, reason))
        except (MoveRefused, SessionNotFound) as refusal:
            logger.info("session %s is left alone: %s", session.session_id, refusal)
            return None
        self._run(admission.release(session.tenant, session.room, session.session_id))
        logger.warning("session %s, which nobody serves, ended after a departure: %s", session.session_id, reason)
        if session.owner:
            self._show(session, reason)
        return session

    def _session_in(self, room: str) -> Session | None:
        session_id = self._run(admission.holder(self._tenant, room))
        if session_id is None:
            return None
        try:
            return self._run(records.read(session_id))
        except RecordUnreadable:
            logger.warning("session %s is left alone: its record is not readable", session_id)
            return None

    def _is_lost(self, worker_id: str) -> bool:
        """Whether the worker's lease stays away for as long as the reaper, too, looks before it judges."""
        observation = Observation(self._clock)
        while worker_id not in {worker.worker_id for worker in self._run(workers.fleet()).workers}:
            observation.saw()
            if observation.suffices:
                return True
            self._wait(BEAT)
        return False

    def _run(self, operation: Operation[Answer]) -> Answer:
        return run(self._client, operation)


def _sleep(seconds: float) -> None:
    # Not a default argument: a server of green threads replaces `time.sleep` when this module may be loaded already.
    time.sleep(seconds)


def _key(tenant: str, event_id: str) -> str:
    return f"muster:{{t:{tenant}}}:departure:{event_id}"


def _is_remembered(tenant: str, event_id: str) -> Operation[bool]:
    return Operation(script=_IS_REMEMBERED, keys=[_key(tenant, event_id)], parse=bool)


def _remember(tenant: str, event_id: str) -> Operation[bool]:
    """True the first time."""
    return Operation(
        script=_REMEMBER,
        keys=[_key(tenant, event_id)],
        arguments=[round(REMEMBERED * 1000)],
        parse=bool,
    )
