"""What both HTTP services share: addresses, request ids, keys, answers and problems."""

import json
import logging
import re
import uuid
from collections.abc import Sequence
from ipaddress import ip_address

from flask import Flask, Response, g, request

from api.errors import KeysRequired, is_unexpected, problem_response
from api.keys import ApiKeys
from api.models import Answer, Health
from api.openapi import openapi_document
from api.reading import read_parts
from api.routes import Route
from worker.fleet.errors import RecordUnreadable

logger = logging.getLogger(__name__)

REQUEST_ID = "X-Request-Id"
_REQUEST_ID_SHAPE = re.compile(r"[A-Za-z0-9._-]{1,64}")
#: Answers are data: no browser may run, frame, cache or guess anything of them.
SECURITY_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def create_service(name: str, *, title: str, routes: Sequence[Route], keys: ApiKeys) -> Flask:
    """A Flask application of these routes and `/openapi.json`.

    Every answer has a request id and every error is a problem. Without `keys` it serves its own machine only.
    """
    service = Flask(name, static_folder=None)
    service.config["PROVIDE_AUTOMATIC_OPTIONS"] = False
    # One address is one address: a redirect would answer a POST with an invitation to repeat it elsewhere.
    service.url_map.merge_slashes = False
    service.before_request(_name_request)
    service.after_request(_finish_answer)
    service.register_error_handler(Exception, _answer_problem)
    for route in routes:
        _add(service, route, keys)
    document = json.dumps(openapi_document(title=title, routes=routes))
    service.add_url_rule("/openapi.json", view_func=lambda: Response(document, content_type="application/json"))
    return service


def health_route(address: str) -> Route:
    """The address at which the process says that it serves; it asks nobody else."""
    return Route(
        method="GET",
        address=address,
        view=lambda: respond(Health()),
        summary="Whether this process serves",
        answers={200: Health},
        is_open=True,
    )


def request_id() -> str:
    """The id of the request that is being served: the client's own when it is well-formed."""
    return str(g.request_id)


def respond(answer: Answer, *, status: int = 200) -> Response:
    """The answer as JSON."""
    return Response(answer.model_dump_json(by_alias=True), status=status, content_type="application/json")


def _add(service: Flask, route: Route, keys: ApiKeys) -> None:
    def serve(**path: str) -> Response:
        if not route.is_open:
            _check_access(keys)
        return route.view(**read_parts(route, path))

    endpoint = f"{route.method} {route.address}"
    service.add_url_rule(route.address, endpoint.replace(".", "_"), serve, methods=[route.method])


def _check_access(keys: ApiKeys) -> None:
    """Raises a `KeyRefused`, or `KeysRequired` for a request from elsewhere."""
    if keys:
        g.key_name = keys.name_of(request.headers.get("Authorization"))
    elif not _is_loopback(request.remote_addr):
        raise KeysRequired()


def _is_loopback(address: str | None) -> bool:
    try:
        # Who comes through a Unix socket has no address.
        return address == "" or ip_address(address or "").is_loopback
    except ValueError:
        return False


def _name_request() -> None:
    given = request.headers.get(REQUEST_ID, "")
    g.request_id = given if _REQUEST_ID_SHAPE.fullmatch(given) else uuid.uuid4().hex


def _finish_answer(response: Response) -> Response:
    response.headers[REQUEST_ID] = request_id()
    response.headers.update(SECURITY_HEADERS)
    return response


def _answer_problem(error: Exception) -> Response:
    told = {"request_id": request_id(), "key_name": g.get("key_name")}
    if is_unexpected(error):
        logger.error("request failed", exc_info=error, extra=told)
    elif isinstance(error, RecordUnreadable):
        logger.error("a record is not readable", extra=told)
    return problem_response(error, request_id=request_id())
