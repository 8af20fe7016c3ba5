"""Joins when Redis is in trouble, when many come at once, and through the real HTTP server."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Barrier

import httpx
import pytest
from flask.testing import FlaskClient

from local.ports import PortPicker
from tests.open_fleet import agent_service, client_of, open_joins
from tests.redis_server import RedisServer
from worker.fleet import admission, records
from worker.fleet.redis_operations import run
from worker.fleet.session import Session

#: Seconds the two calls of a join that a frozen Redis costs may take together, and a little.
FROZEN_AT_MOST = 2.5
#: Seconds a frozen broker may cost: the connection it had, then two new ones, and a little.
PUBLISH_AT_MOST = 2.5


@pytest.fixture
def own_redis(redis_server: RedisServer, tmp_path: Path) -> Iterator[RedisServer]:
    """A running server that belongs to one test."""
    server = RedisServer(port=PortPicker().pick(), directory=tmp_path)
    server.start()
    yield server
    server.stop()


@contextmanager
def frozen(server: RedisServer) -> Iterator[None]:
    """It takes connections and answers nobody."""
    server.freeze()
    try:
        yield
    finally:
        server.thaw()


def join(service: FlaskClient, room: str) -> tuple[int, str, float]:
    """Status, code ("" when there is none) and seconds of a join."""
    started = time.monotonic()
    answer = service.post("/join", json={"room": room, "user_id": "ada"})
    return answer.status_code, answer.get_json().get("code", ""), time.monotonic() - started


def record_of_room(redis_url: str, room: str) -> Session:
    """The one session that holds the room."""
    with client_of(redis_url) as client:
        holders = run(client, admission.holders("default"))
        held = [run(client, records.read(session_id)) for session_id in holders]
    [found] = [session for session in held if session and session.room == room]
    return found


def test_a_frozen_redis_costs_a_join_two_seconds_and_the_thaw_heals_it(own_redis: RedisServer) -> None:
    open_joins(own_redis.url)
    service = agent_service(own_redis.url).test_client()
    assert join(service, "before")[0] == 202

    with frozen(own_redis):
        status, code, seconds = join(service, "during")

    assert (status, code) == (503, "redis_unavailable")
    assert seconds <= FROZEN_AT_MOST
    assert join(service, "after")[0] == 202


def test_a_redis_that_refuses_is_told_at_once_and_its_return_heals_it(own_redis: RedisServer) -> None:
    open_joins(own_redis.url)
    service = agent_service(own_redis.url).test_client()
    assert join(service, "before")[0] == 202

    own_redis.stop()
    status, code, seconds = join(service, "during")
    refused = service.post("/join", json={"room": "during", "user_id": "ada"})
    own_redis.start()

    assert (status, code) == (503, "redis_unavailable")
    assert seconds < 1
    assert refused.headers["Retry-After"] == "1"
    assert join(service, "after")[0] == 202


def test_a_broker_that_refuses_leaves_the_message_to_the_keeper(redis_url: str, unused_tcp_port: int) -> None:
    open_joins(redis_url)
    service = agent_service(redis_url, BROKER_URL=f"redis://127.0.0.1:{unused_tcp_port}/0").test_client()

    status, _, seconds = join(service, "kitchen")

    assert status == 202
    assert seconds < 2
    assert record_of_room(redis_url, "kitchen").published_at is None


def test_a_frozen_broker_leaves_the_message_to_the_keeper(redis_url: str, own_redis: RedisServer) -> None:
    open_joins(redis_url)
    service = agent_service(redis_url, BROKER_URL=own_redis.url).test_client()
    assert join(service, "before")[0] == 202

    with frozen(own_redis):
        status, _, seconds = join(service, "kitchen")

    assert status == 202
    assert seconds <= PUBLISH_AT_MOST
    assert record_of_room(redis_url, "kitchen").published_at is None


def test_of_twenty_joins_for_one_room_at_the_same_instant_one_makes_a_session(redis_url: str) -> None:
    together = 20
    open_joins(redis_url, slots=together)
    replicas = [agent_service(redis_url), agent_service(redis_url)]
    start = Barrier(together)

    def ask(number: int) -> tuple[int, str, bool]:
        service = replicas[number % len(replicas)].test_client()
        start.wait()
        answer = service.post("/join", json={"room": "kitchen", "user_id": f"caller-{number}"})
        return answer.status_code, answer.get_json()["session_id"], answer.get_json()["created"]

    with ThreadPoolExecutor(together) as pool:
        answers = list(pool.map(ask, range(together)))

    session_id = record_of_room(redis_url, "kitchen").session_id
    expected = [(200, session_id, False)] * (together - 1) + [(202, session_id, True)]
    assert sorted(answers) == expected


def test_gunicorn_serves_joins_and_ends_cleanly_when_it_is_told_to(redis_url: str) -> None:
    open_joins(redis_url)
    command = [sys.executable, "-m", "gunicorn", "--bind", "127.0.0.1:0", "--worker-class", "gthread"]
    with subprocess.Popen(
        [*command, "--workers", "1", "--threads", "8", "api.agent_service:create_app()"],
        env={**os.environ, "REDIS_URL": redis_url, "BROKER_URL": redis_url},
        cwd=Path(__file__).parents[1],
        stderr=subprocess.PIPE,
        text=True,
    ) as server:
        try:
            assert server.stderr is not None
            found = (re.search(r"Listening at: (\S+)", line) for line in server.stderr)
            address = next(match[1] for match in found if match)
            with httpx.Client(base_url=address, timeout=20, trust_env=False) as client:
                assert client.get("/health").json() == {"status": "ok"}
                joined = client.post("/join", json={"room": "kitchen", "user_id": "ada"})
            server.terminate()
            server.communicate(timeout=10)
        finally:
            server.kill()

    assert joined.status_code == 202
    assert server.returncode == 0
    assert record_of_room(redis_url, "kitchen").session_id == joined.json()["session_id"]
