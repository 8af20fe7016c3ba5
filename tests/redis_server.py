"""A real Redis server that a test may freeze, stop, fill, demote and start again, and one of an old version."""

import signal
import socketserver
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

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

    def launch(self, *options: str) -> None:
        """Start it, with the data it had, and do not wait until it has loaded them."""
        self._process = subprocess.Popen([*self._command, *options], stdout=subprocess.DEVNULL)

    def start(self) -> None:
        """Start it, with the data it had, and wait until it answers."""
        self.launch()
        deadline = time.monotonic() + _START_LIMIT
        with redis.Redis.from_url(self.url) as client:
            while not _answers(client):
                if self._running.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError("the Redis server of the tests did not start")
                time.sleep(0.02)

    def freeze(self) -> None:
        """Let it answer nothing, with every connection open."""
        self._running.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self._running.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """Stop it, unless it is stopped; its data stays."""
        if self._process is None:
            return
        self.thaw()
        self._running.terminate()
        self._running.wait()
        self._process = None

    def configure(self, **settings: str) -> None:
        """Change its settings while it runs, named with underscores."""
        with redis.Redis.from_url(self.url) as client:
            for name, value in settings.items():
                client.config_set(name.replace("_", "-"), value)

    def demote(self) -> None:
        """Make it a read-only replica of a server that is away."""
        with redis.Redis.from_url(self.url) as client:
            client.execute_command("REPLICAOF", HOST, "1")

    def promote(self) -> None:
        """Let it take writes again."""
        with redis.Redis.from_url(self.url) as client:
            client.execute_command("REPLICAOF", "NO", "ONE")

    def hang_up(self) -> None:
        """Close every client's connection."""
        with redis.Redis.from_url(self.url) as client:
            client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """It takes connections and answers nobody."""
        self.freeze()
        try:
            yield
        finally:
            self.thaw()

    @property
    def _running(self) -> "subprocess.Popen[bytes]":
        assert self._process is not None
        return self._process


def _answers(client: "redis.Redis") -> bool:
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False


class OldRedis(socketserver.ThreadingTCPServer):
    """Speaks as much of Redis 6.2's language as a client needs to find out that it is Redis 6.2."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__((HOST, 0), _OldConversation)
        self.url = f"redis://{HOST}:{self.server_address[1]}/0"

    @contextmanager
    def running(self) -> Iterator["OldRedis"]:
        """Serve in a thread."""
        thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield self
        finally:
            self.shutdown()
            thread.join()
            self.server_close()


class _OldConversation(socketserver.StreamRequestHandler):
    _ANSWERS: ClassVar = {
        b"HELLO": b"%3\r\n$6\r\nserver\r\n$5\r\nredis\r\n$7\r\nversion\r\n$6\r\n6.2.14\r\n$5\r\nproto\r\n:3\r\n",
        b"INFO": b"$76\r\n# Server\r\nredis_version:6.2.14\r\nmaxmemory_policy:noeviction\r\naof_enabled:1\r\n\r\n",
        b"EVALSHA": b"-NOSCRIPT No matching script. Please use EVAL.\r\n",
        b"EVAL": b"-ERR Error compiling script (new function): user_script:1: unexpected symbol near '#'\r\n",
    }

    def handle(self) -> None:
        while header := self.rfile.readline():
            words = [self._word() for _ in range(int(header[1:]))]
            self.wfile.write(self._ANSWERS.get(words[0].upper(), b"-ERR unknown command\r\n"))

    def _word(self) -> bytes:
        length = int(self.rfile.readline()[1:])
        return self.rfile.read(length + 2)[:-2]
