"""What a stand-in provider refuses, and with which HTTP status."""

from typing import ClassVar


class ProviderError(Exception):
    """The stand-in provider could not answer."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "server_error"

    def __init__(self, detail: str | None = None) -> None:
        super().__init__(detail or self.__doc__)


class InvalidRequest(ProviderError):
    """The request is not one this provider understands."""

    status = 400
    code = "invalid_request"


class UnsupportedFormat(InvalidRequest):
    """The stand-in provider speaks uncompressed audio only."""

    code = "unsupported_format"


class UnknownPath(ProviderError):
    """There is nothing at this path."""

    status = 404
    code = "unknown_url"


class MethodNotAllowed(ProviderError):
    """This path does not take this method."""

    status = 405
    code = "method_not_supported"


class NotOnThisMachine(ProviderError):
    """The model for this has no wheel for this machine."""

    status = 501
    code = "not_on_this_machine"


class SwitchedOff(ProviderError):
    """This kind of request was switched off by POST /faults."""

    code = "switched_off"
