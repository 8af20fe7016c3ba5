"""What docker-compose.yml starts, as processes: two replicas of the agent service and three workers serve as one."""

import os
from collections.abc import Iterator

import httpx
import psutil
import pytest

from local.errors import LocalError
from local.livekit_server import find_livekit_server
from local.redis_server import find_redis_server
from tests.containers import can_enclose
from tests.installation import API, WORKER, WORKERS, Installation, joined, reached, wait_until

# Three workers load the whole call at once.
pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """Everything healthy, and joins open; without one of its servers tests are skipped, on CI they fail."""
    try:
        find_redis_server()
        find_livekit_server()
    except LocalError as missing:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(missing))
    with Installation(tmp_path_factory.mktemp("installation")) as running:
        yield running


def listed(replica: httpx.Client, state: str) -> set[str]:
    answer = replica.get("/sessions", params={"state": state})
    return {session["session_id"] for session in answer.json()["sessions"]}


def owner(replica: httpx.Client, session_id: str) -> str:
    """The name of the worker that runs the session."""
    worker: str = replica.get(f"/sessions/{session_id}").json()["worker"]
    return worker.partition("@")[0]


def test_a_session_joined_on_one_replica_is_listed_on_both_and_left_on_the_other(installation: Installation) -> None:
    one, other = installation.replicas
    session_id = joined(one, "kitchen")
    assert listed(one, "waiting") == listed(other, "waiting") == {session_id}
    again = other.post("/join", json={"room": "kitchen", "user_id": "caller"})
    assert (again.status_code, again.json()["session_id"]) == (200, session_id)
    assert other.post("/leave", json={"session_id": session_id}).status_code == 202
    assert reached(one, session_id, "ended")["reason"] == "left"
    assert session_id in listed(one, "ended") & listed(other, "ended")


def test_three_workers_run_three_calls_under_names_of_their_own(installation: Installation) -> None:
    one, other = installation.replicas
    sessions = [joined(one, f"room-{number}") for number in range(WORKERS)]
    owners = {owner(other, session_id) for session_id in sessions}
    assert owners == {worker.name for worker in installation.fleet().workers}
    assert len(owners) == WORKERS
    for session_id in sessions:
        other.post("/leave", json={"session_id": session_id})
    for session_id in sessions:
        reached(one, session_id, "ended")


def test_the_control_plane_opens_a_room_with_its_own_key(installation: Installation) -> None:
    answer = installation.control_plane.post("/api/v1/livekit/token", json={"room": "hall", "identity": "caller"})
    assert answer.status_code == 200, answer.text
    session_id = answer.json()["session"]["session_id"]
    for replica in installation.replicas:
        reached(replica, session_id, "waiting")
    installation.replicas[0].post("/leave", json={"session_id": session_id})
    reached(installation.replicas[1], session_id, "ended")


def test_livekit_tells_the_agent_service_who_has_left(installation: Installation) -> None:
    one, other = installation.replicas
    session_id = joined(one, "attic")
    other.post("/leave", json={"session_id": session_id})
    reached(one, session_id, "ended")

    def told() -> bool:
        sent = [line for line in installation.livekit_log.read_text().splitlines() if f"agent-{session_id}-1" in line]
        return any('"event": "participant_left"' in line and '"statusCode": 200' in line for line in sent)

    wait_until(told, within=10)


def test_without_a_key_the_replicas_say_only_that_they_live(installation: Installation) -> None:
    for replica in installation.replicas:
        with httpx.Client(base_url=replica.base_url, trust_env=False) as stranger:
            assert stranger.get("/health").status_code == 200
            assert stranger.get("/sessions").status_code == 401


def test_no_container_has_a_zombie(installation: Installation) -> None:
    # A child that has just ended is one until its parent has asked, twice a second.
    def zombies() -> list[psutil.Process]:
        processes = [process for container in installation.containers for process in container.processes()]
        return [process for process in processes if process.status() == psutil.STATUS_ZOMBIE]

    wait_until(lambda: not zombies(), within=5, what=lambda: str(zombies()))


def test_containers_write_nothing_but_the_health_file_and_the_history_of_flower(installation: Installation) -> None:
    if not can_enclose():
        if os.environ.get("CI"):
            pytest.fail("unshare, setpriv and root are needed")
        pytest.skip("unshare, setpriv and root are needed")
    for container in installation.containers:
        for path in ("/x", "/app/x", "/opt/venv/x", "/nonexistent/x"):
            assert container.run(["touch", path]).returncode != 0
        found = container.run(["find", "/tmp", "/run/muster", "-xdev", "-type", "f"]).stdout.split()
        assert found == (["/run/muster/worker"] if container.service == WORKER else [])


def test_sigterm_stops_every_container_orderly_and_a_worker_after_its_call(installation: Installation) -> None:
    replica = installation.replicas[0]
    session_id = joined(replica, "cellar")
    # A container's worker is named after the container.
    (busy,) = (each for each in installation.of(WORKER) if owner(replica, session_id) == f"worker-{each.name}")
    idle = [each for each in installation.of(WORKER) if each is not busy]
    for worker in idle:
        worker.terminate()
    assert [worker.wait(20) for worker in idle] == [0, 0]
    # Nobody is left who could go on with its call.
    busy.terminate()
    assert busy.is_healthy
    assert reached(replica, session_id, "waiting")["reason"] is None
    replica.post("/leave", json={"session_id": session_id})
    assert busy.wait(20) == 0
    assert not installation.fleet().workers
    others = [each for each in installation.containers if each.service != WORKER]
    assert len([each for each in others if each.service == API]) == len(installation.replicas)
    for container in others:
        container.terminate()
    assert {each.name: each.wait(20) for each in others} == dict.fromkeys((each.name for each in others), 0)
