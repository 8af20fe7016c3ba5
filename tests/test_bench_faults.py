"""What measurements of faults conclude from what they have heard."""

import random
from collections import Counter

import numpy as np

from bench.faults import Outcome
from bench.marked_call import WordCount, audible_seconds
from bench.recovery import Kill, Killed, Phase, _plan, _report
from local.audio import FRAME_SAMPLES, FRAME_SECONDS, Timeline
from local.caller import HeardTrack
from local.hearing import Hearing
from local.marks import Mark


def outcome(*, answered: dict[int, int], lost: tuple[Mark, ...] = ()) -> Outcome:
    """A call of ten words."""
    return Outcome(WordCount(10, lost, (), ()), 0.0, Counter(answered))


def track(identity: str, *, started_at: float, loud_frames: int) -> HeardTrack:
    """A track that was loud from its first frame on."""
    sound = Timeline(started_at=started_at)
    for number in range(loud_frames):
        sound.place(identity, at=started_at + number * FRAME_SECONDS, frame=np.full(FRAME_SAMPLES, 9000, np.int16))
    return HeardTrack(identity, started_at, Hearing(), sound)


def test_every_phase_sees_as_many_kills_and_no_call_more_than_it_survives() -> None:
    plan = list(_plan(20, random.Random(1)))
    assert Counter(phase for phases in plan for phase in phases) == dict.fromkeys(Phase, 5)
    assert max(map(len, plan)) == 3
    assert plan == list(_plan(20, random.Random(1)))


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
    notes = "\n".join(_report([call], [], seed=0).notes)
    assert "FAIL: killed while the agent was thinking (n = 1): 2 words lost" in notes
    assert notes.count("FAIL") == 1
