"""What measurements of faults conclude from what they have heard."""

import random
from collections import Counter
from dataclasses import replace

import numpy as np

from bench import livekit_restart, machine_loss, recovery, redis_restart
from bench.disturbed import Outcome
from bench.marked_call import WordCount, audible_seconds
from bench.recovery import Kill, Killed, Phase
from bench.redis_restart import JoinAnswer, Outage, Talk
from local.audio import FRAME_SAMPLES, FRAME_SECONDS, Timeline
from local.caller import HeardTrack
from local.hearing import Hearing
from local.marks import Mark


def outcome(
    *,
    answered: dict[int, int],
    lost: tuple[Mark, ...] = (),
    foreign: tuple[Mark, ...] = (),
    stored: tuple[str, ...] = (),
) -> Outcome:
    """A call of ten words."""
    return Outcome(WordCount(10, lost, (), foreign), 0.0, Counter(answered), stored)


def track(identity: str, *, started_at: float, loud_frames: int) -> HeardTrack:
    """A track that was loud from its first frame on."""
    sound = Timeline(started_at=started_at)
    for number in range(loud_frames):
        sound.place(identity, at=started_at + number * FRAME_SECONDS, frame=np.full(FRAME_SAMPLES, 9000, np.int16))
    return HeardTrack(identity, started_at, Hearing(), sound)


def test_every_phase_sees_as_many_kills_and_no_call_more_than_it_survives() -> None:
    plan = list(recovery.plan(20, random.Random(1)))
    assert Counter(phase for phases in plan for phase in phases) == dict.fromkeys(Phase, 4)
    assert max(map(len, plan)) == 3
    assert plan == list(recovery.plan(20, random.Random(1)))


def test_an_answer_that_was_cut_off_may_be_given_once_more_and_no_other() -> None:
    found = outcome(answered={0: 1, 1: 2, 2: 2, 3: 3, 4: 0})
    assert found.doubled(cut=[1, 3]) == [2, 3]
    assert found.unanswered == [4]


def test_an_agent_is_counted_by_its_identity_from_a_moment_on() -> None:
    tracks = [track("old", started_at=100.0, loud_frames=50), track("next", started_at=100.2, loud_frames=50)]
    assert audible_seconds(tracks, since=100.4, identity="old") == 0.1
    assert audible_seconds(tracks, since=101.0, identity="old") == 0


def test_words_lost_while_the_agent_was_thinking_fail_the_measurement() -> None:
    kills = [Kill(Phase.THINKING, 100.0, 1, 0.2, silence=0.7, is_answered=True, lost=2)]
    call = Killed(kills, outcome(answered={0: 1, 1: 1}, lost=(Mark(1, 0), Mark(1, 1))))
    notes = "\n".join(recovery.report([call], [], seed=0).notes)
    assert "FAIL: killed while the agent was thinking (n = 1): 2 words lost" in notes
    assert notes.count("FAIL") == 1


def test_words_lost_of_a_turn_that_was_not_over_fail_the_measurement_and_those_nobody_could_hear_do_not() -> None:
    def notes(phase: Phase) -> list[str]:
        kill = Kill(phase, 100.0, 1, 0.3, silence=0.7, is_answered=True).among([Mark(1, 4)])
        call = Killed([kill], outcome(answered={0: 1, 1: 1}, lost=(Mark(1, 4),)))
        return [note for note in recovery.report([call], [], seed=0).notes if note.startswith("FAIL")]

    assert notes(Phase.OPEN) == ["FAIL: killed while the turn was not over yet (n = 1): 1 words lost"]
    assert notes(Phase.UTTERANCE) == []


def test_a_successor_that_says_something_and_never_answers_what_was_stored_fails_the_measurement() -> None:
    kill = Kill(Phase.THINKING, 100.0, 1, 1.0, silence=0.7, is_answered=True)

    def notes(found: Outcome) -> list[str]:
        return [note for note in recovery.report([Killed([kill], found)], [], seed=0).notes if note.startswith("FAIL")]

    mute = outcome(answered={0: 1, 1: 0, 2: 1}, stored=("u0w0 u0w1", "u1w0 u1w1", "u2w0"))
    assert notes(mute) == ["FAIL: stored utterances that no agent answered: 1 ['call 0: 1']"]
    # What nobody heard nobody can answer; that its words are lost is judged elsewhere.
    assert notes(replace(mute, stored=("u0w0 u0w1", "u2w0"))) == []
    assert notes(replace(mute, answered=Counter({0: 1, 1: 1, 2: 1}))) == []


def test_words_that_nobody_said_fail_the_measurements_of_kills_and_of_machines() -> None:
    strange = outcome(answered={0: 1}, foreign=(Mark(5, 0),))
    kill = Kill(Phase.LISTENING, 100.0, silence=0.7, is_answered=True)
    trial = machine_loss.Trial(False, True, 5.2, 0.0, "gone", "the same processes", 0.1, True, strange)
    for notes in (
        recovery.report([Killed([kill], strange)], [], seed=0).notes,
        machine_loss.report([trial], [], seed=0).notes,
    ):
        assert [note for note in notes if note.startswith("FAIL")] == ["FAIL: words stored that were not said: 1"]


def test_the_next_agent_of_a_lost_machine_must_answer() -> None:
    mute = outcome(answered={0: 0}, stored=("u0w0",))
    trial = machine_loss.Trial(False, True, 5.2, 0.0, "gone", "the same processes", 0.1, True, mute)
    failures = [note for note in machine_loss.report([trial], [], seed=0).notes if note.startswith("FAIL")]
    assert failures == ["FAIL: stored utterances that no agent answered: 1 ['call 0: 0']"]


def test_what_was_said_before_the_kill_is_told_apart_from_what_nobody_could_hear() -> None:
    lost = [Mark(1, 1), Mark(1, 2), Mark(1, 3), Mark(2, 0)]
    kill = Kill(Phase.UTTERANCE, 100.0, 1, 1.0).among(lost)
    assert (kill.lost, kill.lost_before) == (3, 2)
    kill = Kill(Phase.OPEN, 100.0, 1, 0.1).among(lost)
    assert (kill.lost, kill.lost_before) == (3, 3)
    assert Kill(Phase.LISTENING, 100.0).among(lost).lost == 0


def test_a_second_session_in_a_live_room_fails_the_measurement() -> None:
    talk = Talk("live", 1, 1, 1, outcome(answered={0: 1}), forgotten=0)
    refused = [JoinAnswer("a", 503, 0.1, retry_after=5.0)]
    repeated = [JoinAnswer("room", 503, 0.1, 5.0), JoinAnswer("room", 202, 0.1, session_id="running")]
    trial = redis_restart.Trial(Outage.EMPTIED, [talk], refused, repeated, "running", served_after=6.0, serves=True)
    assert not any(note.startswith("FAIL") for note in redis_restart.report([trial], []).notes)
    trial = replace(trial, repeated=[*repeated, JoinAnswer("room", 202, 0.1, session_id="another")])
    failures = [note for note in redis_restart.report([trial], []).notes if note.startswith("FAIL")]
    assert len(failures) == 1 and "2 of 3" in failures[0]


def test_a_zombie_that_says_anything_fails_the_measurement() -> None:
    trial = machine_loss.Trial(
        True, True, 5.2, 0.0, "signal 14 (SIGALRM)", "the same processes", 0.1, True, outcome(answered={0: 2})
    )
    assert not any(note.startswith("FAIL") for note in machine_loss.report([trial], [], seed=0).notes)
    failures = [
        note for note in machine_loss.report([replace(trial, zombie=0.01)], [], seed=0).notes if note.startswith("FAIL")
    ]
    assert failures == ["FAIL: with partition (n = 1): old agent audible 1 times, in all 10 ms"]


def test_a_session_goes_on_with_an_agent_who_answers_or_ends_because_the_room_is_closed() -> None:
    kept = livekit_restart.Trial(5.0, 2.0, True, "live", None, 1, None, 1, outcome(answered={0: 1}))
    joined_anew = replace(kept, epoch=2, agents=2)
    late = livekit_restart.Trial(35.0, None, False, "ended", "room_closed", 1, 20.0, 1, outcome(answered={0: 1}))
    notes = livekit_restart.report([kept, joined_anew, late], []).notes
    assert not any("FAIL" in note for note in notes)
    assert "pass: away for 5 s: 2 of 2 sessions went on, 1 of them with another agent" in notes
    deaf, failed = replace(kept, is_answered=False), replace(late, status="failed", reason="connect_failed")
    notes = livekit_restart.report([deaf, failed], []).notes
    assert [note for note in notes if "FAIL" in note] == [
        "FAIL: away for 5 s: 0 of 1 sessions went on, 0 of them with another agent",
        "FAIL: away for 35 s: failed/connect_failed (1)",
    ]
