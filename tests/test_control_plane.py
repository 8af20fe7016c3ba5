"""The control plane in front of the real agent service, without a network between them."""

import socket
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from flask.testing import FlaskClient
from livekit.api import TokenVerifier

from api.control_plane import create_app
from api.keys import generate
from api.models import Problem
from api.settings import ControlPlaneSettings
from tests.open_fleet import agent_service, client_of, open_joins
from worker.fleet import records
from worker.fleet.errors import SettingsInvalid
from worker.fleet.redis_operations import run

KEY, SECRET = "key-of-the-tests", "a secret that is long enough for HS256"
LIVEKIT = {
    "LIVEKIT_URL": "ws://127.0.0.1:7880",
    "LIVEKIT_API_KEY": KEY,
    "LIVEKIT_API_SECRET": SECRET,
}
ASKED = {"room": "kitchen", "identity": "ada", "metadata": {"name": "Ada"}}

Serve = Callable[..., FlaskClient]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts control planes over an agent service's client, and closes those clients."""
    clients: list[httpx.Client] = []

    def start(agent_service: httpx.Client, **environ: str) -> FlaskClient:
        clients.append(agent_service)
        settings = ControlPlaneSettings.from_env({**LIVEKIT, **environ})
        return create_app(settings=settings, agent_service=agent_service).test_client()

    yield start
    for client in clients:
        client.close()


def in_process(redis_url: str, *, keys: str = "", **options: Any) -> httpx.Client:
    """A client of a real agent service."""
    transport = httpx.WSGITransport(app=agent_service(redis_url, MUSTER_API_KEYS=keys))
    return httpx.Client(transport=transport, base_url="http://agent-service", **options)


def ask(control_plane: FlaskClient, **fields: Any) -> Any:
    return control_plane.post("/api/v1/livekit/token", json={**ASKED, **fields})


def assert_no_token(answer: Any, code: str) -> None:
    assert answer.content_type == "application/problem+json"
    assert (answer.status_code, answer.get_json()["code"]) == (503, code)
    assert "token" not in answer.get_json()
    assert int(answer.headers["Retry-After"]) > 0


def test_a_caller_gets_a_token_and_the_session_it_started(redis_url: str, serve: Serve) -> None:
    open_joins(redis_url)

    answer = ask(serve(in_process(redis_url)))

    assert answer.status_code == 200
    given = answer.get_json()
    assert (given["url"], given["room"], given["identity"]) == (LIVEKIT["LIVEKIT_URL"], "kitchen", "ada")
    assert given["agent_error"] is None
    assert given["session"] | {"session_id": ""} == {
        "session_id": "",
        "room": "kitchen",
        "status": "queued",
        "created": True,
    }
    with client_of(redis_url) as client:
        session = run(client, records.read(given["session"]["session_id"]))
    assert session is not None
    assert (session.user_id, session.metadata) == ("ada", {"name": "Ada"})


def test_the_token_opens_one_room_and_neither_dispatches_nor_is_an_agent(redis_url: str, serve: Serve) -> None:
    open_joins(redis_url)

    token = ask(serve(in_process(redis_url)), ttl=600).get_json()["token"]

    claims = TokenVerifier(KEY, SECRET).verify(token)
    assert (claims.identity, claims.kind, claims.metadata) == ("ada", "standard", '{"name": "Ada"}')
    assert (claims.agent, claims.room_config, claims.room_preset) == (None, None, None)
    assert claims.video is not None
    granted = {name: value for name, value in vars(claims.video).items() if value}
    assert granted == {
        "room_join": True,
        "room": "kitchen",
        "can_publish": True,
        "can_subscribe": True,
        "can_publish_data": True,
    }


@pytest.mark.parametrize(("fields", "seconds"), [({}, 3600), ({"ttl": 60}, 60), ({"ttl": 86400}, 86400)])
def test_the_token_lives_as_long_as_asked(redis_url: str, serve: Serve, fields: dict[str, int], seconds: int) -> None:
    import jwt

    open_joins(redis_url)

    token = ask(serve(in_process(redis_url)), **fields).get_json()["token"]

    claims = jwt.decode(token, SECRET, algorithms=["HS256"])
    assert claims["exp"] - claims["nbf"] == pytest.approx(seconds, abs=1)


def test_a_second_caller_of_a_room_meets_the_agent_that_is_there(redis_url: str, serve: Serve) -> None:
    open_joins(redis_url)
    control_plane = serve(in_process(redis_url))

    first = ask(control_plane).get_json()["session"]
    second = ask(control_plane, identity="grace").get_json()["session"]

    assert second == {**first, "created": False}


def test_callers_are_sent_to_livekits_public_address(redis_url: str, serve: Serve) -> None:
    open_joins(redis_url)

    answer = ask(serve(in_process(redis_url), LIVEKIT_PUBLIC_URL="wss://calls.example.org"))

    assert answer.get_json()["url"] == "wss://calls.example.org"


def test_a_failed_join_never_leaves_the_caller_alone_in_a_room(redis_url: str, serve: Serve) -> None:
    control_plane = serve(in_process(redis_url))

    assert_no_token(ask(control_plane), "no_worker")

    open_joins(redis_url, slots=1)
    assert ask(control_plane, room="running").status_code == 200
    assert ask(control_plane, room="waiting").status_code == 200
    assert_no_token(ask(control_plane), "fleet_full")


def test_a_caller_who_does_not_need_an_agent_gets_a_token_and_the_reason(redis_url: str, serve: Serve) -> None:
    answer = ask(serve(in_process(redis_url)), agent="optional")

    assert answer.status_code == 200
    given = answer.get_json()
    assert TokenVerifier(KEY, SECRET).verify(given["token"]).identity == "ada"
    assert given["session"] is None
    assert given["agent_error"] == {"code": "no_worker", "detail": "No worker is running."}


def test_an_agent_service_that_refuses_connections_withholds_the_token(serve: Serve, unused_tcp_port: int) -> None:
    control_plane = serve(httpx.Client(base_url=f"http://127.0.0.1:{unused_tcp_port}", trust_env=False))

    assert_no_token(ask(control_plane), "agent_service_unavailable")
    assert ask(control_plane, agent="optional").get_json()["agent_error"]["code"] == "agent_service_unavailable"


def test_an_agent_service_that_does_not_answer_withholds_the_token(serve: Serve) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        control_plane = serve(httpx.Client(base_url=address, timeout=0.2, trust_env=False))

        assert_no_token(ask(control_plane), "agent_service_unavailable")


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(502, html="<h1>Bad gateway</h1>"),
        httpx.Response(200, json={"ok": True}),
        httpx.Response(307, headers={"Location": "http://elsewhere/join"}),
    ],
)
def test_an_answer_that_is_not_as_agreed_withholds_the_token(serve: Serve, answer: httpx.Response) -> None:
    transport = httpx.MockTransport(lambda request: answer)

    control_plane = serve(httpx.Client(transport=transport, base_url="http://agent-service"))

    assert_no_token(ask(control_plane), "agent_service_unavailable")


def test_the_agent_service_is_opened_by_the_control_planes_own_key(redis_url: str, serve: Serve) -> None:
    open_joins(redis_url)
    own, callers = generate("control-plane"), generate("app")
    environ = {"MUSTER_API_KEYS": callers.entry, "AGENT_SERVICE_API_KEY": own.key}
    control_plane = serve(in_process(redis_url, keys=own.entry), **environ)

    refused = ask(control_plane)
    given = control_plane.post("/api/v1/livekit/token", json=ASKED, headers={"Authorization": f"Bearer {callers.key}"})

    assert (refused.status_code, refused.get_json()["code"]) == (401, "key_missing")
    assert (given.status_code, given.get_json()["session"]["created"]) == (200, True)


@pytest.mark.parametrize("key", ["", "muster_of-yesterday"])
def test_a_refused_control_plane_is_not_the_callers_fault(
    redis_url: str, serve: Serve, caplog: pytest.LogCaptureFixture, key: str
) -> None:
    control_plane = serve(in_process(redis_url, keys=generate("control-plane").entry), AGENT_SERVICE_API_KEY=key)

    assert_no_token(ask(control_plane), "agent_service_key_refused")
    assert ask(control_plane, agent="optional").get_json()["agent_error"]["code"] == "agent_service_key_refused"
    assert "AGENT_SERVICE_API_KEY" in caplog.text
    assert not key or key not in caplog.text


@pytest.mark.parametrize(("status", "code"), [(500, "internal_error"), (422, "invalid_request"), (503, "of tomorrow")])
def test_only_reasons_that_pass_are_told_in_the_agent_services_words(serve: Serve, status: int, code: str) -> None:
    problem = Problem(type="urn:x", title="", status=status, detail="", code=code, request_id="1")
    transport = httpx.MockTransport(lambda request: httpx.Response(status, json=problem.model_dump()))

    control_plane = serve(httpx.Client(transport=transport, base_url="http://agent-service"))

    assert_no_token(ask(control_plane), "agent_service_unavailable")


def test_one_request_id_follows_the_request_through_both_services(redis_url: str, serve: Serve) -> None:
    answers: list[httpx.Response] = []
    control_plane = serve(in_process(redis_url, event_hooks={"response": [answers.append]}))

    problem = ask(control_plane).get_json()

    assert [answer.headers["X-Request-Id"] for answer in answers] == [problem["request_id"]]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"identity": "agent-1-1"}, "identity"),
        ({"identity": ""}, "identity"),
        ({"room": "kit\tchen"}, "room"),
        ({"ttl": 59}, "ttl"),
        ({"ttl": 86401}, "ttl"),
        ({"ttl": "600"}, "ttl"),
        ({"agent": "maybe"}, "agent"),
        ({"metadata": {"big": "x" * 8192}}, "metadata"),
        ({"dispatch": True}, "dispatch"),
    ],
)
def test_a_request_that_is_not_as_agreed_starts_nothing(
    redis_url: str, serve: Serve, fields: dict[str, Any], named: str
) -> None:
    open_joins(redis_url)

    answer = ask(serve(in_process(redis_url)), **fields)

    assert (answer.status_code, answer.get_json()["code"]) == (422, "invalid_request")
    assert named in answer.get_json()["detail"]
    assert agent_service(redis_url).test_client().get("/sessions").get_json() == {"sessions": []}


def test_health_asks_nobody(serve: Serve) -> None:
    control_plane = serve(httpx.Client(base_url="http://127.0.0.1:1"))

    assert control_plane.get("/api/v1/health").get_json() == {"status": "ok"}
    assert control_plane.get("/api/v1/livekit/token").get_json()["code"] == "method_not_allowed"


def test_settings_name_everything_that_is_missing_and_never_show_the_secret() -> None:
    with pytest.raises(SettingsInvalid) as refused:
        ControlPlaneSettings.from_env({"LIVEKIT_API_SECRET": SECRET})

    assert {"LIVEKIT_URL", "LIVEKIT_API_KEY"} <= set(str(refused.value).replace(":", " ").split())
    assert SECRET not in str(refused.value) + repr(ControlPlaneSettings.from_env(LIVEKIT))
