"""The JSON that the HTTP services take and give."""

import json
import logging
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from api.asked import Asked
from api.configuration import AgentConfiguration
from worker.fleet.joining import Joined
from worker.fleet.session import Session, State
from worker.fleet.workers import Fleet, WorkerStatus

logger = logging.getLogger(__name__)

#: The longest name of a room or a user: characters, and LiveKit's own limit in bytes of UTF-8.
NAME_LIMIT = 128
NAME_BYTES_LIMIT = 256
#: Letters, marks, digits, punctuation, symbols and the space between words, as `str.isprintable` has it.
_PRINTABLE = r"^[\p{L}\p{M}\p{N}\p{P}\p{S} ]+$"
#: The longest `metadata`, in bytes of JSON.
METADATA_LIMIT = 8 * 1024


def _name(text: str) -> str:
    """One spelling per name: of two rooms that look alike the caller would enter one and the agent the other."""
    if not text.isprintable():
        raise ValueError("characters that do not print are not allowed")
    if not unicodedata.is_normalized("NFC", text):
        raise ValueError("must be in Unicode's composed form (NFC)")
    if len(text.encode()) > NAME_BYTES_LIMIT:
        raise ValueError(f"at most {NAME_BYTES_LIMIT} bytes of UTF-8 are allowed")
    return text


def _small(metadata: dict[str, Any]) -> dict[str, Any]:
    if len(json.dumps(metadata)) > METADATA_LIMIT:
        raise ValueError(f"at most {METADATA_LIMIT} bytes of JSON are allowed")
    return metadata


def _whole(number: Any) -> Any:
    """JSON has one kind of number: 600.0 is an integer as well."""
    return int(number) if isinstance(number, float) and number.is_integer() else number


def _not_an_agent(identity: str) -> str:
    if identity.startswith("agent-"):
        raise ValueError("identities of agents are not given to callers")
    return identity


Name = Annotated[
    str,
    Field(
        min_length=1,
        max_length=NAME_LIMIT,
        description=f"Printable Unicode in its composed form (NFC), at most {NAME_BYTES_LIMIT} bytes of UTF-8.",
        json_schema_extra={"pattern": _PRINTABLE, "format": "printable-nfc"},
    ),
    AfterValidator(_name),
]
SessionId = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
#: What a worker is named on its command line, before the `@`.
WorkerName = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,128}$")]
#: Visible ASCII; no comma, since two headers arrive as one with a comma between them.
IdempotencyKey = Annotated[str, Field(pattern=r"^[!-+\--~]{1,128}$")]
Scalar = str | bool | int | Annotated[float, Field(allow_inf_nan=False)] | None
Metadata = Annotated[
    dict[str, Scalar], Field(description=f"At most {METADATA_LIMIT} bytes of JSON."), AfterValidator(_small)
]
Identity = Annotated[Name, AfterValidator(_not_an_agent), Field(json_schema_extra={"not": {"pattern": "^agent-"}})]
#: Redis' stream ids are two unsigned 64-bit numbers; 19 digits fit and last for ages.
Cursor = Annotated[str, Field(pattern=r"^[0-9]{1,19}-[0-9]{1,19}$")]


class JoinRequest(Asked):
    """Send an agent into `room` to talk with `user_id`; the conversation knows `metadata`.

    It goes on with that of `continue_session`, and knows its metadata too.
    """

    room: Name
    user_id: Name
    metadata: Metadata = Field(default_factory=dict)
    continue_session: SessionId | None = None
    configuration: AgentConfiguration = AgentConfiguration()


class JoinHeaders(Asked):
    """Requests with the same key make one session."""

    idempotency_key: IdempotencyKey | None = Field(default=None, alias="Idempotency-Key")


class LeaveRequest(Asked):
    """End a session."""

    session_id: SessionId


class SessionPath(Asked):
    """Whose address it is."""

    session_id: SessionId


class HandOverRequest(Asked):
    """Hand a live session over to the worker of this name, or without one to the emptiest other worker."""

    worker: WorkerName | None = None


class WorkerPath(Asked):
    """The name of a worker."""

    worker: WorkerName


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

    room: Name
    identity: Identity
    metadata: Metadata = Field(default_factory=dict)
    ttl: Annotated[int, BeforeValidator(_whole)] = Field(default=3600, ge=60, le=86400)
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


class HandOverAnswer(Answer):
    """The session that was asked to go to another worker, and who still has it."""

    session_id: str
    epoch: int
    worker: str


class WorkerAnswer(Answer):
    """A worker whose lease holds: `worker` is its id, `busy` counts the calls that it has on its `slots`."""

    worker: str
    name: str
    slots: int
    busy: int
    draining: bool
    started_at: float

    @classmethod
    def of(cls, status: WorkerStatus) -> "WorkerAnswer":
        """What its keeper says of it."""
        return cls(
            worker=status.worker_id,
            name=status.name,
            slots=status.slots,
            busy=status.busy,
            draining=status.draining,
            started_at=status.started_at,
        )


class DrainAnswer(Answer):
    """The workers of the name that were asked to drain; each begins within a second or two."""

    workers: list[WorkerAnswer]


class WorkersAnswer(Answer):
    """The fleet's workers, and how often their keepers have done what in others' place."""

    workers: list[WorkerAnswer]
    joins_open: bool
    actions: dict[str, int]


class Timings(Answer):
    """When a session got how far, in Unix seconds; null when not yet."""

    admitted_at: float | None
    claimed_at: float | None
    connected_at: float | None
    first_audio_at: float | None
    ended_at: float | None


class SessionAnswer(Answer):
    """A session as operators see it; `worker` is null until one has it, `room` for one of text."""

    session_id: str
    room: str | None
    user_id: str
    status: str
    reason: str | None
    epoch: int
    worker: str | None
    #: The session whose conversation it goes on with.
    continues: str | None
    created_at: float | None
    timings: Timings

    @classmethod
    def of(cls, session: Session) -> "SessionAnswer":
        """The record's public part."""
        return cls(
            session_id=session.session_id,
            room=session.room or None,
            user_id=session.user_id,
            status=session.state,
            reason=session.reason,
            epoch=session.epoch,
            worker=session.worker_id or None,
            continues=session.continues or None,
            created_at=session.admitted_at,
            timings=Timings(**{name: getattr(session, name) for name in Timings.model_fields}),
        )


class SessionsAnswer(Answer):
    """Sessions, the newest first."""

    sessions: list[SessionAnswer]


class TurnTimings(Answer):
    """Where the time of an answer went: moments in Unix seconds, durations in seconds.

    Of what was drafted while the caller was waited for, `graph_llm` and `tts` count what was left when the turn was
    over.
    """

    speech_ended_at: float
    endpointing: float
    stt: float
    graph_llm: float
    tts: float
    first_audio_at: float


class TurnAnswer(Answer):
    """What every committed turn has; `at` in Unix seconds."""

    cursor: str
    item_id: str
    at: float


class UserTurn(TurnAnswer):
    """What the caller said or wrote, and to which specialist."""

    role: Literal["user"]
    channel: Literal["voice", "chat"] = "voice"
    text: str
    specialist: str | None


class Citation(Answer):
    """A passage of a document that lay before the model when it answered."""

    source: str
    title: str
    passage_id: str


class AssistantTurn(TurnAnswer):
    """What the caller heard or read; `timings` when it answered speech."""

    role: Literal["assistant"]
    channel: Literal["voice", "chat"] = "voice"
    text: str
    specialist: str | None
    interrupted: bool
    timings: TurnTimings | None
    citations: list[Citation] = []


class TransferEvent(Answer):
    """The conversation went from one specialist to another."""

    kind: Literal["transfer"]
    source: str = Field(alias="from")
    target: str = Field(alias="to")


class ToolEvent(Answer):
    """A tool was used; without `ok` it refused or failed, and the model was told why."""

    kind: Literal["tool"]
    name: str
    ok: bool = True


class PassagesMissedEvent(Answer):
    """The answer went on without a look into the documents; `name` says why."""

    kind: Literal["passages_missed"]
    name: Literal["too_slow", "unavailable"]


class EventTurn(TurnAnswer):
    """What happened between two utterances."""

    role: Literal["event"]
    event: Annotated[TransferEvent | ToolEvent | PassagesMissedEvent, Field(discriminator="kind")]


Turn = Annotated[UserTurn | AssistantTurn | EventTurn, Field(discriminator="role")]
_TURN: TypeAdapter[UserTurn | AssistantTurn | EventTurn] = TypeAdapter(Turn)


class TurnsAnswer(Answer):
    """Committed turns in their order, each with its `cursor`; `cursor` is where to go on."""

    turns: list[Turn]
    cursor: str

    @classmethod
    def of(cls, turns: Sequence[tuple[str, Mapping[str, Any]]], *, after: str) -> "TurnsAnswer":
        """The turns behind `after`; what a newer worker wrote in a way not known here is passed over."""
        known = []
        for cursor, turn in turns:
            try:
                known.append(_TURN.validate_python({**turn, "cursor": cursor}))
            except ValidationError:
                logger.warning("turn %s is not shown: it is not readable", cursor)
        return cls(turns=known, cursor=turns[-1][0] if turns else after)


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


class WebhookAnswer(Answer):
    """What became of LiveKit's event; `session_id` is the session that it ended."""

    outcome: Literal["ignored", "replayed", "left_alone", "ended"]
    session_id: str | None = None


class Readiness(Answer):
    """Whether this replica can use Redis, why not, and the fleet: zeros when it is not known.

    `workers` counts all whose lease holds, `draining` those of them that take nothing new; `slots` and `free` are of
    the others. `detail` may also tell what should be set otherwise although it is no reason not to be ready.
    """

    status: Literal["ready", "redis_unavailable", "redis_misconfigured"]
    detail: str | None = None
    workers: int = 0
    slots: int = 0
    free: int = 0
    draining: int = 0
    joins_open: bool = False

    @classmethod
    def of(cls, fleet: Fleet, *, detail: str | None) -> "Readiness":
        """A replica that sees this fleet."""
        return cls(
            status="ready",
            detail=detail,
            workers=len(fleet.workers),
            slots=fleet.slots,
            free=fleet.free,
            draining=len(fleet.workers) - len(fleet.open_workers),
            joins_open=fleet.ready,
        )

    @classmethod
    def not_ready(cls, status: Literal["redis_unavailable", "redis_misconfigured"], *, detail: str) -> "Readiness":
        """A replica that can do nothing without Redis."""
        return cls(status=status, detail=detail)


class Ready(Answer):
    """This process is set up and serves; it needs nothing that could be missing."""

    status: Literal["ready"] = "ready"
