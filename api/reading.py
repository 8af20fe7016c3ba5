"""How a request is read: each part by its route's model, within its limits, and nothing that has two meanings."""

import json
from collections.abc import Mapping
from typing import Any, TypeVar

from flask import request
from pydantic import ValidationError
from werkzeug.exceptions import RequestEntityTooLarge, UnsupportedMediaType

from api.asked import Asked, Nothing
from api.errors import InvalidRequest, MalformedBody
from api.routes import Route

#: How many wrong fields one answer names, and with how many characters.
_MOST_DETAILS = 5
_LONGEST_NAME = 128

Shape = TypeVar("Shape", bound=Asked)


def read_parts(route: Route, path: Mapping[str, str]) -> dict[str, Any]:
    """The parts of the request that the route has models for; raises what `Route.problems` names."""
    parts: dict[str, Any] = {}
    if route.path is not None:
        parts["path"] = _read_strings(route.path, path)
    query = _read_query(route.query or Nothing)
    if route.query is not None:
        parts["query"] = query
    if route.headers is not None:
        names = [field.alias or name for name, field in route.headers.model_fields.items()]
        given = {name: request.headers[name] for name in names if name in request.headers}
        parts["headers"] = _read_strings(route.headers, given)
    if route.body is not None:
        body = _read_bytes(route.media_type, most=route.body_limit)
        parts["body"] = _read_json(route.body, body) if issubclass(route.body, Asked) else body
    return parts


def _read_query(shape: type[Shape]) -> Shape:
    for name, values in request.args.lists():
        if len(values) > 1:
            raise InvalidRequest(f"{name[:_LONGEST_NAME]}: given more than once")
    return _read_strings(shape, request.args.to_dict())


def _read_strings(shape: type[Shape], given: Mapping[str, str]) -> Shape:
    try:
        return shape.model_validate_strings(given)
    except ValidationError as error:
        raise InvalidRequest(_wrong_fields(error)) from None


def _read_bytes(media_type: str, *, most: int) -> bytes:
    charset = request.mimetype_params.get("charset", "utf-8")
    if request.mimetype != media_type or charset.lower() not in ("utf-8", "utf8"):
        raise UnsupportedMediaType(f"Send the body as {media_type} in UTF-8.")
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise UnsupportedMediaType("Send the body without a content coding.")
    # One more than allowed: a body without a length is cut off at this maximum, and nothing tells that it was.
    request.max_content_length = most + 1
    body = request.get_data(cache=False)
    if len(body) > most:
        raise RequestEntityTooLarge()
    return body


def _read_json(shape: type[Shape], body: bytes) -> Shape:
    try:
        asked = shape.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        if first["type"] == "json_invalid":
            raise MalformedBody(first["msg"]) from None
        raise InvalidRequest(_wrong_fields(error)) from None
    # Only now: what was validated is not nested deeper than this parser can follow.
    json.loads(body, object_pairs_hook=_refuse_repeated_names)
    return asked


def _refuse_repeated_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Two fields of one name mean something else to each parser on the way."""
    fields: dict[str, Any] = {}
    for name, value in pairs:
        if name in fields:
            raise InvalidRequest(f"{name[:_LONGEST_NAME]}: given more than once")
        fields[name] = value
    return fields


def _wrong_fields(error: ValidationError) -> str:
    wrong = error.errors(include_url=False, include_context=False, include_input=False)
    named = [f"{'.'.join(map(str, field['loc']))[:_LONGEST_NAME] or 'body'}: {field['msg']}" for field in wrong]
    return "; ".join(named[:_MOST_DETAILS])
