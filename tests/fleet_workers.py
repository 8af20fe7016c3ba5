"""Starting, killing and questioning real workers, and asking the fleet as an API does."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psutil
import redis

from local.paths import ROOT
from worker.fleet import admission, records, workers
from worker.fleet.app import create_producer
from worker.fleet.control import SessionControl
from worker.fleet.publishing import TASK_NAME, publisher
from worker.fleet.redis_operations import connect, run
from worker.fleet.session import Session, State
from worker.fleet.settings import FleetSettings


class Worker:
    """A real Celery worker of `app` in processes of its own."""

    def __init__(
        self, name: str, redis_url: str, *, slots: int = 2, app: str = "tests.fleet_app", **environ: str
    ) -> None:
        self.name = name
        self.lines: list[str] = []
        self._ready = threading.Event()
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "celery", "-A", app, "worker"),
                *("--without-mingle", "--without-gossip", "-n", f"{name}@test", "-l", "INFO"),
            ],
            cwd=ROOT,
            env={
                **os.environ,
                "REDIS_URL": redis_url,
                "MUSTER_SLOTS": str(slots),
                "PYTHONFAULTHANDLER": "1",
                **environ,
            },
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def wait_until_ready(self) -> "Worker":
        assert self._ready.wait(20), "".join(self.lines)
        return self

    def processes(self) -> list[psutil.Process]:
        """Parent, keeper and children."""
        parent = psutil.Process(self.process.pid)
        return [parent, *parent.children(recursive=True)]

    @property
    def keeper(self) -> psutil.Process:
        return next(filter(_is_keeper, self.processes()))

    @property
    def has_keeper(self) -> bool:
        return any(map(_is_keeper, self.processes()))

    @property
    def children(self) -> list[psutil.Process]:
        return [process for process in self.processes()[1:] if process != self.keeper]

    def terminate(self) -> None:
        """What an orchestrator sends first, to the parent only."""
        self.process.send_signal(signal.SIGTERM)

    def wait(self, timeout: float = 10.0) -> int:
        """Its exit code; a worker that does not exit in time is ended, and says what it was doing."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGABRT)
            self.process.wait(timeout)
            self._reader.join(1)
            raise AssertionError(f"no exit within {timeout} s: {''.join(self.lines)}") from None

    def die(self) -> None:
        """What a machine does that loses its power."""
        for process in self.processes():
            process.kill()
        self.close()

    def close(self) -> None:
        """Leave nothing behind."""
        if self.process.poll() is None:
            for process in self.processes():
                process.kill()
        self.process.wait()
        self._reader.join()
        assert self.process.stderr is not None
        self.process.stderr.close()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            if line.rstrip().endswith(" ready."):
                self._ready.set()
        self._ready.set()


@dataclass
class Fleet:
    """A Redis database, the workers on it, and the API's way to them."""

    redis_url: str
    environ: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.client = connect(self.redis_url)
        self.settings = FleetSettings.from_env({"REDIS_URL": self.redis_url, **self.environ})
        self.producer = create_producer(self.redis_url)
        self.control = self.replica(publish=publisher(self.producer, join_ttl=self.settings.join_ttl))

    def replica(self, *, publish: Callable[[Session], None]) -> SessionControl:
        return SessionControl(settings=self.settings, client=self.client, publish=publish)

    @contextmanager
    def worker(self, name: str, *, slots: int = 2, **environ: str) -> Iterator[Worker]:
        worker = Worker(name, self.redis_url, slots=slots, **self.environ, **environ)
        try:
            yield worker.wait_until_ready()
        finally:
            worker.close()

    def open_joins(self) -> None:
        run(self.client, admission.open_joins(self.settings.tenant))
        run(self.client, workers.open_joins("tester"))

    def join(self, room: str, **metadata: Any) -> Session:
        return self.control.join(room=room, user_id="caller", metadata=metadata).session

    def live_on(self, worker: Worker, room: str) -> Session:
        """A live session of a chosen worker, through the worker's own queue."""
        control = self.replica(publish=lambda session: self.send(session, queue=f"worker.{worker.name}"))
        session = self.live(control.join(room=room, user_id="caller", metadata={}).session)
        assert session.owner.startswith(f"{worker.name}@")
        return session

    def send(self, session: Session, *, queue: str) -> None:
        self.producer.send_task(
            TASK_NAME, args=(session.session_id, session.epoch), task_id=session.task_id, queue=queue
        )

    def get(self, session: Session) -> Session:
        found = run(self.client, records.read(session.session_id))
        assert found is not None
        return found

    def live(self, session: Session, *, within: float = 5.0) -> Session:
        return self.until(session, lambda now: now.state is State.LIVE, within=within)

    def over(self, session: Session, *, within: float = 5.0) -> Session:
        return self.until(session, lambda now: now.is_over, within=within)

    def until(self, session: Session, holds: Callable[[Session], bool], *, within: float) -> Session:
        wait_until(lambda: holds(self.get(session)), within=within, what=lambda: self.get(session))
        return self.get(session)

    def free(self, session: Session) -> bool:
        """Whether the session's room could be joined."""
        tenant = f"muster:{{t:{session.tenant}}}"
        return (
            self.client.get(f"{tenant}:room:{session.room}") != session.session_id
            and self.client.zscore(f"{tenant}:live", session.session_id) is None
        )

    def wait_until_free(self, session: Session, *, within: float) -> None:
        wait_until(lambda: self.free(session), within=within)

    def leave(self, *sessions: Session) -> None:
        for session in sessions:
            self.control.leave(session.session_id)
        for session in sessions:
            self.over(session)

    def close(self) -> None:
        self.producer.close()
        self.client.close()


def _is_keeper(process: psutil.Process) -> bool:
    try:
        return "worker.fleet.keeper" in process.cmdline()
    except psutil.NoSuchProcess:
        # Also a dead one that its parent has not asked for yet.
        return False


@contextmanager
def empty_fleet(redis_database: str, *, number: int) -> Iterator[Fleet]:
    """A database of its own, so that workers keep their leases while other tests flush."""
    redis_url = f"{redis_database.rpartition('/')[0]}/{number}"
    with redis.Redis.from_url(redis_url) as client:
        client.flushdb()
    fleet = Fleet(redis_url)
    yield fleet
    fleet.close()


def wait_until(holds: Callable[[], Any], *, within: float, what: Callable[[], object] = lambda: "") -> float:
    """Seconds until it held; other processes' doings have no event here."""
    started = time.monotonic()
    while not holds():
        assert time.monotonic() - started < within, f"not within {within} s: {what()}"
        time.sleep(0.02)
    return time.monotonic() - started


def keys_without_expiry(client: "redis.Redis") -> set[str]:
    return {key for key in client.scan_iter("muster:*") if client.ttl(key) == -1}
