"""The exceptions of a kept conversation; a class's docstring is its message.

ConversationError
└── NotStored
"""


class ConversationError(Exception):
    """The conversation could not be kept."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (self.__doc__ or "").strip())


class NotStored(ConversationError):
    """What was said could not be stored in time."""
