"""The OpenAPI documents, and what schemathesis finds when it makes requests from them."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import httpx
import jsonschema_rs
import pytest
import schemathesis
from flask import Flask
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from schemathesis.config import (
    ChecksConfig,
    GenerationConfig,
    NotAServerErrorConfig,
    ProjectConfig,
    ProjectsConfig,
    SchemathesisConfig,
)
from schemathesis.specs.openapi.schemas import OpenApiSchema

from api import control_plane
from api.errors import STATUSES_BY_CODE
from api.keys import generate
from api.settings import ControlPlaneSettings
from tests.open_fleet import agent_service, open_joins

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

KEY = generate("schemathesis")
AUTHORIZED = {"Authorization": f"Bearer {KEY.key}"}
#: Examples for each operation and kind of data; the same in every run.
EXAMPLES = 45
AT_LEAST = 500

# Which texts are composed as NFC has it is not for a pattern to say.
schemathesis.openapi.format(
    "printable-nfc", st.text(st.sampled_from("aZ7 -_.é字ß€🦉"), min_size=1, max_size=40).filter(str.strip)
)
# Nor which characters print.
schemathesis.openapi.format(
    "printable-text", st.text(st.sampled_from("aZ7 -_.é字ß€🦉\n\t"), min_size=1, max_size=40).filter(str.strip)
)
#: Of the hosts that the agent service of these tests lists.
LISTED_URL = "https://tools.test/find?by=name"


def agent_service_of(redis_url: str) -> Flask:
    environ = {"MUSTER_JOIN_TTL": "1", "MUSTER_TOOL_HOSTS": "tools.test", "MUSTER_CHAT_PATIENCE": "0.01"}
    return agent_service(redis_url, MUSTER_API_KEYS=KEY.entry, **environ)


def control_plane_of(agent_client: httpx.Client) -> Flask:
    settings = ControlPlaneSettings.from_env(
        {
            "LIVEKIT_URL": "ws://127.0.0.1:7880",
            "LIVEKIT_API_KEY": "key",
            "LIVEKIT_API_SECRET": "s" * 32,
            "MUSTER_API_KEYS": KEY.entry,
            "AGENT_SERVICE_API_KEY": KEY.key,
        }
    )
    return control_plane.create_app(settings=settings, agent_service=agent_client)


def document_of(service: Flask) -> dict[str, Any]:
    document: dict[str, Any] = service.test_client().get("/openapi.json").get_json()
    return document


def closed(document: dict[str, Any]) -> dict[str, Any]:
    """The same with no room for fields it does not name: clients pass over them, these tests do not."""
    schemas = document["components"]["schemas"]
    open_objects = [schema for schema in schemas.values() if "properties" in schema]
    for schema in open_objects:
        schema.setdefault("additionalProperties", False)
    return document


class Service:
    """The WSGI application that a schema is bound to; each test puts one with its own Redis behind it."""

    def __init__(self) -> None:
        self.application: Flask | None = None

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        assert self.application is not None
        return self.application(environ, start_response)


def schema_of(document: dict[str, Any], service: Service) -> OpenApiSchema:
    checks = ChecksConfig(not_a_server_error=NotAServerErrorConfig(expected_statuses=["2xx", "4xx", "503"]))
    generation = GenerationConfig(deterministic=True, max_examples=EXAMPLES)
    project = ProjectConfig(checks=checks, generation=generation)
    config = SchemathesisConfig(projects=ProjectsConfig(default=project))
    schema = schemathesis.openapi.from_dict(closed(document), config=config)
    schema.app = service
    return schema


# The documents say the same wherever Redis is.
AGENT_SERVICE, CONTROL_PLANE = Service(), Service()
AGENT_SERVICE_SCHEMA = schema_of(document_of(agent_service_of("redis://127.0.0.1:1/0")), AGENT_SERVICE)
CONTROL_PLANE_SCHEMA = schema_of(document_of(control_plane_of(httpx.Client())), CONTROL_PLANE)

fast = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def made() -> Counter[str]:
    """How many requests were made of each operation."""
    return Counter()


@pytest.fixture
def served_agent_service(redis_url: str) -> None:
    """A replica of a fleet that takes whatever comes."""
    open_joins(redis_url, slots=100_000)
    AGENT_SERVICE.application = agent_service_of(redis_url)


@pytest.fixture
def served_control_plane(redis_url: str) -> Iterator[None]:
    """A control plane in front of such a replica."""
    open_joins(redis_url, slots=100_000)
    transport = httpx.WSGITransport(app=agent_service_of(redis_url))
    with httpx.Client(transport=transport, base_url="http://agent-service") as client:
        CONTROL_PLANE.application = control_plane_of(client)
        yield


def mend(case: schemathesis.Case[Any]) -> None:
    """Make what is valid keep the rules that a schema cannot have: those between fields, and which hosts are listed."""
    assert case.meta is not None
    is_valid = case.meta.generation.mode is schemathesis.GenerationMode.POSITIVE
    body: Any = case.body
    if is_valid and case.operation.label == "POST /join":
        specialists = body.get("configuration", {}).get("specialists") or []
        keep_distinct(specialists, [each if isinstance(each, str) else each["name"] for each in specialists])
        for tools in [each.get("tools", []) for each in specialists if isinstance(each, dict)]:
            keep_distinct(tools, [tool["name"] for tool in tools])
            for tool in tools:
                tool["url"] = LISTED_URL
                parameters = tool.get("parameters") or {"properties": {}}
                parameters["required"] = [
                    name for name in parameters.get("required", ()) if name in parameters["properties"]
                ]


def keep_distinct(items: list[Any], names: list[str]) -> None:
    """Keep the first item of each name."""
    items[:] = dict(reversed(list(zip(names, items, strict=True)))).values()


@pytest.mark.usefixtures("served_agent_service")
@AGENT_SERVICE_SCHEMA.parametrize()
@fast
def test_the_agent_service_answers_as_its_document_says(case: schemathesis.Case[Any], made: Counter[str]) -> None:
    made[case.operation.label] += 1
    mend(case)
    case.call_and_validate(headers=AUTHORIZED)


@pytest.mark.usefixtures("served_control_plane")
@CONTROL_PLANE_SCHEMA.parametrize()
@fast
def test_the_control_plane_answers_as_its_document_says(case: schemathesis.Case[Any], made: Counter[str]) -> None:
    made[case.operation.label] += 1
    case.call_and_validate(headers=AUTHORIZED)


def test_at_least_five_hundred_requests_were_made(made: Counter[str]) -> None:
    assert made.total() >= AT_LEAST


@pytest.fixture(params=[agent_service_of, control_plane_of])
def service(request: pytest.FixtureRequest) -> Iterator[Flask]:
    """Each of the two, with nothing behind it."""
    with httpx.Client() as client:
        behind = {agent_service_of: "redis://127.0.0.1:1/0", control_plane_of: client}[request.param]
        yield request.param(behind)


def test_a_document_has_every_address_and_needs_no_key(service: Flask) -> None:
    served = {
        (re.sub(r"<(\w+)>", r"{\1}", rule.rule), method.lower())
        for rule in service.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD"}
    }

    document = document_of(service)

    described = {(path, method) for path, methods in document["paths"].items() for method in methods}
    assert described == served - {("/openapi.json", "get")}


def test_every_code_is_in_a_document() -> None:
    described = set(
        re.findall(r"[`\"](\w+)[`\"]", json.dumps([AGENT_SERVICE_SCHEMA.raw_schema, CONTROL_PLANE_SCHEMA.raw_schema]))
    )

    assert set(STATUSES_BY_CODE) <= described


def test_the_document_is_valid_json_schema(service: Flask) -> None:
    for schema in document_of(service)["components"]["schemas"].values():
        jsonschema_rs.meta.validate(schema)
