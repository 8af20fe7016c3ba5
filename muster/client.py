"""The Python client of both services: sessions of the agent service, tokens of the control plane."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Annotated, Any, Literal, Self, TypeVar

import httpx
from pydantic import Field, TypeAdapter, ValidationError

from muster.errors import (
    AgentUnavailable,
    ChatTurnNotFound,
    FleetFull,
    FleetNotReady,
    HandOverImpossible,
    IdempotencyKeyReused,
    InvalidRequest,
    KeyRefused,
    NoWorker,
    RequestRefused,
    RoomChanging,
    ServiceBroken,
    ServiceUnreachable,
    SessionBusy,
    SessionNotFound,
    StateMisconfigured,
    StateUnavailable,
    UnexpectedAnswer,
    WorkerNotFound,
)

#: Seconds; a service answers within a few even when its Redis is frozen, so that this is far above.
DEFAULT_TIMEOUT = 10.0

Metadata = Mapping[str, str | int | float | bool | None]

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Joined:
    """A session that was asked for; `created` is false when the room had one already."""

    session_id: str
    room: str
    status: str
    created: bool


@dataclass(frozen=True, slots=True)
class Leaving:
    """A session that was asked to end, and how far it has come."""

    session_id: str
    status: str


@dataclass(frozen=True, slots=True)
class HandingOver:
    """A session whose `worker` was asked to hand it over; when that is done it has another epoch and worker."""

    session_id: str
    epoch: int
    worker: str


@dataclass(frozen=True, slots=True)
class Worker:
    """A worker that runs; `worker` is its id, which sessions name, `busy` counts the calls it has on its `slots`."""

    worker: str
    name: str
    slots: int
    busy: int
    draining: bool
    started_at: float


@dataclass(frozen=True, slots=True)
class Workers:
    """The fleet's workers, and how often their keepers have done what for those that could not do it themselves."""

    workers: tuple[Worker, ...]
    joins_open: bool
    actions: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Draining:
    """Workers that were asked to drain."""

    workers: tuple[Worker, ...]


@dataclass(frozen=True, slots=True)
class SessionTimings:
    """When a session reached its milestones, unix seconds; None for those still ahead."""

    admitted_at: float | None = None
    claimed_at: float | None = None
    connected_at: float | None = None
    first_audio_at: float | None = None
    ended_at: float | None = None


@dataclass(frozen=True, slots=True)
class Session:
    """An agent's stay in a room, or a conversation of text without one, as the fleet knows it.

    `continues` is the session whose conversation it goes on with.
    """

    session_id: str
    room: str | None
    status: str
    user_id: str | None = None
    reason: str | None = None
    epoch: int | None = None
    worker: str | None = None
    continues: str | None = None
    created_at: float | None = None
    timings: SessionTimings = SessionTimings()

    @property
    def over(self) -> bool:
        return self.status in {"ended", "failed"}


@dataclass(frozen=True, slots=True)
class TurnTimings:
    """Where the time of an answer went, as the agent measured it.

    `speech_ended_at` and `first_audio_at` are unix seconds on the agent's clock, the rest are seconds. Of what was
    drafted while the caller was waited for, `graph_llm` and `tts` count what was left when the turn was over.
    """

    speech_ended_at: float
    endpointing: float
    stt: float
    graph_llm: float
    tts: float
    first_audio_at: float


@dataclass(frozen=True, slots=True)
class TurnEvent:
    """What happened between two utterances: a "transfer" from `source` to `target`, a "tool" `name`,
    or "passages_missed" and why (`name`)."""

    kind: str
    source: Annotated[str | None, Field(alias="from")] = None
    target: Annotated[str | None, Field(alias="to")] = None
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Citation:
    """A passage of a document that lay before the model; `title` is the path of headings to it."""

    source: str
    title: str
    passage_id: str


@dataclass(frozen=True, slots=True)
class Turn:
    """One committed item of a conversation: words, or an event between them.

    `text` of an interrupted answer is the part that was heard. Only an answer to speech has `timings`,
    only the role "event" an `event`, only an answer `citations`: what the model had before it.
    """

    cursor: str
    role: Literal["user", "assistant", "event"]
    channel: Literal["voice", "chat"] = "voice"
    item_id: str | None = None
    text: str | None = None
    specialist: str | None = None
    interrupted: bool = False
    at: float | None = None
    timings: TurnTimings | None = None
    event: TurnEvent | None = None
    citations: tuple[Citation, ...] = ()


@dataclass(frozen=True, slots=True)
class TurnPage:
    """Turns behind a cursor, oldest first, and the cursor to go on with."""

    turns: tuple[Turn, ...]
    cursor: str


@dataclass(frozen=True, slots=True)
class ChatUsage:
    """What an answer's model calls consumed, in tokens."""

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class ChatEvent:
    """One event of an answer to a text; which fields are there depends on its `kind`.

    "session": `session_id`, `turn_id`, `status`. "begun": `specialist`; text before it belongs to an attempt that broke
    off. "text": a piece of the answer, and the `specialist` who gives it. "transfer": from `source` to `target`.
    "tool": its `name`. "done": the whole answer, with `interrupted`, `usage`, `citations` and the `cursor` of its
    turn. "error": `code` and `detail`. The last two end an answer. `event_id` is where to go on after it.
    """

    kind: str
    event_id: str | None = None
    session_id: str | None = None
    turn_id: str | None = None
    status: str | None = None
    text: str | None = None
    specialist: str | None = None
    source: Annotated[str | None, Field(alias="from")] = None
    target: Annotated[str | None, Field(alias="to")] = None
    name: str | None = None
    interrupted: bool = False
    usage: ChatUsage | None = None
    citations: tuple[Citation, ...] = ()
    cursor: str | None = None
    code: str | None = None
    detail: str | None = None

    @property
    def is_last(self) -> bool:
        return self.kind in ("done", "error")


@dataclass(frozen=True, slots=True)
class AgentError:
    """Why the agent cannot join a room for which a token was given all the same."""

    code: str
    detail: str


@dataclass(frozen=True, slots=True)
class CallerToken:
    """A caller's way into a room, and the session that was started there."""

    token: str = field(repr=False)
    url: str
    room: str
    identity: str
    session: Joined | None
    agent_error: AgentError | None


@dataclass(frozen=True, slots=True)
class _Sessions:
    sessions: tuple[Session, ...]


@dataclass(frozen=True, slots=True)
class _Problem:
    """application/problem+json."""

    code: str
    detail: str
    request_id: str


REFUSALS: Mapping[str, type[RequestRefused]] = {
    "invalid_request": InvalidRequest,
    "bad_request": InvalidRequest,
    "not_found": InvalidRequest,
    "method_not_allowed": InvalidRequest,
    "request_timeout": InvalidRequest,
    "payload_too_large": InvalidRequest,
    "uri_too_long": InvalidRequest,
    "unsupported_media_type": InvalidRequest,
    "expectation_failed": InvalidRequest,
    "headers_too_large": InvalidRequest,
    "not_implemented": InvalidRequest,
    "key_missing": KeyRefused,
    "key_malformed": KeyRefused,
    "key_unknown": KeyRefused,
    "keys_required": KeyRefused,
    "session_not_found": SessionNotFound,
    "worker_not_found": WorkerNotFound,
    "idempotency_key_reused": IdempotencyKeyReused,
    "handover_impossible": HandOverImpossible,
    "turn_not_found": ChatTurnNotFound,
    "turn_in_progress": SessionBusy,
    "session_changing": SessionBusy,
    "session_not_over": SessionBusy,
    "internal_error": ServiceBroken,
    "record_unreadable": ServiceBroken,
    "fleet_full": FleetFull,
    "fleet_not_ready": FleetNotReady,
    "no_worker": NoWorker,
    "room_changing": RoomChanging,
    "redis_unavailable": StateUnavailable,
    "redis_misconfigured": StateMisconfigured,
    "agent_service_unavailable": AgentUnavailable,
    "agent_service_key_refused": AgentUnavailable,
}


class MusterClient:
    """Talks to the agent service and, when its address is given, to the control plane.

    Every method raises `ServiceUnreachable` when nobody answers, a `RequestRefused` by the problem's
    code when the service says no, and `UnexpectedAnswer` for anything else. `api_key` is shown to both
    services. Usable from several threads and as a context manager. `transport` replaces the network,
    for tests.
    """

    def __init__(
        self,
        agent_service: str,
        *,
        control_plane: str | None = None,
        api_key: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._agent_service = agent_service.rstrip("/")
        self._control_plane = control_plane.rstrip("/") if control_plane else None
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else None
        self._http = httpx.Client(headers=headers, timeout=timeout, transport=transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def join(
        self,
        *,
        room: str,
        user_id: str,
        metadata: Metadata | None = None,
        continue_session: str | None = None,
        configuration: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
    ) -> Joined:
        """Sends an agent into `room`. Repeating it with the same key never starts a second session.

        `configuration` is JSON as the README describes it: specialists, instructions, voice and so on. The session goes
        on with the conversation of `continue_session`, which must be over: raises `SessionNotFound` or `SessionBusy`
        otherwise.
        """
        body: dict[str, Any] = {"room": room, "user_id": user_id}
        body |= {"metadata": dict(metadata)} if metadata else {}
        body |= {"configuration": dict(configuration)} if configuration else {}
        body |= {"continue_session": continue_session} if continue_session else {}
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else None
        return self._ask(Joined, "POST", f"{self._agent_service}/join", json=body, headers=headers)

    def leave(self, session_id: str) -> Leaving:
        """Asks the agent to leave; harmless when it has left. Raises `SessionNotFound`."""
        return self._ask(Leaving, "POST", f"{self._agent_service}/leave", json={"session_id": session_id})

    def hand_over(self, session_id: str, *, to: str | None = None) -> HandingOver:
        """Asks a live session's worker to hand it over to the worker named `to`, or to the emptiest other one.

        Raises `SessionNotFound` and `HandOverImpossible`.
        """
        url = f"{self._agent_service}/sessions/{session_id}/handover"
        return self._ask(HandingOver, "POST", url, json={"worker": to} if to else {})

    def workers(self) -> Workers:
        """The workers that run."""
        return self._ask(Workers, "GET", f"{self._agent_service}/workers")

    def drain(self, name: str) -> Draining:
        """Asks the workers of this name to take no new call, hand theirs over and exit; usually that is one.

        One that is not among `workers()` any more has gone. Raises `WorkerNotFound`.
        """
        return self._ask(Draining, "POST", f"{self._agent_service}/workers/{name}/drain")

    def session(self, session_id: str) -> Session:
        """One session, live or over. Raises `SessionNotFound`."""
        return self._ask(Session, "GET", f"{self._agent_service}/sessions/{session_id}")

    def sessions(self, *, state: str | None = None) -> tuple[Session, ...]:
        """All sessions the fleet knows, or those in a `state` such as "live"."""
        query = {"state": state} if state else {}
        return self._ask(_Sessions, "GET", f"{self._agent_service}/sessions", params=query).sessions

    def turns(self, session_id: str, *, after: str | None = None) -> TurnPage:
        """What was said in a session behind the cursor `after`, or from the beginning."""
        query = {"after": after} if after else {}
        return self._ask(TurnPage, "GET", f"{self._agent_service}/sessions/{session_id}/turns", params=query)

    def chat(
        self,
        text: str,
        *,
        user_id: str,
        session_id: str | None = None,
        metadata: Metadata | None = None,
        idempotency_key: str | None = None,
    ) -> Iterator[ChatEvent]:
        """Writes `text` to a session, or to a new one that knows `metadata`, and yields the answer as it is given.

        The first event names the session. Repeating it with the same key writes no second text. Raises
        `SessionNotFound` and `SessionBusy`; what goes wrong later is the last event.
        """
        body: dict[str, Any] = {"user_id": user_id, "text": text}
        body |= {"session_id": session_id} if session_id else {}
        body |= {"metadata": dict(metadata)} if metadata else {}
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else None
        return self._stream("POST", f"{self._agent_service}/chat", json=body, headers=headers)

    def follow(self, session_id: str, turn_id: str, *, after: str | None = None) -> Iterator[ChatEvent]:
        """The events of an answer again, those behind the `event_id` given as `after`. Raises `ChatTurnNotFound`."""
        headers = {"Last-Event-ID": after} if after else None
        return self._stream("GET", f"{self._agent_service}/chat/{session_id}/{turn_id}", headers=headers)

    def token(
        self,
        *,
        room: str,
        identity: str,
        metadata: Metadata | None = None,
        ttl: int | None = None,
        agent: Literal["required", "optional"] = "required",
    ) -> CallerToken:
        """A token for a caller, whose agent is on its way when this returns.

        With `agent="optional"` a token is given even if no agent can join; `agent_error` tells why.
        """
        if self._control_plane is None:
            raise ValueError("a token needs the control plane's address")
        body: dict[str, Any] = {"room": room, "identity": identity, "agent": agent}
        body |= {"metadata": dict(metadata)} if metadata else {}
        body |= {"ttl": ttl} if ttl else {}
        return self._ask(CallerToken, "POST", f"{self._control_plane}/api/v1/livekit/token", json=body)

    def _stream(self, method: str, url: str, **request: Any) -> Iterator[ChatEvent]:
        try:
            with self._http.stream(method, url, **request) as response:
                if response.is_error:
                    response.read()
                    raise _refusal(response)
                yield from _events(response.iter_lines())
        except httpx.TransportError as error:
            raise ServiceUnreachable(f"{url} does not answer: {error}") from error
        except (ValidationError, ValueError) as error:
            raise UnexpectedAnswer(f"{url} answered in an unexpected form: {error}") from error

    def _ask(self, kind: type[Answer], method: str, url: str, **request: Any) -> Answer:
        try:
            response = self._http.request(method, url, **request)
        except httpx.TransportError as error:
            raise ServiceUnreachable(f"{url} does not answer: {error}") from error
        if response.is_error:
            raise _refusal(response)
        try:
            return TypeAdapter(kind).validate_json(response.content)
        except ValidationError as error:
            raise UnexpectedAnswer(f"{url} answered in an unexpected form: {error}") from error


def _events(lines: Iterable[str]) -> Iterator[ChatEvent]:
    """Server-sent events: fields line by line, an empty line behind each event; a line without a name says nothing."""
    fields: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        if name:
            fields[name] = value.removeprefix(" ")
        elif not line and "event" in fields:
            data = json.loads(fields.get("data", "{}"))
            yield TypeAdapter(ChatEvent).validate_python(
                {**data, "kind": fields["event"], "event_id": fields.get("id")}
            )
            fields = {}


def _refusal(response: httpx.Response) -> RequestRefused | UnexpectedAnswer:
    try:
        problem = TypeAdapter(_Problem).validate_json(response.content)
    except ValidationError:
        return UnexpectedAnswer(f"{response.url} answered {response.status_code} without a reason")
    retry_after = response.headers.get("Retry-After", "")
    return REFUSALS.get(problem.code, RequestRefused)(
        problem.detail,
        code=problem.code,
        status=response.status_code,
        request_id=problem.request_id,
        retry_after=float(retry_after) if retry_after.isdigit() else None,
    )
