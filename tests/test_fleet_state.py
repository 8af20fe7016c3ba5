"""The fleet's state in a real Redis: who gets a room, who may change a record, and what expires."""

import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis

from tests.fleet_sessions import new_session
from tests.fleet_workers import keys_without_expiry
from worker.fleet import admission, record_moves, records, workers
from worker.fleet.control import SessionControl
from worker.fleet.errors import (
    FleetFull,
    FleetNotReady,
    IllegalMove,
    NoWorker,
    RecordUnreadable,
    RoomChanging,
    SessionNotFound,
    StaleEpoch,
    StateUnavailable,
)
from worker.fleet.joining import Join, Joined
from worker.fleet.redis_operations import Operation, connect, run
from worker.fleet.session import Reason, Session, State
from worker.fleet.settings import FleetSettings

WORKER = "worker@test#00000000"


@pytest.fixture
def client(redis_url: str) -> Iterator["redis.Redis"]:
    with connect(redis_url) as client:
        yield client


def control_of(redis_url: str, client: "redis.Redis") -> SessionControl:
    return SessionControl(
        settings=FleetSettings.from_env({"REDIS_URL": redis_url}), client=client, publish=lambda session: None
    )


@pytest.fixture
def control(redis_url: str, client: "redis.Redis") -> SessionControl:
    """Of a fleet that is open and has one worker with two slots."""
    lease(client, slots=2)
    run(client, admission.open_joins("default"))
    run(client, workers.open_joins(WORKER))
    return control_of(redis_url, client)


def lease(client: "redis.Redis", *, slots: int, draining: bool = False, worker_id: str = WORKER) -> None:
    status = workers.WorkerStatus(
        worker_id=worker_id, name="worker", slots=slots, busy=0, draining=draining, started_at=0.0
    )
    run(client, workers.renew(status))


def join(control: SessionControl, room: str, *, idempotency_key: str | None = None) -> Joined:
    return control.join(room=room, user_id="caller", metadata={}, idempotency_key=idempotency_key)


def claim(client: "redis.Redis", session: Session, *, owner: str = WORKER) -> Session:
    claimed = run(client, record_moves.claim(session.session_id, epoch=session.epoch, owner=owner, lifetime=60))
    assert run(client, admission.confirm(session.tenant, session.room, session.session_id, hold=60))
    return claimed


def end(client: "redis.Redis", session: Session, reason: Reason) -> Session:
    ended = run(client, record_moves.end(session, reason))
    run(client, admission.release(session.tenant, session.room, session.session_id))
    return ended


def test_of_many_joins_for_a_room_at_the_same_instant_one_makes_the_session(control: SessionControl) -> None:
    together = threading.Barrier(8)

    def race(_: int) -> Joined:
        together.wait()
        return join(control, "raced")

    with ThreadPoolExecutor(8) as threads:
        joins = list(threads.map(race, range(8)))
    assert [joined.created for joined in joins].count(True) == 1
    assert len({joined.session.session_id for joined in joins}) == 1


def test_a_full_fleet_queues_as_many_as_it_has_slots_and_refuses_the_rest(control: SessionControl) -> None:
    for number in range(4):
        assert join(control, f"room {number}").session.state is State.QUEUED
    with pytest.raises(FleetFull):
        join(control, "one too many")
    assert len(control.list()) == 4


def test_without_a_lease_no_worker_counts(redis_url: str, client: "redis.Redis") -> None:
    with pytest.raises(NoWorker):
        join(control_of(redis_url, client), "room")


def test_when_every_worker_is_draining_there_is_no_worker(control: SessionControl, client: "redis.Redis") -> None:
    lease(client, slots=2, draining=True)
    with pytest.raises(NoWorker, match="draining"):
        join(control, "room")


def test_a_draining_worker_offers_no_slots(control: SessionControl, client: "redis.Redis") -> None:
    lease(client, slots=2, draining=True)
    lease(client, slots=1, worker_id="another@test#00000001")
    assert (control.fleet().slots, control.fleet().free) == (1, 1)
    for number in range(2):
        join(control, f"room {number}")
    with pytest.raises(FleetFull):
        join(control, "one too many")


def test_a_redis_that_lost_its_data_admits_nobody_until_a_leader_opens_joins(
    redis_url: str, client: "redis.Redis"
) -> None:
    lease(client, slots=2)
    with pytest.raises(FleetNotReady):
        join(control_of(redis_url, client), "room")


def test_a_resigned_worker_leaves_neither_lease_nor_lead(control: SessionControl, client: "redis.Redis") -> None:
    assert run(client, workers.lead(WORKER))
    assert not run(client, workers.lead("another"))
    run(client, workers.resign(WORKER))
    assert control.fleet().workers == []
    assert run(client, workers.lead("another"))


def test_an_idempotency_key_answers_with_its_session_even_after_the_end(control: SessionControl) -> None:
    first = join(control, "room", idempotency_key="once")
    again = join(control, "room", idempotency_key="once")
    assert (again.session.session_id, again.created) == (first.session.session_id, False)
    control.leave(first.session.session_id)
    ended = join(control, "room", idempotency_key="once")
    assert (ended.session.session_id, ended.session.state) == (first.session.session_id, State.ENDED)
    assert join(control, "room", idempotency_key="twice").created


def test_leaving_while_queued_cancels_and_frees_the_room(control: SessionControl) -> None:
    session = join(control, "room").session
    answer = control.leave(session.session_id)
    assert (answer.outcome, answer.session.reason) == ("cancelled", Reason.CANCELLED)
    assert join(control, "room").created


def test_a_cancelled_session_cannot_be_claimed(control: SessionControl, client: "redis.Redis") -> None:
    session = join(control, "room").session
    control.leave(session.session_id)
    with pytest.raises(IllegalMove):
        claim(client, session)


def test_leaving_twice_asks_once_and_then_says_it_is_over(control: SessionControl, client: "redis.Redis") -> None:
    session = claim(client, join(control, "room").session)
    assert control.leave(session.session_id).outcome == "asked"
    end(client, session, Reason.LEFT)
    assert control.leave(session.session_id).outcome == "over"


def test_leaving_an_unknown_session_is_an_error(control: SessionControl) -> None:
    with pytest.raises(SessionNotFound):
        control.leave(uuid.uuid4().hex)


def test_any_replica_finds_and_leaves_what_another_joined(control: SessionControl, redis_url: str) -> None:
    session = join(control, "room").session
    with connect(redis_url) as other_client:
        other = control_of(redis_url, other_client)
        assert other.get(session.session_id).room == "room"
        assert other.leave(session.session_id).outcome == "cancelled"
    assert control.get(session.session_id).is_over


def test_of_two_claims_one_wins(control: SessionControl, client: "redis.Redis") -> None:
    session = join(control, "room").session
    assert claim(client, session).owner == WORKER
    with pytest.raises(StaleEpoch):
        claim(client, session, owner="another")
    assert control.get(session.session_id).owner == WORKER


def test_a_stale_epoch_or_owner_changes_nothing(control: SessionControl, client: "redis.Redis") -> None:
    session = claim(client, join(control, "room").session)
    for stranger in (
        Session(**{**session.__dict__, "epoch": 2}),
        Session(**{**session.__dict__, "owner": "another"}),
    ):
        with pytest.raises(StaleEpoch):
            run(client, record_moves.end(stranger, Reason.LEFT))
        with pytest.raises(StaleEpoch):
            run(client, records.stamp(stranger, "first_audio_at"))
        with pytest.raises(StaleEpoch):
            run(client, records.append_turn(stranger, {"text": "ghost"}, lifetime=60))
    assert control.get(session.session_id) == session
    assert control.turns(session.session_id) == []


def test_a_failure_stays_a_failure(control: SessionControl, client: "redis.Redis") -> None:
    session = claim(client, join(control, "room").session)
    end(client, session, Reason.WORKER_LOST)
    with pytest.raises(IllegalMove):
        run(client, record_moves.end(session, Reason.LEFT))
    control.leave(session.session_id)
    failed = control.get(session.session_id)
    assert (failed.state, failed.reason) == (State.FAILED, Reason.WORKER_LOST)


def test_a_room_is_free_again_only_after_its_release(control: SessionControl, client: "redis.Redis") -> None:
    session = claim(client, join(control, "room").session)
    run(client, record_moves.end(session, Reason.LEFT))
    with pytest.raises(RoomChanging):
        join(control, "room")
    run(client, admission.release(session.tenant, session.room, session.session_id))
    following = join(control, "room")
    assert following.created
    # A late second release by the old session does not take the room from the new one.
    run(client, admission.release(session.tenant, session.room, session.session_id))
    assert not join(control, "room").created


@pytest.mark.parametrize("damage", ["no hash at all", "no state"])
def test_a_damaged_record_spoils_no_listing(control: SessionControl, client: "redis.Redis", damage: str) -> None:
    damaged, sound = join(control, "damaged").session, join(control, "sound").session
    key = records.record_key(damaged.session_id)
    if damage == "no state":
        client.hdel(key, "state")
    else:
        client.set(key, "damage")

    assert control.list() == [control.get(sound.session_id)]
    with pytest.raises(RecordUnreadable):
        control.get(damaged.session_id)


def test_what_redis_gets_to_too_late_is_not_done(client: "redis.Redis") -> None:
    session = new_session()
    just_now = run(client, workers.fleet()).at - 0.001
    admit = admission.admit(
        "default", session.room, session.session_id, join_ttl=30, limit=1, idempotency_key="key", not_after=just_now
    )
    with pytest.raises(StateUnavailable):
        run(client, admit)
    with pytest.raises(StateUnavailable):
        run(client, record_moves.create(session, lifetime=60, not_after=just_now))
    assert client.keys("*") == []


def test_a_key_whose_join_was_given_up_is_no_longer_tied_to_that_room(
    control: SessionControl, client: "redis.Redis"
) -> None:
    given_up = new_session(room="first")
    admit = admission.admit(
        "default", given_up.room, given_up.session_id, join_ttl=0.2, limit=1, idempotency_key="once"
    )
    run(client, admit)
    joined = join(control, "second", idempotency_key="once")
    assert (joined.created, joined.session.room) == (True, "second")
    assert join(control, "first").created


def test_a_reservation_that_expired_cannot_be_confirmed(client: "redis.Redis") -> None:
    session = new_session()
    admit = admission.admit("default", session.room, session.session_id, join_ttl=0.001, limit=1)
    assert run(client, admit).outcome == "admitted"
    time.sleep(0.01)
    assert not run(client, admission.confirm("default", session.room, session.session_id, hold=60))


def test_turns_are_read_from_where_the_last_reading_ended(control: SessionControl, client: "redis.Redis") -> None:
    session = claim(client, join(control, "room").session)
    for text in ("one", "two"):
        run(client, records.append_turn(session, {"text": text}, lifetime=60))
    ((cursor, first), (_, second)) = control.turns(session.session_id)
    assert (first, second) == ({"text": "one"}, {"text": "two"})
    assert [turn for _, turn in control.turns(session.session_id, after=cursor)] == [second]


def test_a_turn_that_comes_again_after_others_is_stored_once(control: SessionControl, client: "redis.Redis") -> None:
    session = claim(client, join(control, "room").session)
    turns = [{"item_id": str(number), "text": "yes"} for number in range(3)]
    cursors = [run(client, records.append_turn(session, turn, lifetime=60)) for turn in (*turns, *turns)]
    assert cursors[:3] == cursors[3:]
    assert [turn for _, turn in control.turns(session.session_id)] == turns


def test_a_join_that_finds_redis_emptied_after_its_first_question_gets_no_room(
    control: SessionControl, client: "redis.Redis"
) -> None:
    """The holders have not registered again."""

    def emptied(operation: Operation[Any]) -> Any:
        answer = run(client, operation)
        if isinstance(answer, workers.Fleet):
            client.flushdb()
        return answer

    join = Join(
        new_session(),
        idempotency_key="key",
        check=lambda: None,
        run=emptied,
        publish=lambda session: True,
        settings=FleetSettings.from_env({"REDIS_URL": "redis://nowhere.invalid"}),
    )
    with pytest.raises(FleetNotReady):
        join.make()
    assert not client.keys("*")


def test_every_key_of_a_call_expires(control: SessionControl, client: "redis.Redis") -> None:
    waiting = join(control, "waiting", idempotency_key="key").session
    running = claim(client, join(control, "running").session)
    control.leave(running.session_id)
    run(client, records.append_turn(running, {"text": "hello"}, lifetime=60))
    ended = claim(client, join(control, "ended").session)
    run(client, records.append_turn(ended, {"text": "hello"}, lifetime=60))
    end(client, ended, Reason.LEFT)
    # The live set's members carry their own end; the workers' keys belong to no call.
    assert keys_without_expiry(client) == {
        "muster:{t:default}:live",
        "muster:{t:default}:open",
        *(f"muster:{{workers}}:{name}" for name in ("leases", "status", "leader", "ready")),
    } - {"muster:{workers}:leader"}
    control.leave(waiting.session_id)
    end(client, running, Reason.LEFT)
    assert not client.exists("muster:{t:default}:live")
