"""A worker whose sessions have no audio: everything else of it is real."""

import importlib
import logging
import os
import threading
import time
from collections.abc import Callable

import redis

from worker.fleet import admission, record_moves, records
from worker.fleet.app import create_worker
from worker.fleet.child import Child
from worker.fleet.errors import MoveRefused, SessionNotFound, StateUnavailable
from worker.fleet.redis_operations import connect, run
from worker.fleet.session import Reason, Session, State
from worker.fleet.settings import FleetSettings
from worker.fleet.task_states import DRAINING, LIVE
from worker.fleet.tasks import RunSession

logger = logging.getLogger(__name__)

#: Names of the Redis keys in which tests see what a session has been told.
TOLD_TO_DRAIN = "test:told_to_drain"
LIVES = "test:lives"
PIDS = "test:pids:{}"
#: The sessions that a second process has found owned by another, and what such processes are told.
DOUBLES = "test:doubles"
TOLD_DOUBLES = "test:told_doubles"

#: A reason to fail which a session of the tests can have.
BROKEN = Reason.PROVIDER_FAILED


class SilentSession(RunSession):
    """Claims, stamps, waits for the command to leave and records its end, as a call does.

    The metadata's `fault` makes it "fail" (record `BROKEN`), "raise" or "panic" (die at once) when it is live; its
    first owner alone "stumbles" (dies), "hangs" or is "unheard" (misses Redis' answer to its claim). Whoever finds it
    "doubled", with another owner, waits for a word in `TOLD_DOUBLES` and then does as it says: "die", "raise" or
    "give up".
    """

    def preload(self) -> None:
        if imported := os.environ.get("TEST_PRELOAD_IMPORTS"):
            importlib.import_module(imported)
        if os.environ.get("TEST_PRELOAD_STARTS_A_THREAD"):
            threading.Thread(target=threading.Event().wait, daemon=True).start()

    def render_ahead(self) -> None:
        """There is nothing to hear."""

    def serve(self, session_id: str, epoch: int, *, child: Child, announce: Callable[[str], None]) -> Reason | None:
        settings = FleetSettings.from_env()
        with connect(settings.redis_url) as client:
            child.slot.hold(session_id, epoch)
            try:
                session = run(
                    client,
                    record_moves.claim(session_id, epoch=epoch, owner=child.worker_id, lifetime=settings.session_hold),
                )
            except (MoveRefused, SessionNotFound):
                self._be_double(client, session_id, child)
                child.slot.clear()
                return None
            if session.metadata.get("fault") == "unheard" and session.epoch == 1:
                raise StateUnavailable()
            hold = settings.session_hold
            assert run(client, admission.confirm(session.tenant, session.room, session_id, hold=hold))
            self._go_live(client, session, lifetime=hold)
            announce(LIVE)
            reason = Reason.LEFT
            if session.metadata.get("fault") == "fail":
                reason = BROKEN
            else:
                self._misbehave(session)
                self._wait_for_leave(settings.redis_url, session, child, announce)
            run(client, record_moves.end(session, reason))
            run(client, admission.release(session.tenant, session.room, session_id))
            child.slot.clear()
            return reason

    def _go_live(self, client: "redis.Redis", session: Session, *, lifetime: float) -> None:
        for state in (State.WAITING, State.LIVE):
            run(
                client,
                record_moves.move(
                    session.session_id,
                    state,
                    epoch=session.epoch,
                    owner=session.owner,
                    lifetime=lifetime,
                    stamp="connected_at",
                ),
            )
        _tell(client, LIVES, session.session_id)
        _tell(client, PIDS.format(session.session_id), str(os.getpid()))

    def _be_double(self, client: "redis.Redis", session_id: str, child: Child) -> None:
        session = run(client, records.read(session_id))
        if session is None or session.metadata.get("fault") != "doubled":
            return
        _tell(client, DOUBLES, session_id)
        while (told := client.lpop(TOLD_DOUBLES)) is None:
            child.slot.stamp()
            time.sleep(0.05)
        if told == "die":
            os.abort()
        if told == "raise":
            raise RuntimeError("a double that breaks")

    def _misbehave(self, session: Session) -> None:
        fault = session.metadata.get("fault")
        if fault == "hang" and session.epoch == 1:
            time.sleep(60)
        if fault == "raise":
            raise RuntimeError("a session that breaks without recording its end")
        if fault == "panic" or (fault == "stumble" and session.epoch == 1):
            os.abort()

    def _wait_for_leave(self, redis_url: str, session: Session, child: Child, announce: Callable[[str], None]) -> None:
        told = threading.Event()
        with child.watch(on_drain=told.set):
            while True:
                child.slot.stamp()
                try:
                    with connect(redis_url) as client:
                        if told.is_set():
                            announce(DRAINING)
                            # As a call does that is heard for the first time on a draining worker.
                            announce(LIVE)
                            _tell(client, TOLD_TO_DRAIN, session.session_id)
                            told.clear()
                        if client.xread({records.commands_key(session.session_id): "0"}, block=200):
                            return
                except (redis.RedisError, StateUnavailable):
                    time.sleep(0.2)


def _tell(client: "redis.Redis", key: str, word: str) -> None:
    try:
        client.rpush(key, word)
    except redis.RedisError as error:
        raise StateUnavailable() from error


app = create_worker(SilentSession)
