"""Flower for operators: what a real one shows of real workers' sessions, and to whom."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from local.paths import ROOT
from local.ports import HOST, PortPicker
from tests.fleet_app import BROKEN
from tests.fleet_sessions import new_session
from tests.fleet_workers import Fleet, Worker, empty_fleet, wait_until
from worker.fleet.publishing import TASK_NAME, publisher
from worker.fleet.session import Session
from worker.fleet.task_states import VOID

CONFIGURATION = ROOT / "deploy" / "flowerconfig.py"
LOGIN = ("operator", "window")
#: Behind a proxy that hands on /calls/…
PREFIX = "calls"
#: What no operator's page may show.
ROOM = "annas-kitchen"
#: Seconds an event may take to be shown on a busy machine.
SHOWN = 15.0


def flower_command(port: int) -> list[str]:
    celery = [sys.executable, "-m", "celery", "-A", "tests.fleet_app", "flower"]
    return [*celery, f"--conf={CONFIGURATION}", f"--address={HOST}", f"--port={port}"]


class Flower:
    """A real Flower with the product's configuration, its history in a file."""

    def __init__(self, redis_url: str, *, directory: Path) -> None:
        self.history = directory / "made" / "history"
        self._port = PortPicker().pick()
        self._log = directory / "flower.log"
        self._environ = {
            **os.environ,
            "REDIS_URL": redis_url,
            "FLOWER_BASIC_AUTH": ":".join(LOGIN),
            "FLOWER_URL_PREFIX": PREFIX,
            "FLOWER_DB": str(self.history),
        }
        self.http = httpx.Client(base_url=f"http://{HOST}:{self._port}/{PREFIX}", auth=LOGIN)

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                flower_command(self._port), cwd=ROOT, env=self._environ, stdout=log, stderr=log
            )

    def wait_until_ready(self) -> None:
        wait_until(self._answers, within=20, what=self._log.read_text)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        self.kill()
        self.http.close()

    def task(self, task_id: str) -> dict[str, Any]:
        """What it knows of the task, nothing when it does not know it."""
        answer = self.http.get(f"/api/task/info/{task_id}")
        return dict(answer.json()) if answer.status_code == 200 else {}

    def shows(self, task_id: str, state: str) -> dict[str, Any]:
        """The task when it is in this state."""
        wait_until(
            lambda: self.task(task_id).get("state") == state, within=SHOWN, what=lambda: (state, self.task(task_id))
        )
        return self.task(task_id)

    def _answers(self) -> bool:
        assert self._process.poll() is None
        try:
            return self.http.get("/healthcheck").status_code == 200
        except httpx.TransportError:
            return False


@pytest.fixture(scope="module")
def fleet(redis_database: str) -> Iterator[Fleet]:
    with empty_fleet(redis_database, number=12) as fleet:
        yield fleet


@pytest.fixture(scope="module")
def flower(fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flower]:
    flower = Flower(fleet.redis_url, directory=tmp_path_factory.mktemp("flower"))
    flower.start()
    yield flower
    flower.close()


@pytest.fixture(scope="module")
def stays(fleet: Fleet, flower: Flower) -> Iterator[Worker]:
    """A worker that Flower has watched from the start."""
    with fleet.worker("stays") as worker:
        flower.wait_until_ready()
        # It answers before it listens to the workers.
        wait_until(lambda: "stays@test" in flower.http.get("/workers", params={"json": "1"}).text, within=20)
        fleet.open_joins()
        yield worker


def test_a_live_session_is_shown_under_its_id_and_where_it_runs(fleet: Fleet, flower: Flower, stays: Worker) -> None:
    session = fleet.live(fleet.join(ROOM))
    task = flower.shows(session.session_id, "LIVE")
    assert task["worker"] == "stays@test"
    assert task["args"] == f"('{session.session_id}', 1)" and task["kwargs"] == "{}"
    assert time.time() - task["started"] < SHOWN
    listed = flower.http.get("/api/tasks", params={"state": "LIVE"}).json()
    assert set(listed) == {session.session_id}

    page = flower.http.get(f"/task/{session.session_id}")
    assert "LIVE" in page.text
    for answer in (page, flower.http.get("/api/tasks"), flower.http.get("/metrics")):
        assert ROOM not in answer.text and session.user_id not in answer.text
    fleet.leave(session)
    assert flower.shows(session.session_id, "SUCCESS")["result"] == "'left'"


def test_a_failed_session_shows_why_and_costs_one_line_of_log(fleet: Fleet, flower: Flower, stays: Worker) -> None:
    session = fleet.over(fleet.join(ROOM, fault="fail"))
    assert session.reason is BROKEN
    task = flower.shows(session.session_id, "FAILURE")
    assert task["exception"] == "SessionFailed('provider_failed')"
    assert task["worker"] == "stays@test"
    told = [line for line in stays.lines if "SessionFailed" in line]
    assert len(told) == 1 and session.session_id in told[0]
    assert not any("Traceback" in line for line in stays.lines)


def test_a_killed_child_s_session_shows_that_it_was_lost(fleet: Fleet, flower: Flower, stays: Worker) -> None:
    session = fleet.over(fleet.join(ROOM, fault="panic"))
    flower.shows(session.session_id, "FAILURE")
    # Celery's own event names no cause; the keeper's comes after it.
    lost = "SessionFailed('worker_lost')"
    wait_until(lambda: flower.task(session.session_id)["exception"] == lost, within=SHOWN)
    time.sleep(0.5)
    task = flower.task(session.session_id)
    assert (task["exception"], task["worker"]) == (lost, "stays@test")


def test_a_dead_worker_s_task_is_shown_as_lost_and_its_session_live_with_another(
    fleet: Fleet, flower: Flower, stays: Worker
) -> None:
    with fleet.worker("doomed", slots=1) as doomed:
        session = fleet.live_on(doomed, ROOM)
        flower.shows(session.session_id, "LIVE")
        doomed.die()
    task = flower.shows(session.session_id, "FAILURE")
    assert (task["exception"], task["worker"]) == ("SessionFailed('worker_lost')", "doomed@test")
    assert flower.shows(f"{session.session_id}.2", "LIVE")["worker"] == "stays@test"
    fleet.leave(session)


def test_a_message_with_nothing_to_run_is_shown_as_void(fleet: Fleet, flower: Flower, stays: Worker) -> None:
    silent = fleet.replica(publish=lambda session: None)
    session = silent.join(room=ROOM, user_id="caller", metadata={}).session
    assert fleet.control.leave(session.session_id).outcome == "cancelled"
    publish_again(fleet, session)
    assert flower.shows(session.session_id, "SUCCESS")["result"] == f"'{VOID}'"


def test_a_repeated_message_leaves_what_is_shown_of_the_call_alone(fleet: Fleet, flower: Flower, stays: Worker) -> None:
    session = fleet.live(fleet.join(ROOM))
    started = flower.shows(session.session_id, "LIVE")["started"]
    publish_again(fleet, replace(session, published_at=time.time()))
    repeated = flower.shows(f"{session.session_id}~repeated", "SUCCESS")
    assert repeated["result"] == f"'{VOID}'"
    assert flower.shows(session.session_id, "LIVE")["started"] == started
    fleet.leave(session)


def test_a_message_that_came_too_late_is_shown_as_revoked(fleet: Fleet, flower: Flower, stays: Worker) -> None:
    session = new_session()
    fleet.producer.send_task(
        TASK_NAME,
        args=(session.session_id, 1),
        task_id=session.task_id,
        queue="sessions",
        expires=datetime.now(UTC) - timedelta(seconds=1),
    )
    flower.shows(session.session_id, "REVOKED")


def test_calls_on_a_draining_worker_are_shown_as_draining_to_their_end(fleet: Fleet, flower: Flower) -> None:
    with fleet.worker("leaves", slots=1) as leaves:
        session = fleet.live_on(leaves, ROOM)
        flower.shows(session.session_id, "LIVE")
        leaves.terminate()
        flower.shows(session.session_id, "DRAINING")
        # The session of this test says that it is live right after it has said that it drains.
        time.sleep(0.5)
        draining = flower.http.get("/api/tasks", params={"state": "DRAINING"}).json()
        assert {task["worker"] for task in draining.values()} == {"leaves@test"}
        fleet.leave(session)
        assert flower.shows(session.session_id, "SUCCESS")["result"] == "'left'"
        assert leaves.wait() == 0


def test_only_who_has_the_password_may_look_and_nobody_may_touch(fleet: Fleet, flower: Flower, stays: Worker) -> None:
    session = fleet.live(fleet.join(ROOM))
    for path in ("/", "/tasks", f"/task/{session.session_id}", "/api/tasks", "/api/workers", "/broker"):
        assert httpx.get(f"{flower.http.base_url}{path.lstrip('/')}").status_code == 401
    assert httpx.get(f"{flower.http.base_url}tasks", auth=(LOGIN[0], "guess")).status_code == 401
    for path in (f"/api/task/revoke/{session.session_id}?terminate=true", "/api/worker/shutdown/stays@test"):
        assert flower.http.post(path).status_code == 403
    assert fleet.get(session) == fleet.live(session)
    fleet.leave(session)


def test_it_lives_below_its_prefix_only(flower: Flower, stays: Worker) -> None:
    assert flower.http.get("/tasks").status_code == 200
    root = flower.http.base_url.copy_with(path="/tasks")
    assert httpx.get(root, auth=LOGIN).status_code == 404


def test_a_call_of_an_hour_has_a_bucket_of_its_own(fleet: Fleet, flower: Flower, stays: Worker) -> None:
    fleet.leave(fleet.live(fleet.join(ROOM)))
    wait_until(lambda: bucket_bounds(flower.http.get("/metrics").text), within=SHOWN)
    bounds = bucket_bounds(flower.http.get("/metrics").text)
    assert {30, 300, 3600, 14400, float("inf")} <= bounds
    assert min(bounds) >= 30


def is_saved_since(flower: Flower, moment: float) -> bool:
    return saved_at(flower) > moment


def test_the_history_survives_that_flower_is_killed(fleet: Fleet, flower: Flower, stays: Worker) -> None:
    failed = fleet.over(fleet.join(ROOM, fault="fail"))
    flower.shows(failed.session_id, "FAILURE")
    # A write that has begun before may not hold it.
    for _ in range(2):
        wait_until(partial(is_saved_since, flower, time.time()), within=SHOWN)
    flower.kill()
    flower.start()
    flower.wait_until_ready()
    assert flower.task(failed.session_id)["exception"] == "SessionFailed('provider_failed')"


def test_without_a_password_it_does_not_start(fleet: Fleet) -> None:
    environ = {name: value for name, value in os.environ.items() if name != "FLOWER_BASIC_AUTH"}
    refused = subprocess.run(
        flower_command(PortPicker().pick()),
        cwd=ROOT,
        env={**environ, "REDIS_URL": fleet.redis_url, "FLOWER_UNAUTHENTICATED_API": "true"},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert refused.returncode == 1
    assert "FLOWER_BASIC_AUTH" in refused.stderr


def publish_again(fleet: Fleet, session: Session) -> None:
    """Put the session's message on the queue, as the leading keeper does."""
    publisher(fleet.producer, join_ttl=30)(session)


def bucket_bounds(metrics: str) -> set[float]:
    """The upper bounds, in seconds, of the buckets of a task's runtime."""
    lines = [line for line in metrics.splitlines() if line.startswith("flower_task_runtime_seconds_bucket")]
    return {float(line.split('le="')[1].split('"')[0]) for line in lines}


def saved_at(flower: Flower) -> float:
    """When the history was last saved, in Unix seconds; 0 before."""
    # What is still being written has another name.
    saved = [file for file in flower.history.parent.glob("history*") if ".tmp" not in file.name]
    return max((file.stat().st_mtime for file in saved), default=0.0)
