"""The ground of a scenario: a stack, its workers, and how each of its parts is broken and mended."""

import asyncio
import resource
import shutil
import signal
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import httpx
import psutil
import redis
from kombu import pools
from kombu.exceptions import OperationalError

from bench.faults.logs import unseen_errors
from bench.faults.processes import Workers, send
from bench.faults.watcher import NAME, Watcher
from bench.service import AgentService
from local.guard import MARKER, marked_processes
from local.link import Link
from local.parts import AGENT_SERVICE, LIVEKIT, PROVIDERS, REDIS, WORKER, StackOptions, link_name
from local.stack import Stack
from worker.fleet.app import create_producer
from worker.fleet.errors import StateUnavailable
from worker.fleet.redis_operations import connect, run
from worker.fleet.workers import Fleet, fleet

#: What a stack of the suite is made of.
WORKERS = 2
SLOTS = 2
#: Short words, so that a scenario is short.
BRIEF = {
    "MUSTER_GREETING": "Hello.",
    "MUSTER_RESUMPTION": "Sorry, I lost you.",
    "MUSTER_APOLOGY": "Sorry, again please.",
    "MUSTER_FAREWELL": "Sorry, goodbye.",
    "MUSTER_PROVIDER_TIMEOUT": "2",
}
OPTIONS = StackOptions(
    parts=frozenset({REDIS, LIVEKIT, PROVIDERS, AGENT_SERVICE, WORKER}),
    workers=WORKERS,
    slots=SLOTS,
    marked=True,
    links=True,
    preferred_ports=False,
    environment=BRIEF,
    # Long enough that an agent can be hit while it thinks.
    first_token_delay=0.4,
)
_POLL = 0.1
#: Seconds a worker has to answer its remote control.
_ANSWER = 2.0
#: Seconds a stack may take to be as it was.
MENDED_WITHIN = 40.0


class Ground:
    """Breaks and mends the parts of a running stack; blocking work is done in threads."""

    def __init__(self, stack: Stack, watcher: Watcher) -> None:
        self.stack = stack
        self.watcher = watcher
        self.workers = Workers(stack, count=WORKERS)
        self.client = AgentService(stack.urls[AGENT_SERVICE])
        self._starts: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def kill(self, part: str, number: signal.Signals = signal.SIGKILL, *, with_orphans: bool = True) -> None:
        """End a part; without `with_orphans` what it leaves behind is left alone."""
        await asyncio.to_thread(self.stack.kill, part, number, with_orphans=with_orphans)

    async def start(self, part: str) -> None:
        """Start it again and wait until it serves; a worker waits for Redis, which may be started meanwhile."""
        async with self._starts[part]:
            if not self.stack.is_running(part):
                await asyncio.to_thread(self.stack.start, part)

    async def freeze(self, pids: list[int], seconds: float) -> None:
        """Stop the processes (SIGSTOP) for so long."""
        send(pids, signal.SIGSTOP)
        try:
            await asyncio.sleep(seconds)
        finally:
            send(pids, signal.SIGCONT)

    async def over_link(self, link: Link, change: Callable[[], None], seconds: float) -> None:
        """Do something to a link for so long."""
        await asyncio.to_thread(change)
        try:
            await asyncio.sleep(seconds)
        finally:
            await asyncio.to_thread(link.mend)

    def forget_redis_data(self) -> None:
        """What the server, which must be down, would read when it starts."""
        data = self.stack.directory / "redis"
        shutil.rmtree(data)
        data.mkdir()

    def hang_up_redis(self) -> None:
        """Close every client's connection but the watcher's."""
        with redis.Redis.from_url(self.stack.urls[REDIS], decode_responses=True) as client:
            own = client.client_id()
            for each in client.client_list():
                if each["name"] != NAME and int(each["id"]) != own:
                    client.client_kill_filter(_id=each["id"])

    def livekit_ports(self) -> set[int]:
        """The TCP ports that the LiveKit server itself listens on; a worker's signalling goes over its link's."""
        found = psutil.Process(self.stack.pid(LIVEKIT)).net_connections("tcp")
        return {each.laddr.port for each in found if each.status == psutil.CONN_LISTEN}

    def active_tasks(self, workers: Fleet) -> list[str]:
        """The tasks that these workers say they run: a process may have cleared its slot and not have ended them."""
        names = [worker.worker_id.rpartition("#")[0] for worker in workers.workers]
        with create_producer(self.stack.settings["REDIS_URL"]) as producer:
            try:
                answers = producer.control.inspect(destination=names, timeout=_ANSWER).active() or {}
            except (redis.RedisError, OperationalError):
                # The library keeps connections, also to a server that was restarted.
                pools.reset()
                return ["the workers' remote control does not answer"]
        return [f"task {task['id']} active in {name}" for name, tasks in answers.items() for task in tasks]

    def unseen_errors(self) -> list[str]:
        """Errors in the parts' own tasks which nobody took, since the stack began."""
        errors = []
        for log in sorted(self.stack.directory.glob("*.log")):
            with log.open(errors="replace") as lines:
                errors += unseen_errors(lines)
        return errors

    def orphans(self) -> list[str]:
        """Processes of the stack that none of its parts knows any more."""
        # Redis writes its title over its environment.
        marker = psutil.Process(self.stack.pid(PROVIDERS)).environ()[MARKER]
        known = {self.stack.pid(name) for name in self._parts}
        known |= {each.pid for pid in tuple(known) if psutil.pid_exists(pid) for each in _below(pid)}
        orphans = set(marked_processes(stack_id=marker, groups=set())) - known
        return [f"process {pid} ({' '.join(_command(pid))})" for pid in sorted(orphans)]

    @property
    def _parts(self) -> list[str]:
        links = [link_name(worker, to) for worker in self.workers.names for to in (REDIS, LIVEKIT)]
        return [REDIS, LIVEKIT, PROVIDERS, AGENT_SERVICE, *self.workers.names, *links]

    def prepare(self) -> None:
        """Get ready for a scenario: a process that the last one left short of memory is used again."""
        # Of the last scenario's event loop.
        self._starts.clear()
        for worker in self.workers.names:
            for pid in self.workers.everything(worker):
                with suppress(psutil.NoSuchProcess):
                    process = psutil.Process(pid)
                    _, most = process.rlimit(resource.RLIMIT_AS)
                    process.rlimit(resource.RLIMIT_AS, (most, most))

    async def set_providers(self, **modes: str) -> None:
        """What each kind of request to the stand-in providers does."""
        async with httpx.AsyncClient() as http:
            (await http.post(f"{self.stack.urls[PROVIDERS]}/faults", json=modes)).raise_for_status()

    async def mend(self) -> None:
        """Everything as it was at the beginning: parts, links, providers, leases; raises `TimeoutError`."""
        for worker in self.workers.names:
            for to in (REDIS, LIVEKIT):
                await asyncio.to_thread(self.stack.link(worker, to).mend)
            if self.stack.is_running(worker):
                send(self.workers.everything(worker), signal.SIGCONT)
        send([self.stack.pid(part) for part in (REDIS, LIVEKIT) if self.stack.is_running(part)], signal.SIGCONT)
        for part in (REDIS, LIVEKIT, AGENT_SERVICE, *self.workers.names):
            await self.start(part)
        await self.set_providers(llm="ok", stt="ok", tts="ok")
        await self.until(self._is_whole, within=MENDED_WITHIN, what="a whole fleet")

    async def until(self, is_so: Callable[[], Awaitable[bool]], *, within: float, what: str) -> float:
        """Wait until it is so; the seconds that took. Raises `TimeoutError`."""
        started = time.monotonic()
        while not await is_so():
            if time.monotonic() - started > within:
                raise TimeoutError(f"no {what} within {within:g} s")
            await asyncio.sleep(_POLL)
        return time.monotonic() - started

    async def fleet(self) -> Fleet | None:
        """The fleet as Redis knows it; None while Redis is away."""

        def read() -> Any:
            with connect(self.stack.urls[REDIS]) as client:
                try:
                    return run(client, fleet())
                except StateUnavailable:
                    return None

        found: Fleet | None = await asyncio.to_thread(read)
        return found

    async def _is_whole(self) -> bool:
        found = await self.fleet()
        if found is None or not found.ready:
            return False
        names = sorted(worker.name for worker in found.open_workers)
        return set(names) == set(self.workers.names)


def _below(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _command(pid: int) -> list[str]:
    try:
        return psutil.Process(pid).cmdline()[:4]
    except psutil.NoSuchProcess:
        return ["gone"]
