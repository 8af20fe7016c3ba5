"""Containers without an engine: what Dockerfile and docker-compose.yml say, done with processes of this machine.

Where the kernel lets us (root on Linux), each has the root file system of the image and namespaces of its own: only
what the Dockerfile copies, read-only, with the mounts, the user, the capabilities and the environment that the two
files give it, and the command as process 1. The network is the host's, so ports are replaced. Elsewhere the commands
run as plain processes in the tree.
"""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import yaml

from local.paths import ROOT

COMPOSE = ROOT / "docker-compose.yml"
DOCKERFILE = ROOT / "Dockerfile"
EXAMPLE = ROOT / "deploy" / "compose.env.example"

#: `${NAME}`, `${NAME:-default}` and `${NAME:?what is missing}`.
VARIABLE = re.compile(r"\$\{(\w+)(?::([-?])([^}]*))?\}")


def read_yaml(file: Path) -> dict[str, Any]:
    """A YAML file whose top level is a mapping."""
    parsed: dict[str, Any] = yaml.safe_load(file.read_text())
    return parsed


class VariableMissing(Exception):
    """A variable that docker-compose.yml requires is not set."""


def interpolate(text: str, environ: Mapping[str, str]) -> str:
    """Compose's interpolation; raises `VariableMissing` with the file's own words."""

    def value(match: re.Match[str]) -> str:
        name, kind, rest = match.groups()
        if kind == "?" and not environ.get(name):
            raise VariableMissing(f"{name}: {rest}")
        return environ.get(name) or (rest if kind == "-" else "")

    return VARIABLE.sub(value, text)


@dataclass(frozen=True)
class Instruction:
    """One of the Dockerfile, with its continued lines joined; `stage` counts from 0."""

    stage: int
    name: str
    arguments: str


def dockerfile() -> list[Instruction]:
    """Every instruction of the Dockerfile."""
    stage, found = -1, []
    lines = "\n".join(line for line in DOCKERFILE.read_text().splitlines() if not line.startswith("#"))
    for line in lines.replace("\\\n", " ").splitlines():
        if line.strip():
            name, _, arguments = line.strip().partition(" ")
            stage += name == "FROM"
            found.append(Instruction(stage, name, " ".join(arguments.split())))
    return found


@dataclass(frozen=True)
class Image:
    """What the Dockerfile's last stage gives a container that says nothing else."""

    #: Paths of the tree, and where the Dockerfile puts them.
    sources: Mapping[str, str]
    environment: Mapping[str, str]
    user: str
    command: list[str]
    healthcheck: list[str]


@cache
def image() -> Image:
    """The image, as the Dockerfile describes it."""
    last = [instruction for instruction in dockerfile() if instruction.stage == 1]
    (user,) = (instruction.arguments for instruction in last if instruction.name == "USER")
    (command,) = (instruction.arguments for instruction in last if instruction.name == "CMD")
    (check,) = (instruction.arguments for instruction in last if instruction.name == "HEALTHCHECK")
    pairs = (shlex.split(instruction.arguments) for instruction in last if instruction.name == "ENV")
    return Image(
        sources=dict(_copied()),
        environment=dict(pair.split("=", 1) for words in pairs for pair in words),
        user=user,
        command=json.loads(command),
        healthcheck=json.loads(check.partition("CMD ")[2]),
    )


def _copied() -> Iterator[tuple[str, str]]:
    """What the build stage copies from the tree into `/app`, which the last stage takes over as it is."""
    folder = ""
    for instruction in dockerfile():
        if instruction.name == "WORKDIR":
            folder = instruction.arguments
        elif instruction.name == "COPY" and not instruction.arguments.startswith("--") and folder == "/app":
            *sources, target = instruction.arguments.split()
            for source in sources:
                name = "" if Path(target).name == Path(source).name else Path(source).name
                yield source.rstrip("/"), str(Path(folder, target, name))


@cache
def project() -> dict[str, Any]:
    """docker-compose.yml, with its variables still in it."""
    return read_yaml(COMPOSE)


def variables() -> set[str]:
    """Names of the variables that the file takes from `.env`."""
    return {match[1] for match in VARIABLE.finditer(json.dumps(project()["services"]))}


def environment(service: str, environ: Mapping[str, str]) -> dict[str, str]:
    """What the service's process finds in its environment, the image's share included."""
    described = project()["services"][service]
    own = {name: interpolate(str(value), environ) for name, value in described.get("environment", {}).items()}
    return {**image().environment, **own} if "build" in described else own


def command(service: str) -> list[str]:
    """The command that compose or, where it names none, the image gives the service."""
    return [str(word) for word in project()["services"][service].get("command") or image().command]


def healthcheck(service: str) -> list[str]:
    """The command of the service's health check, compose's or the image's."""
    test = project()["services"][service].get("healthcheck", {}).get("test")
    if test is None:
        return image().healthcheck
    kind, *words = test
    assert kind == "CMD", f"the health check of {service} needs a shell"
    return [str(word) for word in words]


@cache
def can_enclose() -> bool:
    """Whether this machine lets us make namespaces as an engine does."""
    if sys.platform != "linux" or os.geteuid() != 0 or not shutil.which("unshare") or not shutil.which("setpriv"):
        return False
    probe = ["unshare", "--mount", "--uts", "--ipc", "--pid", "--fork", "true"]
    return subprocess.run(probe, capture_output=True, check=False).returncode == 0


@dataclass
class Container:
    """One container of a service of ours; `replaced` says what stands for which words of the two files.

    `environ` is the `.env` file of the installation, `scratch` an empty directory of its own.
    """

    service: str
    name: str
    environ: Mapping[str, str]
    scratch: Path
    replaced: Mapping[str, str] = field(default_factory=dict)
    enclosed: bool = field(default_factory=can_enclose)

    def __post_init__(self) -> None:
        described = project()["services"][self.service]
        assert "build" in described, f"{self.service} has an image of its own"
        self._described = described
        if not self.enclosed:
            # What an engine would give each container for itself.
            self.replaced = {
                **self.replaced,
                "%n": self.name,
                "/run/muster": str(self.scratch),
                "/var/lib/muster": str(self.scratch),
                "/app": str(ROOT),
            }
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        """Everything its processes have printed."""
        return self.scratch / "log"

    @property
    def pid(self) -> int:
        """Its process 1, by the number it has outside."""
        assert self._process is not None
        if not self.enclosed:
            return self._process.pid
        children = psutil.Process(self._process.pid).children()
        assert children, f"{self.name} has ended: {self.log.read_text()}"
        return children[0].pid

    def start(self, override: list[str] | None = None, *, network: bool = True) -> None:
        """Run the service's command, or another one."""
        words = [self._replace(word) for word in override or command(self.service)]
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [*self._enclosing(network=network), *words] if self.enclosed else words,
                cwd=None if self.enclosed else ROOT,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def run(self, words: Iterable[str]) -> "subprocess.CompletedProcess[str]":
        """Run another command in it, as `docker exec` and health checks do."""
        replaced = [self._replace(word) for word in words]
        if self.enclosed:
            space = ["nsenter", f"--target={self.pid}", "--mount", "--uts", "--ipc", "--pid", "--root"]
            replaced = [*space, *self._inside(), *replaced]
        return subprocess.run(
            replaced,
            cwd=None if self.enclosed else ROOT,
            env=self._environment(),
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )

    @property
    def is_healthy(self) -> bool:
        """Whether its health check succeeds now."""
        return self.run(healthcheck(self.service)).returncode == 0

    def processes(self) -> list[psutil.Process]:
        """Process 1 and all others of it."""
        first = psutil.Process(self.pid)
        return [first, *first.children(recursive=True)]

    def terminate(self) -> None:
        """What `docker stop` begins with."""
        os.kill(self.pid, signal.SIGTERM)

    def wait(self, timeout: float) -> int:
        """The exit code of its process 1."""
        assert self._process is not None
        return self._process.wait(timeout)

    def kill(self) -> None:
        """Leave nothing behind."""
        if self._process is not None and self._process.poll() is None:
            for process in self.processes():
                process.kill()
            self._process.wait()

    def _replace(self, text: str) -> str:
        for word, stand_in in self.replaced.items():
            text = text.replace(word, stand_in)
        return text

    def _environment(self) -> dict[str, str]:
        given = {name: self._replace(value) for name, value in environment(self.service, self.environ).items()}
        if not self.enclosed:
            given["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return given

    def _inside(self) -> list[str]:
        """What stands before each command in the container: its user, its privileges and its working directory."""
        user, _, group = image().user.partition(":")
        assert self._described["cap_drop"] == ["ALL"]
        assert self._described["security_opt"] == ["no-new-privileges:true"]
        return [
            *("setpriv", f"--reuid={user}", f"--regid={group}", "--clear-groups"),
            *("--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"),
            *("env", "--chdir=/app"),
        ]

    def _enclosing(self, *, network: bool) -> list[str]:
        root = self.scratch / "root"
        root.mkdir()
        spaces = ["--mount", "--uts", "--ipc", "--pid", *([] if network else ["--net"])]
        # The container's PATH holds no programs of an administrator.
        enter = [shutil.which("chroot") or "/usr/sbin/chroot", str(root), *self._inside()]
        script = "\n".join(["set -e", f"hostname {self.name}", *self._mounts(root), f'exec {shlex.join(enter)} "$@"'])
        return ["unshare", *spaces, "--fork", "--kill-child", "sh", "-c", script, "sh"]

    def _mounts(self, root: Path) -> Iterator[str]:
        """Shell commands that put together the container's root; only its own tmpfs and volumes can be written."""
        yield f"mount -t tmpfs -o mode=0755 image {root}"
        yield from self._writable(root)
        # After the container's own /tmp: this tree, and with it its Python, may lie in the machine's.
        for source, target in _machine():
            yield _bind(source, root, target)
        for path, target in image().sources.items():
            yield _bind(ROOT / path, root, target)
        user, _, group = image().user.partition(":")
        # The image's own lists of users; Celery takes a user without a name for an administrator.
        for file, line in (("passwd", f"muster:x:{user}:{group}::/nonexistent:"), ("group", f"muster:x:{group}:")):
            own = self.scratch / file
            own.write_text(f"{line}\n")
            yield _bind(own, root, f"/etc/{file}")
        yield f"mkdir -p {root}/proc {root}/dev && mount -t proc proc {root}/proc && mount --rbind /dev {root}/dev"
        yield f"mount -t tmpfs -o mode=1777 shm {root}/dev/shm"
        if self._described["read_only"]:
            yield f"mount -o remount,ro {root}"

    def _writable(self, root: Path) -> Iterator[str]:
        """What it may write: its tmpfs and volumes."""
        user, _, group = image().user.partition(":")
        for described in self._described["tmpfs"]:
            path, _, options = described.partition(":")
            options = f"noexec,nosuid,nodev,{options or 'mode=1777'}"
            yield f"mkdir -p {root}{path} && mount -t tmpfs -o {options} tmpfs {root}{path}"
        for described in self._described.get("volumes", []):
            path = described.split(":")[1]
            yield f"mkdir -p {root}{path} && mount -t tmpfs -o uid={user},gid={group},mode=0700 volume {root}{path}"


def _machine() -> Iterator[tuple[Path, str]]:
    """What stands for the base image and its virtual environment: this machine's system and Python."""
    for name in ("usr", "etc", "bin", "sbin", "lib", "lib64"):
        if Path("/", name).exists():
            yield Path("/", name), f"/{name}"
    for place in {sys.base_prefix, sys.prefix}:
        if not place.startswith("/usr"):
            yield Path(place), place
    yield Path(sys.prefix), "/opt/venv"


def _bind(source: Path, root: Path, target: str) -> str:
    place = f"{root}{target}"
    folder = place if source.is_dir() else str(Path(place).parent)
    return f"mkdir -p {folder}; [ -e {place} ] || touch {place}; mount --bind -o ro {source} {place}"
