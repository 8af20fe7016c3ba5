"""Whether a Redis server is of a version and set up in a way that the fleet can rely on."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import redis
from redis.exceptions import RedisError, ResponseError

from worker.fleet.errors import StateMisconfigured, StateUnavailable
from worker.fleet.redis_operations import Operation, connect, unavailable
from worker.fleet.settings import FleetSettings

#: Seconds for which an answer is trusted: a server that was set right is used again after at most as long.
CHECKED_EVERY = 5.0
#: Seconds a server has for an answer about itself; readiness, which must be told within a second, waits for it.
LOOK_TIMEOUT = 0.7
#: The first version of each kind of server whose scripts can declare what they do (`#!lua`).
_OLDEST = {"Redis": 7, "Valkey": 8}

# Redis judges a script by what it declares, and this one does not declare that it only reads.
_TRY_WRITING = """#!lua
return 1"""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing about a server that should be otherwise."""

    problem: str
    #: What to set or do, in one sentence.
    remedy: str
    #: Whether no session may be admitted until it is set right.
    refuses: bool

    def __str__(self) -> str:
        return f"{self.problem}. {self.remedy}"


def inspect(client: "redis.Redis") -> list[Finding]:
    """Ask a server about itself with one INFO; empty when nothing is to be said. Raises `StateUnavailable`.

    CONFIG is not used: hosted servers forbid or rename it, and INFO tells the same.
    """
    try:
        return judge(client.info())
    except ResponseError as error:
        return [
            Finding(
                problem=f"version and settings cannot be checked ({error})",
                remedy="Permit INFO to this user, or see to it yourself.",
                refuses=False,
            )
        ]
    except RedisError as error:
        raise unavailable(error) from error


def judge(info: Mapping[str, Any]) -> list[Finding]:
    """What the fields of an INFO answer say; a field that is missing is not judged."""
    return [*_judge_version(info), *_judge_mode(info), *_judge_memory(info), *_judge_persistence(info)]


def _judge_version(info: Mapping[str, Any]) -> Sequence[Finding]:
    # Valkey calls itself Redis 7.2.4 as well, for the sake of old clients.
    kind = "Valkey" if "valkey_version" in info else "Redis"
    version = str(info.get("valkey_version", info.get("redis_version", "")))
    major = version.split(".", maxsplit=1)[0]
    if not major.isdecimal() or int(major) >= _OLDEST[kind]:
        return []
    needed = " or ".join(f"{name} {oldest}" for name, oldest in _OLDEST.items())
    return [Finding(problem=f"{kind} {version} is too old", remedy=f"Use {needed}, or newer.", refuses=True)]


def _judge_mode(info: Mapping[str, Any]) -> Sequence[Finding]:
    if not info.get("cluster_enabled"):
        return []
    return [
        Finding(
            problem="the server is part of a cluster",
            remedy="Use a single server, or one behind Sentinel: the broker's client knows no cluster.",
            refuses=True,
        )
    ]


def _judge_memory(info: Mapping[str, Any]) -> Sequence[Finding]:
    policy = info.get("maxmemory_policy", "noeviction")
    if policy == "noeviction":
        return []
    return [
        Finding(
            problem=f"maxmemory-policy is {policy}, so a full server would drop the records of running calls",
            remedy="Set it: CONFIG SET maxmemory-policy noeviction, and in its configuration file.",
            refuses=True,
        )
    ]


def _judge_persistence(info: Mapping[str, Any]) -> Sequence[Finding]:
    if info.get("aof_enabled", 1):
        return []
    # Not a refusal: running calls register again in an emptied server, and joins wait until they have.
    return [
        Finding(
            problem="appendonly is no, so a restart of the server loses the queued sessions",
            remedy="Set it: CONFIG SET appendonly yes, and in its configuration file.",
            refuses=False,
        )
    ]


def try_writing() -> Operation[None]:
    """A step that writes nothing, and that a server which is full or a read-only replica refuses all the same."""
    return Operation(script=_TRY_WRITING, keys=[], parse=lambda raw: None)


class ServerCheck:
    """Looks at the fleet's servers again whenever its last look is `CHECKED_EVERY` old; safe in many threads.

    `clients` are named by the setting that holds their server's URL. The first one is the state's: without it there
    is nothing to check; of the others one that cannot be asked is passed over.
    """

    def __init__(self, clients: Mapping[str, "redis.Redis"], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clients = clients
        self._clock = clock
        self._looking = threading.Lock()
        self._looked_at: float | None = None
        self._findings: Mapping[str, Sequence[Finding]] = {}

    @classmethod
    def connect(cls, settings: FleetSettings) -> Self:
        """Of the state's and the broker's server, with clients of its own."""
        urls = {"REDIS_URL": settings.redis_url}
        if settings.broker_url != settings.redis_url:
            urls["BROKER_URL"] = settings.broker_url
        return cls({name: connect(url, timeout=LOOK_TIMEOUT) for name, url in urls.items()})

    def require(self) -> None:
        """Raises `StateMisconfigured` that says what to set, or `StateUnavailable`."""
        if self._is_due:
            self._look_again()
        refusals = self._told(refuses=True)
        if refusals:
            raise StateMisconfigured(refusals)

    @property
    def warnings(self) -> str | None:
        """What was found at the last look and refuses nothing."""
        return self._told(refuses=False)

    @property
    def _is_due(self) -> bool:
        return self._looked_at is None or self._clock() - self._looked_at >= CHECKED_EVERY

    def _look_again(self) -> None:
        # One look at a time: meanwhile the others go on with what was found before, or wait when that is nothing.
        if self._looking.acquire(timeout=LOOK_TIMEOUT if self._looked_at is None else 0):
            try:
                if self._is_due:
                    self._findings = self._look()
                    self._looked_at = self._clock()
            finally:
                self._looking.release()
        elif self._looked_at is None:
            raise StateUnavailable("Redis answers too slowly.")

    def _look(self) -> Mapping[str, Sequence[Finding]]:
        findings = {}
        for name, client in self._clients.items():
            try:
                findings[name] = inspect(client)
            except StateUnavailable:
                if not findings:
                    raise
        return findings

    def _told(self, *, refuses: bool) -> str | None:
        told = [
            f"{name}: {finding}"
            for name, findings in self._findings.items()
            for finding in findings
            if finding.refuses is refuses
        ]
        return " ".join(told) or None
