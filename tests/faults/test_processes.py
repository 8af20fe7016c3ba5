"""The fault suite finds a worker's processes, and whose sessions they run, in the worker's own table."""

import os
from pathlib import Path

import pytest

from bench.faults.processes import open_table
from worker.fleet.table import Table


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="only Linux shows another process's files")
def test_another_process_sees_who_holds_which_session() -> None:
    table = Table.create(slots=2)
    table.slots[1].hold("s1", 3)
    with open_table(os.getpid()) as seen:
        holding = seen.slots[1].read()
        assert seen.slots[0].read() is None
    assert holding is not None
    assert (holding.session_id, holding.epoch, holding.pid) == ("s1", 3, os.getpid())


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="only Linux shows another process's files")
def test_a_process_that_is_no_worker_has_no_table() -> None:
    with pytest.raises(LookupError), open_table(os.getppid()):
        pass
