"""What the measurements of restarts, drains and storms of joins conclude from what they have seen."""

import itertools
import os
import random
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from typing import cast

import numpy as np
import psutil
import pytest
import redis

from bench import drains, fleet_processes, join_storm, rolling_restart
from bench.drains import Drained, Joined, Moment
from bench.fleet_processes import FleetProcesses, Killed
from bench.hand_overs import HandOver, hand_overs
from bench.join_storm import Answer, Beside, JoinStorm, Request, Sightings
from bench.marked_call import Said, WordCount
from bench.rolling_restart import CallOutcome, Change, Nearness, Restart, changes, replies
from local.audio import FRAME_SAMPLES, Timeline
from local.caller import HeardTrack
from local.hearing import Hearing
from local.marks import Mark
from local.stack import Stack
from tests.fleet_sessions import new_session
from tests.fleet_workers import wait_until
from worker.fleet import records
from worker.fleet.handing_over import Command
from worker.fleet.redis_operations import connect
from worker.fleet.session import Reason, Session, State
from worker.fleet.table import Table
from worker.fleet.times import OUTLIVED

CALL = CallOutcome(
    dropped=None,
    recovered=False,
    words=WordCount(10, (), (), ()),
    hand_overs=[HandOver(2, ready_at=100.0, passed_at=101.5)],
    overlap=0.01,
    overlaps=[0.01],
    changes=[Change(is_handed_over=True, silence=1.5)],
    replies=[],
    unanswered=[],
    answered_twice=[],
    worst_delay=0.01,
)
DRAINED = Drained(
    moment=Moment.CALLER,
    worker="worker-1",
    asked_at=100.0,
    idle_at=103.0,
    passed_at=103.1,
    exited_at=105.0,
    code=0,
    answered="Number 4, u3w0.",
    expected="Number 4,",
    joined_before=Joined(0.5, "worker-1"),
    joined_meanwhile=Joined(0.6, "worker-2"),
)


@pytest.fixture
def client(redis_url: str) -> Iterator["redis.Redis"]:
    with connect(redis_url) as client:
        yield client


def failures(notes: object) -> list[str]:
    assert isinstance(notes, (list, tuple))
    return [note for note in notes if "FAIL" in note]


def restart_notes(*calls: CallOutcome, code: int = 0) -> list[str]:
    outcome = rolling_restart.Outcome(list(calls), [Restart("worker-1", 3.0, code)])
    return failures(rolling_restart._report(outcome, rounds=1, callers=3, seed=0).notes)


def test_a_hand_over_is_read_from_the_commands_and_one_that_came_to_nothing_is_none(client: "redis.Redis") -> None:
    key = records.commands_key("restarted")
    client.xadd(key, {"kind": Command.READY, "epoch": 2}, id="100000-0")
    client.xadd(key, {"kind": Command.READY, "epoch": 4}, id="101000-0")
    client.xadd(key, {"kind": "leave", "id": "1"}, id="101200-0")
    client.xadd(key, {"kind": Command.PASSED, "epoch": 4, "open": 0}, id="102500-0")
    assert hand_overs(client, "restarted") == [HandOver(4, ready_at=101.0, passed_at=102.5)]


def test_a_pass_is_in_order_when_the_successor_heard_before() -> None:
    assert (HandOver(2, 100.0, 101.5).is_in_order, HandOver(2, 100.0, 101.5).both_heard) == (True, 1.5)
    assert (HandOver(2, 102.0, 101.5).is_in_order, HandOver(2, 102.0, 101.5).both_heard) == (False, 0.0)


def heard(identity: str, *spans: tuple[float, float]) -> HeardTrack:
    """A track that was audible in these spans."""
    hearing = Hearing()
    for start, end in spans:
        for at in np.arange(start, end + 0.005, 0.01):
            hearing.feed(np.full(FRAME_SAMPLES, 9000, np.int16), at=float(at))
    return HeardTrack(identity, spans[0][0] if spans else 0.0, hearing, Timeline(started_at=0.0))


def test_the_silence_between_two_agents_is_without_what_the_caller_said() -> None:
    tracks = [
        heard("agent-s-1", (10.0, 11.0), (14.0, 15.0)),
        heard("somebody", (15.0, 30.0)),
        heard("agent-s-2"),
        heard("agent-s-4", (20.0, 21.0)),
        heard("agent-s-4", (24.0, 25.0)),
        heard("agent-s-5", (24.5, 26.0)),
    ]
    said = [Said(0, (), 14.5, 16.0), Said(1, (), 17.0, 18.0), Said(2, (), 19.5, 22.0)]
    found = list(changes(tracks, said, {2, 5}))
    assert [change.is_handed_over for change in found] == [False, True]
    assert [round(change.silence, 2) for change in found] == [2.5, 0.0]


def test_an_answer_knows_whether_the_session_was_passed_on_in_its_turn_or_right_before() -> None:
    said = [Said(number, (), 10.0 * number, 10.0 * number + 1) for number in range(1, 6)]
    starts = [12.0, 22.5, 33.0, 52.0]
    found = list(replies(said, starts, [18.0, 31.5, 41.0], begun_at=5.0))
    assert found == [
        rolling_restart.Reply(1.0, Nearness.NONE),
        rolling_restart.Reply(1.5, Nearness.BEFORE),
        rolling_restart.Reply(2.0, Nearness.INSIDE),
        # The fourth got no answer; what happened since is before the fifth.
        rolling_restart.Reply(1.0, Nearness.BEFORE),
    ]


def test_a_restart_fails_by_each_thing_that_a_caller_could_notice() -> None:
    assert restart_notes(CALL) == []
    assert len(restart_notes(CALL, replace(CALL, dropped="failed (worker_lost)"))) == 1
    assert len(restart_notes(CALL, code=-9)) == 1
    # Any two agents, also those with another one between them.
    assert len(restart_notes(replace(CALL, overlap=0.04))) == 1
    assert len(restart_notes(replace(CALL, hand_overs=[HandOver(2, 102.0, 101.5)]))) == 1
    assert len(restart_notes(replace(CALL, hand_overs=[]))) == 1
    assert len(restart_notes(replace(CALL, recovered=True))) == 1
    assert len(restart_notes(replace(CALL, unanswered=[2]))) == 1
    assert len(restart_notes(replace(CALL, answered_twice=[1]))) == 1


def test_with_more_callers_a_restart_is_judged_by_dropped_calls_and_tells_the_rest() -> None:
    recovered = replace(CALL, recovered=True, unanswered=[2], changes=[Change(is_handed_over=False, silence=3.0)])
    outcome = rolling_restart.Outcome([recovered], [Restart("worker-1", 3.0, 0)])
    report = rolling_restart._report(outcome, rounds=1, callers=6, seed=0)
    assert failures(report.notes) == []
    assert "calls that were recovered instead of handed over: 1 of 1" in report.notes
    assert report.figures["silence around a recovery"].values == [3.0]
    outcome.calls.append(replace(CALL, dropped="failed (worker_lost)"))
    assert len(failures(rolling_restart._report(outcome, rounds=1, callers=6, seed=0).notes)) == 1


def test_a_drain_counts_from_the_first_quiet_moment_and_is_done_when_it_was_gone_before() -> None:
    assert DRAINED.seconds == 2.0
    assert replace(DRAINED, moment=Moment.SILENCE, idle_at=100.0).seconds == 5.0
    assert replace(DRAINED, exited_at=102.0).seconds == 0.0


def test_a_drain_fails_by_its_code_its_time_its_history_and_a_join_that_it_served_itself() -> None:
    def notes(*found: Drained) -> list[str]:
        return failures(drains._report(drains.Outcome(list(found)), seed=0).notes)

    assert notes(DRAINED) == []
    assert len(notes(DRAINED, DRAINED, replace(DRAINED, exited_at=111.0))) == 1
    assert len(notes(replace(DRAINED, code=-9))) == 1
    assert len(notes(replace(DRAINED, answered="Number 1, u3w0."))) == 1
    assert len(notes(replace(DRAINED, joined_meanwhile=Joined(0.6, "worker-1")))) == 1
    assert len(notes(replace(DRAINED, joined_meanwhile=Joined(2.0, "worker-2")))) == 1


def test_a_drain_fails_by_words_that_are_lost_doubled_or_were_never_said() -> None:
    def notes(words: WordCount) -> list[str]:
        return list(drains._report(drains.Outcome([DRAINED], words=[words]), seed=0).notes)

    assert failures(notes(WordCount(10, (), (), ()))) == []
    mark = (Mark(1, 0),)
    for words in (WordCount(10, mark, (), ()), WordCount(10, (), mark, ()), WordCount(10, (), (), mark)):
        assert len(failures(notes(words))) == 1
    assert "The slowest join took 0.60 s during a drain and 0.50 s without one." in notes(WordCount(10, (), (), ()))


def storm_notes(*sessions: Session, sightings: Sightings | None = None, answers: tuple[Answer, ...] = ()) -> list[str]:
    by_id = {each.session_id: replace(each, room="a") for each in sessions}
    outcome = join_storm.Outcome(list(answers), sessions=by_id, was_live=set(by_id))
    return failures(join_storm._report(outcome, sightings or Sightings(looks=1), rooms=1, seed=0).notes)


def test_a_storm_fails_by_a_session_without_end_and_by_a_key_that_made_two() -> None:
    over = replace(new_session(), state=State.ENDED, reason=Reason.LEFT)
    other = replace(over, session_id=f"{over.session_id}-other")
    answers = [Answer(Request("a", "key"), 0.1, 202, "", each.session_id) for each in (over, other)]
    found = replace(answers[1], status=200)
    assert storm_notes(over, other, answers=(answers[0], found)) == []
    assert len(storm_notes(over, other, answers=tuple(answers))) == 1
    assert len(storm_notes(over, replace(other, state=State.RECOVERING))) == 1
    assert len(storm_notes(over, answers=(answers[1],))) == 1


def test_a_ghost_of_a_killed_process_is_no_second_agent() -> None:
    storm = JoinStorm.__new__(JoinStorm)
    storm.outcome, storm.sightings = join_storm.Outcome(), Sightings(looks=1)
    storm.outcome.kills.append(Killed("child", {"agent-a-1": 100.0}))
    storm._look_at_agents("room", ["agent-a-1", "agent-a-2"], being_killed={})
    assert storm.sightings.doubled_agents == []
    assert list(storm.sightings.ghosts) == [("agent-a-1", "agent-a-2")]
    storm._look_at_agents("room", ["agent-a-1"], being_killed={})
    storm._look_at_agents("room", ["agent-a-1", "agent-c-1"], being_killed={"agent-c-1": 101.0})
    assert list(storm.sightings.ghosts) == [("agent-a-1", "agent-a-2")]
    assert storm_notes(sightings=storm.sightings) == []
    storm._look_at_agents("room", ["agent-a-2", "agent-b-1"], being_killed={})
    assert len(storm_notes(sightings=storm.sightings)) == 1
    assert len(storm_notes(sightings=Sightings())) == 1


def test_a_ghost_may_be_beside_its_successor_for_a_moment_only() -> None:
    def notes(seconds: float) -> list[str]:
        beside = Beside(killed_at=100.0, since=110.0, until=110.0 + seconds)
        return storm_notes(sightings=Sightings(looks=1, ghosts={("agent-a-1", "agent-a-2"): beside}))

    assert notes(OUTLIVED) == []
    assert len(notes(OUTLIVED + 0.3)) == 1


def test_a_storm_fails_by_children_that_outlive_their_parent() -> None:
    def notes(outlived: int) -> list[str]:
        outcome = join_storm.Outcome(kills=[Killed("parent", {}, outlived)])
        return failures(join_storm._report(outcome, Sightings(looks=1), rooms=1, seed=0).notes)

    assert notes(0) == []
    assert len(notes(1)) == 1


def test_a_process_that_nobody_has_asked_for_yet_does_not_live() -> None:
    child = subprocess.Popen(["true"])
    wait_until(lambda: not fleet_processes._lives(child.pid), within=5)
    assert psutil.pid_exists(child.pid)
    child.wait()
    assert not fleet_processes._lives(child.pid)
    assert fleet_processes._lives(os.getpid())


class OneWorker:
    """A stack whose worker is one child; it ends with its parent unless it `stays`."""

    def __init__(self, *, stays: bool) -> None:
        self.child = subprocess.Popen(["sleep", "60"])
        self.done: list[tuple[str, bool]] = []
        self._stays = stays

    def kill(self, name: str, *, with_orphans: bool) -> None:
        self.done.append((name, with_orphans))
        if not self._stays:
            self.child.kill()

    def start(self, name: str) -> None:
        self.done.append((name, True))


class OneProcess(FleetProcesses):
    """Those of `OneWorker`, with a table of their own."""

    def __init__(self, stack: OneWorker, table: Table) -> None:
        super().__init__(cast(Stack, stack), random.Random(0), workers=1, ended_within=0.2)
        self._child, self._own_table = stack.child, table

    def _pool(self, worker: str) -> list[int]:
        return [self._child.pid]

    def _table(self, worker: str) -> Table:
        return self._own_table


@pytest.mark.parametrize("stays", [False, True])
def test_a_parent_is_killed_alone_and_its_children_are_waited_for(stays: bool) -> None:
    stack, table = OneWorker(stays=stays), Table.create(slots=2)
    table.slots[1].hold("talking", 3)
    processes = OneProcess(stack, table)
    try:
        killed = processes.kill_parent()
    finally:
        stack.child.kill()
        stack.child.wait()
    assert stack.done == [("worker-1", False), ("worker-1", True)]
    assert list(killed.agents) == list(processes.being_killed) == ["agent-talking-3"]
    assert killed.outlived == stays


def test_kills_that_wait_for_a_restart_come_after_the_others() -> None:
    processes = FleetProcesses(cast(Stack, None), random.Random(0), workers=1)
    kills = sorted(itertools.islice(processes.kinds_of_kill(), 5), key=processes.is_slow)
    assert {kill.__name__ for kill in kills[3:]} == {"kill_parent", "kill_api"}


def test_the_same_seed_sends_the_same_joins() -> None:
    def requests(seed: int) -> list[Request]:
        return join_storm.requests({"a": 5, "b": 4}, random.Random(seed))

    assert len(requests(1)) == 9
    assert requests(1) == requests(1) != requests(2)
