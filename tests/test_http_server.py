"""The HTTP server itself: slow clients, endless streams, broken requests, too many connections, and its end."""

import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from socket import SHUT_WR, socket

import httpx
import pytest

from api.http_worker import HttpWorker, allow_descriptors
from local.ports import HOST
from tests.http_server import HttpServer, is_closed, is_unanswered, logged_lines, read_answer, read_until
from tests.open_fleet import open_joins
from tests.redis_server import RedisServer

HALF_A_HEAD = b"POST /join HTTP/1.1\r\nHost: localhost\r\nContent-Type: appl"
HALF_A_BODY = (
    b'POST /join HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 400\r\n\r\n{"room": '
)
JOIN = (
    b"POST /join HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 34\r\n\r\n"
    b'{"room": "hall", "user_id": "ada"}'
)
HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
STREAM = b"GET /test/events HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture(scope="module")
def unix_socket(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the service listens besides its port."""
    return tmp_path_factory.mktemp("http") / "socket"


@pytest.fixture(scope="module")
def server(redis_server: RedisServer, unix_socket: Path) -> Iterator[HttpServer]:
    """The service as it is shipped."""
    environ = {"REDIS_URL": redis_server.url, "MUSTER_QUEUE_PER_SLOT": "1000"}
    log = unix_socket.with_name("server.log")
    with HttpServer("--bind", f"unix:{unix_socket}", log=log, environ=environ) as running:
        yield running


@pytest.fixture(scope="module")
def impatient(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpServer]:
    """The same with short deadlines."""
    options = ("--worker-class", "tests.impatient_worker.ImpatientWorker")
    log = tmp_path_factory.mktemp("http") / "impatient.log"
    with HttpServer(*options, log=log, environ={"REDIS_URL": redis_server.url}) as running:
        yield running


@pytest.fixture
def frozen_redis(redis_server: RedisServer) -> Iterator[RedisServer]:
    """Thawed again, whatever happens."""
    yield redis_server
    redis_server.thaw()


def test_slow_clients_and_idle_streams_delay_nobody(server: HttpServer, frozen_redis: RedisServer) -> None:
    allow_descriptors(4096)
    open_joins(frozen_redis.url)
    with (
        server.connections(800, sent=HALF_A_HEAD) as heads,
        server.connections(200, sent=HALF_A_BODY) as bodies,
        server.connections(50, sent=STREAM) as streams,
    ):
        for stream in streams:
            read_until(stream, b"event: open")
        health_delay = server.health_delay()
        join = httpx.post(f"{server.url}/join", json={"room": "kitchen", "user_id": "ada"}, timeout=15)

        frozen_redis.freeze()
        with server.connections(100, sent=JOIN) as joins:
            frozen_delay = server.health_delay()
            ready = server.ask(HEALTH.replace(b"/health", b"/ready"))
            refused = {read_answer(waiting).status for waiting in joins}
        frozen_redis.thaw()

        assert (health_delay < 1, join.status_code) == (True, 202)
        assert frozen_delay < 1
        assert (ready.status, refused) == (503, {503})
        # Nobody was sent away to make this possible.
        assert all(is_unanswered(client) for client in [*heads, *bodies])
        for stream in streams:
            read_until(stream, b"still here")


@pytest.mark.parametrize("sent", [HALF_A_HEAD, HALF_A_BODY])
def test_what_does_not_arrive_in_time_is_refused(impatient: HttpServer, sent: bytes) -> None:
    with impatient.connect(sent) as client:
        trickle = threading.Thread(target=send_byte_by_byte, args=(client,))
        trickle.start()
        begun_at = time.monotonic()
        answer = read_answer(client)
        assert is_closed(client)
        trickle.join()

    assert (answer.status, json.loads(answer.body)["code"]) == (408, "request_timeout")
    assert time.monotonic() - begun_at < 5


def send_byte_by_byte(client: socket) -> None:
    with suppress(OSError):
        for _ in range(12):
            client.sendall(b"x")
            time.sleep(0.1)


def test_a_client_that_says_nothing_is_left_without_a_word(impatient: HttpServer) -> None:
    with impatient.connect() as client:
        assert is_closed(client)


def test_a_client_that_does_not_read_its_answer_loses_it(impatient: HttpServer) -> None:
    with impatient.connect(b"GET /test/flood HTTP/1.1\r\nHost: localhost\r\n\r\n") as client:
        time.sleep(1)
        received = 0
        with suppress(ConnectionResetError):
            while piece := client.recv(1024 * 1024):
                received += len(piece)
    assert 0 < received < 64 * 1024 * 1024


def test_the_longest_arriving_connection_gives_way_to_a_new_one(redis_server: RedisServer, tmp_path: Path) -> None:
    environ = {"REDIS_URL": redis_server.url}
    with (
        HttpServer("--worker-connections", "430", log=tmp_path / "server.log", environ=environ) as crowded,
        crowded.connections(30, sent=STREAM[:10]) as clients,
    ):
        delay = crowded.health_delay()
        closed = [is_closed(client, within=0.01) for client in clients[:4]]

    assert delay < HttpWorker.head_within / 2, "a new client waits for the deadline of the others"
    assert closed[0]
    assert not closed[3]


REFUSED = {
    "no request": (b"hello\r\n\r\n", 400, "bad_request"),
    "a control character": (b"GET /health\x00 HTTP/1.1\r\nHost: localhost\r\n\r\n", 400, "bad_request"),
    "another protocol": (b"GET /health HTTP/3.0\r\nHost: localhost\r\n\r\n", 400, "bad_request"),
    "no host": (b"GET /health HTTP/1.1\r\n\r\n", 400, "bad_request"),
    "two lengths": (HEALTH[:-2] + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab", 400, "bad_request"),
    "length and chunks": (
        HEALTH[:-2] + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
        "bad_request",
    ),
    "a broken chunk": (HEALTH[:-2] + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n<script>\r\n", 400, "bad_request"),
    "a body in too many chunks": (
        HEALTH[:-2] + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 11_000,
        400,
        "bad_request",
    ),
    "a header without a colon": (HEALTH[:-2] + b"Nonsense\r\n\r\n", 400, "bad_request"),
    "a folded header": (HEALTH[:-2] + b"X-Long: a\r\n b\r\n\r\n", 400, "bad_request"),
    "a NUL in a header": (HEALTH[:-2] + b"X-Nul: a\x00b\r\n\r\n", 400, "bad_request"),
    "an underscore in a header": (HEALTH[:-2] + b"Content_Length: 5\r\n\r\n", 400, "bad_request"),
    "an address that is too long": (
        b"GET /" + b"a" * 5000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        414,
        "uri_too_long",
    ),
    "an expectation": (HEALTH[:-2] + b"Expect: wonders\r\n\r\n", 417, "expectation_failed"),
    "a header that is too large": (HEALTH[:-2] + b"X-Big: " + b"a" * 9000 + b"\r\n\r\n", 431, "headers_too_large"),
    "a head without end": (HEALTH[:-2] + b"X-Pad: aaaaaaaa\r\n" * 2500, 431, "headers_too_large"),
    "an unknown coding": (HEALTH[:-2] + b"Transfer-Encoding: magic\r\n\r\n", 501, "not_implemented"),
    "a body that is too large": (
        HALF_A_BODY.replace(b"400", b"9000000") + b" " * 200_000,
        413,
        "payload_too_large",
    ),
}


@pytest.mark.parametrize(("sent", "status", "code"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_request_is_refused_as_a_problem(server: HttpServer, sent: bytes, status: int, code: str) -> None:
    with server.connect(sent) as client:
        answer = read_answer(client)
        assert is_closed(client)

    assert (answer.status, answer.headers["content-type"]) == (status, "application/problem+json")
    assert answer.headers["connection"] == "close"
    problem = json.loads(answer.body)
    assert (problem["status"], problem["code"]) == (status, code)
    assert problem["request_id"] == answer.headers["x-request-id"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert b"script" not in answer.body


def test_a_body_that_breaks_off_does_not_reach_the_application(server: HttpServer) -> None:
    with server.connect(HALF_A_BODY) as client:
        client.shutdown(SHUT_WR)
        answer = read_answer(client)
        assert is_closed(client)
    assert (answer.status, json.loads(answer.body)["code"]) == (400, "bad_request")


def test_requests_in_one_connection_are_answered_in_turn(server: HttpServer) -> None:
    body = b'{"session_id": "unknown"}'
    leave = b"POST /leave HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    expecting = leave + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(body)
    chunked = leave + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    with server.connect(expecting) as client:
        assert client.recv(4096) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(body)
        first = read_answer(client)
        client.sendall(chunked)
        second = read_answer(client)

    assert [(answer.status, answer.headers["connection"]) for answer in (first, second)] == [(404, "keep-alive")] * 2


def test_answers_do_not_tell_the_version_of_the_server(server: HttpServer) -> None:
    assert not any(re.search(r"\d+\.\d+", value) for value in server.ask(HEALTH).headers.values())


def test_a_defect_is_found_in_the_log_by_its_request_id(server: HttpServer) -> None:
    answer = server.ask(b"GET /test/defect HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: find-me\r\n\r\n")

    assert (answer.status, json.loads(answer.body)["request_id"]) == (500, "find-me")
    assert b"broken on purpose" not in answer.body
    log = server.log.read_text()
    assert "request_id=find-me" in log
    assert "RuntimeError: broken on purpose" in log


def test_sigterm_lets_requests_finish_and_ends_streams(redis_server: RedisServer, tmp_path: Path) -> None:
    options = ("--worker-class", "tests.impatient_worker.ImpatientWorker")
    log = tmp_path / "server.log"
    with (
        HttpServer(*options, log=log, environ={"REDIS_URL": redis_server.url}) as server,
        server.connect(STREAM) as stream,
        server.connect(HEALTH) as idle,
        server.connect(b"GET /test/nap HTTP/1.1\r\nHost: localhost\r\n\r\n") as napping,
    ):
        read_until(stream, b"event: open")
        assert read_answer(idle).status == 200
        stopping = threading.Thread(target=server.stop)
        stopping.start()
        nap = read_answer(napping)
        assert is_closed(napping)
        assert is_closed(idle)
        ended = b"".join(iter(lambda: stream.recv(4096), b""))
        stopping.join()

    assert (nap.status, nap.body) == (200, b"rested")
    assert b"still here" in ended
    assert server.process.returncode == 0
    assert "SIGKILL" not in log.read_text()


@pytest.mark.parametrize("bind", ["0.0.0.0:0", "[::]:0", ":0", "example.invalid:0"])
def test_without_keys_strangers_are_not_listened_to(tmp_path: Path, bind: str) -> None:
    server = HttpServer(log=tmp_path / "server.log", environ={"REDIS_URL": "redis://127.0.0.1:1"}, bind=bind)
    server.launch()

    assert server.exit_code() == 1
    assert "MUSTER_API_KEYS is not set" in server.log.read_text()
    assert "Listening" not in server.log.read_text()


@pytest.mark.usefixtures("server")
def test_a_unix_socket_needs_no_keys(unix_socket: Path) -> None:
    transport = httpx.HTTPTransport(uds=str(unix_socket))
    with httpx.Client(transport=transport, base_url=f"http://{HOST}") as client:
        assert client.get("/sessions").status_code == 200


def test_wrong_settings_end_the_server_with_one_line(tmp_path: Path) -> None:
    environ = {"REDIS_URL": "redis://127.0.0.1:1", "MUSTER_API_KEYS": "secret"}
    server = HttpServer(log=tmp_path / "server.log", environ=environ)
    server.launch()

    assert server.exit_code() == 4
    lines = logged_lines(server.log.read_text())
    assert len([line for line in lines if "MUSTER_API_KEYS" in line]) == 1
    assert not any("Traceback" in line or "secret" in line for line in lines)
