"""What the measurements of restarts, drains and storms of joins conclude from what they have seen."""

import random
from collections.abc import Iterator
from dataclasses import replace

import pytest
import redis

from bench import drains, join_storm, rolling_restart
from bench.drains import Drained, Joined, Moment
from bench.fleet_processes import Killed
from bench.hand_overs import HandOver, hand_overs
from bench.join_storm import Answer, JoinStorm, Request, Sightings
from bench.marked_call import Said, WordCount
from bench.rolling_restart import CallOutcome, Nearness, Restart, replies
from tests.fleet_sessions import new_session
from worker.fleet import records
from worker.fleet.handing_over import Command
from worker.fleet.redis_operations import connect
from worker.fleet.session import Reason, Session, State

CALL = CallOutcome(
    dropped=None,
    recovered=False,
    words=WordCount(10, (), (), ()),
    hand_overs=[HandOver(2, ready_at=100.0, passed_at=101.5)],
    overlaps=[0.01],
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


def test_an_ear_is_deaf_from_the_pass_until_the_successor_hears() -> None:
    assert (HandOver(2, 100.0, 101.5).deafness, HandOver(2, 100.0, 101.5).both_heard) == (0.0, 1.5)
    assert (HandOver(2, 102.0, 101.5).deafness, HandOver(2, 102.0, 101.5).both_heard) == (0.5, 0.0)


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
    assert len(restart_notes(replace(CALL, overlaps=[0.04]))) == 1
    assert len(restart_notes(replace(CALL, hand_overs=[HandOver(2, 102.0, 101.5)]))) == 1
    assert len(restart_notes(replace(CALL, hand_overs=[]))) == 1
    assert len(restart_notes(replace(CALL, answered_twice=[1], unanswered=[2]))) == 0


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
    assert list(storm.sightings.ghosts) == ["agent-a-1"]
    storm._look_at_agents("room", ["agent-a-2", "agent-b-1"], being_killed={})
    assert len(storm_notes(sightings=storm.sightings)) == 1
    assert len(storm_notes(sightings=Sightings())) == 1


def test_the_same_seed_sends_the_same_joins() -> None:
    def requests(seed: int) -> list[Request]:
        return join_storm.requests({"a": 5, "b": 4}, random.Random(seed))

    assert len(requests(1)) == 9
    assert requests(1) == requests(1) != requests(2)
