"""A call's process is killed somewhere between the end of a turn and the end of its reply; a text goes on with it."""

import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from local.paths import ROOT
from tests.chat_fleet import ChatFleet, ChatWorker, open_chat_fleet
from tests.fleet_sessions import new_session
from worker.fleet import record_moves
from worker.fleet.redis_operations import run
from worker.fleet.session import Reason, Session

HOURS = "When do you open?"
PRICE = "How much is the premium plan?"
FAMILY = "And the family plan?"
#: Fixed, so that a point that fails can be looked at again.
SEED = 5
POINTS = 20


class DyingCall:
    """A process of `tests.dying_call`, with the session that it serves."""

    def __init__(self, fleet: ChatFleet) -> None:
        self._fleet = fleet
        self.session = replace(new_session(), metadata={"name": "Sam"})
        run(fleet.redis, record_moves.create(self.session, lifetime=600))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.dying_call", self.session.session_id],
            cwd=ROOT,
            env={**os.environ, **fleet.environ},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def hear(self, text: str) -> None:
        """A caller's turn; returns when its words are stored."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{text}\n")
        self.process.stdin.flush()
        self._read("completed")

    def wait_for_answer(self) -> None:
        self._read("answered")

    def kill(self) -> Session:
        """Kill it, and end the session in its place, as its worker's keeper does."""
        self.process.kill()
        self.close()
        return run(self._fleet.redis, record_moves.end(self._fleet.read(self.session.session_id), Reason.WORKER_LOST))

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()

    def _read(self, expected: str) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline().strip() == expected


@contextmanager
def dying_call(fleet: ChatFleet) -> Iterator[DyingCall]:
    """A call that has answered its first turn."""
    call = DyingCall(fleet)
    try:
        call.hear(HOURS)
        call.wait_for_answer()
        yield call
    finally:
        if call.process.returncode is None:
            call.close()


@pytest.fixture(scope="module")
def fleet(redis_database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChatFleet]:
    with open_chat_fleet(redis_database, number=11, directory=tmp_path_factory.mktemp("kill")) as fleet:
        yield fleet


@pytest.fixture(scope="module", autouse=True)
def worker(fleet: ChatFleet) -> Iterator[ChatWorker]:
    with fleet.worker(processes=1) as worker:
        yield worker


@pytest.fixture(scope="module")
def reply_takes(fleet: ChatFleet) -> float:
    """Seconds from the stored words to the end of the reply, when nobody is killed."""
    with dying_call(fleet) as call:
        call.hear(PRICE)
        completed_at = time.monotonic()
        call.wait_for_answer()
        return time.monotonic() - completed_at


def points(count: int) -> list[float]:
    """Where to kill, as a part of the reply's time."""
    chosen = random.Random(SEED)
    return [round(chosen.random(), 3) for _ in range(count)]


def kill_and_go_on(fleet: ChatFleet, after: float) -> None:
    """Kill a call `after` so many seconds of its second reply and go on with it in text."""
    with dying_call(fleet) as call:
        call.hear(PRICE)
        time.sleep(after)
        ended = call.kill()
    before = fleet.client.turns(ended.session_id).turns
    specialist = [turn.event.target for turn in before if turn.event and turn.event.target][-1:] or ["front_desk"]

    events = fleet.say(FAMILY, ended.session_id)

    assert events[1].specialist == specialist[0]
    assert (events[-1].kind, events[-1].specialist) == ("done", "sales")
    turns = fleet.client.turns(ended.session_id).turns
    assert [turn.text for turn in turns if turn.role == "user"] == [HOURS, PRICE, FAMILY]
    assert max(Counter(turn.item_id for turn in turns).values()) == 1
    check_asked(fleet.model.requests[-1])
    assert fleet.read(ended.session_id).reason is Reason.WORKER_LOST


def check_asked(messages: list[dict[str, Any]]) -> None:
    """Each of the caller's words once and in order, and a result for every tool call, which real models insist on."""
    assert [message["content"] for message in messages if message["role"] == "user"] == [HOURS, PRICE, FAMILY]
    asked = [call["id"] for message in messages for call in message.get("tool_calls") or ()]
    answered = [message["tool_call_id"] for message in messages if message["role"] == "tool"]
    assert asked == answered
    assert len(set(asked)) == len(asked)


@pytest.mark.parametrize("part", points(2))
def test_a_call_killed_in_its_reply_goes_on_in_text(fleet: ChatFleet, reply_takes: float, part: float) -> None:
    kill_and_go_on(fleet, part * reply_takes)


@pytest.mark.slow
@pytest.mark.parametrize("part", points(POINTS))
def test_a_call_killed_at_any_point_of_its_reply_goes_on_in_text(
    fleet: ChatFleet, reply_takes: float, part: float
) -> None:
    kill_and_go_on(fleet, part * reply_takes)
