"""The watcher: follows a Redis server's every command in a thread, also across its restarts."""

import socket
import threading
import time
import uuid
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from bench.faults.ledger import Ledger
from bench.faults.monitor import Steps, parse

#: The name of the watcher's connection: who cuts others' spares it.
NAME = "fault-watcher"
#: Seconds between two tries to reach the server, and between two looks at whether it answers.
_RETRY = 0.02
_LOOK = 0.1
#: Seconds it may take to answer.
_ANSWER = 0.4
_PREFIX = "muster:{s:"


class Watcher:
    """Keeps a `Ledger` of the server of `url`; `away` are the spans in which it did not answer (Unix seconds)."""

    def __init__(self, url: str) -> None:
        address = urlsplit(url)
        self._address = address.hostname or "127.0.0.1", address.port or 6379
        self._url = url
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._ledger = Ledger()
        self._steps = Steps()
        self._caught_up = threading.Event()
        self._marks: set[str] = set()
        self._found_with: set[str] = set()
        self.away: list[tuple[float, float]] = []
        self.failure: BaseException | None = None
        self._threads = [threading.Thread(target=run, daemon=True) for run in (self._watch, self._look)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        if not self._caught_up.wait(10):
            raise TimeoutError("the watcher does not reach Redis")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def look_into(self, read: Any) -> Any:
        """What `read` makes of the ledger, which stands still meanwhile; raises what stopped the watcher."""
        if self.failure is not None:
            raise RuntimeError("the watcher has stopped") from self.failure
        with self._lock:
            return read(self._ledger)

    def catch_up(self, *, within: float = 5.0) -> None:
        """Return when everything that was done before has been seen; raises `TimeoutError`."""
        mark = f"caught-up-{uuid.uuid4().hex}"
        self._marks = {mark}
        with _client(self._url) as client:
            client.echo(mark)
        deadline = time.monotonic() + within
        while mark in self._marks:
            if time.monotonic() > deadline:
                raise TimeoutError("the watcher lags behind")
            time.sleep(_RETRY)

    def _watch(self) -> None:
        try:
            while not self._stopping.is_set():
                try:
                    self._follow()
                except OSError:
                    time.sleep(_RETRY)
        except BaseException as error:
            self.failure = error
            raise

    def _follow(self) -> None:
        """One connection's life."""
        mark = f"watching-{uuid.uuid4().hex}"
        with socket.create_connection(self._address, timeout=_ANSWER) as connection:
            connection.sendall(f"CLIENT SETNAME {NAME}\r\nMONITOR\r\n".encode())
            found: Mapping[str, Mapping[str, str]] | None = None
            is_current, rest = False, b""
            while not self._stopping.is_set():
                try:
                    chunk = connection.recv(1 << 16)
                except TimeoutError:
                    if found is None:
                        found = self._find(mark)
                    continue
                if not chunk:
                    raise ConnectionError("the server hung up")
                if found is None:
                    found = self._find(mark)
                *lines, rest = (rest + chunk).split(b"\r\n")
                for line in lines:
                    # What came before the mark is part of what was found.
                    if is_current:
                        self._note(line)
                    elif mark.encode() in line:
                        self._begin(found)
                        is_current = True

    def _find(self, mark: str) -> Mapping[str, Mapping[str, str]]:
        """All records in one step, at a place in the monitor that the mark tells."""
        self._found_with = set(self._marks)
        with _client(self._url) as client:
            try:
                flat: Any = client.eval(_FIND, 0, f"{_PREFIX}*", mark)
            except redis.RedisError as error:
                raise ConnectionError("the records cannot be read") from error
        return {
            key.removeprefix(_PREFIX).partition("}")[0]: dict(zip(fields[::2], fields[1::2], strict=True))
            for key, fields in flat
        }

    def _begin(self, found: Mapping[str, Mapping[str, str]]) -> None:
        with self._lock:
            for step in self._steps.flush():
                self._ledger.apply(step)
            self._ledger.find(found, at=time.time())
        self._steps = Steps()
        # What was done before these were set was found.
        self._marks -= self._found_with
        self._caught_up.set()

    def _note(self, line: bytes) -> None:
        command = parse(line)
        if command is None:
            return
        with self._lock:
            for step in self._steps.feed(command):
                self._ledger.apply(step)
        if command.name == "ECHO":
            self._marks.discard(command.words[1])

    def _look(self) -> None:
        while not self._stopping.wait(_LOOK):
            started = time.time()
            try:
                with _client(self._url) as client:
                    client.ping()
            except redis.RedisError:
                self._note_away(started, time.time())

    def _note_away(self, started: float, ended: float) -> None:
        if self.away and started - self.away[-1][1] < 3 * _LOOK:
            started, _ = self.away.pop()
        self.away.append((started, ended))


_FIND = """
local found, cursor = {}, '0'
repeat
  local page = redis.call('SCAN', cursor, 'MATCH', ARGV[1], 'COUNT', 1000)
  cursor = page[1]
  for _, key in ipairs(page[2]) do
    if string.sub(key, -8) == '}:record' then table.insert(found, {key, redis.call('HGETALL', key)}) end
  end
until cursor == '0'
return found"""


def _client(url: str) -> "redis.Redis":
    return redis.Redis.from_url(
        url,
        decode_responses=True,
        socket_timeout=_ANSWER,
        socket_connect_timeout=_ANSWER,
        retry=Retry(NoBackoff(), 0),
    )
