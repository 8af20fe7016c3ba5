"""What `muster doctor` looks at on this machine: Python, disk, open files, ports, and the local stack's own parts."""

import platform
import resource
import shutil
import subprocess
from collections.abc import Mapping

import psutil

from local.errors import LiveKitMissing, RedisMissing
from local.livekit_server import find_livekit_server
from local.paths import cache_directory
from local.ports import is_free
from local.redis_server import find_redis_server
from local.stand_ins import RECOGNITION, VOICE
from muster.examination import Finding, ok, warning

#: Bytes: what the build of the LiveKit server needs with Go's caches, and what a run with its recordings may.
BUILD_SPACE = 3_000_000_000
RUN_SPACE = 500_000_000
#: Descriptors: of a service each client and event stream needs one, on one's own machine there are few.
SERVICE_FILES = 4096
STACK_FILES = 256

#: By which of its arguments a process is known as one of the fleet's.
_OURS = ("api.agent_service", "api.control_plane", "worker.fleet.app")


def check_python() -> list[Finding]:
    """Which Python on which system runs this."""
    return [ok("Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")]


def check_files(*, needed: int) -> list[Finding]:
    """Whether a process may have as many files and connections open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    detail = "any number may be open" if soft == resource.RLIM_INFINITY else f"{soft} may be open in one process"
    if soft != resource.RLIM_INFINITY and soft < needed:
        return [warning("files", detail, "Raise it: ulimit -n 65536, or LimitNOFILE= of the service.")]
    return [ok("files", detail)]


def check_ports(ports: Mapping[int, str], *, replaceable: bool) -> list[Finding]:
    """Which of these ports are free; of a taken one, by whom. With `replaceable` another one will be found."""
    taken = [port for port in ports if not is_free(port)]
    free = [f"{port} ({ports[port]})" for port in ports if port not in taken]
    found = [ok("ports", f"free: {', '.join(free)}")] if free else []
    return found + [_judge_taken(port, ports[port], replaceable=replaceable) for port in taken]


def check_disk(environ: Mapping[str, str], *, build_space: int = BUILD_SPACE) -> list[Finding]:
    """Whether there is room for what is still to be built and recorded."""
    cache = cache_directory(environ)
    folder = next(parent for parent in (cache, *cache.parents) if parent.exists())
    free, needed = shutil.disk_usage(folder).free, RUN_SPACE if _is_built(environ) else build_space
    detail = f"{free / 1e9:.1f} GB free at {folder}"
    if free < needed:
        remedy = f"Make room for {needed / 1e9:.1f} GB, or point MUSTER_CACHE elsewhere."
        return [warning("disk", detail, remedy)]
    return [ok("disk", detail)]


def check_livekit_server(environ: Mapping[str, str]) -> list[Finding]:
    """Whether the local stack has a LiveKit server that runs on this machine."""
    subject = "LiveKit server"
    try:
        server = find_livekit_server(environ)
    except LiveKitMissing:
        return [
            warning(subject, "not built yet", "Run `make setup` (3 minutes, Go comes by itself), or set LIVEKIT_URL.")
        ]
    try:
        answer = subprocess.run([server, "--version"], capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return [warning(subject, f"{server} does not run ({type(error).__name__})", "Delete it and run `make setup`.")]
    return [ok(subject, f"{answer.stdout.strip()} at {server}")]


def check_redis_server() -> list[Finding]:
    """Whether the local stack has a Redis server."""
    try:
        return [ok("Redis server", str(find_redis_server()))]
    except RedisMissing as missing:
        return [warning("Redis server", "there is none", str(missing))]


def check_stand_ins() -> list[Finding]:
    """Whether speech is recognised and spoken here without any account."""
    missing = [stand_in for stand_in in (RECOGNITION, VOICE) if not stand_in.is_installed()]
    if missing:
        return [warning(stand_in.what, stand_in.absence, stand_in.instead) for stand_in in missing]
    return [ok("stand-in models", "recognition and voice are installed; no key is needed")]


def _is_built(environ: Mapping[str, str]) -> bool:
    try:
        return find_livekit_server(environ).exists()
    except LiveKitMissing:
        return False


def _judge_taken(port: int, user: str, *, replaceable: bool) -> Finding:
    subject = f"port {port}"
    listener = _listener(port)
    name = "a process that cannot be seen from here" if listener is None else f"{listener.name()} ({listener.pid})"
    if replaceable:
        return ok(subject, f"taken by {name}; `make up` finds another one for {user} and says so")
    if listener is not None and any(mark in argument for argument in _arguments(listener) for mark in _OURS):
        return ok(subject, f"served by {name}")
    return warning(subject, f"{user} may want it, and it is taken by {name}", "Stop that, or listen on another port.")


def _listener(port: int) -> psutil.Process | None:
    """Who listens on the port; None when only another user may know."""
    try:
        for connection in psutil.net_connections("inet"):
            listens = connection.status in {psutil.CONN_LISTEN, psutil.CONN_NONE}
            if listens and connection.laddr and connection.laddr.port == port and connection.pid:
                return psutil.Process(connection.pid)
    except psutil.Error:
        # macOS tells it to root only; and a process may end while it is looked at.
        return None
    return None


def _arguments(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
