"""The OpenAPI 3.1 document of a service, made from its routes and the models they name."""

from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from api.asked import Asked
from api.errors import OUTSIDE_OPERATIONS, ProblemKind, kind_of
from api.models import Answer, Problem
from api.routes import EVENT_STREAM, Route

#: The version of the interface, not of the program.
API_VERSION = "1"

Json = dict[str, Any]

_REFERENCE = "#/components/schemas/{model}"

_REQUEST_ID = {"X-Request-Id": {"$ref": "#/components/headers/X-Request-Id"}}
_HEADERS: Json = {
    "X-Request-Id": {
        "description": "Finds the request in the service's log; the client's own when it sent a well-formed one.",
        "required": True,
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,64}$"},
    },
    "Retry-After": {
        "description": "Seconds after which a retry can succeed.",
        "required": True,
        "schema": {"type": "integer", "minimum": 1},
    },
    "WWW-Authenticate": {"required": True, "schema": {"const": "Bearer"}},
}


def openapi_document(*, title: str, routes: Sequence[Route]) -> Json:
    """The document as JSON; an address' methods stand together."""
    paths: dict[str, Json] = {}
    for route in routes:
        paths.setdefault(route.template, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": API_VERSION, "description": _description()},
        "paths": paths,
        "components": {
            "schemas": _schemas(routes),
            "headers": _HEADERS,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _description() -> str:
    codes = ", ".join(f"{kind.status} `{kind.code}`" for kind in map(kind_of, OUTSIDE_OPERATIONS))
    return f"What is not a request for one of these operations is refused with a problem, too: {codes}."


def _operation(route: Route) -> Json:
    operation: Json = {
        "operationId": f"{route.method} {route.template}",
        "summary": route.summary,
        "parameters": list(_parameters(route)),
        "responses": _responses(route),
        "security": [] if route.is_open else [{"key": []}],
    }
    if route.body is not None:
        operation["requestBody"] = {"required": True, "content": {route.media_type: {"schema": _body_schema(route)}}}
    return operation


def _body_schema(route: Route) -> Json:
    if route.body is not None and issubclass(route.body, BaseModel):
        return _reference(route.body)
    return {}


def _parameters(route: Route) -> Iterable[Json]:
    parts: Mapping[str, type[Asked] | None] = {"path": route.path, "query": route.query, "header": route.headers}
    for place, model in parts.items():
        schema = model.model_json_schema() if model else {}
        for name, described in schema.get("properties", {}).items():
            yield {
                "name": name,
                "in": place,
                "required": name in schema.get("required", ()),
                "schema": _as_parameter(described, schema.get("$defs", {})),
            }


def _as_parameter(described: Json, definitions: Json) -> Json:
    """The schema of a value that is text or absent, never null."""
    [schema] = [choice for choice in described.get("anyOf", [described]) if choice != {"type": "null"}]
    if "$ref" in schema:
        schema = definitions[schema["$ref"].rpartition("/")[2]]
    return {key: value for key, value in schema.items() if key != "title"}


def _responses(route: Route) -> Json:
    kinds_by_status: dict[int, list[ProblemKind]] = {}
    for error_class in route.problems:
        kind = kind_of(error_class)
        kinds_by_status.setdefault(kind.status, []).append(kind)
    answers = {str(status): _answer(status, model, route) for status, model in route.answers.items()}
    problems = {str(status): _problem(status, kinds) for status, kinds in sorted(kinds_by_status.items())}
    return problems | answers


def _answer(status: int, model: type[Answer], route: Route) -> Json:
    schema = _event(model) if route.answers_media_type == EVENT_STREAM else _reference(model)
    return {
        "description": HTTPStatus(status).phrase,
        "headers": _REQUEST_ID,
        "content": {route.answers_media_type: {"schema": schema}},
    }


def _event(model: type[Answer]) -> Json:
    """One event of a stream, which OpenAPI 3.1 has no words for: tools take the schema for that of each event."""
    kinds = model.model_json_schema(mode="serialization", ref_template=_REFERENCE)["properties"]
    return {
        "description": "Each event of the stream.",
        "oneOf": [
            {
                "type": "object",
                "properties": {
                    "event": {"const": name},
                    "id": {"type": "string"},
                    "data": {"type": "string", "contentMediaType": "application/json", "contentSchema": data},
                },
                "required": ["event", "data"],
            }
            for name, data in kinds.items()
        ],
    }


def _problem(status: int, kinds: Sequence[ProblemKind]) -> Json:
    headers: Json = {"WWW-Authenticate": _header("WWW-Authenticate")} if status == 401 else {}
    if any(kind.retry_after for kind in kinds) or status == 503:
        headers["Retry-After"] = (
            _header("Retry-After") if status == 503 else {**_HEADERS["Retry-After"], "required": False}
        )
    codes = sorted({kind.code for kind in kinds})
    narrowed = {"status": {"const": status}, "code": {"enum": codes}}
    return {
        "description": "; ".join(sorted({f"`{kind.code}`: {kind.title}" for kind in kinds})),
        "headers": _REQUEST_ID | headers,
        "content": {"application/problem+json": {"schema": {**_reference(Problem), "properties": narrowed}}},
    }


def _header(name: str) -> Json:
    return {"$ref": f"#/components/headers/{name}"}


def _reference(model: type[BaseModel]) -> Json:
    return {"$ref": _REFERENCE.format(model=model.__name__)}


def _schemas(routes: Sequence[Route]) -> Json:
    wanted: dict[type[BaseModel], JsonSchemaMode] = {Problem: "serialization"}
    for route in routes:
        if route.body is not None and issubclass(route.body, BaseModel):
            wanted[route.body] = "validation"
        wanted |= dict.fromkeys(route.answers.values(), "serialization")
    _, schema = models_json_schema(list(wanted.items()), ref_template=_REFERENCE)
    return dict(schema["$defs"])
