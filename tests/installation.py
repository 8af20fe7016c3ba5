"""A whole installation as docker-compose.yml describes it: several containers of ours, and the servers they need."""

import asyncio
import json
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Self

import httpx

from api.keys import generate
from local.livekit_server import find_livekit_server
from local.paths import ROOT
from local.ports import HOST, PortPicker
from local.readiness import answers_http, answers_ping, has_logged
from local.redis_server import find_redis_server
from tests.containers import Container, command, environment, read_yaml
from tests.recording_server import RecordingServer
from worker.fleet import workers
from worker.fleet.redis_operations import connect, run

API, CONTROL_PLANE, WORKER, FLOWER = "api", "control-plane", "worker", "flower"
REPLICAS = 2
WORKERS = 3

#: Seconds; three workers load the whole call at once.
_START_LIMIT = 60.0


class Addresses:
    """A free port for each address of the two files; the replicas have one each."""

    def __init__(self) -> None:
        ports = PortPicker()
        self.redis, self.livekit, self.media_tcp, self.media_udp = (ports.pick() for _ in range(4))
        self.control_plane, self.flower = ports.pick(), ports.pick()
        self.replicas = [ports.pick() for _ in range(REPLICAS)]

    def replaced(self, *, api: int) -> dict[str, str]:
        """What stands for the addresses of compose; `api` is the port of this replica or of the one that is called."""
        return {
            "redis:6379": f"{HOST}:{self.redis}",
            "livekit:7880": f"{HOST}:{self.livekit}",
            **{f"{host}:8000": f"{HOST}:{api}" for host in ("0.0.0.0", HOST, "api")},
            **{f"{host}:8080": f"{HOST}:{self.control_plane}" for host in ("0.0.0.0", HOST)},
            **{"--address=0.0.0.0": f"--address={HOST}", "--port=5555": f"--port={self.flower}"},
            f"{HOST}:5555": f"{HOST}:{self.flower}",
        }


class Installation:
    """Two replicas of the agent service, three workers, control plane, Flower, Redis, LiveKit and a silent provider."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._addresses = Addresses()
        self._client_key, self._own_key = generate("client"), generate("control-plane")
        self._stack = ExitStack()
        self.containers: list[Container] = []

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._stack = stack
            self._provider = stack.enter_context(silent_provider())
            self._start_redis()
            self._start_livekit()
            for service, count in ((API, REPLICAS), (CONTROL_PLANE, 1), (FLOWER, 1), (WORKER, WORKERS)):
                for number in range(count):
                    self._start(service, number)
            self._wait_until_serving()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def of(self, service: str) -> list[Container]:
        """The service's containers."""
        return [container for container in self.containers if container.service == service]

    @cached_property
    def replicas(self) -> list[httpx.Client]:
        """A client of each replica of the agent service."""
        return [self._client(port) for port in self._addresses.replicas]

    @cached_property
    def control_plane(self) -> httpx.Client:
        """A client of the control plane."""
        return self._client(self._addresses.control_plane)

    @property
    def livekit_log(self) -> Path:
        """Everything LiveKit has printed."""
        return self._folder / "livekit.log"

    def fleet(self) -> workers.Fleet:
        """What Redis says about the workers."""
        with connect(f"redis://{HOST}:{self._addresses.redis}/0") as client:
            return run(client, workers.fleet())

    @cached_property
    def _environ(self) -> dict[str, str]:
        """The `.env` file."""
        return {
            "LIVEKIT_NODE_IP": HOST,
            "LIVEKIT_PUBLIC_URL": f"ws://{HOST}:{self._addresses.livekit}",
            "LIVEKIT_API_SECRET": "s" * 32,
            "MUSTER_API_KEYS": f"{self._client_key.entry},{self._own_key.entry}",
            "AGENT_SERVICE_API_KEY": self._own_key.key,
            "OPENAI_API_KEY": "stand-in",
            "OPENAI_BASE_URL": self._provider,
            "ELEVEN_API_KEY": "stand-in",
            "ELEVEN_BASE_URL": self._provider,
            "FLOWER_PASSWORD": "a-password",
            "MUSTER_SLOTS": "1",
        }

    def _start_redis(self) -> None:
        """The command of compose with this machine's server."""
        port, (_, *words) = self._addresses.redis, command("redis")
        words = [str(self._folder) if word == "/data" else word for word in words]
        self._run(
            [str(find_redis_server()), *words, "--port", str(port), "--bind", HOST], log=self._folder / "redis.log"
        )
        wait_until(lambda: answers_ping(port), within=10)

    def _start_livekit(self) -> None:
        """The command of compose with this machine's server, its configuration kept on the loopback interface."""
        addresses = self._addresses
        configuration = read_yaml(ROOT / "deploy" / "livekit.yaml")
        configuration |= {"port": addresses.livekit, "bind_addresses": [HOST]}
        configuration["rtc"] |= {"tcp_port": addresses.media_tcp, "udp_port": addresses.media_udp}
        configuration["rtc"] |= {"enable_loopback_candidate": True, "interfaces": {"includes": ["lo", "lo0"]}}
        urls = configuration["webhook"]["urls"]
        configuration["webhook"]["urls"] = [url.replace("api:8000", f"{HOST}:{addresses.replicas[0]}") for url in urls]
        file = self._folder / "livekit.yaml"
        file.write_text(json.dumps(configuration))
        words = [str(find_livekit_server()), *(str(file) if "/" in word else word for word in command("livekit"))]
        self._run(words, log=self.livekit_log, env=os.environ | environment("livekit", self._environ))
        wait_until(lambda: answers_http(f"http://{HOST}:{addresses.livekit}/"), within=10)

    def _run(self, words: list[str], *, log: Path, env: dict[str, str] | None = None) -> None:
        with log.open("wb") as output:
            process = subprocess.Popen(words, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        self._stack.callback(process.wait)
        self._stack.callback(process.kill)

    def _start(self, service: str, number: int) -> None:
        name = f"{service}-{number + 1}"
        scratch = self._folder / name
        scratch.mkdir()
        api = self._addresses.replicas[number if service == API else 0]
        container = Container(service, name, self._environ, scratch, self._addresses.replaced(api=api))
        self._stack.callback(container.kill)
        container.start()
        self.containers.append(container)

    def _wait_until_serving(self) -> None:
        # A worker is healthy as soon as it has its lease, long before it has loaded the call. Asked first: a look into
        # a file costs nothing, and each health check is a process of its own.
        for worker in self.of(WORKER):
            wait_until(partial(has_logged, worker.log, b" ready."), within=_START_LIMIT, what=worker.log.read_text)
        for container in self.containers:
            wait_until(partial(is_healthy, container), within=_START_LIMIT, what=container.log.read_text)
        wait_until(lambda: self.fleet().ready, within=15)

    def _client(self, port: int) -> httpx.Client:
        headers = {"Authorization": f"Bearer {self._client_key.key}"}
        client = httpx.Client(base_url=f"http://{HOST}:{port}", headers=headers, trust_env=False)
        return self._stack.enter_context(client)


def is_healthy(container: Container) -> bool:
    """Whether the container's health check succeeds now."""
    return container.is_healthy


def joined(replica: httpx.Client, room: str) -> str:
    """A session whose agent waits for its caller in the room."""
    answer = replica.post("/join", json={"room": room, "user_id": "caller"})
    assert answer.status_code == 202, answer.text
    session_id: str = answer.json()["session_id"]
    reached(replica, session_id, "waiting")
    return session_id


def reached(replica: httpx.Client, session_id: str, state: str) -> dict[str, Any]:
    """The session once it is in this state."""

    def get() -> dict[str, Any]:
        session: dict[str, Any] = replica.get(f"/sessions/{session_id}").json()
        return session

    wait_until(lambda: get()["status"] == state, within=20, what=lambda: str(get()))
    return get()


def wait_until(holds: Callable[[], object], *, within: float, what: Callable[[], str] = str) -> None:
    """Other processes' doings have no event here."""
    deadline = time.monotonic() + within
    while not holds():
        assert time.monotonic() < deadline, what()
        time.sleep(0.1)


@contextmanager
def silent_provider() -> Iterator[str]:
    """Address of a stand-in for OpenAI and ElevenLabs, served by a thread."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    server = RecordingServer()
    try:
        asyncio.run_coroutine_threadsafe(server.__aenter__(), loop).result(10)
        yield f"http://{HOST}:{server.port}/v1"
        asyncio.run_coroutine_threadsafe(server.__aexit__(), loop).result(10)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
