"""Chat workers that stop, die, hang or are not there: a session goes on, and nothing is said twice."""

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chat_fleet import ChatFleet, ChatWorker, kinds, open_chat_fleet, text_of
from tests.fleet_workers import wait_until
from tests.redis_server import RedisServer
from tests.test_chat import HOURS, PRICE, Writing, session_of
from worker.fleet.chats import LEASE
from worker.fleet.publishing import CHAT_QUEUE

#: Seconds; on a busy machine a worker needs some of them to take a text.
PATIENCE = 5.0


@pytest.fixture(scope="module")
def fleet(redis_database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChatFleet]:
    directory = tmp_path_factory.mktemp("chat")
    # A stopped process must not take its own standstill for the model's.
    environ = {"MUSTER_CHAT_PATIENCE": str(PATIENCE), "MUSTER_PROVIDER_TIMEOUT": "60"}
    with open_chat_fleet(redis_database, number=10, directory=directory, **environ) as fleet:
        yield fleet


@pytest.fixture(autouse=True)
def _open_gate(fleet: ChatFleet) -> Iterator[None]:
    yield
    fleet.model.gate.set()


@pytest.fixture(scope="module")
def worker(fleet: ChatFleet) -> Iterator[ChatWorker]:
    """A worker whose parent tests leave alive."""
    with fleet.worker() as worker:
        yield worker


@pytest.mark.slow
def test_a_text_that_nobody_takes_is_given_up_and_never_answered(fleet: ChatFleet) -> None:
    asked_at = time.monotonic()
    events = fleet.say("Xylophone?")

    assert [(event.kind, event.code) for event in events] == [("session", None), ("error", "nobody_answers")]
    assert PATIENCE <= time.monotonic() - asked_at < PATIENCE + 3
    session_id = session_of(events)
    (message,) = fleet.redis.lrange(CHAT_QUEUE, 0, -1)
    assert json.loads(message)["headers"]["argsrepr"] == repr((session_id, events[0].turn_id))
    with fleet.worker() as late:
        wait_until(lambda: fleet.redis.llen(CHAT_QUEUE) == 0, within=5)
        assert fleet.say(HOURS, session_id)[-1].kind == "done"
        assert late.stop() == 0
    assert fleet.words(session_id)[0] == ("user", HOURS)


@pytest.mark.slow
def test_the_conversation_outlives_a_worker_that_finishes_its_answer_first(fleet: ChatFleet) -> None:
    with fleet.worker() as first:
        writing = Writing(fleet, PRICE)
        writing.wait_for("text")
        assert first.stop() == 0
    events = writing.finish()
    assert events[-1].kind == "done"

    with fleet.worker():
        events = fleet.say("And the family plan?", session_of(events))

    assert events[1].specialist == "sales"
    said = [message["content"] for message in fleet.model.requests[-1] if message["role"] == "user"]
    assert said == [PRICE, "And the family plan?"]


def test_a_process_killed_in_mid_answer_costs_the_answer_and_nothing_else(fleet: ChatFleet, worker: ChatWorker) -> None:
    writing = Writing(fleet, PRICE)
    writing.wait_for("transfer")
    worker.kill_children()
    killed_at = time.monotonic()
    events = writing.finish()
    assert (events[-1].kind, events[-1].code) == ("error", "turn_lost")
    assert time.monotonic() - killed_at < LEASE + 3
    session_id = session_of(events)

    answered = fleet.say("And the family plan?", session_id)

    assert (answered[1].specialist, answered[-1].kind) == ("sales", "done")
    assert fleet.words(session_id) == [
        ("user", PRICE),
        ("user", "And the family plan?"),
        ("assistant", text_of(answered)),
    ]


def test_a_text_whose_process_was_killed_is_answered_when_it_is_sent_again(
    fleet: ChatFleet, worker: ChatWorker
) -> None:
    fleet.model.gate.clear()
    stream = fleet.client.chat(PRICE, user_id="caller", idempotency_key="killed")
    session_id = next(stream).session_id
    assert session_id is not None
    assert next(stream).kind == "begun"
    wait_until(lambda: fleet.words(session_id), within=5)
    worker.kill_children()
    fleet.model.gate.set()
    lost = list(stream)
    assert (lost[-1].kind, lost[-1].code) == ("error", "turn_lost")

    events = fleet.say(PRICE, idempotency_key="killed")

    assert session_of(events) == session_id
    assert kinds(events)[-1] == "done"
    assert fleet.words(session_id) == [("user", PRICE), ("assistant", text_of(events))]


@pytest.mark.slow
def test_a_worker_that_hung_is_refused_when_it_wakes(fleet: ChatFleet, worker: ChatWorker) -> None:
    fleet.model.gate.clear()
    writing = Writing(fleet, PRICE)
    writing.wait_for("begun")
    session_id = session_of(writing.events)
    wait_until(lambda: fleet.words(session_id), within=5)
    worker.send(signal.SIGSTOP)
    fleet.model.gate.set()
    assert writing.finish()[-1].code == "turn_lost"

    with fleet.worker():
        events = fleet.say("And the family plan?", session_id)
        worker.send(signal.SIGCONT)
        wait_until(lambda: any("'lost'" in line for line in worker.lines), within=10, what=lambda: worker.lines[-20:])

    assert events[-1].kind == "done"
    words = [("user", PRICE), ("user", "And the family plan?"), ("assistant", text_of(events))]
    assert fleet.words(session_id) == words
    assert fleet.say("Thank you.", session_id)[-1].kind == "done"


def test_a_worker_outlives_an_outage_of_redis_and_answers_again(own_redis: RedisServer, tmp_path: Path) -> None:
    with open_chat_fleet(own_redis.url, number=0, directory=tmp_path) as fleet, fleet.worker() as worker:
        assert fleet.say(HOURS)[-1].kind == "done"
        own_redis.stop()
        wait_until(lambda: any("the broker cannot be reached" in line for line in worker.lines), within=4)
        own_redis.start()
        # A worker that finds its way back tries once a second.
        time.sleep(1.5)
        assert fleet.say(HOURS)[-1].kind == "done"
        assert worker.process.poll() is None
        assert worker.stop() == 0
