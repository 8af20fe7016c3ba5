"""`muster drain` and `muster status`' look at the fleet, on a real worker and a real agent service."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from local.parts import AGENT_SERVICE
from muster.cli import main
from muster.fleet import print_fleet
from tests.fleet_workers import Fleet, Worker, empty_fleet, wait_until
from tests.http_server import HttpServer
from worker.fleet.errors import WorkerNotFound
from worker.fleet.session import State


@pytest.fixture(scope="module")
def fleet(redis_database: str) -> Iterator[Fleet]:
    with empty_fleet(redis_database, number=13) as fleet:
        fleet.open_joins()
        yield fleet


@pytest.fixture(scope="module")
def service(fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpServer]:
    with HttpServer(
        log=tmp_path_factory.mktemp("agent-service") / "log",
        environ={"REDIS_URL": fleet.redis_url},
        application="api.agent_service:create_app()",
    ) as server:
        yield server


def said(worker: Worker, words: str) -> bool:
    return any(words in line for line in worker.lines)


def drain(service: HttpServer, *arguments: str) -> tuple[int, str]:
    answer = CliRunner().invoke(main, ["drain", *arguments, "--agent-service", service.url])
    return answer.exit_code, answer.output


def test_a_worker_that_is_asked_to_drain_keeps_its_call_and_then_exits_with_0(
    fleet: Fleet, service: HttpServer
) -> None:
    with fleet.worker("asked", slots=1) as worker:
        session = fleet.live_on(worker, "asked")
        answers: list[tuple[int, str]] = []
        command = threading.Thread(target=lambda: answers.append(drain(service, "asked")))
        command.start()
        wait_until(lambda: said(worker, "draining, 1"), within=4)
        # It has not forgotten, and a second SIGTERM would be another thing.
        fleet.control.drain("asked")
        time.sleep(2.5)
        assert fleet.get(session).state is State.LIVE
        fleet.leave(session)
        assert worker.wait(5) == 0
        command.join(10)
        assert not said(worker, "shutdown (MainProcess)")
    [(code, output)] = answers
    assert code == 0, output
    lines = output.splitlines()
    assert "Draining: 1 call left." in lines
    assert lines[-1].startswith("It has gone, after ")
    assert fleet.client.keys("muster:{workers}:drain:*") == []


def test_the_command_says_when_it_looks_no_longer_and_the_drain_goes_on(fleet: Fleet, service: HttpServer) -> None:
    with fleet.worker("slow", slots=1) as worker:
        session = fleet.live_on(worker, "slow")
        code, output = drain(service, "slow", "--wait", "1")
        assert (code, output.splitlines()[-1]) == (1, "Not gone after 1 s. It goes on draining.")
        wait_until(lambda: said(worker, "draining, 1"), within=4)
        fleet.leave(session)
        assert worker.wait(5) == 0


def test_an_unknown_worker_is_told_and_a_drain_of_it_is_not_kept(fleet: Fleet, service: HttpServer) -> None:
    assert drain(service, "nobody") == (1, "No worker of this name or id has a lease.\n")
    with pytest.raises(WorkerNotFound):
        fleet.control.drain("nobody")
    assert fleet.client.keys("muster:{workers}:drain:*") == []


def test_a_keeper_that_was_started_again_does_not_drain_a_draining_worker_once_more(fleet: Fleet) -> None:
    with fleet.worker("revived", slots=1) as worker:
        session = fleet.live_on(worker, "revived")
        fleet.control.drain("revived")
        wait_until(lambda: said(worker, "draining, 1"), within=4)
        os.kill(worker.keeper.pid, signal.SIGKILL)
        wait_until(lambda: said(worker, "the keeper died"), within=4)
        time.sleep(3)
        assert fleet.get(session).state is State.LIVE
        assert not said(worker, "shutdown (MainProcess)")
        fleet.leave(session)
        assert worker.wait(5) == 0


def test_status_names_workers_and_what_keepers_have_done(fleet: Fleet, service: HttpServer, tmp_path: Path) -> None:
    with fleet.worker("named", slots=2) as worker:
        session = fleet.live_on(worker, "named")
        fleet.over(fleet.join("breaks", fault="raise"))
        wait_until(lambda: "ended:internal_error" in fleet.control.actions(), within=4)
        console = Console(file=StringIO(), width=200)

        def shown() -> str:
            print_fleet({AGENT_SERVICE: service.url}, console=console)
            assert isinstance(console.file, StringIO)
            return console.file.getvalue()

        wait_until(lambda: "Workers: named 1/2\n" in shown(), within=4)
        assert "Done by keepers: ended:internal_error 1\n" in shown()
        fleet.leave(session)
