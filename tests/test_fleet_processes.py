"""What the processes of one worker share, and what importing the fleet costs those who only publish."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from kombu.exceptions import OperationalError

from local.ports import HOST, PortPicker
from tests.fleet_sessions import new_session
from tests.redis_server import RedisServer
from worker.fleet.actions import Actions
from worker.fleet.app import create_producer
from worker.fleet.child import DRAIN, SOFT_LIMIT, Child
from worker.fleet.keeper import Children
from worker.fleet.publishing import publisher
from worker.fleet.table import ABANDONED, Table

_HOLD = """
import sys, time
from worker.fleet.table import Table
table = Table(int(sys.argv[1]))
table.slots[1].hold("a-session", 7)
print("held", flush=True)
time.sleep(60)
"""

_STARVES = """
import psutil, resource
from worker.fleet.child import Child
from worker.fleet.table import Table
child = Child(worker_id="worker@test#1", table=Table.create(slots=1), index=0)
child.die_without_memory()
print("lives", flush=True)
resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + 2**20, resource.RLIM_INFINITY))
child.die_without_memory()
print("starves", flush=True)
"""


@pytest.fixture
def table() -> Table:
    return Table.create(slots=2)


@pytest.fixture
def holder(table: Table) -> Iterator["subprocess.Popen[bytes]"]:
    """Another process that holds the table's second slot."""
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(table.fileno)], pass_fds=[table.fileno], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.fixture
def child(table: Table) -> Iterator[Child]:
    """This process as a child of a pool; its signals are given back."""
    numbers = (SOFT_LIMIT, DRAIN, signal.SIGALRM, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}
    yield Child(worker_id="worker@test#1", table=table, index=0)
    for number, handler in before.items():
        signal.signal(number, handler)


def test_what_one_process_writes_in_the_table_another_reads(table: Table, holder: "subprocess.Popen[bytes]") -> None:
    assert table.slots[0].read() is None
    holding = table.slots[1].read()
    assert holding is not None
    assert (holding.pid, holding.epoch, holding.session_id) == (holder.pid, 7, "a-session")
    assert 0 <= time.monotonic_ns() - holding.stamp < 10e9
    assert (table.parent_pid, table.draining, table.renewed_at) == (os.getpid(), False, 0)


def test_a_dead_process_loses_its_session_once(table: Table, holder: "subprocess.Popen[bytes]") -> None:
    children = Children(table, Actions())
    assert children.look() == []
    # Not waited for: a zombie is dead.
    holder.kill()
    os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)
    (lost,) = children.look()
    assert (lost.session_id, lost.epoch) == ("a-session", 7)
    assert children.look() == []
    assert table.slots[1].read() is None


def test_what_a_child_finishes_without_clearing_is_left_to_the_keeper(table: Table, child: Child) -> None:
    child.begin()
    child.slot.hold("broken", 1)
    child.finish()
    (lost,) = Children(table, Actions()).look()
    assert (lost.pid, lost.session_id) == (ABANDONED, "broken")


_RETIRES = """
import time
from worker.fleet.child import Child
from worker.fleet.table import Table

child = Child(worker_id="worker@test#1", table=Table.create(slots=1), index=0)
child.begin()
child.retire()
child.finish()
child.begin()
# Far longer than a process that retires is given.
time.sleep(0.5)
print("runs what has begun meanwhile", flush=True)
child.finish()
print("is there until its result has arrived", flush=True)
# Ends it in the middle, and is what a process that does not retire would get through.
time.sleep(5)
print("is still there")
"""


def test_a_child_that_retires_ends_soon_after_its_session() -> None:
    done = subprocess.run([sys.executable, "-c", _RETIRES], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGALRM
    assert done.stdout.splitlines() == ["runs what has begun meanwhile", "is there until its result has arrived"]


def test_what_a_child_cleared_is_over(table: Table, child: Child) -> None:
    child.begin()
    child.slot.hold("over", 1)
    child.slot.clear()
    child.finish()
    assert Children(table, Actions()).look() == []


def test_a_session_hears_its_signals_also_those_from_before_it_listened(child: Child) -> None:
    heard: list[str] = []
    child.begin()
    os.kill(os.getpid(), DRAIN)
    with child.watch(on_drain=lambda: heard.append("drain"), on_soft_limit=lambda: heard.append("limit")):
        assert heard == ["drain"]
        os.kill(os.getpid(), SOFT_LIMIT)
        assert heard == ["drain", "limit"]
    child.finish()


def test_between_two_sessions_a_signal_is_harmless_and_not_for_the_next_one(child: Child) -> None:
    heard: list[str] = []
    child.begin()
    signal.setitimer(signal.ITIMER_REAL, 3600)
    child.finish()
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0
    os.kill(os.getpid(), DRAIN)
    os.kill(os.getpid(), SOFT_LIMIT)
    child.begin()
    with child.watch(on_drain=lambda: heard.append("drain"), on_soft_limit=lambda: heard.append("limit")):
        pass
    assert heard == []


def test_a_session_id_that_does_not_fit_is_refused(table: Table) -> None:
    with pytest.raises(ValueError, match="at most 64 bytes"):
        table.slots[0].hold("x" * 65, 1)
    assert table.slots[0].read() is None


def test_publishing_needs_no_worker_settings_and_loads_nothing_heavy() -> None:
    heavy = {"livekit", "livekit.agents", "langgraph", "numpy", "openai"}
    code = (
        "import sys; from worker.fleet.app import create_producer; create_producer('redis://127.0.0.1:1/0').conf.task_queues;"
        f"print(sorted({heavy!r} & set(sys.modules)))"
    )
    environ = {name: value for name, value in os.environ.items() if name != "REDIS_URL"}
    loaded = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
    assert loaded.stdout == "[]\n"


def test_publishing_to_an_absent_broker_fails_at_once() -> None:
    producer = create_producer(f"redis://{HOST}:{PortPicker().pick()}/0")
    started = time.monotonic()
    with pytest.raises(OperationalError):
        publisher(producer, join_ttl=30)(new_session())
    assert time.monotonic() - started < 2
    producer.close()


def test_publishing_to_a_frozen_broker_fails_in_seconds(redis_server: RedisServer) -> None:
    producer = create_producer(redis_server.url)
    redis_server.freeze()
    started = time.monotonic()
    try:
        with pytest.raises(OperationalError):
            publisher(producer, join_ttl=30)(new_session())
        assert time.monotonic() - started < 4
    finally:
        redis_server.thaw()
        producer.close()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits a process's address space")
def test_a_process_without_memory_ends_and_one_with_memory_lives() -> None:
    done = subprocess.run([sys.executable, "-c", _STARVES], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "lives\n")
    assert "no memory" in done.stderr
