"""What the HTTP services answer when something fails; no other module knows an error's status or code.

ApiError
├── MalformedBody
├── InvalidRequest
├── KeyRefused
│   ├── KeyMissing
│   ├── KeyMalformed
│   └── KeyUnknown
├── KeysRequired
├── KeyNameInvalid
├── WebhooksNotConfigured
├── WebhookNotSigned
├── WebhookForged
├── WebhookMalformed
└── AgentUnavailable
    └── AgentServiceKeyRefused
"""

from collections.abc import Mapping
from dataclasses import dataclass

from flask import Response
from werkzeug.exceptions import (
    ExpectationFailed,
    HTTPException,
    InternalServerError,
    MethodNotAllowed,
    NotFound,
    NotImplemented,  # noqa: A004
    RequestEntityTooLarge,
    RequestHeaderFieldsTooLarge,
    RequestTimeout,
    RequestURITooLarge,
    UnsupportedMediaType,
)

from api.models import Problem
from worker.fleet.errors import (
    ChatTurnNotFound,
    FleetFull,
    FleetNotReady,
    HandOverImpossible,
    IdempotencyKeyReused,
    NoWorker,
    RecordUnreadable,
    RoomChanging,
    SessionChanging,
    SessionNotFound,
    SessionNotOver,
    StateMisconfigured,
    StateUnavailable,
    TurnInProgress,
    WorkerNotFound,
)


class ApiError(Exception):
    """The request could not be served."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (self.__doc__ or "").strip())


class MalformedBody(ApiError):
    """The body is not JSON."""


class InvalidRequest(ApiError):
    """A field is missing, unknown or wrong."""


class KeyRefused(ApiError):
    """The request has no key that opens this service."""


class KeyMissing(KeyRefused):
    """Send your key as `Authorization: Bearer KEY`."""


class KeyMalformed(KeyRefused):
    """The Authorization header is not `Bearer KEY`."""


class KeyUnknown(KeyRefused):
    """The key is not one of this service's, or not any more."""


class KeysRequired(ApiError):
    """This service has no keys and therefore serves its own machine only; set MUSTER_API_KEYS."""


class KeyNameInvalid(ApiError):
    """A key's name has 1 to 64 letters, digits, dots, underscores and hyphens."""


class WebhooksNotConfigured(ApiError):
    """This service does not know LiveKit's keys; set LIVEKIT_API_KEY and LIVEKIT_API_SECRET."""


class WebhookNotSigned(ApiError):
    """The Authorization header with LiveKit's signature is missing."""


class WebhookForged(ApiError):
    """The signature is not LiveKit's, not for this body, or not for this time."""


class WebhookMalformed(ApiError):
    """The body is signed and yet not one of LiveKit's events."""


class AgentUnavailable(ApiError):
    """The agent service could not be reached or did not answer as agreed."""

    def __init__(
        self,
        message: str | None = None,
        *,
        code: str | None = None,
        retry_after: int = 5,
    ) -> None:
        super().__init__(message)
        #: The agent service's own code, when it gave a reason.
        self.code = code or _kind(self).code
        #: Seconds after which a retry can succeed.
        self.retry_after = retry_after


class AgentServiceKeyRefused(AgentUnavailable):
    """The agent service refuses the control plane's own key."""


@dataclass(frozen=True)
class ProblemKind:
    """How one class of exceptions is told to a client; `retry_after` in seconds."""

    status: int
    code: str
    title: str
    retry_after: int | None = None


_INTERNAL = ProblemKind(500, "internal_error", "Something broke in this service")
_KINDS: Mapping[type[Exception], ProblemKind] = {
    MalformedBody: ProblemKind(400, "invalid_request", "The body is not JSON"),
    InvalidRequest: ProblemKind(422, "invalid_request", "The request is not valid"),
    KeyMissing: ProblemKind(401, "key_missing", "A key is needed"),
    KeyMalformed: ProblemKind(401, "key_malformed", "The key is not readable"),
    KeyUnknown: ProblemKind(401, "key_unknown", "The key opens nothing here"),
    KeysRequired: ProblemKind(403, "keys_required", "This service is not open to the network"),
    WebhooksNotConfigured: ProblemKind(404, "webhooks_not_configured", "This service takes no webhooks"),
    WebhookNotSigned: ProblemKind(401, "webhook_not_signed", "The webhook is not signed"),
    WebhookForged: ProblemKind(401, "webhook_forged", "The webhook is not from LiveKit"),
    WebhookMalformed: ProblemKind(400, "webhook_malformed", "The webhook is no event"),
    NotFound: ProblemKind(404, "not_found", "There is no such address"),
    MethodNotAllowed: ProblemKind(405, "method_not_allowed", "The address does not take this method"),
    RequestEntityTooLarge: ProblemKind(413, "payload_too_large", "The body is too large"),
    UnsupportedMediaType: ProblemKind(415, "unsupported_media_type", "The body is not of the right type"),
    SessionNotFound: ProblemKind(404, "session_not_found", "There is no such session"),
    WorkerNotFound: ProblemKind(404, "worker_not_found", "There is no such worker"),
    ChatTurnNotFound: ProblemKind(404, "turn_not_found", "There is no such text"),
    IdempotencyKeyReused: ProblemKind(409, "idempotency_key_reused", "The key belongs to another request"),
    SessionNotOver: ProblemKind(409, "session_not_over", "The session is not over"),
    SessionChanging: ProblemKind(409, "session_changing", "The session takes no text yet", retry_after=1),
    TurnInProgress: ProblemKind(409, "turn_in_progress", "Another text is being answered", retry_after=1),
    HandOverImpossible: ProblemKind(409, "handover_impossible", "The session cannot be handed over"),
    RecordUnreadable: ProblemKind(500, "record_unreadable", "The session's record cannot be read"),
    RoomChanging: ProblemKind(503, "room_changing", "The room is not free yet", retry_after=1),
    FleetFull: ProblemKind(503, "fleet_full", "No agent is free"),
    FleetNotReady: ProblemKind(503, "fleet_not_ready", "The fleet is starting"),
    NoWorker: ProblemKind(503, "no_worker", "No agent is running"),
    StateMisconfigured: ProblemKind(
        503, "redis_misconfigured", "Redis is not set up as the fleet needs it", retry_after=5
    ),
    StateUnavailable: ProblemKind(503, "redis_unavailable", "The fleet's state is out of reach", retry_after=1),
    AgentUnavailable: ProblemKind(503, "agent_service_unavailable", "No agent can join"),
    AgentServiceKeyRefused: ProblemKind(503, "agent_service_key_refused", "No agent can join"),
    # What the HTTP server refuses before a service sees it (api/http_worker.py).
    RequestTimeout: ProblemKind(408, "request_timeout", "The request took too long to arrive"),
    RequestURITooLarge: ProblemKind(414, "uri_too_long", "The address is too long"),
    ExpectationFailed: ProblemKind(417, "expectation_failed", "The expectation cannot be met"),
    RequestHeaderFieldsTooLarge: ProblemKind(431, "headers_too_large", "The headers are too large"),
    NotImplemented: ProblemKind(501, "not_implemented", "The request asks for what this server does not do"),
    # What the framework may refuse besides, such as a body that breaks off.
    HTTPException: ProblemKind(400, "bad_request", "The request cannot be read"),
    InternalServerError: _INTERNAL,
    Exception: _INTERNAL,
}

#: Every code that an answer can carry, with its statuses in ascending order.
STATUSES_BY_CODE: Mapping[str, tuple[int, ...]] = {
    code: tuple(sorted({kind.status for kind in _KINDS.values() if kind.code == code}))
    for code in sorted({kind.code for kind in _KINDS.values()})
}
#: What is refused before it is known which operation a request is for.
OUTSIDE_OPERATIONS: tuple[type[Exception], ...] = (
    NotFound,
    MethodNotAllowed,
    HTTPException,
    RequestTimeout,
    RequestEntityTooLarge,
    RequestURITooLarge,
    ExpectationFailed,
    RequestHeaderFieldsTooLarge,
    NotImplemented,
)
#: Everything that is told with 503: trying again later can help.
TEMPORARY = tuple(error_class for error_class, kind in _KINDS.items() if kind.status == 503)


def kind_of(error_class: type[Exception]) -> ProblemKind:
    """How this class of exceptions is told to a client."""
    return next(_KINDS[ancestor] for ancestor in error_class.__mro__ if ancestor in _KINDS)


def is_unexpected(error: Exception) -> bool:
    """Whether this is a defect of ours, to be logged with its traceback."""
    return _kind(error) is _INTERNAL


def problem_response(error: Exception, *, request_id: str) -> Response:
    """The answer to a failed request as `application/problem+json`."""
    kind = _kind(error)
    # A refused join is told in the agent service's own words.
    code = error.code if isinstance(error, AgentUnavailable) else kind.code
    problem = Problem(
        type=f"urn:problem-type:muster:{code}",
        title=kind.title,
        status=kind.status,
        detail=_detail(error),
        code=code,
        request_id=request_id,
    )
    response = Response(problem.model_dump_json(), status=kind.status, content_type="application/problem+json")
    response.headers.extend(_headers(error, kind))
    return response


def _kind(error: Exception) -> ProblemKind:
    return kind_of(type(error))


def _detail(error: Exception) -> str:
    if is_unexpected(error):
        return "The request id finds the cause in this service's log."
    if isinstance(error, HTTPException):
        return error.description or error.name
    return str(error)


def _headers(error: Exception, kind: ProblemKind) -> dict[str, str]:
    retry_after = getattr(error, "retry_after", kind.retry_after)
    headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
    if isinstance(error, MethodNotAllowed):
        headers["Allow"] = ", ".join(sorted(error.valid_methods or ()))
    if kind.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return headers
