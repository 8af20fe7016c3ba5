"""A session as Redis and JSON see it: its states, its reasons to end and the moves that are legal."""

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from worker.fleet.errors import RecordUnreadable


class State(StrEnum):
    """Where a session is in its life."""

    #: Admitted; its message waits for a free slot.
    QUEUED = "queued"
    #: A worker owns it and joins the room.
    CONNECTING = "connecting"
    #: The agent is in the room, the caller is not (or does not listen yet).
    WAITING = "waiting"
    #: Agent and caller talk.
    LIVE = "live"
    #: Its owner is lost; its message waits for another one, which goes on with the call.
    RECOVERING = "recovering"
    #: The end is decided; the agent is leaving.
    ENDING = "ending"
    #: Text only: it has no room, and an owner only while a turn is answered.
    CHAT = "chat"
    #: Over, in a way somebody asked for or the rules provide.
    ENDED = "ended"
    #: Over, because something broke.
    FAILED = "failed"


class Reason(StrEnum):
    """Why a session is over."""

    LEFT = "left"
    CALLER_LEFT = "caller_left"
    CALLER_LOST = "caller_lost"
    CALLER_NEVER_ARRIVED = "caller_never_arrived"
    MAX_DURATION = "max_duration"
    IDLE = "idle"
    ROOM_CLOSED = "room_closed"
    CANCELLED = "cancelled"
    JOIN_EXPIRED = "join_expired"
    CONNECT_FAILED = "connect_failed"
    PROVIDER_FAILED = "provider_failed"
    WORKER_LOST = "worker_lost"
    INTERNAL_ERROR = "internal_error"

    @property
    def final_state(self) -> State:
        """`FAILED` for what broke, `ENDED` for the rest."""
        return State.FAILED if self in _BROKEN else State.ENDED


_BROKEN = frozenset(
    {
        Reason.JOIN_EXPIRED,
        Reason.CONNECT_FAILED,
        Reason.PROVIDER_FAILED,
        Reason.WORKER_LOST,
        Reason.INTERNAL_ERROR,
    }
)
#: Where a session stays for ever.
OVER = frozenset({State.ENDED, State.FAILED})
_NEXT: Mapping[State, frozenset[State]] = {
    State.QUEUED: frozenset({State.CONNECTING}) | OVER,
    # While Redis is away a call goes on, and its record catches up with it in one step.
    State.CONNECTING: frozenset({State.WAITING, State.LIVE, State.RECOVERING, State.ENDING}) | OVER,
    State.WAITING: frozenset({State.LIVE, State.RECOVERING, State.ENDING}) | OVER,
    # The move to `LIVE` is repeated when its answer was lost.
    State.LIVE: frozenset({State.LIVE, State.RECOVERING, State.ENDING}) | OVER,
    State.RECOVERING: frozenset({State.CONNECTING}) | OVER,
    State.ENDING: OVER,
    State.CHAT: frozenset({State.ENDED}),
    State.ENDED: frozenset(),
    State.FAILED: frozenset(),
}

#: Where an owner may pass the session to another one; its state stays.
PASSED_IN = frozenset({State.LIVE})
#: Where whoever answers a text owns the session for that turn; its state stays.
ANSWERED_IN = frozenset({State.CHAT}) | OVER
#: How a session that nobody owns ends when it is left.
LEFT_UNOWNED: Mapping[State, Reason] = {
    State.QUEUED: Reason.CANCELLED,
    State.RECOVERING: Reason.LEFT,
    State.CHAT: Reason.LEFT,
}


def states_before(target: State) -> frozenset[State]:
    """The states from which a session may move to `target`; every move asks here."""
    return frozenset(state for state, following in _NEXT.items() if target in following)


_AGENT = "agent-"


def agent_of(identity: str) -> tuple[str, int] | None:
    """Of which session and epoch a participant is the agent; None when it is another one."""
    session_id, _, epoch = identity.removeprefix(_AGENT).rpartition("-")
    is_agent = identity.startswith(_AGENT) and session_id and epoch.isascii() and epoch.isdecimal()
    return (session_id, int(epoch)) if is_agent else None


_CLAIM = "/"


def owner_of(worker_id: str) -> str:
    """A name for one process of the worker in one session.

    Each call makes another one: a Redis that has lost a claim gives the same epoch away again, perhaps to a process of
    the same worker, and only their names tell the two apart.
    """
    return f"{worker_id}{_CLAIM}{uuid.uuid4().hex[:8]}"


def worker_of(owner: str) -> str:
    """The id of the worker of which an owner is a process."""
    return owner.partition(_CLAIM)[0]


@dataclass(frozen=True, kw_only=True)
class Session:
    """One session's record; times are Unix seconds, `None` when not yet."""

    session_id: str
    tenant: str
    room: str
    user_id: str
    metadata: Mapping[str, Any]
    state: State
    epoch: int
    reason: Reason | None = None
    #: Who runs it, as `owner_of` writes it; empty while queued and between two owners.
    owner: str = ""
    #: The highest epoch that was offered to a successor (see `handing_over.py`), 0 when none was.
    offered_epoch: int = 0
    #: Who stands by to go on in that epoch, as an owner.
    standby: str = ""
    #: How many owners in a row it has lost, each soon after its claim.
    recoveries: int = 0
    #: How the agent differs from the others, as `graphs.configuration.AgentConfiguration` reads it.
    configuration: Mapping[str, Any] = field(default_factory=dict)
    #: The session whose conversation this one goes on with; empty when it begins anew.
    continues: str = ""
    #: Unix seconds after which nobody may claim it any more.
    join_deadline: float = 0.0
    admitted_at: float | None = None
    published_at: float | None = None
    claimed_at: float | None = None
    connected_at: float | None = None
    first_audio_at: float | None = None
    recovering_at: float | None = None
    recovered_at: float | None = None
    ending_at: float | None = None
    ended_at: float | None = None

    @property
    def worker_id(self) -> str:
        """The id of its owner's worker (see `workers.py`); empty without an owner."""
        return worker_of(self.owner)

    @property
    def is_over(self) -> bool:
        """Whether the session has ended or failed."""
        return self.state in OVER

    @property
    def agent_identity(self) -> str:
        """The participant's identity of this epoch's agent in the room."""
        return f"{_AGENT}{self.session_id}-{self.epoch}"

    def epoch_of(self, identity: str) -> int | None:
        """Of which epoch of this session a participant is the agent; None when it is another one."""
        session_id, epoch = agent_of(identity) or ("", None)
        return epoch if session_id == self.session_id else None

    @property
    def task_id(self) -> str:
        """The Celery task's id: the session's own for the first epoch."""
        return self.session_id if self.epoch == 1 else f"{self.session_id}.{self.epoch}"

    def to_fields(self) -> dict[str, str]:
        """The record's hash fields; what is `None` is left out."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        fields["metadata"] = json.dumps(dict(self.metadata))
        fields["configuration"] = json.dumps(dict(self.configuration))
        return {name: str(value) for name, value in fields.items() if value is not None}

    @classmethod
    def from_fields(cls, fields: Mapping[str, str]) -> "Session":
        """The session of a record's hash fields; unknown fields of a newer version are ignored.

        Raises `RecordUnreadable`.
        """
        values: dict[str, Any] = {name: fields[name] for name in cls.__dataclass_fields__ if name in fields}
        try:
            values["metadata"] = json.loads(fields["metadata"])
            values["configuration"] = json.loads(fields.get("configuration", "{}"))
            values["state"] = State(fields["state"])
            values["epoch"] = int(fields["epoch"])
            values["recoveries"] = int(fields.get("recoveries", 0))
            values["offered_epoch"] = int(fields.get("offered_epoch", 0))
            if "reason" in fields:
                values["reason"] = Reason(fields["reason"])
            times = {name: float(value) for name, value in values.items() if name.endswith(("_at", "_deadline"))}
            return cls(**(values | times))
        except (KeyError, ValueError, TypeError) as error:
            raise RecordUnreadable() from error
