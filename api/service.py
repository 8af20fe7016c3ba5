"""What both HTTP services share: request ids, reading a request, answers and problems."""

import logging
import re
import uuid
from typing import TypeVar

from flask import Flask, Response, g, request
from pydantic import ValidationError
from werkzeug.exceptions import UnsupportedMediaType

from api.errors import InvalidRequest, MalformedBody, is_unexpected, problem_response
from api.models import Answer, Asked, Health

logger = logging.getLogger(__name__)

REQUEST_ID = "X-Request-Id"
_REQUEST_ID_SHAPE = re.compile(r"[A-Za-z0-9._-]{1,64}")
#: How many wrong fields one answer names.
_MOST_DETAILS = 5

Shape = TypeVar("Shape", bound=Asked)


def create_service(name: str) -> Flask:
    """A Flask application whose every answer has a request id and whose every error is a problem."""
    service = Flask(name, static_folder=None)
    service.before_request(_name_request)
    service.after_request(_tell_request_id)
    service.register_error_handler(Exception, _answer_problem)
    return service


def request_id() -> str:
    """The id of the request that is being served: the client's own when it is well-formed."""
    return str(g.request_id)


def read_body(shape: type[Shape]) -> Shape:
    """The request's JSON body; raises `MalformedBody`, `InvalidRequest` or `UnsupportedMediaType`."""
    if request.mimetype != "application/json":
        raise UnsupportedMediaType("Send the body as application/json.")
    try:
        return shape.model_validate_json(request.get_data())
    except ValidationError as error:
        raise _refusal(error) from None


def read_strings(shape: type[Shape], given: dict[str, str]) -> Shape:
    """Values that come as text, from the query or the headers; raises `InvalidRequest`."""
    try:
        return shape.model_validate_strings(given)
    except ValidationError as error:
        raise _refusal(error) from None


def respond(answer: Answer, *, status: int = 200) -> Response:
    """The answer as JSON."""
    return Response(answer.model_dump_json(), status=status, content_type="application/json")


def health() -> Response:
    """Answer that this process serves; asks nobody else."""
    return respond(Health())


def _name_request() -> None:
    given = request.headers.get(REQUEST_ID, "")
    g.request_id = given if _REQUEST_ID_SHAPE.fullmatch(given) else uuid.uuid4().hex


def _tell_request_id(response: Response) -> Response:
    response.headers[REQUEST_ID] = request_id()
    return response


def _answer_problem(error: Exception) -> Response:
    if is_unexpected(error):
        logger.error("request failed", exc_info=error, extra={"request_id": request_id()})
    return problem_response(error, request_id=request_id())


def _refusal(error: ValidationError) -> MalformedBody | InvalidRequest:
    wrong = error.errors(include_url=False, include_context=False, include_input=False)
    if wrong[0]["type"] == "json_invalid":
        return MalformedBody(wrong[0]["msg"])
    named = [f"{'.'.join(map(str, field['loc'])) or 'body'}: {field['msg']}" for field in wrong]
    return InvalidRequest("; ".join(named[:_MOST_DETAILS]))
