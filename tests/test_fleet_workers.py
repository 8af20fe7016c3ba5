"""Real workers on a real Redis: what becomes of sessions when processes, machines and servers fail or are stopped."""

import os
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest

from local.ports import PortPicker
from tests.fleet_app import DOUBLES, LIVES, PIDS, TOLD_DOUBLES, TOLD_TO_DRAIN
from tests.fleet_sessions import new_session
from tests.fleet_workers import Fleet, Worker, empty_fleet, keys_without_expiry, wait_until
from tests.redis_server import RedisServer
from worker.fleet import actions, admission, record_moves, workers
from worker.fleet.recovery import MOST_IN_A_ROW
from worker.fleet.redis_operations import run
from worker.fleet.session import Reason, Session, State
from worker.fleet.times import DEAD_MAN, HUNG, LEADER_LOCK, LEASE, UNCLAIMED, UNOWNED

#: Issue 3's bound for a lost worker.
LOST = LEASE + LEADER_LOCK + 2


@pytest.fixture(scope="module")
def fleet(redis_database: str) -> Iterator[Fleet]:
    with empty_fleet(redis_database, number=9) as fleet:
        yield fleet


@pytest.fixture
def own_fleet(own_redis: RedisServer) -> Iterator[Fleet]:
    """A fleet whose Redis a test may stop."""
    fleet = Fleet(own_redis.url)
    yield fleet
    fleet.close()


@pytest.fixture(scope="module")
def stays(fleet: Fleet) -> Iterator[Worker]:
    """The worker that all tests of this module may count on, the first of its fleet; joins are open."""
    with fleet.worker("stays") as worker:
        assert not run(fleet.client, workers.fleet()).ready
        wait_until(lambda: run(fleet.client, workers.fleet()).ready, within=LEASE + 3)
        yield worker


def misses_its_broker(worker: Worker) -> bool:
    return any("the broker cannot be reached" in line for line in worker.lines)


def status(fleet: Fleet, name: str) -> workers.WorkerStatus | None:
    return next((worker for worker in run(fleet.client, workers.fleet()).workers if worker.name == name), None)


def test_joins_open_one_lease_after_the_first_worker_came(fleet: Fleet, stays: Worker) -> None:
    now = status(fleet, "stays")
    assert now is not None
    assert time.time() - now.started_at > LEASE
    assert fleet.join("welcome").state is State.QUEUED
    fleet.leave(*fleet.control.list())


def test_a_session_is_run_until_any_replica_is_told_to_leave_it(fleet: Fleet, stays: Worker) -> None:
    session = fleet.live(fleet.join("leave"))
    assert session.owner.startswith("stays@test#")

    replica = Fleet(fleet.redis_url)
    assert replica.control.leave(session.session_id).outcome == "asked"
    over = fleet.over(session)
    assert replica.control.leave(session.session_id).outcome == "over"
    replica.close()

    assert (over.state, over.reason) == (State.ENDED, Reason.LEFT)
    fleet.wait_until_free(session, within=1)
    everlasting = {"leases", "status", "leader", "ready", "open"}
    assert {key.rpartition(":")[2] for key in keys_without_expiry(fleet.client)} <= everlasting | {"live"}
    assert fleet.client.zcard("muster:{t:default}:live") == 0


def goes_on(fleet: Fleet, session: Session, *, within: float) -> Session:
    """The session once its second owner serves it."""
    deadline = time.monotonic() + within
    while True:
        found = fleet.get(session)
        if (found.state, found.epoch) == (State.LIVE, 2):
            return found
        assert time.monotonic() < deadline, (found.state, found.epoch)
        time.sleep(0.02)


def test_a_dead_child_s_session_goes_on_at_once_and_no_other_is_touched(fleet: Fleet, stays: Worker) -> None:
    bystander = fleet.live(fleet.join("bystander"))
    victim = fleet.join("victim", fault="stumble")
    started = time.monotonic()
    recovered = goes_on(fleet, victim, within=3)
    print(f"\ndeath in a child -> live again: {time.monotonic() - started:.2f} s")
    assert (recovered.owner, recovered.recoveries) == (bystander.owner, 1)
    assert (fleet.get(bystander).state, fleet.get(bystander).epoch) == (State.LIVE, 1)
    fleet.leave(bystander, recovered)


def test_a_session_that_kills_every_child_fails_in_the_end_and_its_room_is_free(fleet: Fleet, stays: Worker) -> None:
    bystander = fleet.live(fleet.join("bystander"))
    victim = fleet.join("victim", fault="panic")
    over = fleet.over(victim, within=10)
    fleet.wait_until_free(victim, within=2)
    assert (over.state, over.reason, over.epoch) == (State.FAILED, Reason.WORKER_LOST, MOST_IN_A_ROW + 1)
    # The slot serves again, and the end is not overwritten by what comes later.
    successor = fleet.live(fleet.join("victim"))
    fleet.leave(bystander, successor)
    assert fleet.control.leave(victim.session_id).session.state is State.FAILED


def test_a_hung_child_is_killed_and_its_session_goes_on(fleet: Fleet, stays: Worker) -> None:
    session = fleet.join("hung", fault="hang")
    fleet.live(session)
    fleet.leave(goes_on(fleet, session, within=HUNG + 3))


def doubled(fleet: Fleet, worker: Worker) -> Session:
    """A live session of the worker whose message a second process of it has just got, too."""
    fleet.client.delete(DOUBLES)
    session = fleet.live(fleet.join("doubled", fault="doubled"))
    assert session.owner.startswith(f"{worker.name}@")
    fleet.send(session, queue=f"worker.{worker.name}")
    wait_until(lambda: fleet.client.lrange(DOUBLES, 0, -1) == [session.session_id], within=3)
    return session


@pytest.mark.parametrize("end", ["die", "raise"])
def test_a_doubled_message_whose_process_breaks_changes_nothing_for_the_call(
    fleet: Fleet, stays: Worker, end: str
) -> None:
    session = doubled(fleet, stays)
    fleet.client.rpush(TOLD_DOUBLES, end)
    # The keeper looks ten times a second.
    time.sleep(1)
    assert (fleet.get(session).state, fleet.get(session).epoch) == (State.LIVE, 1)
    # The slot of the broken process serves again.
    fleet.leave(fleet.live(fleet.join("beside the doubled one")), session)


def test_an_owner_that_dies_while_its_message_is_doubled_is_still_found(fleet: Fleet, stays: Worker) -> None:
    session = doubled(fleet, stays)
    os.kill(int(fleet.client.lrange(PIDS.format(session.session_id), 0, -1)[-1]), signal.SIGKILL)
    fleet.client.rpush(TOLD_DOUBLES, "give up")
    fleet.leave(goes_on(fleet, session, within=3))


def test_an_owner_that_dies_long_after_a_double_has_broken_is_a_lost_owner(fleet: Fleet, stays: Worker) -> None:
    session = doubled(fleet, stays)
    fleet.client.rpush(TOLD_DOUBLES, "raise")
    # The keeper looks ten times a second, and nothing shows that it has found the broken process.
    time.sleep(0.5)
    os.kill(int(fleet.client.lrange(PIDS.format(session.session_id), 0, -1)[-1]), signal.SIGKILL)
    fleet.leave(goes_on(fleet, session, within=3))


def test_a_session_whose_claim_was_not_answered_goes_on(fleet: Fleet, stays: Worker) -> None:
    live = fleet.live(fleet.join("unheard", fault="unheard"))
    assert live.epoch == 2
    fleet.leave(live)


def test_what_keepers_have_done_is_counted_for_operators(fleet: Fleet, stays: Worker) -> None:
    def ended() -> int:
        return run(fleet.client, actions.read()).get("ended:internal_error", 0)

    before = ended()
    fleet.over(fleet.join("counted", fault="raise"), within=3)
    wait_until(lambda: ended() > before, within=3)
    assert fleet.client.ttl("muster:{workers}:actions") > 0


def test_a_task_that_breaks_without_an_end_has_its_session_ended(fleet: Fleet, stays: Worker) -> None:
    over = fleet.over(fleet.join("broken", fault="raise"), within=3)
    assert (over.state, over.reason) == (State.FAILED, Reason.INTERNAL_ERROR)
    fleet.wait_until_free(over, within=1)


def test_a_session_whose_message_was_not_published_is_published_by_the_leader(fleet: Fleet, stays: Worker) -> None:
    def fail(session: Session) -> None:
        raise ConnectionRefusedError

    joined = fleet.replica(publish=fail).join(room="no message", user_id="caller", metadata={})
    assert joined.created
    live = fleet.live(joined.session, within=6)
    assert live.published_at is not None
    fleet.leave(live)


def test_a_join_that_finds_no_slot_in_time_fails_and_frees_its_room(fleet: Fleet, stays: Worker) -> None:
    taken = [fleet.live(fleet.join(f"taken {number}")) for number in range(2)]
    hurried = Fleet(fleet.redis_url, {"MUSTER_JOIN_TTL": "1"})
    waiting = hurried.join("no slot")
    assert waiting.state is State.QUEUED
    over = fleet.over(waiting, within=4)
    hurried.close()
    assert (over.state, over.reason) == (State.FAILED, Reason.JOIN_EXPIRED)
    fleet.wait_until_free(waiting, within=1)
    fleet.leave(*taken)


def test_a_killed_keeper_is_started_again_and_calls_go_on(fleet: Fleet, stays: Worker) -> None:
    session = fleet.live(fleet.join("without keeper"))
    old = stays.keeper
    old.kill()
    wait_until(lambda: not old.is_running(), within=3)
    assert fleet.client.zadd("muster:{workers}:leases", {session.worker_id: 0}, xx=True, ch=True) == 1
    wait_until(lambda: (now := status(fleet, "stays")) is not None and now.busy == 1, within=5)
    assert fleet.get(session).state is State.LIVE
    fleet.leave(session)


def test_a_used_idle_worker_drains_and_exits_with_0(fleet: Fleet, stays: Worker) -> None:
    with fleet.worker("used", slots=1) as used:
        children = [child.pid for child in used.children]
        fleet.leave(fleet.live_on(used, "once"))
        used.terminate()
        # The drain signal comes after 1.2 s; the child that ran a session survives it.
        time.sleep(1.3)
        assert [child.pid for child in used.children] == children
        assert used.wait() == 0
        assert status(fleet, "used") is None


def test_a_draining_worker_keeps_its_call_and_swallows_no_join(fleet: Fleet, stays: Worker) -> None:
    with fleet.worker("drained", slots=2) as drained:
        session = fleet.live_on(drained, "drained")
        drained.terminate()
        wait_until(lambda: any("draining, 1" in line for line in drained.lines), within=2)
        # Into the blocking read that is still under way.
        joined_at = time.monotonic()
        others = [fleet.join(f"meanwhile {number}") for number in range(2)]
        owners = {fleet.live(other).owner for other in others}
        assert time.monotonic() - joined_at < 3
        assert all(owner.startswith("stays@") for owner in owners)
        wait_until(lambda: session.session_id in fleet.client.lrange(TOLD_TO_DRAIN, 0, -1), within=3)
        wait_until(lambda: (draining := status(fleet, "drained")) and draining.draining, within=3)
        assert fleet.get(session).state is State.LIVE
        assert drained.process.poll() is None
        fleet.leave(session)
        left_at = time.monotonic()
        assert drained.wait(5) == 0
        print(f"\nlast session over -> drained worker gone: {time.monotonic() - left_at:.2f} s")
        fleet.leave(*others)


def test_a_second_sigterm_waits_for_the_call_and_exits_with_0(fleet: Fleet, stays: Worker) -> None:
    with fleet.worker("twice", slots=1) as twice:
        session = fleet.live_on(twice, "twice")
        twice.terminate()
        time.sleep(0.3)
        twice.terminate()
        time.sleep(0.7)
        assert fleet.get(session).state is State.LIVE
        assert status(fleet, "twice") is not None
        fleet.leave(session)
        assert twice.wait(8) == 0
        assert status(fleet, "twice") is None


def test_a_worker_that_loses_redis_with_a_message_in_hand_goes_on_and_runs_it(
    own_redis: RedisServer, own_fleet: Fleet
) -> None:
    with own_fleet.worker("holding", slots=2) as worker:
        own_fleet.open_joins()
        call = own_fleet.live(own_fleet.join("call"))
        idle = {child.pid for child in worker.children} - {
            int(own_fleet.client.lrange(PIDS.format(call.session_id), 0, -1)[-1])
        }
        # A message is acknowledged when a process has taken it.
        for pid in idle:
            os.kill(pid, signal.SIGSTOP)
        in_hand = own_fleet.join("in hand")
        wait_until(lambda: own_fleet.client.hlen("unacked") == 1, within=3)
        own_redis.stop()
        wait_until(partial(misses_its_broker, worker), within=4)
        for pid in idle:
            os.kill(pid, signal.SIGCONT)
        own_redis.start()
        own_fleet.leave(own_fleet.live(in_hand, within=UNCLAIMED + LEASE + 10), call)
        assert worker.process.poll() is None
        assert own_fleet.get(call).epoch == 1


def test_a_keeper_that_dies_before_its_first_lease_does_not_end_its_worker(tmp_path: Path) -> None:
    server = RedisServer(port=PortPicker().pick(), directory=tmp_path)
    worker = Worker("early", server.url)
    try:
        wait_until(lambda: worker.has_keeper, within=10)
        worker.keeper.kill()
        wait_until(lambda: any("the keeper died" in line for line in worker.lines), within=10)
        server.start()
        worker.wait_until_ready()
        assert worker.process.poll() is None
    finally:
        worker.close()
        server.stop()


def test_a_worker_that_is_told_to_stop_while_redis_is_away_tells_its_calls_and_drains_when_it_is_back(
    own_redis: RedisServer, own_fleet: Fleet
) -> None:
    with own_fleet.worker("blind", slots=1) as blind, own_fleet.worker("idle", slots=1) as idle:
        own_fleet.open_joins()
        session = own_fleet.live_on(blind, "blind")
        own_redis.stop()
        for worker in (blind, idle):
            wait_until(partial(misses_its_broker, worker), within=4)
            worker.terminate()
        # Nobody's call waits for a worker that has none, nor that worker for Redis.
        assert idle.wait(8) == 0
        own_redis.start()
        wait_until(lambda: session.session_id in own_fleet.client.lrange(TOLD_TO_DRAIN, 0, -1), within=8)
        wait_until(lambda: any("draining, 1" in line for line in blind.lines), within=12)
        wait_until(lambda: (draining := status(own_fleet, "blind")) and draining.draining, within=3)
        assert own_fleet.get(session).state is State.LIVE
        assert blind.process.poll() is None
        own_fleet.leave(session)
        assert blind.wait(5) == 0


@pytest.mark.parametrize("drains", [False, True])
def test_sigquit_ends_a_worker_at_once_and_its_call_goes_on_with_another(
    fleet: Fleet, stays: Worker, drains: bool
) -> None:
    with fleet.worker("quits", slots=1) as quits:
        session = fleet.live_on(quits, "quits")
        if drains:
            quits.terminate()
            wait_until(lambda: any("draining, 1" in line for line in quits.lines), within=2)
        quits.process.send_signal(signal.SIGQUIT)
        assert quits.wait(5) == 0
        fleet.leave(goes_on(fleet, session, within=LOST))


def test_the_sessions_of_a_worker_that_dies_whole_go_on_with_another(fleet: Fleet, stays: Worker) -> None:
    own = fleet.live_on(stays, "survivor")
    with fleet.worker("doomed", slots=1) as doomed:
        session = fleet.live_on(doomed, "doomed")
        died_at = time.monotonic()
        doomed.die()
        recovered = goes_on(fleet, session, within=LOST)
        print(f"\nmachine death -> live again: {time.monotonic() - died_at:.2f} s")
    assert recovered.owner == fleet.get(own).owner
    assert (fleet.get(own).state, fleet.get(own).epoch) == (State.LIVE, 1)
    fleet.leave(own, recovered)


def test_sessions_of_the_last_worker_go_on_soon_after_the_next_one_starts(redis_database: str) -> None:
    with empty_fleet(redis_database, number=10) as fleet:
        with fleet.worker("last", slots=1) as last:
            fleet.open_joins()
            session = fleet.live(fleet.join("last"))
            last.die()
        started_at = time.monotonic()
        with fleet.worker("next", slots=1):
            recovered = goes_on(fleet, session, within=LOST)
            print(f"\nnext worker's start -> live again: {time.monotonic() - started_at:.2f} s")
            fleet.leave(recovered)


@pytest.mark.slow
def test_a_session_whose_child_and_keeper_die_together_goes_on(own_redis: RedisServer, own_fleet: Fleet) -> None:
    """The keeper has seen that its child is dead and waits for Redis; what it knows dies with it."""
    with own_fleet.worker("unlucky") as worker:
        own_fleet.open_joins()
        session = own_fleet.live(own_fleet.join("unlucky"))
        pids = PIDS.format(session.session_id)
        wait_until(lambda: own_fleet.client.llen(pids), within=2)
        child = int(own_fleet.client.lrange(pids, 0, -1)[-1])
        own_redis.stop()
        os.kill(child, signal.SIGKILL)
        # So long it takes until the keeper has seen it.
        time.sleep(0.5)
        worker.keeper.kill()
        own_redis.start()
        # The keeper that the parent starts then looks for a lease before it judges.
        own_fleet.leave(goes_on(own_fleet, session, within=UNOWNED))


def test_a_keeper_that_dies_while_redis_is_away_is_there_again_before_redis_is(
    own_redis: RedisServer, own_fleet: Fleet
) -> None:
    """Without a keeper its worker's calls end as soon as Redis is back."""
    with own_fleet.worker("kept", slots=1) as worker:
        own_fleet.open_joins()
        session = own_fleet.live(own_fleet.join("kept"))
        own_redis.stop()
        wait_until(partial(misses_its_broker, worker), within=4)
        # With the second attempt a wait that grew from one to the next would be longer than a keeper may be missed.
        time.sleep(2)
        worker.keeper.kill()
        wait_until(lambda: any("the keeper died" in line for line in worker.lines), within=2.5)
        wait_until(lambda: worker.has_keeper, within=1)
        own_redis.start()
        own_fleet.leave(session)
        assert own_fleet.get(session).epoch == 1


def test_a_redis_that_takes_no_writes_for_a_while_ends_no_worker_and_no_call(
    own_redis: RedisServer, own_fleet: Fleet
) -> None:
    """As when it becomes a replica for a moment, or its disk is full."""
    with own_fleet.worker("patient", slots=2) as worker:
        own_fleet.open_joins()
        session = own_fleet.live(own_fleet.join("before"))
        own_redis.demote()
        # Longer than a call lives without a renewed lease.
        time.sleep(DEAD_MAN + 0.5)
        own_redis.promote()
        wait_until(lambda: run(own_fleet.client, workers.fleet()).ready, within=LEASE + 5)
        later = own_fleet.live(own_fleet.join("after"), within=10)
        assert worker.process.poll() is None
        assert own_fleet.get(session).epoch == 1
        own_fleet.leave(session, later)


def test_nobody_counts_on_a_worker_that_was_told_to_stop_in_whatever_way(fleet: Fleet, stays: Worker) -> None:
    with fleet.worker("interrupted", slots=2) as worker:
        session = fleet.live_on(worker, "interrupted")
        worker.process.send_signal(signal.SIGINT)
        wait_until(lambda: (now := status(fleet, "interrupted")) and now.draining, within=4)
        fleet.leave(session)
        worker.wait(8)


@pytest.mark.slow
def test_an_outage_of_redis_longer_than_a_lease_ends_no_call(own_redis: RedisServer, own_fleet: Fleet) -> None:
    with own_fleet.worker("one", slots=1) as one, own_fleet.worker("two", slots=1) as two:
        own_fleet.open_joins()
        sessions = [own_fleet.live_on(worker, f"call of {worker.name}") for worker in (one, two)]
        own_redis.freeze()
        # Every lease is over when Redis answers again.
        time.sleep(LEASE + 1)
        own_redis.thaw()
        # Too short for a keeper to have judged before the next outage.
        time.sleep(0.2)
        own_redis.stop()
        own_redis.start()
        # By now whoever leads has judged.
        time.sleep(LEASE + 2)
        assert [own_fleet.get(session).state for session in sessions] == [State.LIVE, State.LIVE]
        own_fleet.leave(*sessions)


def test_a_parent_with_a_second_thread_does_not_fork(fleet: Fleet) -> None:
    worker = Worker("threaded", fleet.redis_url, TEST_PRELOAD_STARTS_A_THREAD="1")
    try:
        assert worker.wait() != 0
        assert "has 2 threads" in "".join(worker.lines)
    finally:
        worker.close()


def test_a_worker_calculates_in_one_thread_whatever_the_environment_says(fleet: Fleet, stays: Worker) -> None:
    with fleet.worker("calculates", slots=1, TEST_PRELOAD_IMPORTS="numpy", OPENBLAS_NUM_THREADS="4") as worker:
        fleet.leave(fleet.live_on(worker, "calculates"))


def runs(process: psutil.Process) -> bool:
    """Whether it is alive; one that nobody has asked for its end is not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_nothing_of_a_worker_survives_its_parent(fleet: Fleet) -> None:
    with fleet.worker("orphaned", slots=1) as worker:
        processes = worker.processes()
        worker.process.kill()
        wait_until(lambda: not any(runs(process) for process in processes[1:]), within=2)


def test_what_a_killed_parent_leaves_goes_on_with_another_before_its_lease_could_end(
    fleet: Fleet, stays: Worker
) -> None:
    with fleet.worker("headless", slots=2) as headless:
        sessions = [fleet.live_on(headless, f"headless {number}") for number in range(2)]
        processes = headless.processes()
        died_at = time.monotonic()
        headless.process.kill()
        recovered = [goes_on(fleet, session, within=LEASE - 2) for session in sessions]
        print(f"\nparent killed -> both sessions live again: {time.monotonic() - died_at:.2f} s")
        assert {session.owner.partition("@")[0] for session in recovered} == {"stays"}
        wait_until(lambda: not any(runs(process) for process in processes[1:]), within=LEASE)
        assert status(fleet, "headless") is None
        fleet.leave(*recovered)


@pytest.mark.slow
def test_a_parent_that_is_killed_while_redis_is_away_leaves_its_sessions_to_the_leading_keeper(
    own_redis: RedisServer, own_fleet: Fleet
) -> None:
    with own_fleet.worker("stays", slots=1), own_fleet.worker("headless", slots=1) as headless:
        own_fleet.open_joins()
        session = own_fleet.live_on(headless, "headless")
        processes = headless.processes()
        own_redis.stop()
        headless.process.kill()
        wait_until(lambda: not any(runs(process) for process in processes[1:]), within=LEASE + 2)
        own_redis.start()
        own_fleet.leave(goes_on(own_fleet, session, within=LOST + LEASE))


def test_a_worker_reads_recovery_first_then_its_own_queue_then_new_sessions(redis_database: str) -> None:
    queues = ["sessions", "worker.ordered", "recovery"]
    with empty_fleet(redis_database, number=11) as fleet:
        for queue in queues:
            session = new_session(session_id=queue, room=queue)
            run(fleet.client, record_moves.create(session, lifetime=60))
            admit = admission.admit("default", session.room, session.session_id, join_ttl=30, limit=10)
            assert run(fleet.client, admit).outcome == "admitted"
            fleet.send(session, queue=queue)
        with fleet.worker("ordered", slots=1):
            for queue in reversed(queues):
                fleet.leave(fleet.live(new_session(session_id=queue)))
        assert fleet.client.lrange(LIVES, 0, -1) == queues[::-1]
