"""How long the agent service takes to answer, under its own HTTP server and under the one it would have otherwise.

Joins arrive at random moments of a steady rate, whether or not earlier ones were answered, and each is measured from
the moment it was to be sent: a server that falls behind shows it. No call starts: one worker is registered that takes
nothing, and the queue is long enough for all.
"""

import asyncio
import json
import random
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import accumulate

import httpx

from api.http_worker import allow_descriptors
from bench.report import Figure, Report
from local.parts import REDIS, StackOptions
from local.paths import ROOT
from local.ports import HOST, PortPicker
from local.readiness import answers_http
from local.stack import Stack
from worker.fleet import admission, workers
from worker.fleet.redis_operations import connect, run
from worker.fleet.settings import FleetSettings
from worker.fleet.times import BEAT

#: Each server's options of gunicorn.
_SERVERS: Mapping[str, tuple[str, ...]] = {
    "muster": ("--config", "python:api.server"),
    "gthread × 8": ("--worker-class", "gthread", "--threads", "8"),
}
#: Whether a connection serves one join only.
_KINDS: Mapping[str, bool] = {"kept connections": False, "a connection each": True}
#: Seconds after which the other server closes an idle connection, with room: no join may meet that moment.
_KEPT_FOR = 1.5
#: The servers take turns after so many joins, so that a busy moment of the machine meets both.
_BLOCK = 300
_WARM_UP = 50
_SEED = 4
#: Requests of which half a head is sent, and how often and for how many seconds somebody else asks for `/health`.
_SLOW_CLIENTS = 1000
_HEALTH_COUNT = 10
_HEALTH_WITHIN = 3.0
_READY_WITHIN = 30.0


@dataclass(frozen=True)
class _Join:
    #: None when the connection broke.
    status: int | None
    #: Seconds from the moment it was to be sent until its answer.
    delay: float


class _Client:
    """Sends joins; small, because it shares the machine's cores with what is measured."""

    def __init__(self, url: str, *, closes: bool) -> None:
        self._port = httpx.URL(url).port
        self._closes = closes
        self._kept: list[tuple[float, asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def join(self, *, at: float) -> _Join:
        """A join for a room of its own, at this moment of `time.perf_counter`."""
        await asyncio.sleep(at - time.perf_counter())
        try:
            status = await self._post({"room": f"bench-{uuid.uuid4().hex}", "user_id": "caller"})
        except (OSError, asyncio.IncompleteReadError):
            status = None
        return _Join(status, time.perf_counter() - at)

    async def _post(self, fields: Mapping[str, str]) -> int:
        body = json.dumps(fields)
        head = (
            f"POST /join HTTP/1.1\r\nHost: {HOST}\r\nConnection: {'close' if self._closes else 'keep-alive'}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        reader, writer = await self._connection()
        writer.write((head + body).encode())
        answered = (await reader.readuntil(b"\r\n\r\n")).decode()
        lines = answered.splitlines()
        length = next(line.split(":")[1] for line in lines if line.lower().startswith("content-length:"))
        await reader.readexactly(int(length))
        if self._closes:
            writer.close()
        else:
            self._kept.append((time.perf_counter(), reader, writer))
        return int(lines[0].split()[1])

    async def _connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while self._kept:
            used_at, reader, writer = self._kept.pop()
            if time.perf_counter() - used_at < _KEPT_FOR:
                return reader, writer
            writer.close()
        return await asyncio.open_connection(HOST, self._port)

    def close(self) -> None:
        for _, _, writer in self._kept:
            writer.close()


def measure_requests(*, count: int, rate: float) -> Report:
    """`count` joins at `rate` per second for each server and kind of connection, and `/health` beside slow clients."""
    parts = frozenset({REDIS})
    with Stack(options=StackOptions(parts=parts, preferred_ports=False)) as stack, ExitStack() as opened:
        redis_url = stack.settings["REDIS_URL"]
        opened.enter_context(_registered_worker(redis_url))
        ports = PortPicker()
        urls = {
            name: opened.enter_context(_served(options, port=ports.pick(), redis_url=redis_url))
            for name, options in _SERVERS.items()
        }
        joins = asyncio.run(_measure_joins(urls, count=count, rate=rate))
        answered = {name: _health_beside_slow_clients(url) for name, url in urls.items()}
    return _report(joins, answered, rate=rate)


async def _measure_joins(urls: Mapping[str, str], *, count: int, rate: float) -> Mapping[str, list[_Join]]:
    chance = random.Random(_SEED)
    joins: dict[str, list[_Join]] = defaultdict(list)
    for url in urls.values():
        await _join_at_rate(_Client(url, closes=True), count=_WARM_UP, rate=rate, chance=chance)
    for begun in range(0, count, _BLOCK):
        for kind, closes in _KINDS.items():
            for name, url in urls.items():
                client = _Client(url, closes=closes)
                block = min(_BLOCK, count - begun)
                joins[f"{kind}: {name}"] += await _join_at_rate(client, count=block, rate=rate, chance=chance)
    return joins


async def _join_at_rate(client: _Client, *, count: int, rate: float, chance: random.Random) -> list[_Join]:
    moments = accumulate(chance.expovariate(rate) for _ in range(count))
    start = time.perf_counter()
    async with asyncio.TaskGroup() as joins:
        sent = [joins.create_task(client.join(at=start + moment)) for moment in moments]
    client.close()
    return [join.result() for join in sent]


def _health_beside_slow_clients(url: str) -> list[float]:
    """Seconds until `/health` was answered, for each time it was."""
    delays = []
    fresh = httpx.Limits(max_keepalive_connections=0)
    with _slow_clients(url), httpx.Client(base_url=url, limits=fresh, trust_env=False) as client:
        for _ in range(_HEALTH_COUNT):
            asked_at = time.perf_counter()
            try:
                client.get("/health", timeout=_HEALTH_WITHIN).raise_for_status()
            except httpx.TransportError:
                continue
            delays.append(time.perf_counter() - asked_at)
    return delays


@contextmanager
def _slow_clients(url: str) -> Iterator[None]:
    port = httpx.URL(url).port
    allow_descriptors(2 * _SLOW_CLIENTS)
    with ExitStack() as opened:
        for _ in range(_SLOW_CLIENTS):
            client = opened.enter_context(socket.create_connection((HOST, port), timeout=10))
            client.sendall(b"POST /join HTTP/1.1\r\nHost: muster\r\nContent-Le")
        yield


@contextmanager
def _registered_worker(redis_url: str) -> Iterator[None]:
    """A worker that has a lease and takes nothing."""
    worker = workers.WorkerStatus(worker_id="bench#1", name="bench", slots=2, busy=0, draining=False, started_at=0.0)
    stopped = threading.Event()

    def beat() -> None:
        with connect(redis_url) as client:
            while not stopped.wait(BEAT):
                run(client, workers.renew(worker))

    with connect(redis_url) as client:
        run(client, workers.renew(worker))
        run(client, admission.open_joins(FleetSettings.model_fields["tenant"].default))
        run(client, workers.open_joins(worker.worker_id))
    keeper = threading.Thread(target=beat)
    keeper.start()
    try:
        yield
    finally:
        stopped.set()
        keeper.join()


@contextmanager
def _served(options: tuple[str, ...], *, port: int, redis_url: str) -> Iterator[str]:
    """The URL of the agent service under a gunicorn of its own."""
    url = f"http://{HOST}:{port}"
    process = subprocess.Popen(
        [sys.executable, "-m", "gunicorn", *options, "--bind", f"{HOST}:{port}", "api.agent_service:create_app()"],
        cwd=ROOT,
        env={"REDIS_URL": redis_url, "MUSTER_QUEUE_PER_SLOT": "1e9"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + _READY_WITHIN
        while not answers_http(f"{url}/health"):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"gunicorn {' '.join(options)} does not serve")
            time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait()


def _report(joins: Mapping[str, list[_Join]], answered: Mapping[str, list[float]], *, rate: float) -> Report:
    figures = {f"POST /join, {name}": Figure([join.delay for join in several]) for name, several in joins.items()}
    figures |= {f"GET /health beside slow clients: {name}": Figure(delays) for name, delays in answered.items()}
    return Report(
        f"Requests at {rate:g} per second",
        figures,
        [
            f"Slow clients: {_SLOW_CLIENTS} requests of which half a head was sent.",
            *(
                f"{name}: {len(delays)} of {_HEALTH_COUNT} /health answered within {_HEALTH_WITHIN:g} s."
                for name, delays in answered.items()
            ),
            *(
                f"{name}: {count} joins were answered with {status or 'nothing'}."
                for name, several in joins.items()
                for status, count in Counter(join.status for join in several).items()
                if status != httpx.codes.ACCEPTED
            ),
        ],
    )
