"""The model's Redis: the record's moves, admission, leases and queues as the Lua scripts do them, on plain data.

Every method of `Redis` that carries a name of the code does what the script of that name does, in one step. Answers and
refusals are the code's own types, so a test can put the same questions to both.
"""

from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any

from tests.model.steps import models
from tests.model.switches import Switch
from worker.fleet.errors import (
    HandOverImpossible,
    IllegalMove,
    RecoveriesExhausted,
    SessionNotFound,
    StaleEpoch,
)
from worker.fleet.handing_over import Command
from worker.fleet.records import TURNS_COMPARED
from worker.fleet.session import LEFT_UNOWNED, PASSED_IN, Reason, Session, State, states_before
from worker.fleet.times import LEADER_LOCK, LEASE
from worker.fleet.workers import Fleet, Renewal, WorkerStatus


@dataclass(frozen=True)
class Turn:
    """One entry of the turn stream, and who wrote it."""

    text: str
    role: str
    epoch: int
    by: str


@dataclass(frozen=True)
class Stored:
    """Everything of one session; values are never changed, only replaced, so a copy of the tables is a snapshot."""

    record: Session
    turns: tuple[Turn, ...] = ()
    commands: tuple[Mapping[str, str], ...] = ()


@dataclass(frozen=True)
class Message:
    """What lies on the broker: ids only."""

    session_id: str
    epoch: int
    expires_at: float


@dataclass
class Tables:
    """What Redis holds."""

    sessions: dict[str, Stored] = field(default_factory=dict)
    leases: dict[str, float] = field(default_factory=dict)
    status: dict[str, WorkerStatus] = field(default_factory=dict)
    leader: tuple[str, float] = ("", 0.0)
    ready: bool = False
    #: Beside the rooms: whether new sessions get any.
    is_open: bool = False
    #: Room -> session and when its hold ends; session -> when its hold ends.
    rooms: dict[str, tuple[str, float]] = field(default_factory=dict)
    live: dict[str, float] = field(default_factory=dict)
    recent: tuple[str, ...] = ()
    queues: dict[str, tuple[Message, ...]] = field(default_factory=dict)

    def snapshot(self) -> "Tables":
        """The same, unmoved by what comes later."""
        return Tables(**{name: copy(value) for name, value in vars(self).items()})


class Redis:
    """The server. `clock` is its own; `has` tells which switches are on.

    `on_write` is told who has written, and the record before and after.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        *,
        has: Callable[[Switch], bool],
        on_write: Callable[[str, Session | None, Session], None] = lambda by, before, after: None,
    ) -> None:
        self.tables = Tables()
        self._clock = clock
        self._has = has
        self._on_write = on_write

    # --- the record: worker/fleet/record_moves.py and records.py ---

    @models("worker.fleet.record_moves:create")
    def create(self, session: Session) -> bool:
        """False when it exists."""
        if session.session_id in self.tables.sessions:
            return False
        self.tables.sessions[session.session_id] = Stored(session)
        return True

    @models("worker.fleet.records:read")
    def read(self, session_id: str) -> Session | None:
        """The record, or None."""
        stored = self.tables.sessions.get(session_id)
        return stored.record if stored else None

    @models("worker.fleet.record_moves:move")
    def move(
        self,
        session_id: str,
        target: State,
        *,
        epoch: int,
        owner: str | None = None,
        stamp: str,
        fields: Mapping[str, Any] | None = None,
        by: str = "",
    ) -> Session:
        """Move the record if epoch, owner and `states_before` allow it."""
        record = self._record(session_id)
        self._refuse_stale((record.epoch, record.owner), (epoch, record.owner if owner is None else owner))
        if record.state not in states_before(target):
            raise IllegalMove(record.state)
        changed: dict[str, Any] = {"state": target, stamp: self._clock(), **(fields or {})}
        return self._write(replace(record, **changed), by=by)

    @models("worker.fleet.record_moves:claim")
    def claim(self, session_id: str, *, epoch: int, owner: str, by: str = "") -> Session:
        """Make `owner` the owner of a session that waits for one."""
        fields = {"owner": owner}
        return self.move(session_id, State.CONNECTING, epoch=epoch, owner="", stamp="claimed_at", fields=fields, by=by)

    @models("worker.fleet.record_moves:recover")
    def recover(self, session: Session, *, most: int, settled: float, patience: float, by: str = "") -> Session:
        """Take the session from its lost owner, beyond every epoch that was offered."""
        record, now = self._record(session.session_id), self._clock()
        self._refuse_stale((record.epoch, record.owner), (session.epoch, session.owner), always=True)
        if record.state not in states_before(State.RECOVERING):
            raise IllegalMove(record.state)
        is_settled = record.claimed_at is not None and now - record.claimed_at >= settled
        recoveries = 0 if is_settled else record.recoveries
        if recoveries >= most:
            raise RecoveriesExhausted()
        return self._write(
            replace(
                record,
                state=State.RECOVERING,
                epoch=max(session.epoch, record.offered_epoch) + 1,
                owner="",
                standby="",
                recoveries=recoveries + 1,
                recovering_at=now,
                join_deadline=now + patience,
                published_at=None,
            ),
            by=by,
        )

    @models("worker.fleet.record_moves:end")
    def end(self, session: Session, reason: Reason, *, by: str = "") -> Session:
        """Record the end as this owner, or as reaper of that very owner."""
        return self.move(
            session.session_id,
            reason.final_state,
            epoch=session.epoch,
            owner=session.owner,
            stamp="ended_at",
            fields={"reason": reason},
            by=by,
        )

    @models("worker.fleet.records:stamp_published")
    def stamp_published(self, session_id: str, *, epoch: int) -> None:
        """Note that the message of a session without an owner is on its queue; a stale one is passed over."""
        record = self.read(session_id)
        if record and (record.epoch, record.owner) == (epoch, "") and record.published_at is None:
            self._write(replace(record, published_at=self._clock()))

    @models("worker.fleet.record_moves:leave")
    def leave(self, session_id: str, *, command_id: str) -> str:
        """End a session without an owner, or ask the owner of a running one to leave; which of both."""
        record = self._record(session_id)
        if record.is_over:
            return "over"
        reason = LEFT_UNOWNED.get(record.state)
        if reason is not None:
            self._write(replace(record, state=State.ENDED, reason=reason, ended_at=self._clock()))
            return "cancelled"
        self._say(session_id, {"kind": "leave", "id": command_id})
        return "asked"

    @models("worker.fleet.records:append_turn")
    def append_turn(self, session: Session, *, text: str, role: str, by: str = "") -> int:
        """Add one committed turn as the owner; repeating one of the last adds nothing."""
        record = self._record(session.session_id)
        self._refuse_stale((record.epoch, record.owner), (session.epoch, session.owner))
        stored = self.tables.sessions[session.session_id]
        turn = Turn(text, role, session.epoch, by)
        known = stored.turns[-TURNS_COMPARED if self._has(Switch.KNOWN_TURNS) else -1 :]
        if turn not in known:
            self._put(replace(stored, turns=(*stored.turns, turn)))
            self._on_write(by, record, record)
        return len(self.turns_after(session.session_id, 0))

    @models("worker.fleet.records:turns_after")
    def turns_after(self, session_id: str, cursor: int) -> tuple[Turn, ...]:
        """The turns behind the first `cursor` ones."""
        stored = self.tables.sessions.get(session_id)
        return stored.turns[cursor:] if stored else ()

    def commands_after(self, session_id: str, cursor: int) -> tuple[Mapping[str, str], ...]:
        """The commands behind the first `cursor` ones."""
        stored = self.tables.sessions.get(session_id)
        return stored.commands[cursor:] if stored else ()

    # --- a hand-over: worker/fleet/record_moves.py ---

    @models("worker.fleet.record_moves:ask")
    def ask(self, session_id: str, *, to: str, command_id: str) -> Session:
        """Ask the owner of a live session to hand it over."""
        record = self._record(session_id)
        if record.state not in PASSED_IN:
            raise HandOverImpossible(record.state)
        command = {"kind": Command.HAND_OVER, "id": command_id, "epoch": str(record.epoch), "to": to}
        self._say(session_id, command)
        return record

    @models("worker.fleet.record_moves:offer")
    def offer(self, session: Session, *, by: str = "") -> Session:
        """Offer the next epoch; offers before it are void."""
        record = self._record(session.session_id)
        self._refuse_stale((record.epoch, record.owner), (session.epoch, session.owner))
        self._refuse_unless_live(record)
        offered = max(record.offered_epoch, session.epoch) + 1
        return self._write(replace(record, offered_epoch=offered, standby=""), by=by)

    @models("worker.fleet.record_moves:stand_by")
    def stand_by(self, session_id: str, *, offered: int, owner: str) -> Session:
        """Be the one who goes on in the offered epoch."""
        record = self._record(session_id)
        if record.offered_epoch != offered or record.epoch >= offered or record.standby:
            raise StaleEpoch()
        self._refuse_unless_live(record)
        return self._write(replace(record, standby=owner))

    @models("worker.fleet.record_moves:ready")
    def ready(self, successor: Session) -> Session:
        """Tell the owner that the successor hears the caller."""
        record = self._record(successor.session_id)
        if (record.offered_epoch, record.standby) != (successor.epoch, successor.owner):
            raise StaleEpoch()
        self._say(successor.session_id, {"kind": Command.READY, "epoch": str(successor.epoch)})
        return record

    @models("worker.fleet.record_moves:step_back")
    def step_back(self, session_id: str, *, offered: int, owner: str) -> Session:
        """Stand by no longer; the answer tells whether the baton was passed before."""
        record = self._record(session_id)
        if (record.offered_epoch, record.standby) == (offered, owner):
            record = self._write(replace(record, offered_epoch=offered + 1, standby=""))
        return record

    @models("worker.fleet.record_moves:give")
    def give(self, session: Session, *, offered: int, is_open: bool, by: str = "") -> Session:
        """Pass the session to whoever stands by; may be repeated."""
        record = self._record(session.session_id)
        if record.epoch == offered:
            return record
        self._refuse_stale((record.epoch, record.owner), (session.epoch, session.owner))
        self._refuse_unless_live(record)
        if record.offered_epoch != offered or not record.standby:
            raise HandOverImpossible("Nobody stands by any more.")
        passed = replace(record, epoch=offered, owner=record.standby, standby="", claimed_at=self._clock())
        self._write(passed, by=by)
        self._say(session.session_id, {"kind": Command.PASSED, "epoch": str(offered), "open": str(int(is_open))})
        return passed

    @models("worker.fleet.record_moves:take_back")
    def take_back(self, session: Session, *, offered: int, by: str = "") -> Session:
        """Keep a session of which it is not known whether it was passed: the one move that lowers an epoch."""
        record = self._record(session.session_id)
        if (record.epoch, record.offered_epoch) != (offered, offered):
            self._refuse_stale((record.epoch, record.owner), (session.epoch, session.owner))
        self._refuse_unless_live(record)
        fields: dict[str, Any] = {"epoch": session.epoch, "owner": session.owner, "standby": ""}
        return self._write(replace(record, **fields, offered_epoch=max(record.offered_epoch, offered + 1)), by=by)

    # --- workers: worker/fleet/workers.py ---

    @models("worker.fleet.workers:renew")
    def renew(self, status: WorkerStatus) -> Renewal:
        """Extend the worker's lease."""
        is_new = status.worker_id not in self.tables.leases
        self.tables.leases[status.worker_id] = self._clock() + LEASE
        self.tables.status[status.worker_id] = status
        return Renewal(is_new=is_new, is_to_drain=False)

    @models("worker.fleet.workers:lead")
    def lead(self, worker_id: str) -> bool:
        """Become or stay the leading keeper."""
        leader, until = self.tables.leader
        if leader not in ("", worker_id) and until > self._clock():
            return False
        self.tables.leader = (worker_id, self._clock() + LEADER_LOCK)
        return True

    @models("worker.fleet.workers:resign")
    def resign(self, worker_id: str) -> None:
        """Give lease and leadership back."""
        self.tables.leases.pop(worker_id, None)
        if self.tables.leader[0] == worker_id:
            self.tables.leader = ("", 0.0)

    @models("worker.fleet.workers:fleet")
    def fleet(self) -> Fleet:
        """All workers whose lease holds, and whether joins are open."""
        now = self._clock()
        live = [self.tables.status[worker] for worker, until in self.tables.leases.items() if until > now]
        return Fleet(self.tables.ready or not self._has(Switch.READY_KEY), live, at=now)

    @models("worker.fleet.workers:open_joins")
    def open_joins(self) -> None:
        """Let `/join` ask for rooms."""
        self.tables.ready = True

    @models("worker.fleet.admission:open_joins")
    def open_rooms(self) -> None:
        """Let new sessions have rooms."""
        self.tables.is_open = True

    @models("worker.fleet.admission:is_open")
    def is_open(self) -> bool:
        """Whether they have."""
        return self.tables.is_open or not self._has(Switch.OPEN_ROOMS)

    # --- admission: worker/fleet/admission.py ---

    @models("worker.fleet.admission:admit")
    def admit(self, room: str, session_id: str, *, hold: float, limit: int, only_if_open: bool = False) -> str:
        """ "admitted", "room_taken", "closed" or "full"."""
        now = self._clock()
        self._forget_expired()
        holder = self.tables.rooms.get(room, ("", 0.0))[0]
        if holder in self.tables.live and self._has(Switch.ROOM_LOCK):
            return "admitted" if holder == session_id else "room_taken"
        if only_if_open and not self.is_open():
            return "closed"
        if len(self.tables.live) >= limit:
            return "full"
        self.tables.live[session_id] = now + hold
        self.tables.rooms[room] = (session_id, now + hold)
        self.tables.recent = (session_id, *(each for each in self.tables.recent if each != session_id))
        return "admitted"

    @models("worker.fleet.admission:confirm")
    def confirm(self, room: str, session_id: str, *, hold: float) -> bool:
        """At the claim: hold the room for longer; False when the reservation is gone."""
        self._forget_expired()
        if not self._has(Switch.ROOM_LOCK):
            return True
        if session_id not in self.tables.live or self.tables.rooms.get(room, ("", 0.0))[0] != session_id:
            return False
        until = self._clock() + hold
        self.tables.live[session_id] = until
        self.tables.rooms[room] = (session_id, until)
        return True

    @models("worker.fleet.admission:release")
    def release(self, room: str, session_id: str) -> None:
        """Give the room back, if it is still this session's."""
        self.tables.live.pop(session_id, None)
        if self.tables.rooms.get(room, ("", 0.0))[0] == session_id:
            del self.tables.rooms[room]

    @models("worker.fleet.admission:holder")
    def holder(self, room: str) -> str | None:
        """The session that holds the room."""
        self._forget_expired()
        session_id = self.tables.rooms.get(room, ("", 0.0))[0]
        return session_id if session_id in self.tables.live else None

    @models("worker.fleet.admission:holders")
    def holders(self) -> frozenset[str]:
        """The ids of all sessions that hold a room."""
        self._forget_expired()
        return frozenset(self.tables.live)

    @models("worker.fleet.admission:recent")
    def recent(self) -> frozenset[str]:
        """The ids of the last admitted sessions."""
        return frozenset(self.tables.recent)

    # --- the broker ---

    @models("worker.fleet.publishing:publisher", "worker.fleet.publishing:offerer")
    def publish(self, message: Message, queue: str) -> None:
        """Put a message on a queue."""
        self.tables.queues[queue] = (*self.tables.queues.get(queue, ()), message)

    def take(self, queues: tuple[str, ...]) -> Message | None:
        """The first message of the first queue that has one which is not too old."""
        for queue in queues:
            while waiting := self.tables.queues.get(queue, ()):
                self.tables.queues[queue] = waiting[1:]
                if waiting[0].expires_at >= self._clock():
                    return waiting[0]
        return None

    # --- what the moves share ---

    def _record(self, session_id: str) -> Session:
        record = self.read(session_id)
        if record is None:
            raise SessionNotFound()
        return record

    def _refuse_stale(self, record: tuple[int, str], told: tuple[int, str], *, always: bool = False) -> None:
        if record != told and (always or self._has(Switch.EPOCH_CHECKS)):
            raise StaleEpoch()

    def _refuse_unless_live(self, record: Session) -> None:
        if record.state not in PASSED_IN:
            raise IllegalMove(record.state)

    def _forget_expired(self) -> None:
        now = self._clock()
        self.tables.live = {session: until for session, until in self.tables.live.items() if until > now}
        self.tables.rooms = {room: hold for room, hold in self.tables.rooms.items() if hold[1] > now}

    def _put(self, stored: Stored) -> None:
        self.tables.sessions[stored.record.session_id] = stored

    def _write(self, record: Session, *, by: str = "") -> Session:
        stored = self.tables.sessions[record.session_id]
        self._put(replace(stored, record=record))
        self._on_write(by, stored.record, record)
        return record

    def _say(self, session_id: str, command: Mapping[str, str]) -> None:
        stored = self.tables.sessions[session_id]
        self._put(replace(stored, commands=(*stored.commands, command)))
