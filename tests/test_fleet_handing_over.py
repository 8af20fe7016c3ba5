"""A hand-over's moves in a real Redis: who may offer, stand by and pass, and that no epoch is used twice."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import permutations
from typing import Any

import pytest
import redis

from tests.fleet_sessions import new_session
from worker.fleet import handing_over, record_moves, records
from worker.fleet.errors import HandOverImpossible, IllegalMove, MoveRefused, SessionNotFound, StaleEpoch
from worker.fleet.handing_over import Command
from worker.fleet.redis_operations import connect, run
from worker.fleet.session import Reason, Session, State
from worker.fleet.workers import Fleet, WorkerStatus

OWNER, SUCCESSOR, STRANGER = (f"{name}@test#00000000" for name in ("owner", "successor", "stranger"))


@pytest.fixture
def client(redis_url: str) -> Iterator["redis.Redis"]:
    with connect(redis_url) as client:
        yield client


@pytest.fixture
def live(client: "redis.Redis") -> Session:
    """A session that its owner talks in."""
    session = new_session()
    run(client, record_moves.create(session, lifetime=60))
    session = run(client, record_moves.claim(session.session_id, epoch=1, owner=OWNER, lifetime=60))
    move = record_moves.move(session.session_id, State.LIVE, epoch=1, owner=OWNER, lifetime=60, stamp="first_audio_at")
    return run(client, move)


def read(client: "redis.Redis", session: Session) -> Session:
    record = run(client, records.read(session.session_id))
    assert record is not None
    return record


def stand_by(client: "redis.Redis", session: Session, *, offered: int, owner: str = SUCCESSOR) -> Session:
    return run(client, record_moves.stand_by(session.session_id, offered=offered, owner=owner))


def give(client: "redis.Redis", session: Session, *, offered: int, is_open: bool = False) -> Session:
    return run(client, record_moves.give(session, offered=offered, is_open=is_open, lifetime=60))


def recover(client: "redis.Redis", session: Session) -> Session:
    return run(client, record_moves.recover(session, most=3, settled=60, patience=30, lifetime=60))


def commands(client: "redis.Redis", session: Session) -> list[dict[str, str]]:
    # The library's type does not say which of its shapes this protocol version answers with.
    entries: Any = client.xrange(records.commands_key(session.session_id))
    return [fields for _, fields in entries]


def test_a_call_that_is_passed_is_the_successors_and_nobody_elses(client: "redis.Redis", live: Session) -> None:
    offered = run(client, record_moves.offer(live)).offered_epoch
    assert offered == 2
    standing_by = stand_by(client, live, offered=offered)
    assert (standing_by.state, standing_by.epoch, standing_by.owner) == (State.LIVE, 1, OWNER)

    passed = give(client, live, offered=offered, is_open=True)
    assert (passed.state, passed.epoch, passed.owner, passed.standby) == (State.LIVE, 2, SUCCESSOR, "")
    assert commands(client, live) == [{"kind": Command.PASSED, "epoch": "2", "open": "1"}]
    with pytest.raises(StaleEpoch):
        run(client, records.append_turn(live, {"text": "late"}, lifetime=60))
    with pytest.raises(StaleEpoch):
        run(client, record_moves.end(live, Reason.CALLER_LEFT))
    run(client, records.append_turn(passed, {"text": "on time"}, lifetime=60))


def test_a_pass_whose_answer_was_lost_is_repeated_and_told_once(client: "redis.Redis", live: Session) -> None:
    offered = run(client, record_moves.offer(live)).offered_epoch
    stand_by(client, live, offered=offered)
    assert give(client, live, offered=offered) == give(client, live, offered=offered)
    assert len(commands(client, live)) == 1


def test_of_two_who_were_told_of_an_offer_one_stands_by(client: "redis.Redis", live: Session) -> None:
    offered = run(client, record_moves.offer(live)).offered_epoch
    stand_by(client, live, offered=offered)
    with pytest.raises(StaleEpoch):
        stand_by(client, live, offered=offered, owner=STRANGER)


def test_nothing_is_passed_to_nobody(client: "redis.Redis", live: Session) -> None:
    offered = run(client, record_moves.offer(live)).offered_epoch
    with pytest.raises(HandOverImpossible):
        give(client, live, offered=offered)
    stand_by(client, live, offered=offered)
    run(client, record_moves.step_back(live.session_id, offered=offered, owner=SUCCESSOR))
    with pytest.raises(HandOverImpossible):
        give(client, live, offered=offered)
    assert handing_over.owns(read(client, live), live)


def test_an_offer_is_void_after_the_next_one(client: "redis.Redis", live: Session) -> None:
    first = run(client, record_moves.offer(live)).offered_epoch
    standing_by = stand_by(client, live, offered=first)
    assert run(client, record_moves.offer(live)).offered_epoch == first + 1
    with pytest.raises(StaleEpoch):
        stand_by(client, live, offered=first, owner=STRANGER)
    with pytest.raises(HandOverImpossible):
        give(client, live, offered=first)
    assert not handing_over.is_standby(read(client, live), standing_by)


def test_whoever_steps_back_learns_whether_the_session_was_passed_before(client: "redis.Redis", live: Session) -> None:
    offered = run(client, record_moves.offer(live)).offered_epoch
    stand_by(client, live, offered=offered)
    give(client, live, offered=offered)
    record = run(client, record_moves.step_back(live.session_id, offered=offered, owner=SUCCESSOR))
    assert (record.epoch, record.owner) == (offered, SUCCESSOR)


def test_only_the_owner_of_a_live_session_offers_it(client: "redis.Redis", live: Session) -> None:
    with pytest.raises(StaleEpoch):
        run(client, record_moves.offer(replace(live, owner=STRANGER)))
    recovering = recover(client, live)
    with pytest.raises(StaleEpoch):
        run(client, record_moves.offer(live))
    with pytest.raises(IllegalMove):
        run(client, record_moves.offer(recovering))
    with pytest.raises(SessionNotFound):
        run(client, record_moves.offer(new_session()))


@pytest.mark.parametrize("reason", [Reason.LEFT, Reason.INTERNAL_ERROR])
def test_a_session_that_is_over_is_neither_offered_nor_passed(
    client: "redis.Redis", live: Session, reason: Reason
) -> None:
    offered = run(client, record_moves.offer(live)).offered_epoch
    stand_by(client, live, offered=offered)
    run(client, record_moves.end(live, reason))
    with pytest.raises(IllegalMove):
        run(client, record_moves.offer(live))
    with pytest.raises(IllegalMove):
        give(client, live, offered=offered)
    with pytest.raises(HandOverImpossible):
        run(client, record_moves.ask(live.session_id, to="", command_id="1", lifetime=60))
    assert commands(client, live) == []


def test_a_lost_owners_session_goes_on_beyond_every_epoch_that_was_offered(
    client: "redis.Redis", live: Session
) -> None:
    for _ in range(3):
        offered = run(client, record_moves.offer(live)).offered_epoch
    standing_by = stand_by(client, live, offered=offered)
    recovering = recover(client, live)
    assert (recovering.epoch, recovering.standby) == (offered + 1, "")
    assert not handing_over.is_standby(read(client, live), standing_by)
    with pytest.raises(MoveRefused):
        run(client, record_moves.ready(standing_by, lifetime=60))
    with pytest.raises(MoveRefused):
        give(client, live, offered=offered)


def test_in_whatever_order_pass_recovery_and_retreat_come_one_agent_owns_the_session(client: "redis.Redis") -> None:
    for order in permutations(("give", "recover", "step back", "offer")):
        session = new_session()
        run(client, record_moves.create(session, lifetime=60))
        run(client, record_moves.claim(session.session_id, epoch=1, owner=OWNER, lifetime=60))
        move = record_moves.move(
            session.session_id, State.LIVE, epoch=1, owner=OWNER, lifetime=60, stamp="first_audio_at"
        )
        session = run(client, move)
        run(client, record_moves.offer(session))
        stand_by(client, session, offered=2)
        steps = {
            "give": record_moves.give(session, offered=2, is_open=False, lifetime=60),
            "recover": record_moves.recover(session, most=3, settled=60, patience=30, lifetime=60),
            "step back": record_moves.step_back(session.session_id, offered=2, owner=SUCCESSOR),
            "offer": record_moves.offer(session),
        }
        done = []
        for step in order:
            try:
                run(client, steps[step])
                done.append(step)
            except (MoveRefused, HandOverImpossible):
                continue
        record = read(client, session)
        owner = (record.state, record.epoch, record.owner)
        if "give" in done:
            assert owner == (State.LIVE, 2, SUCCESSOR), order
            assert "recover" not in done
        else:
            assert owner == (State.RECOVERING, record.offered_epoch + 1, ""), order


@pytest.mark.parametrize("is_passed", [True, False])
def test_a_session_that_was_passed_in_vain_is_taken_back_and_the_offer_is_void(
    client: "redis.Redis", live: Session, is_passed: bool
) -> None:
    offered = run(client, record_moves.offer(live)).offered_epoch
    successor = stand_by(client, live, offered=offered)
    if is_passed:
        give(client, live, offered=offered)
    for _ in range(2):
        taken = run(client, record_moves.take_back(live, offered=offered))
        assert handing_over.owns(taken, live)
        assert (taken.offered_epoch, taken.standby, taken.state) == (offered + 1, "", State.LIVE)
    # What Redis had in its buffers when it froze comes as late as this.
    with pytest.raises(HandOverImpossible):
        give(client, live, offered=offered)
    with pytest.raises(StaleEpoch):
        run(client, records.append_turn(replace(successor, epoch=offered, owner=SUCCESSOR), {}, lifetime=60))
    run(client, records.append_turn(live, {"text": "on time"}, lifetime=60))
    assert run(client, record_moves.offer(live)).offered_epoch == offered + 2


def test_what_was_recovered_from_a_successor_or_ended_is_not_taken_back(client: "redis.Redis", live: Session) -> None:
    offered = run(client, record_moves.offer(live)).offered_epoch
    stand_by(client, live, offered=offered)
    passed = give(client, live, offered=offered)
    recover(client, passed)
    with pytest.raises(StaleEpoch):
        run(client, record_moves.take_back(live, offered=offered))


def test_a_session_that_its_owner_leaves_has_lost_none(client: "redis.Redis", live: Session) -> None:
    for epoch in (2, 3, 4, 5):
        step = record_moves.recover(live, most=1, settled=60, patience=30, lifetime=60, is_lost=False)
        left = run(client, step)
        assert (left.state, left.epoch, left.recoveries) == (State.RECOVERING, epoch, 0)
        live = run(client, record_moves.claim(left.session_id, epoch=epoch, owner=OWNER, lifetime=60))
    assert recover(client, live).recoveries == 1


def test_the_owner_hears_of_a_request_in_its_own_epoch(client: "redis.Redis", live: Session) -> None:
    asked = run(client, record_moves.ask(live.session_id, to="worker-2", command_id="7", lifetime=60))
    assert asked == live
    [command] = commands(client, live)
    assert command == {"kind": Command.HAND_OVER, "id": "7", "epoch": "1", "to": "worker-2"}
    assert 0 < client.ttl(records.commands_key(live.session_id)) <= 60


def test_the_emptiest_worker_that_takes_sessions_is_chosen_or_the_named_one() -> None:
    def worker(name: str, *, busy: int, draining: bool = False) -> WorkerStatus:
        worker_id = f"{name}@test#00000000"
        return WorkerStatus(worker_id=worker_id, name=name, slots=2, busy=busy, draining=draining, started_at=0.0)

    fleet = Fleet(
        True,
        [
            worker("owner", busy=0),
            worker("half", busy=1),
            worker("full", busy=2),
            worker("empty", busy=0),
            worker("leaving", busy=0, draining=True),
        ],
        at=0.0,
    )

    def chosen(name: str = "") -> str | None:
        found = handing_over.choose(fleet, worker_id=OWNER, name=name)
        return found.name if found else None

    assert chosen() == "empty"
    assert [chosen(name) for name in ("half", "full", "leaving", "owner", "unknown")] == ["half", *[None] * 4]


def test_sessions_that_leave_a_worker_together_are_spread_over_the_free_slots() -> None:
    def worker(name: str, *, busy: int) -> WorkerStatus:
        worker_id = f"{name}@test#00000000"
        return WorkerStatus(worker_id=worker_id, name=name, slots=3, busy=busy, draining=False, started_at=0.0)

    fleet = Fleet(True, [worker("one", busy=2), worker("three", busy=0), worker("two", busy=1)], at=0.0)
    found = [handing_over.choose(fleet, worker_id=OWNER, place=place) for place in range(7)]
    names = [each.name for each in found if each]
    assert sorted(names[:6]) == ["one", "three", "three", "three", "two", "two"]
    assert names[:2] == ["three", "three"] and names[6] == "three"
    assert handing_over.choose(Fleet(True, [worker("full", busy=3)], at=0.0), worker_id=OWNER, place=5) is None
