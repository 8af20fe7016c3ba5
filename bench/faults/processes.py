"""A stack's workers as faults need them: parent, keeper and children by pid, and who runs which session."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from local.stack import Stack
from worker.fleet.table import ABANDONED, Holding, Table

_TABLE = "/memfd:muster-liveness"
_KEEPER = "worker.fleet.keeper"
_POLL = 0.02


@dataclass(frozen=True)
class Child:
    """The process that runs a session."""

    worker: str
    pid: int


class Workers:
    """The processes of `count` workers of a stack; Linux only, where a worker's table can be opened by others."""

    def __init__(self, stack: Stack, *, count: int) -> None:
        self._stack = stack
        self.names = [f"worker-{number}" for number in range(1, count + 1)]

    def parent(self, worker: str) -> int:
        """The worker's first process."""
        return self._stack.pid(worker)

    def keeper(self, worker: str) -> int:
        """The worker's keeper; raises `LookupError` while there is none."""
        for pid in self._keepers(worker):
            return pid
        raise LookupError(f"{worker} has no keeper")

    def children(self, worker: str) -> list[int]:
        """The pool's processes."""
        keepers = set(self._keepers(worker))
        return [each.pid for each in psutil.Process(self.parent(worker)).children() if each.pid not in keepers]

    def everything(self, worker: str) -> list[int]:
        """Parent first, then all below it."""
        parent = psutil.Process(self.parent(worker))
        return [parent.pid, *(each.pid for each in parent.children(recursive=True))]

    def holdings(self, worker: str) -> list[Holding]:
        """What its table says; nothing while it has none, because it is only starting or gone."""
        if not self._stack.is_running(worker):
            return []
        try:
            with open_table(self.parent(worker)) as table:
                return [holding for slot in table.slots if (holding := slot.read()) is not None]
        except (LookupError, OSError):
            return []

    def child(self, session_id: str, *, within: float = 10.0) -> Child:
        """Who runs the session, or will in a moment; of several the one of the highest epoch."""
        deadline = time.monotonic() + within
        while not (found := self._find(session_id)):
            if time.monotonic() > deadline:
                raise TimeoutError(f"no process runs session {session_id}")
            time.sleep(_POLL)
        return found[-1][1]

    def owner(self, session_id: str, epoch: int) -> Child | None:
        """Who runs the session in that epoch."""
        return next((child for each, child in self._find(session_id) if each == epoch), None)

    def _find(self, session_id: str) -> "list[tuple[int, Child]]":
        found = []
        for worker in self.names:
            for holding in self.holdings(worker):
                if holding.session_id == session_id and holding.pid != ABANDONED:
                    found.append((holding.epoch, Child(worker, holding.pid)))
        return sorted(found, key=lambda each: each[0])

    def _keepers(self, worker: str) -> Iterator[int]:
        for process in psutil.Process(self.parent(worker)).children():
            try:
                if _KEEPER in process.cmdline():
                    yield process.pid
            except psutil.NoSuchProcess:
                continue


@contextmanager
def open_table(parent: int) -> Iterator[Table]:
    """The table that a worker's parent has open."""
    for link in Path(f"/proc/{parent}/fd").iterdir():
        try:
            if os.readlink(link).startswith(_TABLE):
                fileno = os.open(link, os.O_RDWR)
                break
        except FileNotFoundError:
            continue
    else:
        raise LookupError(f"process {parent} has no table")
    try:
        yield Table(fileno)
    finally:
        os.close(fileno)


def send(pids: list[int], number: signal.Signals) -> None:
    """Signal each of them that is still there."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue
