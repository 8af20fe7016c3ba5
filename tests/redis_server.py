"""A real Redis server that a test may freeze, stop and start again."""

import signal
import subprocess
import time
from pathlib import Path

import redis

from local.ports import HOST
from local.redis_server import redis_command

_START_LIMIT = 10.0


class RedisServer:
    """One server with a port and a data directory of its own."""

    def __init__(self, *, port: int, directory: Path) -> None:
        self.url = f"redis://{HOST}:{port}/0"
        self._command = redis_command(port=port, directory=directory)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, with the data it had, and wait until it answers."""
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + _START_LIMIT
        with redis.Redis.from_url(self.url) as client:
            while not _answers(client):
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError("the Redis server of the tests did not start")
                time.sleep(0.02)

    def freeze(self) -> None:
        """Let it answer nothing, with every connection open."""
        self._running.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self._running.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """Stop it; its data stays."""
        self.thaw()
        self._running.terminate()
        self._running.wait()
        self._process = None

    @property
    def _running(self) -> "subprocess.Popen[bytes]":
        assert self._process is not None
        return self._process


def _answers(client: "redis.Redis") -> bool:
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False
