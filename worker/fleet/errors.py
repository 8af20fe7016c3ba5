"""The exceptions of the fleet; a class's docstring is its message.

FleetError
├── SettingsInvalid
├── StateUnavailable
├── RoomServerAway
├── WorkerNotFound
├── StateMisconfigured
├── SessionNotFound
├── SessionFailed
├── RecordUnreadable
├── RoomChanging
├── SessionChanging
├── SessionNotOver
├── TurnInProgress
├── ChatTurnNotFound
├── IdempotencyKeyReused
├── HandOverImpossible
├── MoveRefused
│   ├── StaleEpoch
│   ├── IllegalMove
│   └── RecoveriesExhausted
└── JoinRefused
    ├── FleetNotReady
    ├── NoWorker
    └── FleetFull
"""

from typing import ClassVar


class FleetError(Exception):
    """Something in the fleet failed."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (self.__doc__ or "").strip())


class SettingsInvalid(FleetError):
    """Some settings are missing or wrong."""


class StateUnavailable(FleetError):
    """Redis could not be reached or did not answer in time."""


class RoomServerAway(FleetError):
    """The LiveKit server could not be reached or did not do what it was asked for."""


class WorkerNotFound(FleetError):
    """No worker of this name or id has a lease."""


class StateMisconfigured(FleetError):
    """Redis is not set up as the fleet needs it."""

    #: Seconds after which Redis is asked again.
    retry_after: ClassVar[int] = 5


class SessionNotFound(FleetError):
    """There is no session with this id, or it ended long ago."""


class SessionFailed(FleetError):
    """The session ended `failed`; its message is the reason. It ends the session's task, so that Flower shows both."""

    def __init__(self, reason: str) -> None:
        # A plain string: Flower shows the exception's `repr`, and another process loads it.
        super().__init__(str(reason))


class RecordUnreadable(FleetError):
    """The session's record is damaged or of a version that this process does not know."""


class RoomChanging(FleetError):
    """The room's session is just starting or leaving; try again in a second."""


class SessionChanging(FleetError):
    """The session is just starting or ending; try again in a second."""

    #: Seconds after which a retry can succeed.
    retry_after: ClassVar[int] = 1


class SessionNotOver(FleetError):
    """The session to go on with is not over."""


class TurnInProgress(FleetError):
    """Another text of this session is being answered; try again when it is."""

    def __init__(self, *, retry_after: int) -> None:
        super().__init__()
        #: Seconds after which it is over, unless whoever answers it needs longer.
        self.retry_after = retry_after


class ChatTurnNotFound(FleetError):
    """There is no such text in this session, or it was answered long ago."""


class IdempotencyKeyReused(FleetError):
    """The idempotency key belongs to another request."""


class HandOverImpossible(FleetError):
    """The session cannot be handed over."""


class MoveRefused(FleetError):
    """The session's record did not take the change."""


class StaleEpoch(MoveRefused):
    """Another owner holds the session."""


class IllegalMove(MoveRefused):
    """The session's state does not allow this move."""


class RecoveriesExhausted(MoveRefused):
    """Too many owners in a row were lost with this session."""


class JoinRefused(FleetError):
    """The fleet cannot take this session."""

    #: Seconds after which a retry can succeed.
    retry_after: ClassVar[int] = 5


class FleetNotReady(JoinRefused):
    """The fleet has just started or Redis has lost its data; live calls register first."""


class NoWorker(JoinRefused):
    """No worker is running."""


class FleetFull(JoinRefused):
    """Every slot is taken and the queue is full."""
