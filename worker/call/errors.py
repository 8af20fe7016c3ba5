"""The exceptions of a call; a class's docstring is its message.

CallError
├── ConnectFailed
├── RoomGone
└── SpeechNotRendered
"""


class CallError(Exception):
    """The call failed."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (self.__doc__ or "").strip())


class ConnectFailed(CallError):
    """The room could not be joined."""


class RoomGone(CallError):
    """The room that an agent of the session was in before could not be joined again."""


class SpeechNotRendered(CallError):
    """The voice provider did not render a fixed phrase."""
