"""Joins when many come at once, and through the real HTTP server."""

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import httpx

from tests.open_fleet import agent_service, client_of, open_joins
from worker.fleet import admission, records
from worker.fleet.redis_operations import run
from worker.fleet.session import Session


def record_of_room(redis_url: str, room: str) -> Session:
    """The one session that holds the room."""
    with client_of(redis_url) as client:
        holders = run(client, admission.holders("default"))
        held = [run(client, records.read(session_id)) for session_id in holders]
    [found] = [session for session in held if session and session.room == room]
    return found


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
    command = [sys.executable, "-m", "gunicorn", "--config", "python:api.server", "--bind", "127.0.0.1:0"]
    with subprocess.Popen(
        [*command, "api.agent_service:create_app()"],
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
