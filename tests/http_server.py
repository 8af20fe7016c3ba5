"""The agent service as a real gunicorn process, and clients that behave in ways no HTTP library offers."""

import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from local.paths import ROOT
from local.ports import HOST, PortPicker
from local.readiness import answers_http

_START_LIMIT = 30.0
_END_LIMIT = 30.0


@dataclass(frozen=True)
class RawAnswer:
    """One answer on a raw connection."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class HttpServer:
    """`gunicorn --config python:api.server` on a port of its own; use it as a context manager."""

    def __init__(
        self,
        *options: str,
        log: Path,
        environ: Mapping[str, str],
        bind: str | None = None,
        application: str = "tests.slow_app:create_app()",
        health: str = "/health",
    ) -> None:
        self.port = PortPicker().pick()
        self.url = f"http://{HOST}:{self.port}"
        self.health = health
        self.log = log
        self._command = [
            *(sys.executable, "-m", "gunicorn", "--config", "python:api.server"),
            *("--bind", bind or f"{HOST}:{self.port}", *options, application),
        ]
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("MUSTER_", "REDIS_"))}
        self._environ = {**kept, **environ}

    def __enter__(self) -> Self:
        self.launch()
        deadline = time.monotonic() + _START_LIMIT
        while not answers_http(self.url + self.health):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(self.log.read_text()[-2000:])
            time.sleep(0.05)
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self.process.poll() is None:
            self.stop()

    def launch(self) -> None:
        """Start the process without waiting for it."""
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                self._command, cwd=ROOT, env=self._environ, stdout=log, stderr=subprocess.STDOUT
            )

    def exit_code(self) -> int:
        """The code with which it ends by itself."""
        return self._wait()

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self._wait()

    def connect(self, *sent: bytes) -> socket.socket:
        """A connection on which this much has been sent."""
        client = socket.create_connection((HOST, self.port), timeout=15)
        for piece in sent:
            client.sendall(piece)
        return client

    @contextmanager
    def connections(self, count: int, *, sent: bytes) -> Iterator[list[socket.socket]]:
        """So many connections, each with the same beginning of a request."""
        clients: list[socket.socket] = []
        try:
            clients.extend(self.connect(sent) for _ in range(count))
            yield clients
        finally:
            for client in clients:
                client.close()

    def ask(self, raw: bytes) -> RawAnswer:
        """The answer to this request."""
        with self.connect(raw) as client:
            return read_answer(client)

    def health_delay(self) -> float:
        """Seconds until `/health` answers a new connection with 200."""
        asked_at = time.monotonic()
        assert self.ask(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n").status == 200
        return time.monotonic() - asked_at

    def _wait(self) -> int:
        try:
            return self.process.wait(timeout=_END_LIMIT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise


def read_answer(client: socket.socket) -> RawAnswer:
    """The next answer on the connection."""
    response = http.client.HTTPResponse(client)
    response.begin()
    headers = {name.lower(): value for name, value in response.getheaders()}
    return RawAnswer(response.status, headers, response.read())


def read_until(client: socket.socket, text: bytes) -> bytes:
    """Everything up to and with this text; raises `EOFError` when the server closes before."""
    received = b""
    while text not in received:
        piece = client.recv(4096)
        if not piece:
            raise EOFError(received)
        received += piece
    return received


def is_closed(client: socket.socket, *, within: float = 5.0) -> bool:
    """Whether the server closes the connection without another word."""
    client.settimeout(within)
    try:
        return client.recv(1) == b""
    except TimeoutError:
        return False
    except ConnectionResetError:
        return True


def is_unanswered(client: socket.socket) -> bool:
    """Whether the connection is open and nothing has come back on it."""
    client.setblocking(False)
    try:
        client.recv(1)
    except BlockingIOError:
        return True
    except ConnectionResetError:
        return False
    return False


def logged_lines(log: str) -> list[str]:
    """The messages of gunicorn's log without time and process."""
    return [re.sub(r"^\[.*?\] \[\d+\] ", "", line) for line in log.splitlines()]
