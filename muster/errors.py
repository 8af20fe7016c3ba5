"""What can go wrong between the command, the Python client and the two services.

MusterError
├── ServiceUnreachable      nobody answers at the address
├── UnexpectedAnswer        somebody answers, but not in the services' language
├── CallFailed              a simulated call could not be held
├── ScenarioInvalid         a file of `muster eval` cannot be used
└── RequestRefused          the service said no, with a code
    ├── InvalidRequest      invalid_request, and whatever else no valid request meets
    ├── KeyRefused          key_missing, key_malformed, key_unknown, keys_required
    ├── SessionNotFound     session_not_found
    ├── WorkerNotFound      worker_not_found
    ├── IdempotencyKeyReused    idempotency_key_reused
    ├── HandOverImpossible      handover_impossible
    ├── ServiceBroken       internal_error, record_unreadable
    └── AgentUnavailable    agent_service_unavailable; like all below it: no agent can join, try again later
        ├── FleetFull           fleet_full
        ├── FleetNotReady       fleet_not_ready
        ├── NoWorker            no_worker
        ├── RoomChanging        room_changing
        ├── StateUnavailable    redis_unavailable
        └── StateMisconfigured  redis_misconfigured
"""


class MusterError(Exception):
    """Something went wrong."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or self.__doc__)


class ServiceUnreachable(MusterError):
    """The service does not answer."""


class UnexpectedAnswer(MusterError):
    """The service gave an answer that this client does not understand."""


class CallFailed(MusterError):
    """The call could not be held."""


class ScenarioInvalid(MusterError):
    """The scenario cannot be used."""


class RequestRefused(MusterError):
    """The service refused the request."""

    def __init__(
        self,
        message: str | None = None,
        *,
        code: str,
        status: int,
        request_id: str,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.status = status
        self.request_id = request_id
        #: Seconds after which the service suggests to try again.
        self.retry_after = retry_after


class InvalidRequest(RequestRefused):
    """The service does not accept a request like this."""


class KeyRefused(RequestRefused):
    """The service is not open to this key, or not to requests without one."""


class SessionNotFound(RequestRefused):
    """There is no session with this id."""


class WorkerNotFound(RequestRefused):
    """No worker of this name is running."""


class IdempotencyKeyReused(RequestRefused):
    """The idempotency key belongs to another request."""


class SessionBusy(RequestRefused):
    """The session is being spoken or written to, or is just starting or ending."""


class ChatTurnNotFound(RequestRefused):
    """There is no such text, or it was answered long ago."""


class HandOverImpossible(RequestRefused):
    """The session is not live, or no other worker is free."""


class ServiceBroken(RequestRefused):
    """Something broke in the service; its log has the request id."""


class AgentUnavailable(RequestRefused):
    """No agent can join at the moment."""


class FleetFull(AgentUnavailable):
    """All agents are busy and the queue is full."""


class FleetNotReady(AgentUnavailable):
    """The fleet is starting."""


class NoWorker(AgentUnavailable):
    """No worker is running."""


class RoomChanging(AgentUnavailable):
    """The room's last agent is just leaving."""


class StateUnavailable(AgentUnavailable):
    """The service cannot reach its state."""


class StateMisconfigured(AgentUnavailable):
    """The service's Redis is not set up as the fleet needs it."""
