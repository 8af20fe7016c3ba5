"""The JSON that the HTTP services take and give."""

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from worker.fleet.control import Joined
from worker.fleet.session import Session, State

#: The longest `metadata`, in bytes of JSON.
METADATA_LIMIT = 8 * 1024
#: Redis' stream ids are two unsigned 64-bit numbers.
_STREAM_ID_PART = 2**64 - 1


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("control characters are not allowed")
    return text


def _small(metadata: dict[str, Any]) -> dict[str, Any]:
    if len(json.dumps(metadata)) > METADATA_LIMIT:
        raise ValueError(f"at most {METADATA_LIMIT} bytes of JSON are allowed")
    return metadata


def _not_an_agent(identity: str) -> str:
    if identity.startswith("agent-"):
        raise ValueError("identities of agents are not given to callers")
    return identity


def _stream_id(cursor: str) -> str:
    if any(int(part) > _STREAM_ID_PART for part in cursor.split("-")):
        raise ValueError("no such cursor")
    return cursor


Text = Annotated[str, Field(min_length=1, max_length=128), AfterValidator(_printable)]
Scalar = str | bool | int | Annotated[float, Field(allow_inf_nan=False)] | None
Metadata = Annotated[dict[str, Scalar], AfterValidator(_small)]
Identity = Annotated[Text, AfterValidator(_not_an_agent)]
Cursor = Annotated[str, Field(pattern=r"^[0-9]{1,20}-[0-9]{1,20}$"), AfterValidator(_stream_id)]


class Asked(BaseModel):
    """Base of what comes from outside: nothing unknown, nothing converted."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True)


class JoinRequest(Asked):
    """Send an agent into `room` to talk with `user_id`; the conversation knows `metadata`."""

    room: Text
    user_id: Text
    metadata: Metadata = Field(default_factory=dict)


class JoinHeaders(Asked):
    """Requests with the same key make one session."""

    idempotency_key: Text | None = None


class LeaveRequest(Asked):
    """End a session."""

    session_id: Text


class SessionsQuery(Asked):
    """Which sessions to list; all when there is no `state`."""

    state: State | None = None


class TurnsQuery(Asked):
    """Which turns to list: those after the cursor of an earlier answer."""

    after: Cursor = "0-0"


class TokenRequest(Asked):
    """Let `identity` into `room`, where an agent waits; `ttl` is the token's, in seconds.

    With `agent="optional"` the token is given even when no agent can come.
    """

    room: Text
    identity: Identity
    metadata: Metadata = Field(default_factory=dict)
    ttl: int = Field(default=3600, ge=60, le=86400)
    agent: Literal["required", "optional"] = "required"


class Answer(BaseModel):
    """Base of what is given; a reader passes over fields of a newer service."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)


class Health(Answer):
    """This process serves."""

    status: Literal["ok"] = "ok"


class Problem(Answer):
    """An error as RFC 9457 has it; `code` is stable, `request_id` is in the logs."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str


class JoinAnswer(Answer):
    """The session of the room, and whether this request made it."""

    session_id: str
    room: str
    status: str
    created: bool

    @classmethod
    def of(cls, joined: Joined) -> "JoinAnswer":
        """The answer to a join that was admitted."""
        session = joined.session
        return cls(session_id=session.session_id, room=session.room, status=session.state, created=joined.created)


class LeaveAnswer(Answer):
    """The session that was asked to end, and its state when it was."""

    session_id: str
    status: str


class Timings(Answer):
    """When a session got how far, in Unix seconds; null when not yet."""

    admitted_at: float | None
    claimed_at: float | None
    connected_at: float | None
    first_audio_at: float | None
    ended_at: float | None


class SessionAnswer(Answer):
    """A session as operators see it; `worker` is null while it is queued."""

    session_id: str
    room: str
    user_id: str
    status: str
    reason: str | None
    epoch: int
    worker: str | None
    created_at: float | None
    timings: Timings

    @classmethod
    def of(cls, session: Session) -> "SessionAnswer":
        """The record's public part."""
        return cls(
            session_id=session.session_id,
            room=session.room,
            user_id=session.user_id,
            status=session.state,
            reason=session.reason,
            epoch=session.epoch,
            worker=session.owner or None,
            created_at=session.admitted_at,
            timings=Timings(**{name: getattr(session, name) for name in Timings.model_fields}),
        )


class SessionsAnswer(Answer):
    """Sessions, the newest first."""

    sessions: list[SessionAnswer]


class TurnsAnswer(Answer):
    """Committed turns in their order, each with its `cursor`; `cursor` is where to go on."""

    turns: list[dict[str, Any]]
    cursor: str


class AgentError(Answer):
    """Why no agent comes."""

    code: str
    detail: str


class TokenAnswer(Answer):
    """What a caller needs to enter the room, and the session that waits there or why none does."""

    token: str
    url: str
    room: str
    identity: str
    session: JoinAnswer | None
    agent_error: AgentError | None
