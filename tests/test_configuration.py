"""A session's configuration: what /join takes of it, how it reaches the worker, and that both mean the same by it."""

import json
import subprocess
import sys
from copy import deepcopy
from dataclasses import MISSING, fields
from typing import Any

import httpx
import pytest
from flask.testing import FlaskClient
from pydantic import BaseModel

from api import configuration as asked
from api import control_plane
from api.settings import ControlPlaneSettings
from graphs import configuration as read
from graphs.errors import ConfigurationInvalid
from graphs.roster import TRANSFER
from graphs.specialists import ROSTER
from local.paths import ROOT
from muster.client import MusterClient
from muster.errors import InvalidRequest
from tests.fleet_sessions import new_session
from tests.open_fleet import agent_service, client_of, open_joins
from worker.fleet import records
from worker.fleet.redis_operations import run
from worker.fleet.roster import roster_names
from worker.fleet.session import Session

TOOL: dict[str, Any] = {
    "name": "find_table",
    "description": "Find a free table.",
    "method": "GET",
    "url": "https://tables.test/free?house=north",
    "parameters": {
        "type": "object",
        "properties": {
            "day": {"type": "string", "description": "The day of the week.", "enum": ["Friday", "Saturday"]},
            "guests": {"type": "integer", "description": "How many they are."},
        },
        "required": ["day"],
        "additionalProperties": False,
    },
    "headers": {"X-House": "north", "Authorization": {"secret": "TABLES_TOKEN"}},
    "timeout": 2.5,
}
SPECIALIST: dict[str, Any] = {
    "name": "tables",
    "title": "Reservations",
    "description": "tables, reservations",
    "instructions": "Reserve tables.\nAsk for the day first.",
    "tools": [TOOL],
    "bridge": "One moment, please.",
    "sources": ["menu.md"],
}
#: With every field that there is.
CONFIGURATION: dict[str, Any] = {
    "specialists": ["front_desk", SPECIALIST],
    "instructions": "Be brief.",
    "greeting": "Welcome to Northwind's restaurant.",
    "voice": "hpp4J3VqNfWAUOO0d1Us",
    "language": "de-CH",
    "model": "gpt-4.1-mini",
    "temperature": 0.2,
}
JOIN = {"room": "kitchen", "user_id": "ada"}


@pytest.fixture
def service(redis_url: str) -> FlaskClient:
    """A replica of a fleet that takes sessions, with one host listed."""
    open_joins(redis_url)
    return agent_service(redis_url, MUSTER_TOOL_HOSTS="tables.test").test_client()


def stored(redis_url: str, session_id: str) -> Session:
    """The session as its worker reads it."""
    with client_of(redis_url) as client:
        session = run(client, records.read(session_id))
    assert session is not None
    return session


def changed(path: str, value: Any) -> dict[str, Any]:
    """The configuration with another value at the path, such as "specialists.1.name"."""
    configuration = deepcopy(CONFIGURATION)
    *places, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    part: Any = configuration
    for place in places:
        part = part[place]
    part[last] = value
    return configuration


def test_a_configuration_reaches_the_session_s_record_as_it_was_asked_for(service: FlaskClient, redis_url: str) -> None:
    answer = service.post("/join", json={**JOIN, "configuration": CONFIGURATION})

    assert answer.status_code == 202, answer.text
    session_id = answer.get_json()["session_id"]
    session = stored(redis_url, session_id)
    assert session.configuration == CONFIGURATION
    assert read.AgentConfiguration.of(session.configuration).record() == {
        **CONFIGURATION, "specialists": ["front_desk", SPECIALIST]
    }  # fmt: skip
    assert "configuration" not in service.get(f"/sessions/{session_id}").get_json()


@pytest.mark.parametrize("configuration", [{}, {"specialists": None}, {"voice": None, "temperature": None}])
def test_what_is_left_out_or_null_is_not_in_the_record(
    service: FlaskClient, redis_url: str, configuration: dict[str, Any]
) -> None:
    answer = service.post("/join", json={**JOIN, "configuration": configuration})

    assert answer.status_code == 202, answer.text
    session = stored(redis_url, answer.get_json()["session_id"])
    assert session.configuration == {}
    assert read.AgentConfiguration.of(session.configuration) == read.AgentConfiguration()


def test_a_repeated_join_with_a_configuration_is_one_session(service: FlaskClient, redis_url: str) -> None:
    join = {**JOIN, "configuration": CONFIGURATION}
    headers = {"Idempotency-Key": "order-7"}

    first = service.post("/join", json=join, headers=headers)
    second = service.post("/join", json=join, headers=headers)
    other = service.post("/join", json={**JOIN, "configuration": {"voice": "another"}})

    assert [answer.status_code for answer in (first, second, other)] == [202, 200, 200]
    assert len({answer.get_json()["session_id"] for answer in (first, second, other)}) == 1
    assert stored(redis_url, first.get_json()["session_id"]).configuration == CONFIGURATION


def test_a_record_of_before_there_were_configurations_is_read() -> None:
    fields_of_old = new_session().to_fields()
    del fields_of_old["configuration"]

    assert Session.from_fields(fields_of_old).configuration == {}


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        ("specialists.0", "astrology", "front_desk, sales, tech_support"),
        ("specialists.0", "graphs.specialists.sales", "not on the roster"),
        ("specialists.0", "os", "not on the roster"),
        ("specialists.0", 7, "specialists.0"),
        ("specialists", [], "specialists"),
        ("specialists", ["sales"] * 9, "specialists"),
        ("specialists", ["sales", "sales"], "more than once"),
        ("specialists", [SPECIALIST, SPECIALIST], "more than once"),
        ("specialists.1.name", "front_desk", "more than once"),
        ("specialists.1.name", "Tables", "name"),
        ("specialists.1.name", "two words", "name"),
        ("specialists.1.voice", "another", "voice"),
        ("specialists.1.instructions", "", "instructions"),
        ("specialists.1.instructions", "x" * 16_001, "instructions"),
        ("specialists.1.title", "x" * 81, "title"),
        ("specialists.1.sources", ["menu.md"] * 33, "sources"),
        ("specialists.1.tools", [TOOL] * 9, "tools"),
        ("specialists.1.tools", [TOOL, TOOL], "more than once"),
        ("specialists.1.tools.0.name", "transfer_to", "there already"),
        ("specialists.1.tools.0.method", "DELETE", "method"),
        ("specialists.1.tools.0.timeout", 10.1, "timeout"),
        ("specialists.1.tools.0.timeout", 0, "timeout"),
        ("specialists.1.tools.0.url", "https://elsewhere.test/", "specialists.1.tools.0.url: its host is not listed"),
        ("specialists.1.tools.0.url", "http://tables.test/", "not listed"),
        ("specialists.1.tools.0.url", "https://tables.test:8443/", "not listed"),
        ("specialists.1.tools.0.url", "https://127.0.0.1/", "not listed"),
        ("specialists.1.tools.0.url", "http://169.254.169.254/latest", "not listed"),
        ("specialists.1.tools.0.url", "https://tables.test@elsewhere.test/", "url"),
        ("specialists.1.tools.0.url", "https://elsewhere.test\\@tables.test/", "url"),
        ("specialists.1.tools.0.url", "file:///etc/passwd", "url"),
        ("specialists.1.tools.0.url", "https://tables.test/\r\nX-Evil: 1", "url"),
        ("specialists.1.tools.0.url", "https://tables.test/" + "x" * 2_000, "url"),
        ("specialists.1.tools.0.headers", {"Host": "elsewhere.test"}, "the request's own"),
        ("specialists.1.tools.0.headers", {"idempotency-key": "1"}, "the request's own"),
        ("specialists.1.tools.0.headers", {"Transfer-Encoding": "chunked"}, "the request's own"),
        ("specialists.1.tools.0.headers", {"X Y": "1"}, "headers"),
        ("specialists.1.tools.0.headers", {"X-A": "1\r\nX-Evil: 1"}, "headers"),
        ("specialists.1.tools.0.headers", {"X-A": {"secret": "lower"}}, "headers"),
        ("specialists.1.tools.0.headers", {"X-A": {"secret": "A", "or": "B"}}, "headers"),
        ("specialists.1.tools.0.headers", {f"X-{number}": "1" for number in range(9)}, "headers"),
        ("specialists.1.tools.0.parameters.required", ["moon"], "required"),
        ("specialists.1.tools.0.parameters.required", ["day", "day"], "more than once"),
        ("specialists.1.tools.0.parameters.type", "array", "type"),
        ("specialists.1.tools.0.parameters.additionalProperties", True, "additionalProperties"),
        ("specialists.1.tools.0.parameters.$ref", "https://elsewhere.test/", "$ref"),
        ("specialists.1.tools.0.parameters.properties.day", {"type": "object"}, "properties.day"),
        ("specialists.1.tools.0.parameters.properties.day", {"type": "integer", "enum": [1]}, "enum"),
        ("specialists.1.tools.0.parameters.properties.day.enum", [], "enum"),
        ("specialists.1.tools.0.parameters.properties.day.enum", ["x"] * 33, "enum"),
        ("specialists.1.tools.0.parameters.properties.a b", {"type": "string"}, "properties"),
        ("greeting", " ... ", "greeting"),
        ("greeting", "x" * 501, "greeting"),
        ("voice", "../other", "voice"),
        ("language", "german", "language"),
        ("model", "", "model"),
        ("temperature", 2.1, "temperature"),
        ("temperature", -0.1, "temperature"),
        ("temperature", "hot", "temperature"),
        ("temperature", True, "temperature"),
        ("retries", 3, "retries"),
    ],
)
def test_a_configuration_that_is_not_as_agreed_is_refused_by_name(
    service: FlaskClient, path: str, value: Any, named: str
) -> None:
    answer = service.post("/join", json={**JOIN, "configuration": changed(path, value)})

    assert (answer.status_code, answer.get_json()["code"]) == (422, "invalid_request")
    assert named in answer.get_json()["detail"]
    assert service.get("/sessions").get_json() == {"sessions": []}


def test_all_parts_together_are_bounded(service: FlaskClient) -> None:
    specialists = [{**SPECIALIST, "name": name, "instructions": "x" * 16_000} for name in ("one", "two")]
    answer = service.post("/join", json={**JOIN, "configuration": {"specialists": specialists}})

    assert (answer.status_code, answer.get_json()["code"]) == (422, "invalid_request")
    assert f"{asked.CONFIGURATION_LIMIT} bytes" in answer.get_json()["detail"]


def test_without_a_list_of_hosts_nobody_has_an_http_tool(redis_url: str) -> None:
    open_joins(redis_url)
    answer = agent_service(redis_url).test_client().post("/join", json={**JOIN, "configuration": CONFIGURATION})

    assert (answer.status_code, answer.get_json()["code"]) == (422, "invalid_request")


def test_the_client_sends_a_configuration_and_tells_what_is_wrong_with_it(service: FlaskClient, redis_url: str) -> None:
    transport = httpx.WSGITransport(app=service.application)
    with MusterClient("http://localhost", transport=transport) as client:
        joined = client.join(room="kitchen", user_id="ada", configuration=CONFIGURATION)
        with pytest.raises(InvalidRequest, match="not on the roster"):
            client.join(room="kitchen", user_id="ada", configuration={"specialists": ["astrology"]})

    assert stored(redis_url, joined.session_id).configuration == CONFIGURATION


def test_who_asks_for_a_caller_s_token_configures_nothing(service: FlaskClient, redis_url: str) -> None:
    settings = ControlPlaneSettings.from_env(
        {"LIVEKIT_URL": "ws://127.0.0.1:7880", "LIVEKIT_API_KEY": "key", "LIVEKIT_API_SECRET": "s" * 32}
    )
    token = {"room": "kitchen", "identity": "ada"}
    transport = httpx.WSGITransport(app=service.application)
    with httpx.Client(transport=transport, base_url="http://localhost") as behind:
        front = control_plane.create_app(settings=settings, agent_service=behind).test_client()
        refused = front.post("/api/v1/livekit/token", json={**token, "configuration": {}})
        given = front.post("/api/v1/livekit/token", json=token)

    assert (refused.status_code, refused.get_json()["code"]) == (422, "invalid_request")
    assert given.status_code == 200
    assert stored(redis_url, given.get_json()["session"]["session_id"]).configuration == {}


def test_the_services_know_the_roster_s_names_and_load_nothing_else_of_the_conversation() -> None:
    loaded = subprocess.run(
        [sys.executable, "-c", "import api.agent_service, sys; print(*sys.modules)"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )

    assert roster_names() == ROSTER
    assert {name for name in loaded.stdout.split() if name.startswith("graphs")} == {"graphs", "graphs.specialists"}


def test_no_tool_takes_the_name_of_the_one_that_is_generated() -> None:
    assert asked.TRANSFER == TRANSFER


@pytest.mark.parametrize("name", ["AgentConfiguration", "SpecialistConfiguration", "HTTPToolConfiguration"])
def test_both_sides_have_the_same_fields_defaults_and_needs(name: str) -> None:
    model: type[BaseModel] = getattr(asked, name)
    part = getattr(read, name)

    required = {each.name for each in fields(part) if each.default is each.default_factory is MISSING}
    assert {each.name for each in fields(part)} == model.model_fields.keys()
    assert required == {name for name, field in model.model_fields.items() if field.is_required()}


def test_what_the_worker_writes_is_what_a_client_may_ask_for() -> None:
    full = read.AgentConfiguration.of(CONFIGURATION)
    least = read.AgentConfiguration.of(
        {"specialists": [{name: SPECIALIST[name] for name in ("name", "title", "description", "instructions")}]}
    )
    tool = {name: TOOL[name] for name in ("name", "description", "method", "url")}
    bare = read.AgentConfiguration.of({"specialists": [{**SPECIALIST, "tools": [tool]}]})

    for configuration in (full, least, bare, read.AgentConfiguration()):
        taken = asked.AgentConfiguration.model_validate_json(json.dumps(configuration.record()))
        assert taken.record() == configuration.record()
        assert read.AgentConfiguration.of(taken.record()) == configuration


def test_defaults_that_are_sent_mean_the_same_as_defaults_that_are_not() -> None:
    tool = {**TOOL, "headers": {}, "timeout": 3, "parameters": dict(read.NO_PARAMETERS)}
    spelt_out: dict[str, Any] = {
        "specialists": [{**SPECIALIST, "tools": [tool], "bridge": "", "sources": []}],
        "instructions": "",
    }
    brief = deepcopy(spelt_out)
    for name in ("headers", "timeout", "parameters"):
        del brief["specialists"][0]["tools"][0][name]
    for name in ("bridge", "sources"):
        del brief["specialists"][0][name]

    taken = [asked.AgentConfiguration.model_validate_json(json.dumps(each)).record() for each in (spelt_out, brief)]

    assert taken[0] != taken[1]
    assert read.AgentConfiguration.of(taken[0]) == read.AgentConfiguration.of(taken[1])


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("retries", 3),
        ("specialists", 3),
        ("specialists.1", {"name": "tables"}),
        ("specialists.1.colour", "red"),
        ("specialists.1.tools.0.colour", "red"),
        ("specialists.1.tools.0.headers", {"X-A": {"secrets": "A"}}),
        ("specialists.1.tools", ["find_table"]),
    ],
)
def test_a_worker_that_cannot_read_a_configuration_says_so(path: str, value: Any) -> None:
    with pytest.raises(ConfigurationInvalid):
        read.AgentConfiguration.of(changed(path, value))
