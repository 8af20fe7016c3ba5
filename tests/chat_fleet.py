"""A real chat worker, a real agent service and a stand-in model: what tests of text turns talk to."""

import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import redis

from muster.client import ChatEvent, MusterClient
from tests.fleet_sessions import new_session
from tests.fleet_workers import Worker
from tests.http_server import HttpServer
from tests.responder_server import ResponderServer
from worker.fleet import record_moves, records
from worker.fleet.redis_operations import connect, run
from worker.fleet.session import Reason, Session, State


class ChatWorker(Worker):
    """A real worker for text turns; use it as a context manager."""

    def __init__(self, environ: Mapping[str, str], *, processes: int = 2) -> None:
        settings = {**environ, "MUSTER_CHAT_PROCESSES": str(processes)}
        super().__init__("chat", settings.pop("REDIS_URL"), slots=1, app="worker.chat.app", **settings)

    def __enter__(self) -> "ChatWorker":
        self.wait_until_ready()
        assert self.process.poll() is None, "".join(self.lines)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

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

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        self.terminate()
        return self.wait(20)


@dataclass
class ChatFleet:
    """Everything but the worker, which tests start and kill themselves."""

    redis_url: str
    environ: dict[str, str]
    client: MusterClient
    service: HttpServer
    model: ResponderServer
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

    def ended_call(self, *turns: Mapping[str, Any], **fields: Any) -> Session:
        """A session that was on the phone, by the operations that calls use."""
        session = self.call(*turns, **fields)
        return run(self.redis, record_moves.end(session, Reason.CALLER_LEFT))

    def call(self, *turns: Mapping[str, Any], state: State = State.LIVE, **fields: Any) -> Session:
        """A session that is on the phone with nobody at its other end."""
        queued = replace(new_session(), metadata={"name": "Sam"}, **fields)
        run(self.redis, record_moves.create(queued, lifetime=600))
        session = run(self.redis, record_moves.claim(queued.session_id, epoch=1, owner="voice@test#1", lifetime=600))
        for turn in turns:
            run(self.redis, records.append_turn(session, turn, lifetime=600))
        if state is State.CONNECTING:
            return session
        move = record_moves.move(
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
        model = stack.enter_context(ResponderServer().running())
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
