"""An owner sees on a real Redis that its room stays held, also when a server that took over has missed its hold."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import redis
import redis.asyncio

from tests.test_call_giving import Agent, live_session, pass_on, read, standing_by
from worker.call.baton import Baton
from worker.call.claiming import Claiming
from worker.conversation.transcript import Transcript, Turn
from worker.fleet import admission, handing_over, record_moves, records
from worker.fleet.errors import StaleEpoch
from worker.fleet.redis_operations import connect, connect_async, run
from worker.fleet.session import Reason, Session, worker_of
from worker.fleet.times import STAMP


@pytest.fixture
def client(redis_url: str) -> Iterator["redis.Redis"]:
    with connect(redis_url) as client:
        yield client


@pytest.fixture
def live(client: "redis.Redis") -> Session:
    return live_session(client)


@asynccontextmanager
async def registered(redis_url: str, session: Session) -> AsyncIterator[Agent]:
    """An owner that looks after its hold, and has looked once."""
    async with connect_async(redis_url) as client:
        agent = Agent(session, client, Baton(is_held=True))
        staying = asyncio.create_task(agent.record.stay_registered())
        await asyncio.sleep(STAMP)
        try:
            yield agent
        finally:
            agent.ending.decide(Reason.LEFT)
            await staying


def hold_left(client: "redis.Redis", session: Session) -> float:
    """Seconds until the room is free."""
    return client.pttl(f"muster:{{t:default}}:room:{session.room}") / 1000


async def test_a_hold_that_ends_with_the_join_is_made_as_long_as_the_call(
    client: "redis.Redis", redis_url: str, live: Session
) -> None:
    admit = admission.admit("default", live.room, live.session_id, join_ttl=5, limit=9)
    run(client, admission.release("default", live.room, live.session_id))
    assert run(client, admit).outcome == "admitted"
    async with registered(redis_url, live) as agent:
        assert hold_left(client, live) > 50
        assert not agent.ending.is_decided
    assert run(client, admission.holders("default")) == [live.session_id]


async def test_a_room_that_went_to_another_session_meanwhile_is_left_to_it(
    client: "redis.Redis", redis_url: str, live: Session
) -> None:
    run(client, admission.release("default", live.room, live.session_id))
    run(client, admission.admit("default", live.room, "another", join_ttl=30, limit=9))
    async with registered(redis_url, live) as agent:
        assert agent.ending.superseded
    assert run(client, admission.holders("default")) == ["another"]


async def test_a_session_that_was_ended_by_another_takes_no_room_again(
    client: "redis.Redis", redis_url: str, live: Session
) -> None:
    run(client, record_moves.end(live, Reason.WORKER_LOST))
    run(client, admission.release("default", live.room, live.session_id))
    async with registered(redis_url, live) as agent:
        assert agent.ending.superseded
    assert run(client, admission.holders("default")) == []


class SlowRedis(redis.asyncio.Redis):
    """What is written to the turns waits on its way until it may arrive."""

    may_arrive: asyncio.Event

    async def evalsha(self, sha: str, numkeys: int, *rest: Any) -> Any:
        if any(str(key).endswith(":turns") for key in rest[:numkeys]):
            await self.may_arrive.wait()
        return await super().evalsha(sha, numkeys, *rest)


async def test_a_turn_on_its_way_to_a_redis_that_has_lost_its_data_does_not_come_before_those_that_were_lost(
    client: "redis.Redis", redis_url: str, live: Session
) -> None:
    async with registered(redis_url, live) as agent, connect_async(redis_url) as pool:
        slow = SlowRedis(connection_pool=pool.connection_pool)
        slow.may_arrive = asyncio.Event()
        slow.may_arrive.set()
        transcript = Transcript(live, client=slow, lifetime=60, on_lost=pytest.fail, writing=agent.record.writing)
        agent.record.store_again = transcript.restart
        writing = asyncio.create_task(transcript.write())
        transcript.add(turn("a"))
        assert await transcript.flush(timeout=2)
        slow.may_arrive.clear()
        client.flushdb()
        transcript.add(turn("b"))
        again = asyncio.create_task(agent.record._register_again())
        await asyncio.sleep(0.2)
        slow.may_arrive.set()
        await again
        assert await transcript.flush(timeout=5)
        writing.cancel()
    assert [said["text"] for _, said in run(client, records.turns_after(live.session_id, "0-0"))] == ["a", "b"]


def turn(text: str) -> Turn:
    return Turn(item_id=text, role="user", at=0.0, turn_id=text, text=text, specialist="")


async def test_of_two_processes_of_one_worker_that_claim_an_epoch_only_the_last_one_writes(
    client: "redis.Redis", redis_url: str, live: Session
) -> None:
    """As after a fail-over that has lost the first claim."""
    owners = []
    for _ in range(2):
        client.hset(f"muster:{{s:{live.session_id}}}:record", mapping={"state": "queued", "owner": ""})
        async with connect_async(redis_url) as waiting:
            claiming = Claiming(live.session_id, 1, client=waiting, worker_id="worker@test#1", hold=60)
            claimed = await claiming.claim()
        assert claimed is not None and claimed.refusal is None
        owners.append(claimed.session)
    assert {worker_of(owner.owner) for owner in owners} == {"worker@test#1"}
    with pytest.raises(StaleEpoch):
        run(client, record_moves.end(owners[0], Reason.LEFT))
    run(client, record_moves.end(owners[1], Reason.LEFT))


async def test_an_owner_that_has_stepped_down_takes_nothing_back(
    client: "redis.Redis", redis_url: str, live: Session
) -> None:
    successor = standing_by(client, live)
    pass_on(client, live, successor)
    async with connect_async(redis_url) as own_client:
        agent = Agent(live, own_client, Baton(is_held=True))
        agent.record.doubt(record_moves.take_back(live, offered=successor.epoch))
        agent.ending.supersede()
        await agent.record.settle()
        await agent.record.end()
        assert agent.record.is_sure.is_set()
    assert handing_over.owns(read(client, live), successor)


async def test_a_damaged_record_that_was_taken_back_leaves_no_doubt_whose_it_is(
    client: "redis.Redis", redis_url: str, live: Session
) -> None:
    successor = standing_by(client, live)
    pass_on(client, live, successor)
    record = f"muster:{{s:{live.session_id}}}:record"
    client.hset(record, "metadata", "no JSON")
    async with connect_async(redis_url) as own_client:
        agent = Agent(live, own_client, Baton(is_held=True))
        agent.record.doubt(record_moves.take_back(live, offered=successor.epoch))
        await agent.record.be_sure()
        assert agent.record.is_sure.is_set()
        assert not agent.ending.is_decided
    assert client.hmget(record, "epoch", "owner") == [str(live.epoch), live.owner]
