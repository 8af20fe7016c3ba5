"""Workers of LiveKit Agents' own on a running stack, dispatched as their users do, and ended in every way."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil
from livekit import api

from bench.native.names import AGENT_NAME, PID
from local.guard import MARKER
from local.logs import tail
from local.paths import ROOT
from local.readiness import has_logged
from local.stack import Stack
from local.state import StateFile

#: Seconds.
_READY_WITHIN = 60.0
_POLL = 0.1

#: The framework asks the proxy for everything, whatever NO_PROXY says.
_PROXIES = frozenset({"HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"})


@dataclass(frozen=True, slots=True)
class NativeAgent:
    """An agent in a room; `pid` is its job process, once the agent has told it."""

    identity: str
    pid: int | None


class NativeWorker:
    """One worker with its forkserver and job processes: they are one process group."""

    def __init__(self, *, environment: Mapping[str, str], log: Path) -> None:
        """Start it; `log` gets what all its processes write."""
        self.log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "livekit.agents", "start", "bench/native/worker.py"],
                cwd=ROOT,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """The worker itself."""
        return self._process.pid

    async def ready(self) -> None:
        """Wait until LiveKit knows the worker. Raises `TimeoutError` or `ChildProcessError` with the end of its log."""
        deadline = time.monotonic() + _READY_WITHIN
        while not has_logged(self.log, b"registered worker"):
            if self._process.poll() is not None:
                raise ChildProcessError(f"a worker ended before it was ready:\n{tail(self.log)}")
            if time.monotonic() > deadline:
                raise TimeoutError(f"a worker is not ready after {_READY_WITHIN:g} s:\n{tail(self.log)}")
            await asyncio.sleep(_POLL)

    def runs(self, pid: int) -> bool:
        """Whether this process is one of the worker's."""
        return pid in {child.pid for child in psutil.Process(self.pid).children(recursive=True)}

    def terminate(self) -> None:
        """Ask the worker to drain and end, as every supervisor does."""
        self._process.terminate()

    def freeze(self) -> None:
        """Stop all its processes, as a machine that is lost."""
        os.killpg(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let them go on."""
        os.killpg(self.pid, signal.SIGCONT)

    async def ended(self, *, within: float) -> bool:
        """Wait for the worker's end; whether it came."""
        with suppress(subprocess.TimeoutExpired):
            await asyncio.to_thread(self._process.wait, within)
        return self._process.poll() is not None

    @property
    def exit_code(self) -> int | None:
        """How it has ended."""
        return self._process.poll()

    def kill(self) -> None:
        """End all its processes."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()


class NativeFleet:
    """Some workers beside each other on a stack; as an async context manager they are ready, and gone at the end."""

    def __init__(self, *, stack: Stack, home: Path, workers: int) -> None:
        """`home` is that of the stack."""
        self._stack = stack
        self._environment = _environment(stack, home)
        self._wanted = workers
        self.workers: list[NativeWorker] = []

    async def __aenter__(self) -> Self:
        settings = self._stack.settings
        self._api = api.LiveKitAPI(settings["LIVEKIT_URL"], settings["LIVEKIT_API_KEY"], settings["LIVEKIT_API_SECRET"])
        try:
            for _ in range(self._wanted):
                log = self._stack.directory / f"native-{time.time_ns()}.log"
                self.workers.append(NativeWorker(environment=self._environment, log=log))
            for worker in self.workers:
                await worker.ready()
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._end()

    async def dispatch(self, room: str) -> None:
        """Ask for an agent in a room: the answer does not say whether one comes."""
        await self._api.agent_dispatch.create_dispatch(api.CreateAgentDispatchRequest(agent_name=AGENT_NAME, room=room))

    async def agents(self, room: str) -> list[NativeAgent]:
        """The agents in a room as LiveKit sees them. Raises `TwirpError` when it does not know the room."""
        answer = await self._api.room.list_participants(api.ListParticipantsRequest(room=room))
        return [
            NativeAgent(each.identity, int(each.attributes[PID]) if PID in each.attributes else None)
            for each in answer.participants
            if each.kind == api.ParticipantInfo.Kind.AGENT
        ]

    def worker_of(self, agent: NativeAgent) -> NativeWorker:
        """The worker whose job the agent is."""
        assert agent.pid is not None
        return next(worker for worker in self.workers if worker.runs(agent.pid))

    async def _end(self) -> None:
        for worker in self.workers:
            worker.kill()
        await self._api.aclose()


def _environment(stack: Stack, home: Path) -> Mapping[str, str]:
    """The stack's own; its mark lets the stack's guard find the workers when this process is killed."""
    own = {name: value for name, value in os.environ.items() if name not in _PROXIES}
    return {**own, **stack.settings, MARKER: StateFile(home=home).running().stack_id, "PYTHONUNBUFFERED": "1"}
