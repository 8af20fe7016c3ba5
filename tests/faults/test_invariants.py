"""Each invariant of the fault suite fails when it is broken, and only then."""

from dataclasses import replace

import pytest

from bench.faults import invariants
from bench.faults.invariants import Heard, Struck
from bench.faults.ledger import Entry, Sheet, Stored
from bench.faults.play import Result
from bench.faults.scenario import Scenario
from bench.marked_call import Said, WordCount
from local.marks import Mark, marks_of
from worker.fleet.session import State

SAID = (Said(0, marks_of(0, 2), 10.0, 11.0), Said(1, marks_of(1, 2), 20.0, 21.0))
OWNED = (Entry(1.0, State.CONNECTING, 1, "worker-1@host#a"), Entry(2.0, State.LIVE, 1, "worker-1@host#a"))
RECOVERED = (
    *OWNED,
    Entry(21.5, State.RECOVERING, 2, ""),
    Entry(21.6, State.CONNECTING, 2, "worker-2@host#b"),
    Entry(22.5, State.LIVE, 2, "worker-2@host#b"),
)


def struck(kind: str, began: float, ended: float, *, worker: str = "worker-1") -> Struck:
    return Struck(kind, "s", worker, began, ended)


def count(*, lost: tuple[Mark, ...] = (), doubled: tuple[Mark, ...] = (), foreign: tuple[Mark, ...] = ()) -> WordCount:
    return WordCount(4, lost, doubled, foreign)


def heard(number: int, word: int, at: float, *, epoch: int = 1) -> Heard:
    return Heard(number, Mark(number, word), at, f"agent-s-{epoch}")


def test_two_agents_may_be_heard_together_for_a_jitter_buffers_length() -> None:
    assert not invariants.overlap_violations(0.1)
    assert invariants.overlap_violations(0.11)


def test_a_session_without_an_owner_breaks_the_bound() -> None:
    killed = [struck("kill_child", 9.0, 9.0)]
    bound = invariants.unowned_bound((10.0, 100.0), away=[], struck=killed)
    assert not invariants.unowned_violations([(10.0, 10.0 + bound)], away=[], struck=killed)
    assert invariants.unowned_violations([(10.0, 10.1 + bound)], away=[], struck=killed)


def test_an_outage_of_redis_extends_the_bound_by_its_length_and_a_lease() -> None:
    without = invariants.unowned_bound((10.0, 40.0), away=[], struck=[])
    assert invariants.unowned_bound((10.0, 40.0), away=[(12.0, 15.0)], struck=[]) == without + 3 + 5 + 1
    assert invariants.unowned_bound((10.0, 40.0), away=[(50.0, 55.0)], struck=[]) == without


def test_only_the_time_in_which_both_workers_are_broken_extends_the_bound() -> None:
    one = [struck("stop_worker", 10.0, 30.0)]
    both = [*one, struck("stop_worker", 15.0, 20.0, worker="worker-2")]
    alone = invariants.unowned_bound((10.0, 40.0), away=[], struck=one)
    # The other worker may have fetched a message, too.
    assert invariants.unowned_bound((10.0, 40.0), away=[], struck=both) == alone + 5 + 6


def test_a_lost_word_of_an_undisturbed_utterance_is_a_violation() -> None:
    lost = count(lost=(Mark(1, 1),))
    assert invariants.word_violations(SAID, lost, [], deaf=[]) == (["u1w1 of an undisturbed utterance lost"], 0)
    assert invariants.word_violations(SAID, lost, [], deaf=[(20.5, 20.6)]) == ([], 1)


def test_a_word_lost_after_its_turn_was_stored_is_a_violation_whatever_followed() -> None:
    stored = [Stored(21.3, 1, {"role": "user", "text": "u1w0 u1w1"})]
    lost = count(lost=(Mark(1, 0), Mark(1, 1)))
    assert invariants.word_violations(SAID, lost, stored, deaf=[(21.4, 25.0)])[0]
    # Before it was, they may be lost with their owner.
    assert not invariants.word_violations(SAID, lost, [], deaf=[(21.4, 25.0)])[0]


@pytest.mark.parametrize("words", [count(doubled=(Mark(0, 0),)), count(foreign=(Mark(9, 0),))])
def test_a_doubled_or_foreign_word_is_a_violation_even_during_a_fault(words: WordCount) -> None:
    assert invariants.word_violations(SAID, words, [], deaf=[(0.0, 100.0)])[0]


def test_the_caller_may_be_unheard_from_the_fault_to_the_next_owner() -> None:
    spans = invariants.deaf_spans(RECOVERED, [struck("kill_child", 21.2, 21.2)])
    assert spans == [(21.2, 22.5 + invariants.HEARS_AGAIN)]


def test_the_caller_is_not_heard_out_by_an_agent_that_must_leave() -> None:
    left = (*OWNED, Entry(20.5, State.ENDING, 1, "worker-1@host#a"))
    cut_off = count(lost=(Mark(1, 1),))
    assert not invariants.word_violations(SAID, cut_off, [], deaf=invariants.deaf_spans(left, []))[0]
    assert invariants.word_violations(SAID, count(lost=(Mark(0, 1),)), [], deaf=invariants.deaf_spans(left, []))[0]


def test_a_keepers_death_or_a_hand_over_excuses_no_lost_word() -> None:
    assert not invariants.deaf_spans(OWNED, [struck("kill_keeper", 5.0, 5.0), struck("hand_over", 6.0, 7.0)])


def test_a_frozen_worker_that_does_not_own_the_call_excuses_no_lost_word() -> None:
    assert invariants.deaf_spans(OWNED, [struck("stop_worker", 5.0, 7.0)])
    assert not invariants.deaf_spans(OWNED, [struck("stop_worker", 5.0, 7.0, worker="worker-2")])


def test_a_worker_that_is_cut_off_and_gets_the_call_meanwhile_may_not_hear_the_caller() -> None:
    passed = (*OWNED, Entry(6.0, State.LIVE, 2, "worker-2@host#b"))
    cut_off = struck("cut_livekit_link", 5.0, 7.0, worker="worker-2")
    assert invariants.deaf_spans(passed, [cut_off]) == [(5.0, 7.0 + invariants.REJOINED)]


def test_a_word_that_is_answered_twice_is_a_violation() -> None:
    again = [heard(1, 0, 22.0), heard(1, 1, 22.3), heard(1, 0, 24.0, epoch=2)]
    assert invariants.answer_violations(again, OWNED) == ["u1w0 was answered again after 2.0 s by agent-s-2"]


def test_the_next_owner_may_answer_what_the_lost_one_has_begun_to() -> None:
    again = [heard(1, 0, 21.2), heard(1, 0, 24.0, epoch=2)]
    assert not invariants.answer_violations(again, RECOVERED)


def test_one_word_that_is_found_in_two_pieces_is_answered_once() -> None:
    assert not invariants.answer_violations([heard(1, 0, 22.0), heard(1, 0, 22.1)], OWNED)


def test_an_utterance_without_an_answer_is_a_violation_unless_something_was_broken() -> None:
    answered_once = [heard(0, 0, 12.0)]
    assert invariants.unanswered_violations(SAID, answered_once, disturbed=[])
    assert not invariants.unanswered_violations(SAID, answered_once, disturbed=[(24.0, 25.0)])


def test_an_answer_that_does_not_count_every_turn_is_a_violation() -> None:
    turns = [("assistant", "Hello."), ("user", "u0w0"), ("assistant", "Number 1, u0w0."), ("user", "u1w0")]
    assert not invariants.history_violations([*turns, ("assistant", "Number 2, u1w0.")])
    assert invariants.history_violations([*turns, ("assistant", "Number 1, u1w0.")])


def test_a_session_must_end_for_the_reason_that_was_given() -> None:
    def ended(state: str, reason: str) -> Sheet:
        return Sheet(record={"state": state, "epoch": "2", "reason": reason})

    assert not invariants.end_violations(ended("ended", "left"), wanted="left", allowed=())
    assert invariants.end_violations(ended("failed", "worker_lost"), wanted="left", allowed=())
    assert not invariants.end_violations(ended("failed", "provider_failed"), wanted="left", allowed={"provider_failed"})
    assert invariants.end_violations(ended("live", ""), wanted="left", allowed=())
    assert invariants.end_violations(Sheet(record=None), wanted="left", allowed=())
    assert not invariants.end_violations(Sheet(record=None), wanted="left", allowed={"vanished"})


def test_a_call_may_be_forgotten_only_if_its_owner_is_lost_while_redis_is_emptied() -> None:
    emptied = struck("empty_redis", 20.0, 23.0)
    assert invariants.may_vanish([emptied, struck("kill_child", 21.0, 21.0)])
    assert not invariants.may_vanish([emptied, struck("kill_api", 21.0, 21.0)])
    assert not invariants.may_vanish([emptied, struck("kill_child", 60.0, 60.0)])
    assert not invariants.may_vanish([struck("restart_redis", 20.0, 23.0), struck("kill_child", 21.0, 21.0)])


def test_nobody_answers_in_a_call_that_was_forgotten_from_the_loss_of_its_owner_on() -> None:
    from_then_on = invariants.forgotten([struck("empty_redis", 19.0, 22.0), struck("kill_child", 20.5, 20.5)])
    (violation,) = invariants.unanswered_violations(SAID, [], disturbed=from_then_on)
    assert violation.startswith("u0w0")


def test_a_turn_that_was_stored_must_be_there_at_the_end() -> None:
    stored = [Stored(1.0, 1, {"item_id": "a", "text": "u0w0"})]
    assert not invariants.gone_violations(stored, ["a", "b"])
    assert invariants.gone_violations(stored, ["b"])


def test_livekits_client_may_take_longer_to_hear_again_than_a_process_that_was_stopped() -> None:
    cut = invariants.deaf_spans(OWNED, [struck("cut_livekit_link", 5.0, 7.0)])
    stopped = invariants.deaf_spans(OWNED, [struck("stop_child", 5.0, 7.0)])
    assert (cut, stopped) == ([(5.0, 7.0 + invariants.REJOINED)], [(5.0, 7.0 + invariants.HEARS_AGAIN)])


def needless(*struck: Struck, away: tuple[tuple[float, float], ...] = ()) -> list[str]:
    return invariants.needless_violations(RECOVERED, struck, session_id="s", away=away)


def test_a_join_that_was_broken_off_may_bring_no_sound_until_the_agent_finds_out() -> None:
    spans = invariants.deaf_spans(OWNED, [struck("cut_livekit_link", 1.5, 3.0)])
    assert spans == [(1.5, 3.0 + invariants.REJOINED + invariants.FOUND_DEAF)]


def test_an_owner_is_given_up_only_for_a_fault_that_may_have_cost_it_its_session() -> None:
    assert not needless(struck("kill_child", 21.2, 21.2))
    assert not needless(struck("stop_worker", 15.0, 18.0))
    assert not needless(struck("kill_livekit", 15.0, 18.0, worker="worker-2"))
    for harmless in ("hang_up_redis", "restart_redis", "kill_api", "deliver_again", "drain", "kill_keeper"):
        assert needless(struck(harmless, 21.0, 21.2)), harmless


def test_a_fault_of_another_call_worker_or_time_explains_no_lost_owner() -> None:
    assert needless(Struck("kill_child", "another", "worker-1", 21.2, 21.2))
    assert needless(struck("stop_worker", 15.0, 18.0, worker="worker-2"))
    assert needless(struck("stop_worker", 5.0, 8.0))
    assert needless(struck("kill_child", 22.0, 22.0))
    # While Redis is away nobody can be given up.
    assert not needless(struck("stop_worker", 5.0, 8.0), away=((9.0, 16.0),))


def test_a_killed_process_must_be_noticed_at_once_unless_more_than_that_has_happened() -> None:
    def unnoticed(*struck: Struck, entries: tuple[Entry, ...] = RECOVERED) -> list[str]:
        return invariants.unnoticed_violations(entries, struck, session_id="s", away=[])

    assert not unnoticed(struck("kill_child", 21.2, 21.2))
    assert unnoticed(struck("kill_child", 18.0, 18.0))
    assert unnoticed(struck("kill_child", 21.2, 21.2), entries=OWNED)
    assert not unnoticed(struck("kill_child", 18.0, 18.0), struck("stop_keeper", 18.5, 21.0))


def test_a_call_that_is_over_before_anybody_has_ended_it_needs_a_fault_that_ends_calls() -> None:
    over = Sheet(record={"state": "ended", "epoch": "1", "reason": "left"})
    assert invariants.end_violations(over, wanted="", allowed=())
    assert not invariants.end_violations(over, wanted="", allowed={"left"})


def test_a_scenario_none_of_whose_faults_came_has_not_held() -> None:
    scenario = Scenario.from_seed(0)
    assert Result(scenario, struck=[struck("kill_child", 1.0, 1.0)], missed=["leave"]).outcome == "held"
    assert (
        Result(scenario, struck=[replace(struck("leave", 1.0, 1.0), came=False)], missed=["leave"]).outcome == "missed"
    )
    assert Result(scenario, missed=["kill_child"]).outcome == "missed"
