"""What must hold between the times of the ownership protocol, whatever their values."""

from worker.fleet import times
from worker.fleet.health import STALE
from worker.fleet.joining import ABANDONED
from worker.fleet.redis_operations import REQUEST_TIMEOUT

#: Until a worker whose renewal hung when Redis came back has renewed its lease.
_RENEWED_AGAIN = max(times.BEAT, REQUEST_TIMEOUT)
#: Until the leading keeper may judge what has become of a worker that was lost, wherever the leader was.
_NEXT_LEADER = times.LEADER_LOCK + times.BEAT


def test_whoever_may_have_lost_its_session_is_silent_before_another_can_have_it() -> None:
    assert times.DEAD_MAN < times.LEASE


def test_one_lost_renewal_kills_no_call() -> None:
    assert 2 * times.BEAT + REQUEST_TIMEOUT < times.DEAD_MAN
    assert 2 * times.BEAT + REQUEST_TIMEOUT < times.LEASE


def test_redis_is_asked_and_has_answered_before_the_switch_goes_off() -> None:
    assert times.ARMING + times.DOUBT_ANSWER < times.DOUBT
    # While renewals come on time nobody asks.
    assert times.BEAT + times.ARMING < times.DEAD_MAN - times.DOUBT


def test_the_witness_of_a_room_lasts_until_the_lease_is_renewed_again() -> None:
    looked_before = times.ARMING + times.DOUBT_ANSWER
    assert looked_before + _RENEWED_AGAIN + times.ARMING < times.RESPITE


def test_a_call_that_lived_by_the_witness_is_renewed_or_dead_before_the_reaper_judges() -> None:
    assert _RENEWED_AGAIN < times.LEASE
    assert times.RESPITE < times.LEASE


def test_a_restart_of_redis_ends_no_call_and_replaces_no_worker() -> None:
    assert times.DEAD_MAN < times.WITNESS
    assert times.WITNESS + times.RESPITE + times.LEASE < STALE


def test_a_busy_child_is_not_taken_for_hung_and_a_hung_one_is_dead_before_its_worker_could_be_lost() -> None:
    assert 4 * times.STAMP < times.HUNG
    assert times.HUNG + 2 * times.LOOK < times.LEASE


def test_a_leader_keeps_its_lock_over_one_lost_attempt_and_the_next_one_leads_within_a_lease() -> None:
    assert 2 * times.BEAT < times.LEADER_LOCK
    assert _NEXT_LEADER < times.LEASE


def test_one_lost_answer_does_not_break_the_look_at_redis_and_a_slept_beat_does() -> None:
    assert 2 * times.BEAT < times.UNBROKEN < times.LEASE


def test_every_call_is_registered_again_before_joins_open_in_an_emptied_redis() -> None:
    noticed = times.BEAT + REQUEST_TIMEOUT
    assert noticed + times.STAMP + REQUEST_TIMEOUT < times.LEASE


def test_no_join_that_goes_on_is_set_right() -> None:
    assert ABANDONED < times.UNRECORDED
    assert REQUEST_TIMEOUT < times.UNPUBLISHED


def test_a_lost_message_is_published_twice_before_anybody_gives_up() -> None:
    assert 2 * times.UNCLAIMED < times.JOIN_TTL
    assert 2 * times.UNCLAIMED + _NEXT_LEADER + times.LEASE < times.UNOWNED


def test_a_call_that_was_lost_in_an_outage_of_redis_has_its_time_afterwards() -> None:
    assert 2 * times.UNCLAIMED < times.UNOWNED_SEEN < times.UNOWNED
    longest_outage = times.WITNESS + times.RESPITE
    assert longest_outage + times.LEASE + times.UNOWNED_SEEN < times.UNOWNED_UNSEEN


def test_an_agent_that_is_just_leaving_or_registers_again_is_no_orphan() -> None:
    assert times.SWEEP < times.ORPHANED
    assert max(times.LEASE, times.LEAVING, times.LEFT) < times.ORPHANED


def test_the_time_to_find_a_loss_does_not_count_as_having_settled() -> None:
    longest = times.WITNESS + times.RESPITE + times.LEASE + _NEXT_LEADER
    assert longest < times.SETTLED


def test_a_successor_leaves_an_agent_that_only_lingers_alone() -> None:
    assert times.LINGER < times.LEFT
    assert times.TAKEN_UP_WITHIN < times.READY_WITHIN


def test_no_call_that_is_cut_off_from_redis_lives_when_joins_open_without_it() -> None:
    assert times.WITNESS + times.RESPITE < times.CLOSED


def test_a_worker_that_lives_lists_what_it_runs_before_that_is_taken_from_it() -> None:
    assert times.LEASE + times.BEAT < times.UNHELD


def test_an_agent_that_cannot_be_taken_out_is_dead_before_the_next_one_speaks() -> None:
    assert times.RESPITE + times.ARMING + times.DOUBT_ANSWER < times.OUTLIVED
    assert times.DEAD_MAN + times.ARMING < times.OUTLIVED
