"""A real chat worker, a real agent service and a stand-in model: what tests of text turns talk to."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import redis

from local.paths import ROOT
from muster.client import ChatEvent, MusterClient
from tests.fleet_sessions import new_session
from tests.http_server import HttpServer
from tests.model_server import ModelServer
from worker.fleet import records
from worker.fleet.redis_operations import connect, run
from worker.fleet.session import Reason, Session, State

#: Seconds within which a worker has loaded the conversation and waits for texts.
_READY_WITHIN = 40.0


class ChatWorker:
    """`celery -A worker.chat.app worker` in processes of its own; use it as a context manager."""

    def __init__(self, environ: Mapping[str, str], *, processes: int = 2) -> None:
        self.lines: list[str] = []
        self._ready = threading.Event()
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "celery", "-A", "worker.chat.app", "worker"),
                *("--without-mingle", "--without-gossip", "-n", "chat@test", "-l", "INFO"),
            ],
            cwd=ROOT,
            env={**os.environ, **environ, "MUSTER_CHAT_PROCESSES": str(processes)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def __enter__(self) -> "ChatWorker":
        assert self._ready.wait(_READY_WITHIN) and self.process.poll() is None, "".join(self.lines)
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self.process.poll() is None:
            self.die()
        self._reader.join()
        assert self.process.stderr is not None
        self.process.stderr.close()

    @property
    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def send(self, number: signal.Signals) -> None:
        """To the parent and to every process that answers."""
        for process in (psutil.Process(self.process.pid), *self.children):
            process.send_signal(number)

    def kill_children(self) -> None:
        """Every process that answers; the parent starts others."""
        for process in self.children:
            process.kill()

    def die(self) -> None:
        """All of its processes, at once."""
        self.send(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        self.process.terminate()
        return self.process.wait(20)

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            if line.rstrip().endswith(" ready."):
                self._ready.set()
        self._ready.set()


@dataclass
class ChatFleet:
    """Everything but the worker, which tests start and kill themselves."""

    redis_url: str
    environ: dict[str, str]
    client: MusterClient
    service: HttpServer
    model: ModelServer
    redis: "redis.Redis"

    def worker(self, **options: Any) -> ChatWorker:
        return ChatWorker(self.environ, **options)

    def say(self, text: str, session_id: str | None = None, **options: Any) -> list[ChatEvent]:
        """The whole answer's events."""
        return list(self.client.chat(text, user_id="caller", session_id=session_id, **options))

    def read(self, session_id: str) -> Session:
        session = run(self.redis, records.read(session_id))
        assert session is not None
        return session

    def words(self, session_id: str) -> list[tuple[str, str]]:
        """Role and words of what was said, as the API tells them."""
        turns = self.client.turns(session_id).turns
        return [(turn.role, turn.text or "") for turn in turns if turn.role != "event"]

    def ended_call(self, *turns: Mapping[str, Any]) -> Session:
        """A session that was on the phone, by the operations that calls use."""
        session = self.call(*turns)
        return run(self.redis, records.end(session, Reason.CALLER_LEFT))

    def call(self, *turns: Mapping[str, Any], state: State = State.LIVE) -> Session:
        """A session that is on the phone with nobody at its other end."""
        queued = replace(new_session(), metadata={"name": "Sam"})
        run(self.redis, records.create(queued, lifetime=600))
        session = run(self.redis, records.claim(queued.session_id, epoch=1, owner="voice@test#1", lifetime=600))
        for turn in turns:
            run(self.redis, records.append_turn(session, turn, lifetime=600))
        if state is State.CONNECTING:
            return session
        move = records.move(
            session.session_id, state, epoch=1, owner=session.owner, lifetime=600, stamp="first_audio_at"
        )
        return run(self.redis, move)


@contextmanager
def open_chat_fleet(redis_database: str, *, number: int, directory: Path, **environ: str) -> Iterator[ChatFleet]:
    """A database of its own, so that workers keep their queues while other tests flush."""
    redis_url = f"{redis_database.rpartition('/')[0]}/{number}"
    with ExitStack() as stack:
        client = connect(redis_url)
        stack.callback(client.close)
        client.flushdb()
        model = stack.enter_context(ModelServer().running())
        settings = {"REDIS_URL": redis_url, "OPENAI_API_KEY": "key", "OPENAI_BASE_URL": model.url, **environ}
        service = stack.enter_context(
            HttpServer(log=directory / "service.log", environ=settings, application="api.agent_service:create_app()")
        )
        muster = stack.enter_context(MusterClient(service.url))
        yield ChatFleet(redis_url, settings, muster, service, model, client)


def text_of(events: Sequence[ChatEvent]) -> str:
    """What was read."""
    return "".join(event.text or "" for event in events if event.kind == "text")


def kinds(events: Sequence[ChatEvent]) -> list[str]:
    """The events by name, pieces of text as one."""
    names: list[str] = []
    for event in events:
        if not names or event.kind != names[-1]:
            names.append(event.kind)
    return names
