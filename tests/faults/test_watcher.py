"""The watcher sees each step of a record on a real Redis, also across its restart, and knows the illegal ones."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest
import redis

from bench.faults.ledger import Ledger, Sheet
from bench.faults.monitor import Command, Step, Steps, digest, parse
from bench.faults.watcher import Watcher
from tests.redis_server import RedisServer
from worker.fleet import record_moves, records, workers
from worker.fleet.redis_operations import connect, run
from worker.fleet.session import Reason, Session, State, owner_of
from worker.fleet.times import LEASE
from worker.fleet.workers import WorkerStatus

QUEUED = Session(
    session_id="s1",
    tenant="default",
    room="room",
    user_id="caller",
    metadata={},
    state=State.QUEUED,
    epoch=1,
    admitted_at=1.0,
)
RECORD = records.record_key("s1")
LIFETIME = 60.0


@pytest.fixture
def client(own_redis: RedisServer) -> Iterator["redis.Redis"]:
    with connect(own_redis.url) as client:
        yield client


@pytest.fixture
def watcher(own_redis: RedisServer) -> Iterator[Watcher]:
    with Watcher(own_redis.url) as watcher:
        yield watcher


def seen(watcher: Watcher, read: Callable[[Ledger], Any]) -> Any:
    watcher.catch_up()
    return watcher.look_into(read)


def violations(watcher: Watcher) -> list[str]:
    return list(seen(watcher, lambda ledger: ledger.violations))


def sheet(watcher: Watcher) -> Sheet:
    found: Sheet = seen(watcher, lambda ledger: ledger.sheets["s1"])
    return found


def go_live(client: "redis.Redis", *, owner: str = "a#1") -> Session:
    run(client, record_moves.create(QUEUED, lifetime=LIFETIME))
    run(client, record_moves.claim("s1", epoch=1, owner=owner, lifetime=LIFETIME))
    return run(
        client, record_moves.move("s1", State.LIVE, epoch=1, owner=owner, lifetime=LIFETIME, stamp="first_audio_at")
    )


def recover(client: "redis.Redis", session: Session) -> Session:
    return run(client, record_moves.recover(session, most=3, settled=60, patience=30, lifetime=LIFETIME))


def test_a_whole_life_is_seen_and_legal(client: "redis.Redis", watcher: Watcher) -> None:
    live = go_live(client)
    run(client, records.append_turn(live, {"role": "user", "text": "u0w0"}, lifetime=LIFETIME))
    recovering = recover(client, live)
    again = run(client, record_moves.claim("s1", epoch=recovering.epoch, owner="b#1", lifetime=LIFETIME))
    run(client, record_moves.end(again, Reason.LEFT))
    assert [(each.state, each.epoch, each.owner) for each in sheet(watcher).entries] == [
        (State.QUEUED, 1, ""),
        (State.CONNECTING, 1, "a#1"),
        (State.LIVE, 1, "a#1"),
        (State.RECOVERING, 2, ""),
        (State.CONNECTING, 2, "b#1"),
        (State.ENDED, 2, "b#1"),
    ]
    assert [each.turn["text"] for each in sheet(watcher).stored] == ["u0w0"]
    assert violations(watcher) == []


def test_a_hand_over_is_legal(client: "redis.Redis", watcher: Watcher) -> None:
    live = go_live(client)
    offered = run(client, record_moves.offer(live)).offered_epoch
    run(client, record_moves.stand_by("s1", offered=offered, owner="b#1"))
    run(client, record_moves.give(live, offered=offered, is_open=False, lifetime=LIFETIME))
    last = sheet(watcher).entries[-1]
    assert (last.state, last.epoch, last.owner) == (State.LIVE, 2, "b#1")
    assert violations(watcher) == []


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"state": "queued"}, "moves from live to queued"),
        ({"epoch": "0"}, "goes back from epoch 1 to 0"),
        ({"owner": "b#1"}, "changes its owner from 'a#1' to 'b#1' in epoch 1"),
        ({"epoch": "2"}, "comes to epoch 2 as live, owned by 'a#1'"),
        ({"epoch": "2", "owner": "b#1"}, "comes to epoch 2 as live, owned by 'b#1'"),
    ],
)
def test_an_illegal_move_is_seen(client: "redis.Redis", watcher: Watcher, fields: Mapping[str, str], said: str) -> None:
    go_live(client)
    client.execute_command("HSET", RECORD, *(part for field in fields.items() for part in field))  # type: ignore[no-untyped-call]
    assert violations(watcher) == [f"s1: {said}"]


def test_a_deleted_record_is_seen(client: "redis.Redis", watcher: Watcher) -> None:
    go_live(client)
    client.delete(RECORD)
    assert violations(watcher) == ["s1: the record was deleted"]


def test_a_turn_that_a_stale_owner_writes_is_seen() -> None:
    # As it would be without the fence in the script, which refuses it.
    operation = records.append_turn(QUEUED, {"role": "user", "text": "u0w0"}, lifetime=LIFETIME)
    written = Command(1.0, "lua", ("XADD", records.turns_key("s1"), "*", "turn", '{"role": "user"}'))
    ledger = Ledger()
    ledger.find({"s1": {"state": "live", "epoch": "2", "owner": "b#1"}}, at=0.0)
    ledger.apply(Step(1.0, (written,), digest(operation.script), tuple(operation.keys), ("2", "b#1")))
    assert ledger.violations == []
    ledger.apply(Step(1.0, (written,), digest(operation.script), tuple(operation.keys), ("1", "a#1")))
    assert ledger.violations == ["s1: ('1', 'a#1') writes a turn in epoch 2 of 'b#1'"]


def test_a_restart_with_its_data_leaves_no_gap(client: "redis.Redis", watcher: Watcher, own_redis: RedisServer) -> None:
    live = go_live(client)
    watcher.catch_up()
    own_redis.stop()
    time.sleep(0.3)
    own_redis.start()
    recover(client, live)
    assert [each.state for each in sheet(watcher).entries][-2:] == [State.LIVE, State.RECOVERING]
    assert violations(watcher) == []
    assert watcher.away


def test_what_happened_unseen_must_have_been_reachable(
    client: "redis.Redis", watcher: Watcher, own_redis: RedisServer
) -> None:
    live = go_live(client)
    run(client, record_moves.end(live, Reason.LEFT))
    watcher.catch_up()
    watcher.look_into(
        lambda ledger: ledger.find({"s1": {"state": "live", "epoch": "1", "owner": "a#1"}}, at=time.time())
    )
    assert violations(watcher) == ["s1: was ended and is found live"]


def test_a_session_registers_again_in_an_emptied_redis_but_not_in_an_earlier_epoch(
    client: "redis.Redis", watcher: Watcher
) -> None:
    recovering = recover(client, go_live(client))
    again = run(client, record_moves.claim("s1", epoch=recovering.epoch, owner="b#1", lifetime=LIFETIME))
    watcher.catch_up()
    watcher.look_into(lambda ledger: ledger.find({}, at=time.time()))
    client.delete(RECORD)
    run(client, record_moves.create(replace(again, state=State.LIVE), lifetime=LIFETIME))
    assert violations(watcher) == []
    watcher.look_into(lambda ledger: ledger.find({}, at=time.time()))
    client.delete(RECORD)
    run(client, record_moves.create(replace(again, state=State.LIVE, epoch=1), lifetime=LIFETIME))
    assert violations(watcher) == ["s1: registers again in epoch 1 after 2"]


def test_the_time_without_an_owner_or_a_lease_is_counted(client: "redis.Redis", watcher: Watcher) -> None:
    status = WorkerStatus(worker_id="a#1", name="a", slots=1, busy=0, draining=False, started_at=0)
    run(client, workers.renew(status))
    go_live(client, owner=owner_of("a#1"))
    run(client, workers.resign("a#1"))
    time.sleep(0.2)
    run(client, workers.renew(status))
    watcher.catch_up()
    until = time.time() + LEASE + 3
    spans = watcher.look_into(lambda ledger: ledger.unowned("s1", until=until))
    # While it was queued, while the lease was given back, and since it has ended.
    lengths = [end - start for start, end in spans]
    assert len(lengths) == 3
    assert 0.2 <= lengths[1] < 1.0
    assert lengths[2] == pytest.approx(3, abs=0.5)


def test_a_line_of_the_monitor_is_read_as_it_was_written() -> None:
    line = rb'+1795660342.364169 [0 lua] "HSET" "k" "state" "a\"b\\c\n" "x" "\xc3\xa9"'
    assert parse(line) == Command(1795660342.364169, "lua", ("HSET", "k", "state", 'a"b\\c\n', "x", "é"))
    assert parse(b"+OK") is None


def test_a_scripts_commands_are_one_step() -> None:
    steps = Steps()
    call = Command(1.0, "127.0.0.1:1", ("EVALSHA", "f00", "1", "key", "argument"))
    inside = Command(1.0, "lua", ("HSET", "key", "a", "1"))
    ping = Command(2.0, "127.0.0.1:1", ("PING",))
    assert [list(steps.feed(each)) for each in (call, inside)] == [[], []]
    done, alone = steps.feed(ping)
    assert (done.script, done.keys, done.arguments, done.commands) == ("f00", ("key",), ("argument",), (inside,))
    assert alone.commands == (ping,)
