"""What the HTTP services answer when something fails; no other module knows an error's status or code.

ApiError
├── MalformedBody
├── InvalidRequest
└── AgentUnavailable
"""

from collections.abc import Mapping
from dataclasses import dataclass

from flask import Response
from werkzeug.exceptions import HTTPException, MethodNotAllowed, NotFound, UnsupportedMediaType

from api.models import Problem
from worker.fleet.errors import (
    FleetFull,
    FleetNotReady,
    IdempotencyKeyReused,
    NoWorker,
    RoomChanging,
    SessionNotFound,
    StateUnavailable,
)


class ApiError(Exception):
    """The request could not be served."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (self.__doc__ or "").strip())


class MalformedBody(ApiError):
    """The body is not JSON."""


class InvalidRequest(ApiError):
    """A field is missing, unknown or wrong."""


class AgentUnavailable(ApiError):
    """The agent service could not be reached or did not answer as agreed."""

    def __init__(
        self,
        message: str | None = None,
        *,
        code: str = "agent_service_unavailable",
        retry_after: int = 5,
    ) -> None:
        super().__init__(message)
        #: The agent service's own code, when it gave a reason.
        self.code = code
        #: Seconds after which a retry can succeed.
        self.retry_after = retry_after


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
    NotFound: ProblemKind(404, "not_found", "There is no such address"),
    MethodNotAllowed: ProblemKind(405, "method_not_allowed", "The address does not take this method"),
    UnsupportedMediaType: ProblemKind(415, "unsupported_media_type", "The body must be application/json"),
    SessionNotFound: ProblemKind(404, "session_not_found", "There is no such session"),
    IdempotencyKeyReused: ProblemKind(409, "idempotency_key_reused", "The key belongs to another join"),
    RoomChanging: ProblemKind(503, "room_changing", "The room is not free yet", retry_after=1),
    FleetFull: ProblemKind(503, "fleet_full", "No agent is free"),
    FleetNotReady: ProblemKind(503, "fleet_not_ready", "The fleet is starting"),
    NoWorker: ProblemKind(503, "no_worker", "No agent is running"),
    StateUnavailable: ProblemKind(503, "redis_unavailable", "The fleet's state is out of reach", retry_after=1),
    AgentUnavailable: ProblemKind(503, "agent_service_unavailable", "No agent can join"),
    Exception: _INTERNAL,
}


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
    if isinstance(error, HTTPException) and type(error) not in _KINDS:
        return ProblemKind(error.code or 500, error.name.lower().replace(" ", "_"), error.name)
    return next(_KINDS[ancestor] for ancestor in type(error).__mro__ if ancestor in _KINDS)


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
    return headers
