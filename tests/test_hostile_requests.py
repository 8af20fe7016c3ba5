"""Every hostile request, as bytes over a socket, to both services behind their real server."""

import hashlib
import socket
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.client import HTTPResponse
from pathlib import Path

import pytest
import redis

from api.models import Problem
from api.service import SECURITY_HEADERS
from tests.hostile_requests import (
    AGENT_SERVICE,
    CONTROL_PLANE,
    HOSTILE_REQUESTS,
    KEY,
    LIVEKIT_KEY,
    LIVEKIT_SECRET,
    REMOVED_KEY,
    Hostile,
    request,
)
from tests.http_server import HttpServer
from tests.open_fleet import open_joins

AT_LEAST = 100
HEALTH = {AGENT_SERVICE: "/health", CONTROL_PLANE: "/api/v1/health"}
KEY_HASH = hashlib.sha256(KEY.encode()).hexdigest()
#: What no answer and no line of a log may repeat.
SECRETS = [KEY, REMOVED_KEY, LIVEKIT_SECRET, KEY_HASH]


@dataclass(frozen=True)
class Answered:
    """An answer, and whether the connection was closed after it."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    closed: bool


@contextmanager
def served(redis_url: str, directory: Path) -> Iterator[dict[str, HttpServer]]:
    """Both services, the control plane in front of the agent service."""
    environ = {
        "MUSTER_API_KEYS": f"tests:{KEY_HASH}",
        "AGENT_SERVICE_API_KEY": KEY,
        "REDIS_URL": redis_url,
        "LIVEKIT_URL": "ws://127.0.0.1:7880",
        "LIVEKIT_API_KEY": LIVEKIT_KEY,
        "LIVEKIT_API_SECRET": LIVEKIT_SECRET,
    }
    with ExitStack() as stack:
        servers: dict[str, HttpServer] = {}
        for name, health in HEALTH.items():
            log, application = directory / f"{name}.log", f"api.{name}:create_app()"
            server = HttpServer(log=log, environ=environ, application=application, health=health)
            servers[name] = stack.enter_context(server)
            environ["AGENT_SERVICE_URL"] = servers[AGENT_SERVICE].url
        yield servers


@pytest.fixture(scope="module")
def servers(redis_database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, HttpServer]]:
    """Both services of a fleet that takes sessions."""
    with redis.Redis.from_url(redis_database) as client:
        client.flushdb()
    open_joins(redis_database)
    with served(redis_database, tmp_path_factory.mktemp("servers")) as running:
        yield running


@pytest.mark.parametrize("hostile", HOSTILE_REQUESTS, ids=lambda hostile: hostile.name)
def test_a_hostile_request_gets_its_answer(servers: dict[str, HttpServer], hostile: Hostile) -> None:
    answer = send(servers[hostile.service], hostile)

    assert (answer.status, answer.closed) == (hostile.status, hostile.closed)
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert SECURITY_HEADERS.items() <= answer.headers.items()
    assert ("Allow" in answer.headers) == (hostile.status == 405)
    assert answer.headers.get("WWW-Authenticate") == ("Bearer" if hostile.status == 401 else None)
    assert [secret for secret in SECRETS if secret in str(answer)] == []
    if hostile.raw.startswith(b"HEAD "):
        assert answer.body == b""
        return
    problem = Problem.model_validate_json(answer.body)
    assert (problem.status, problem.code) == (hostile.status, hostile.code)
    assert problem.request_id == answer.headers["X-Request-Id"]


def test_hostile_requests_start_nothing_and_leave_no_secret_in_a_log(servers: dict[str, HttpServer]) -> None:
    with servers[AGENT_SERVICE].connect(request("GET", "/sessions")) as connection:
        listed = read(connection)

    assert (listed.status, listed.body) == (200, b'{"sessions":[]}')
    for server in servers.values():
        log = server.log.read_text()
        assert [secret for secret in SECRETS if secret in log] == []
        assert "Traceback" not in log


def test_there_are_at_least_a_hundred_hostile_requests() -> None:
    assert len({hostile.raw for hostile in HOSTILE_REQUESTS}) >= AT_LEAST
    assert len({hostile.name for hostile in HOSTILE_REQUESTS}) == len(HOSTILE_REQUESTS)


def send(server: HttpServer, hostile: Hostile) -> Answered:
    """Send the bytes, read the answer, and see whether the connection serves another request."""
    with server.connect() as connection, ThreadPoolExecutor(1) as pool:
        # Who refuses early closes while the rest is still on its way.
        sending = pool.submit(_send_all, connection, hostile.raw)
        answer = read(connection, method=hostile.raw.partition(b" ")[0].decode("latin-1"))
        sending.result()
        return Answered(answer.status, answer.headers, answer.body, closed=not _serves_another(connection, server))


def read(connection: socket.socket, *, method: str = "GET") -> Answered:
    """The next answer on the connection."""
    response = HTTPResponse(connection, method=method)
    response.begin()
    return Answered(response.status, dict(response.headers), response.read(), closed=False)


def _send_all(connection: socket.socket, data: bytes) -> None:
    try:
        connection.sendall(data)
    except (BrokenPipeError, ConnectionResetError):
        return


def _serves_another(connection: socket.socket, server: HttpServer) -> bool:
    try:
        connection.sendall(request("GET", server.health))
        if not connection.recv(1, socket.MSG_PEEK):
            return False
    except (BrokenPipeError, ConnectionResetError):
        return False
    answer = read(connection)
    assert (answer.status, answer.body) == (200, b'{"status":"ok"}')
    return True
