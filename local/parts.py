"""What the local stack consists of: each part's command, settings, log and sign of readiness."""

import secrets
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from urllib.parse import urlsplit

from local.errors import SettingMissing
from local.guard import MARKER
from local.livekit_server import find_livekit_server, livekit_configuration, livekit_environment
from local.paths import ROOT
from local.ports import HOST, PortPicker
from local.readiness import answers_http, answers_ping, has_logged
from local.redis_server import redis_command
from local.stand_ins import RECOGNITION, VOICE, StandIn

REDIS = "redis"
LIVEKIT = "livekit"
PROVIDERS = "providers"
AGENT_SERVICE = "agent_service"
CONTROL_PLANE = "control_plane"
WORKER = "worker"
CHAT_WORKER = "chat_worker"
FLOWER = "flower"
LINK = "link"

ALL_PARTS = frozenset({REDIS, LIVEKIT, PROVIDERS, AGENT_SERVICE, CONTROL_PLANE, WORKER, CHAT_WORKER, FLOWER})

FLOWER_USER = "muster"

#: One thread of arithmetic per process: calls share the cores, and the parent that forks must have one only.
_QUIET = {
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "ORT_DISABLE_TELEMETRY": "1",
    "LANGSMITH_TRACING": "false",
    "PYTHONUNBUFFERED": "1",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class StackOptions:
    """What to start. `environment` counts as if the user had set it; without `preferred_ports` any free port
    is taken; `directory` holds logs and data and defaults to a new one below `home`. `first_token_delay` is how many
    seconds the stand-in model thinks before its first token. Without `speech` the stand-in providers know no sound:
    they start faster, and their texts come all at once; `marked` makes them hear and speak marked words (see
    `local/marks.py`). With `links` each worker reaches Redis and LiveKit through proxies of its own (see
    `local/link.py`), which `Stack.link` can cut."""

    parts: frozenset[str] = ALL_PARTS
    workers: int = 1
    slots: int = 2
    speech: bool = True
    marked: bool = False
    links: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)
    preferred_ports: bool = True
    home: Path | None = None
    directory: Path | None = None
    first_token_delay: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One process of the stack. It is started when those of `after` are ready."""

    name: str
    kind: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    log: Path
    is_ready: Callable[[], bool]
    after: tuple[str, ...] = ()


class StackPlan:
    """The parts for these options, with ports and secrets of their own.

    `settings` is the environment the product's processes get, `urls` are for people and clients, `notes` say
    in what the stack differs from the usual one. Making a plan starts nothing.

    Raises `LocalError` when a part cannot be had.
    """

    def __init__(self, *, options: StackOptions, environ: Mapping[str, str], directory: Path, stack_id: str) -> None:
        self.settings: dict[str, str] = {}
        self.urls: dict[str, str] = {}
        self.notes: list[str] = []
        self.parts: list[Part] = []
        self.flower_password = secrets.token_urlsafe(12)
        self._options = options
        self._environ = {**environ, **options.environment}
        self._base = {**self._environ, **_QUIET, MARKER: stack_id, **_without_proxy(self._environ)}
        self._directory = directory
        self._ports = PortPicker()
        for kind, add in {
            REDIS: self._add_redis,
            LIVEKIT: self._add_livekit,
            PROVIDERS: self._add_providers,
            AGENT_SERVICE: self._add_agent_service,
            CONTROL_PLANE: self._add_control_plane,
            WORKER: self._add_workers,
            CHAT_WORKER: self._add_chat_worker,
            FLOWER: self._add_flower,
        }.items():
            if kind in options.parts:
                add()

    def _add_redis(self) -> None:
        if given := self._environ.get("REDIS_URL"):
            self.settings["REDIS_URL"] = given
            self.notes.append("Redis: the one of REDIS_URL")
            return
        port = self._port(6379, "Redis")
        data = self._directory / "redis"
        data.mkdir()
        self.settings["REDIS_URL"] = self.urls[REDIS] = f"redis://{HOST}:{port}/0"
        self._add(REDIS, redis_command(port=port, directory=data), settings={}, is_ready=lambda: answers_ping(port))

    def _add_livekit(self) -> None:
        if given := self._environ.get("LIVEKIT_URL"):
            self._use_given_livekit(given)
            return
        port = self._port(7880, "LiveKit")
        key, secret = f"API{secrets.token_hex(6)}", secrets.token_hex(24)
        file = self._directory / "livekit.yaml"
        file.write_text(
            livekit_configuration(
                port=port,
                rtc_tcp_port=self._port(7881, "LiveKit media (TCP)"),
                rtc_udp_port=self._port(7882, "LiveKit media (UDP)"),
                key=key,
                webhook_url=self._webhook_url(),
            )
        )
        self.urls[LIVEKIT] = f"ws://{HOST}:{port}"
        self.settings |= {
            "LIVEKIT_URL": self.urls[LIVEKIT],
            "LIVEKIT_API_KEY": key,
            "LIVEKIT_API_SECRET": secret,
        }
        self._add(
            LIVEKIT,
            [str(find_livekit_server(self._environ)), "--config", str(file)],
            settings=livekit_environment(key=key, secret=secret),
            is_ready=lambda: answers_http(f"http://{HOST}:{port}/"),
        )

    def _webhook_url(self) -> str | None:
        if AGENT_SERVICE not in self._options.parts:
            return None
        return f"http://{HOST}:{self._agent_service_port}/webhooks/livekit"

    @cached_property
    def _agent_service_port(self) -> int:
        # LiveKit's configuration names it before the agent service has its turn.
        return self._port(8000, "the agent service")

    def _use_given_livekit(self, url: str) -> None:
        for name in ("LIVEKIT_API_KEY", "LIVEKIT_API_SECRET"):
            if not self._environ.get(name):
                raise SettingMissing(given="LIVEKIT_URL", missing=name)
            self.settings[name] = self._environ[name]
        self.settings["LIVEKIT_URL"] = self.urls[LIVEKIT] = url
        self.notes.append("LiveKit: the one of LIVEKIT_URL")

    def _add_providers(self) -> None:
        port = self._port(8090, "the stand-in providers")
        self.urls[PROVIDERS] = f"http://{HOST}:{port}"
        log = self._directory / "providers.jsonl"
        command = [sys.executable, "-m", "local.providers", "--port", str(port), "--log", str(log)]
        command += ["--first-token-delay", str(self._options.first_token_delay)]
        if not self._options.speech:
            command += ["--no-speech", "--token-interval", "0"]
        if self._options.marked:
            command.append("--marked")
        knowledge = self._environ.get("MUSTER_KNOWLEDGE")
        self._add(
            PROVIDERS,
            [*command, "--knowledge", knowledge] if knowledge else command,
            settings={},
            is_ready=lambda: answers_http(f"{self.urls[PROVIDERS]}/health"),
        )
        self._choose_provider("OPENAI", name="OpenAI", stand_in=RECOGNITION, order="MUSTER_STT")
        self._choose_provider("ELEVEN", name="ElevenLabs", stand_in=VOICE, order="MUSTER_TTS")

    def _choose_provider(self, prefix: str, *, name: str, stand_in: StandIn, order: str) -> None:
        """The real service when the user has a key for it, a server of the user's own, or the stand-in.

        What it stands in for is needed unless the variable `order` leaves the provider out.
        """
        key, base_url = f"{prefix}_API_KEY", f"{prefix}_BASE_URL"
        if given := self._environ.get(base_url):
            self.settings[base_url] = given
            self.settings[key] = self._environ.get(key) or "not-needed"
            self.notes.append(f"{name}: the server of {base_url}")
        elif self._environ.get(key):
            self.settings[key] = self._environ[key]
            self.notes.append(f"{name}: the real service, with your {key}; calls cost money")
        else:
            if self._options.speech and name.lower() in (self._environ.get(order) or name.lower()):
                stand_in.require()
            self.settings[base_url] = f"{self.urls[PROVIDERS]}/v1"
            self.settings[key] = "stand-in"

    def _add_agent_service(self) -> None:
        port = self._agent_service_port
        self.urls[AGENT_SERVICE] = self.settings["AGENT_SERVICE_URL"] = f"http://{HOST}:{port}"
        self._add_service(AGENT_SERVICE, port=port, health="/health", after=(REDIS,))

    def _add_control_plane(self) -> None:
        port = self._port(8080, "the control plane")
        self.urls[CONTROL_PLANE] = f"http://{HOST}:{port}"
        self._add_service(CONTROL_PLANE, port=port, health="/api/v1/health")

    def _add_service(self, kind: str, *, port: int, health: str, after: tuple[str, ...] = ()) -> None:
        gunicorn = [sys.executable, "-m", "gunicorn", "--config", "python:api.server", "--bind", f"{HOST}:{port}"]
        self._add(
            kind,
            [*gunicorn, f"api.{kind}:create_app()"],
            is_ready=lambda: answers_http(f"http://{HOST}:{port}{health}"),
            after=after,
        )

    def _add_workers(self) -> None:
        self.settings["MUSTER_SLOTS"] = str(self._options.slots)
        for number in range(1, self._options.workers + 1):
            name = f"{WORKER}-{number}"
            log = self._directory / f"{name}.log"
            options = ["--without-mingle", "--without-gossip", "-n", f"{name}@%h", "--loglevel", "INFO"]
            linked = self._add_links(name) if self._options.links else {}
            self._add(
                WORKER,
                [sys.executable, "-m", "celery", "-A", "worker.fleet.app", "worker", *options],
                name=name,
                settings={**self.settings, **linked},
                is_ready=partial(self._worker_is_ready, log),
                after=(REDIS, *(link_name(name, to) for to in (REDIS, LIVEKIT) if linked)),
            )

    def _add_links(self, worker: str) -> dict[str, str]:
        """A proxy to Redis and one to LiveKit for this worker alone; the settings that lead through them."""
        command, linked = [sys.executable, "-m", "local.link"], {}
        for to, setting in ((REDIS, "REDIS_URL"), (LIVEKIT, "LIVEKIT_URL")):
            target, port = urlsplit(self.settings[setting]), self._ports.pick()
            name = link_name(worker, to)
            self._add(
                LINK,
                [*command, str(port), f"{target.hostname}:{target.port}", str(self._directory / f"{name}.socket")],
                name=name,
                settings={},
                is_ready=partial(has_logged, self._directory / f"{name}.log", b"ready"),
            )
            linked[setting] = target._replace(netloc=f"{HOST}:{port}").geturl()
        return linked

    def _add_chat_worker(self) -> None:
        log = self._directory / f"{CHAT_WORKER}.log"
        options = ["--without-mingle", "--without-gossip", "-n", "chat-1@%h", "--loglevel", "INFO"]
        self._add(
            CHAT_WORKER,
            [sys.executable, "-m", "celery", "-A", "worker.chat.app", "worker", *options],
            is_ready=partial(has_logged, log, b" ready."),
            after=(REDIS,),
        )

    def _worker_is_ready(self, log: Path) -> bool:
        if not has_logged(log, b" ready."):
            return False
        from worker.fleet.errors import StateUnavailable
        from worker.fleet.redis_operations import connect, run
        from worker.fleet.workers import fleet

        with connect({**self._environ, **self.settings}["REDIS_URL"]) as client:
            try:
                return run(client, fleet()).ready
            except StateUnavailable:
                # Its own part's thread reports a Redis that is gone.
                return False

    def _add_flower(self) -> None:
        port = self._port(5555, "Flower")
        prefix = self._environ.get("FLOWER_URL_PREFIX", "").strip("/")
        self.urls[FLOWER] = f"http://{HOST}:{port}/{prefix}".rstrip("/")
        options = [f"--conf={ROOT / 'deploy' / 'flowerconfig.py'}", f"--address={HOST}", f"--port={port}"]
        self._add(
            FLOWER,
            [sys.executable, "-m", "celery", "-A", "worker.fleet.app", "flower", *options],
            settings={
                **self.settings,
                "FLOWER_BASIC_AUTH": f"{FLOWER_USER}:{self.flower_password}",
                "FLOWER_DB": str(self._directory / "flower" / "history"),
            },
            is_ready=lambda: answers_http(f"{self.urls[FLOWER]}/healthcheck"),
            after=(REDIS,),
        )

    def _add(
        self,
        kind: str,
        command: list[str],
        *,
        is_ready: Callable[[], bool],
        name: str | None = None,
        settings: Mapping[str, str] | None = None,
        after: tuple[str, ...] = (),
    ) -> None:
        planned = {part.name for part in self.parts}
        self.parts.append(
            Part(
                name=name or kind,
                kind=kind,
                command=tuple(command),
                environment={**self._base, **(self.settings if settings is None else settings)},
                log=self._directory / f"{name or kind}.log",
                is_ready=is_ready,
                after=tuple(earlier for earlier in after if earlier in planned),
            )
        )

    def _port(self, preferred: int, listener: str) -> int:
        if not self._options.preferred_ports:
            return self._ports.pick()
        port = self._ports.pick(preferred)
        if port != preferred:
            self.notes.append(f"port {preferred} is taken: {listener} listens on {port}")
        return port


def link_name(worker: str, to: str) -> str:
    """The part through which a worker reaches `REDIS` or `LIVEKIT`."""
    return f"{worker}.{to}"


def _without_proxy(environ: Mapping[str, str]) -> dict[str, str]:
    """The parts talk to each other directly, whatever proxy the user has for the world outside."""
    exceptions = environ.get("NO_PROXY") or environ.get("no_proxy") or ""
    local = ",".join(filter(None, (exceptions, HOST, "localhost")))
    return {"NO_PROXY": local, "no_proxy": local}
