"""The processes of a stack's fleet, and ways to kill one of them that tell which agents die with it (Linux only)."""

import itertools
import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass

import psutil

from bench.faults.processes import open_table
from local.parts import AGENT_SERVICE, WORKER
from local.stack import Stack
from worker.fleet.table import Table

#: Seconds a worker may take to start its keeper.
_KEPT_WITHIN = 10.0
#: Seconds its children may take to end when their parent is dead: without a keeper to end them it is their own switch.
ENDED_WITHIN = 10.0
_POLL = 0.05


@dataclass(frozen=True)
class Killed:
    """What was killed, and the identities of the agents in it with the moment of their death (Unix seconds)."""

    kind: str
    agents: Mapping[str, float]
    #: Children that lived `ENDED_WITHIN` seconds after their parent.
    outlived: int = 0


class FleetProcesses:
    """Kills processes of a stack and starts again what does not come back by itself; which one is left to `choice`."""

    def __init__(
        self, stack: Stack, choice: random.Random, *, workers: int, ended_within: float = ENDED_WITHIN
    ) -> None:
        #: Agents that a kill under way takes with it, with its moment: their end may be seen before it is told.
        self.being_killed: dict[str, float] = {}
        self._stack = stack
        self._random = choice
        self._ended_within = ended_within
        self._workers = [f"{WORKER}-{number}" for number in range(1, workers + 1)]

    def kinds_of_kill(self) -> Iterator[Callable[[], Killed]]:
        """Each kind once, in any order, again and again."""
        kinds = [self.kill_child, self.kill_keeper, self.kill_parent, self.kill_api_process, self.kill_api]
        for _ in itertools.count():
            yield from self._random.sample(kinds, len(kinds))

    def is_slow(self, kill: Callable[[], Killed]) -> bool:
        """Whether this kind of kill waits until what was killed serves again."""
        return kill in (self.kill_parent, self.kill_api)

    def kill_child(self) -> Killed:
        """A process of the pool, one with a session if there is any."""
        worker = self._worker()
        table = self._table(worker)
        busy = [holding.pid for slot in table.slots if (holding := slot.read()) and _lives(holding.pid)]
        pid = self._random.choice(busy or self._pool(worker))
        # Stopped, it neither ends its session nor begins another one before it is killed.
        psutil.Process(pid).suspend()
        self.being_killed |= (agents := _agents(table, pid))
        os.kill(pid, signal.SIGKILL)
        return Killed("child", agents)

    def kill_keeper(self) -> Killed:
        """A worker's keeper, which its parent starts again."""
        self._keeper(self._worker()).kill()
        return Killed("keeper", {})

    def kill_parent(self) -> Killed:
        """A worker's parent alone: its children must end by themselves; it is started again."""
        worker = self._worker()
        table, children = self._table(worker), self._pool(worker)
        # Until they are counted, children that live on for a moment must not be taken for others.
        agents = _agents(table)
        self.being_killed |= agents
        self._stack.kill(worker, with_orphans=False)
        deadline = time.monotonic() + self._ended_within
        while True:
            living = sum(map(_lives, children))
            # What one of them has begun meanwhile ends with it.
            agents = _agents(table) | agents
            self.being_killed |= agents
            if not living or time.monotonic() > deadline:
                break
            # The end of another's child is no event here.
            time.sleep(_POLL)
        self._stack.start(worker)
        return Killed("parent", agents, outlived=living)

    def kill_api_process(self) -> Killed:
        """One of the agent service's processes, which its parent replaces."""
        self._random.choice(psutil.Process(self._stack.pid(AGENT_SERVICE)).children()).kill()
        return Killed("API process", {})

    def kill_api(self) -> Killed:
        """The whole agent service; it is started again."""
        self._stack.kill(AGENT_SERVICE)
        self._stack.start(AGENT_SERVICE)
        return Killed("API", {})

    def _worker(self) -> str:
        return self._random.choice(self._workers)

    def _pool(self, worker: str) -> list[int]:
        keeper = self._keeper(worker).pid
        children = psutil.Process(self._stack.pid(worker)).children()
        return [child.pid for child in children if child.pid != keeper and _lives(child.pid)]

    def _keeper(self, worker: str) -> psutil.Process:
        deadline = time.monotonic() + _KEPT_WITHIN
        while True:
            for child in psutil.Process(self._stack.pid(worker)).children():
                # A dead one that its parent has not asked for yet has no command line.
                with suppress(psutil.NoSuchProcess):
                    if "worker.fleet.keeper" in child.cmdline():
                        return child
            if time.monotonic() > deadline:
                raise TimeoutError(f"{worker} has no keeper")
            time.sleep(_POLL)

    def _table(self, worker: str) -> Table:
        """The worker's own table, which outlives it as long as it is looked at."""
        with open_table(self._stack.pid(worker)) as table:
            return table


def _lives(pid: int) -> bool:
    """Whether there is a process of this pid that has not ended."""
    try:
        return pid > 0 and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _agents(table: Table, pid: int | None = None) -> dict[str, float]:
    """The agents that a table knows, or those of one process, with this moment."""
    holdings = [holding for slot in table.slots if (holding := slot.read())]
    return {
        f"agent-{holding.session_id}-{holding.epoch}": time.time() for holding in holdings if pid in (None, holding.pid)
    }
