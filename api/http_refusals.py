"""What a client is told of a request that did not reach the application; nothing it sent is repeated.

The services' own modules are imported where they are used: this one is loaded before gevent has replaced the standard
library's sockets, and they must not be.
"""

from typing import TYPE_CHECKING

import gevent
from gunicorn.http import errors
from gunicorn.util import http_date

if TYPE_CHECKING:
    from flask import Response


def refusal(error: BaseException, *, request_id: str) -> "Response":
    """The answer, after which the connection is closed."""
    from api.errors import problem_response
    from api.service import REQUEST_ID, SECURITY_HEADERS

    response = problem_response(_http_error(error), request_id=request_id)
    response.headers.extend({REQUEST_ID: request_id, **SECURITY_HEADERS, "Connection": "close"})
    return response


def encode(response: "Response") -> bytes:
    """The answer as it goes over the wire."""
    head = [f"HTTP/1.1 {response.status}", f"Date: {http_date()}"]
    head += [f"{name}: {value}" for name, value in response.headers]
    return "\r\n".join([*head, "", ""]).encode("latin-1") + response.get_data()


def _http_error(error: BaseException) -> Exception:
    """What gunicorn's parser or a deadline found, as `api.errors` knows it."""
    from werkzeug import exceptions as refused

    match error:
        case gevent.Timeout():
            return refused.RequestTimeout()
        case errors.LimitRequestLine():
            return refused.RequestURITooLarge()
        case errors.LimitRequestHeaders():
            return refused.RequestHeaderFieldsTooLarge()
        case errors.UnsupportedTransferCoding():
            return refused.NotImplemented("The transfer coding is not known.")
        case errors.ExpectationFailed():
            return refused.ExpectationFailed("Only 100-continue can be expected.")
        case errors.InvalidResponseHeader() | errors.InvalidResponseHeaderName():
            # A `ParseException` like those below, but what was parsed is the application's.
            return refused.InternalServerError()
        case errors.NoMoreData():
            return refused.BadRequest("The request breaks off.")
        case errors.ParseException():
            return refused.BadRequest("This is not a request as RFC 9112 describes it.")
        case Exception():
            return error
        case _:
            raise error
