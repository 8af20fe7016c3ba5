"""Attacks that once lost, doubled or stranded something: on damaged data, and on real calls."""

import asyncio
import json
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import pytest
import redis
from livekit import api, rtc

from tests.calls.calling import Fleet, OngoingCall, new_room
from tests.fleet_sessions import new_session
from worker.call.discretion import Discretion
from worker.fleet import admission, record_moves, records, workers
from worker.fleet.actions import Actions
from worker.fleet.control import SessionControl
from worker.fleet.endings import Endings
from worker.fleet.errors import RecordUnreadable
from worker.fleet.ghosts import Ghosts, RoomServerSettings
from worker.fleet.reaper import Reaper
from worker.fleet.recovery import Recovery
from worker.fleet.redis_operations import connect, connect_async, run
from worker.fleet.session import Reason, State
from worker.fleet.settings import FleetSettings

pytestmark = pytest.mark.timeout(90)

WORKER = "worker@test#00000000"
QUESTION = "What are your opening hours?"


@pytest.fixture
def client(redis_url: str) -> Iterator["redis.Redis"]:
    with connect(redis_url) as client:
        yield client


@contextmanager
def suspended(process: int) -> Iterator[None]:
    """The process neither answers nor dies meanwhile."""
    os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process, signal.SIGCONT)


async def _agent_is_connected(livekit: api.LiveKitAPI, room: str) -> None:
    deadline = time.monotonic() + 5
    while True:
        answer = await livekit.room.list_participants(api.ListParticipantsRequest(room=room))
        if any(each.state == api.ParticipantInfo.State.ACTIVE for each in answer.participants):
            return
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)


def test_a_turn_whose_answer_was_lost_is_stored_once(client: "redis.Redis") -> None:
    session = new_session()
    run(client, record_moves.create(session, lifetime=60))
    first, second = ({"item_id": name, "at": 1.5} for name in ("first", "second"))
    ids = [run(client, records.append_turn(session, turn, lifetime=60)) for turn in (first, first, second, second)]
    assert ids[0] == ids[1] and ids[2] == ids[3]
    assert [turn for _, turn in run(client, records.turns_after(session.session_id, "0-0"))] == [first, second]


def test_a_call_goes_live_although_redis_missed_the_step_before(client: "redis.Redis") -> None:
    session = new_session()
    run(client, record_moves.create(session, lifetime=60))
    run(client, record_moves.claim(session.session_id, epoch=1, owner=WORKER, lifetime=60))
    for _ in range(2):
        live = record_moves.move(session.session_id, State.LIVE, epoch=1, lifetime=60, stamp="first_audio_at")
        assert run(client, live).state is State.LIVE


async def test_an_unreadable_record_stops_neither_the_reaper_nor_the_list(
    redis_url: str, client: "redis.Redis"
) -> None:
    damaged, newer, lost = (new_session(room=f"room {number}") for number in range(3))
    for session in (damaged, newer, lost):
        run(client, admission.admit("default", session.room, session.session_id, join_ttl=30, limit=9))
        run(client, record_moves.create(session, lifetime=60))
    run(client, record_moves.claim(lost.session_id, epoch=1, owner=WORKER, lifetime=60))
    client.hdel(records.record_key(damaged.session_id), "metadata")
    client.hset(records.record_key(newer.session_id), "state", "levitating")

    async with connect_async(redis_url) as asynchronous:
        actions = Actions()
        endings = Endings(client=asynchronous, actions=actions, remove_ghost=Ghosts(RoomServerSettings()).remove)
        recovery = Recovery(
            client=asynchronous, actions=actions, endings=endings, publish=lambda session: None, lifetime=60
        )
        reaper = Reaper(
            client=asynchronous,
            tenant="default",
            worker_id=WORKER,
            actions=actions,
            endings=endings,
            recovery=recovery,
            agents=Ghosts(RoomServerSettings()).agents,
        )
        await reaper.judge()
        await endings.close()

    control = SessionControl(
        settings=FleetSettings.from_env({"REDIS_URL": redis_url}), client=client, publish=lambda session: None
    )
    assert [session.state for session in control.list()] == [State.RECOVERING]
    held = run(client, admission.holders("default"))
    assert sorted(held) == sorted(each.session_id for each in (damaged, newer, lost))
    with pytest.raises(RecordUnreadable):
        control.get(newer.session_id)


def test_a_newer_workers_status_is_read_without_its_new_fields(client: "redis.Redis") -> None:
    status = workers.WorkerStatus(
        worker_id=WORKER,
        name="worker",
        slots=2,
        busy=1,
        draining=False,
        started_at=0.0,
        holdings=[workers.holding("session", 1)],
    )
    run(client, workers.renew(status))
    known = json.loads(str(client.hget("muster:{workers}:status", WORKER)))
    client.hset("muster:{workers}:status", WORKER, json.dumps(known | {"mood": "good"}))
    assert list(run(client, workers.fleet()).workers) == [status]


@pytest.mark.parametrize(
    ("message", "logged"),
    [
        (
            'failed to handle request FfiRequest { message: Some(TextStreamWrite(Request { text: " hi }{", id: None '
            '})) }: InvalidRequest("handle not found")',
            'failed to handle request FfiRequest TextStreamWrite: InvalidRequest("handle not found")',
        ),
        (
            "401 Unauthorized - invalid token: eyJh.eyJu_-a.x-Y_z, error",
            "401 Unauthorized - invalid token: (a token), error",
        ),
    ],
)
def test_neither_words_nor_tokens_that_livekit_quotes_reach_the_log(message: str, logged: str) -> None:
    record = logging.LogRecord("livekit", logging.ERROR, "", 0, "%s - %s", ("cabi", message), None)
    assert Discretion().filter(record)
    assert record.getMessage() == f"cabi - {logged}"


async def test_a_call_survives_a_redis_that_loses_its_data_and_keeps_its_room(fleet: Fleet) -> None:
    async with fleet.call() as call:
        await fleet.state(call.session.session_id, "live")
        with connect(fleet.stack.settings["REDIS_URL"]) as client:
            before = run(client, records.read(call.session.session_id))
            client.flushdb()
            await fleet.ask(call, QUESTION)
            deadline = time.monotonic() + 15
            while not run(client, workers.fleet()).ready:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.05)
            after = run(client, records.read(call.session.session_id))
        again = await asyncio.to_thread(fleet.client.join, room=call.token.room, user_id="ada")
        assert before is not None and before.first_audio_at is not None and after == before
        assert (again.session_id, again.created) == (call.session.session_id, False)
        assert len(await fleet.agents_in(call.token.room)) == 1
        fleet.client.leave(call.session.session_id)
        assert (await fleet.over(call.session.session_id)).reason == "left"
    words = [turn.text for turn in await fleet.turns(call.session.session_id) if turn.role == "user"]
    assert words == [QUESTION]


async def test_a_room_that_is_deleted_while_the_pipeline_is_built_ends_the_session(fleet: Fleet) -> None:
    with redis.Redis.from_url(fleet.stack.settings["REDIS_URL"]) as cache:
        for phrase in cache.scan_iter("muster:{speech}:*"):
            cache.delete(phrase)
    with suspended(fleet.stack.pid("providers")):
        # The greeting is not rendered meanwhile, so the agent is in the room long before its pipeline is there.
        joined = await asyncio.to_thread(fleet.client.join, room=new_room(), user_id="ada")
        async with fleet.livekit() as livekit:
            await _agent_is_connected(livekit, joined.room)
            await livekit.room.delete_room(api.DeleteRoomRequest(room=joined.room))
    session = await fleet.over(joined.session_id, within=8)
    assert (session.status, session.reason) == ("ended", "room_closed")


@pytest.mark.slow
async def test_a_frozen_redis_neither_stops_a_call_nor_doubles_its_turns(fleet: Fleet) -> None:
    async with fleet.call() as call:
        await fleet.state(call.session.session_id, "live")
        with suspended(fleet.stack.pid("redis")):
            answered = await fleet.ask(call, QUESTION)
            await asyncio.sleep(2)
        await call.caller.heard.silent_since(answered, gap=1.0, within=20)
        await asyncio.sleep(1)
        words = [turn.text for turn in await fleet.turns(call.session.session_id) if turn.role == "user"]
    assert words == [QUESTION]


@pytest.mark.slow
async def test_a_call_survives_a_restart_of_the_media_server(fleet: Fleet) -> None:
    async with fleet.call() as call:
        await fleet.state(call.session.session_id, "live")
        fleet.stack.kill("livekit")
        await asyncio.to_thread(fleet.stack.start, "livekit")
        await asyncio.sleep(10)
        await fleet.ask(call, QUESTION)
        assert (await fleet.state(call.session.session_id, "live")).reason is None


@pytest.mark.slow
@pytest.mark.timeout(150)
async def test_a_call_survives_a_media_server_that_is_away_for_longer_than_the_sdk_is_patient(fleet: Fleet) -> None:
    async with fleet.call(rejoin_within=40) as call:
        await fleet.state(call.session.session_id, "live")
        fleet.stack.kill("livekit")
        await asyncio.sleep(17)
        await asyncio.to_thread(fleet.stack.start, "livekit")
        await asyncio.sleep(15)
        await fleet.ask(call, QUESTION)
        assert (await fleet.state(call.session.session_id, "live")).reason is None


@pytest.mark.slow
@pytest.mark.timeout(150)
async def test_a_media_server_that_is_gone_for_longer_than_a_caller_may_be_has_closed_the_room(fleet: Fleet) -> None:
    async with fleet.call() as call:
        await fleet.state(call.session.session_id, "live")
        fleet.stack.kill("livekit")
        try:
            session = await fleet.over(call.session.session_id, within=60)
        finally:
            await asyncio.to_thread(fleet.stack.start, "livekit")
    assert (session.status, session.reason) == ("ended", "room_closed")


async def test_of_two_agents_of_a_session_only_the_younger_stays(fleet: Fleet) -> None:
    async with fleet.call() as call:
        session_id = call.session.session_id
        async with _another_agent(fleet, call, epoch=0) as ghost:
            assert await asyncio.wait_for(ghost, 3) == rtc.DisconnectReason.PARTICIPANT_REMOVED
        assert await fleet.agents_in(call.token.room) == [f"agent-{session_id}-1"]
        async with _another_agent(fleet, call, epoch=2):
            deadline = time.monotonic() + 3
            while (agents := await fleet.agents_in(call.token.room)) != [f"agent-{session_id}-2"]:
                assert time.monotonic() < deadline, agents
                await asyncio.sleep(0.05)
        # It has left without a word in the record: the session is the younger one's.
        assert (await fleet.state(session_id, "live")).reason is None
        with connect(fleet.stack.settings["REDIS_URL"]) as client:
            record = run(client, records.read(session_id))
            assert record is not None
            run(client, record_moves.end(record, Reason.LEFT))
            run(client, admission.release(record.tenant, record.room, session_id))


@asynccontextmanager
async def _another_agent(
    fleet: Fleet, call: OngoingCall, *, epoch: int
) -> AsyncIterator["asyncio.Future[rtc.DisconnectReason.ValueType]"]:
    """An agent of another epoch in the call's room; why it was disconnected."""
    settings = fleet.stack.settings
    grants = api.VideoGrants(room_join=True, room=call.token.room, agent=True)
    token = (
        api.AccessToken(settings["LIVEKIT_API_KEY"], settings["LIVEKIT_API_SECRET"])
        .with_identity(f"agent-{call.session.session_id}-{epoch}")
        .with_kind("agent")
        .with_grants(grants)
        .to_jwt()
    )
    room, gone = rtc.Room(), asyncio.get_running_loop().create_future()
    room.once("disconnected", gone.set_result)
    await room.connect(settings["LIVEKIT_URL"], token)
    try:
        yield gone
    finally:
        await room.disconnect()
