"""Real calls through the whole stack: real speech, a real SFU, a real broker."""

import asyncio
import os
import signal
import time
from typing import Literal

import httpx
import pytest
import redis
from livekit import api

from local.caller import Caller
from tests.calls.calling import Fleet

pytestmark = pytest.mark.timeout(90)


async def test_a_caller_asks_is_handed_over_and_hangs_up_by_leave(fleet: Fleet) -> None:
    async with fleet.call() as call:
        await fleet.state(call.session.session_id, "live")
        answered = await fleet.ask(call, "How much does the premium plan cost?")
        await call.caller.heard.silent_since(answered, gap=1.0, within=20)

        fleet.client.leave(call.session.session_id)
        fleet.client.leave(call.session.session_id)
        session = await fleet.over(call.session.session_id, within=3)
        assert await fleet.agents_in(call.token.room) == []

    assert (session.status, session.reason) == ("ended", "left")
    turns = await fleet.turns(call.session.session_id)
    said = {turn.role: turn for turn in turns}
    assert "premium" in (said["user"].text or "").lower()
    assert "forty nine" in (said["assistant"].text or "")
    assert said["assistant"].specialist == "sales"
    kinds = [(turn.event.kind, turn.event.target or turn.event.name) for turn in turns if turn.event]
    assert kinds == [("transfer", "sales"), ("tool", "look_up_price")]
    assert said["assistant"].timings is not None
    assert fleet.client.leave(call.session.session_id).status == "ended"


async def test_what_an_interrupted_caller_did_not_hear_is_not_in_the_history(fleet: Fleet) -> None:
    async with fleet.call() as call:
        await fleet.ask(call, "What plans do you offer?")
        line = await asyncio.to_thread(fleet.voice.render, "Sorry, please stop for a moment.")
        barge_in = await call.caller.barge_in(line, after=1.5, within=10)
        answered = await call.caller.heard.first_audible_after(barge_in.agent_silent_at, within=10)
        await call.caller.heard.silent_since(answered, gap=1.0, within=20)
        turns = await fleet.turns(call.session.session_id)

    interrupted = next(turn for turn in turns if turn.interrupted)
    assert barge_in.silenced_after < 2
    assert interrupted.specialist == "sales"
    heard = (interrupted.text or "").split()
    assert 3 <= len(heard) <= 20, "about two seconds of a long answer were heard"


@pytest.mark.slow
async def test_a_caller_who_speaks_over_the_greeting_is_heard(fleet: Fleet) -> None:
    async with fleet.call(quiet_before=False) as call:
        await fleet.ask(call, "What are your opening hours?")
        await call.caller.heard.silent_since(time.time(), gap=1.0, within=20)
        turns = await fleet.turns(call.session.session_id)
    assert any("hours" in (turn.text or "").lower() for turn in turns if turn.role == "user")


async def test_flower_shows_a_live_call_under_its_session_id_and_not_its_room(fleet: Fleet) -> None:
    flower, login = fleet.stack.urls["flower"], httpx.BasicAuth(*fleet.stack.flower_login)
    async with fleet.call(quiet_before=False) as call, httpx.AsyncClient() as http:
        await fleet.shown(call.session.session_id, "LIVE")
        page = await http.get(f"{flower}/task/{call.session.session_id}", auth=login)
        stranger = await http.get(f"{flower}/tasks")
        meddling = await http.post(f"{flower}/api/task/revoke/{call.session.session_id}", auth=login)
    assert "LIVE" in page.text and call.session.session_id in page.text
    assert call.token.room not in page.text
    assert (stranger.status_code, meddling.status_code) == (401, 403)


async def test_a_hang_up_ends_the_session_and_frees_the_room(fleet: Fleet) -> None:
    async with fleet.call() as call:
        await fleet.state(call.session.session_id, "live")
    session = await fleet.over(call.session.session_id, within=5)
    assert (session.status, session.reason) == ("ended", "caller_left")
    assert fleet.client.join(room=call.token.room, user_id="ada").created


async def test_a_second_join_for_a_live_room_answers_with_the_session_that_is_there(fleet: Fleet) -> None:
    async with fleet.call() as call:
        again = fleet.client.join(room=call.token.room, user_id="ada")
        assert (again.session_id, again.created) == (call.session.session_id, False)
        assert len(await fleet.agents_in(call.token.room)) == 1


async def test_a_deleted_room_ends_the_session(fleet: Fleet) -> None:
    async with fleet.call() as call, fleet.livekit() as livekit:
        await livekit.room.delete_room(api.DeleteRoomRequest(room=call.token.room))
        session = await fleet.over(call.session.session_id, within=5)
    assert (session.status, session.reason) == ("ended", "room_closed")


async def test_a_caller_whose_connection_was_lost_comes_back_to_the_same_agent(fleet: Fleet) -> None:
    async with fleet.call() as call:
        # The same identity again takes the place of a connection that has not been missed yet.
        token = fleet.client.token(room=call.token.room, identity="ada")
        assert token.session is not None and token.session.session_id == call.session.session_id
        async with Caller(url=token.url, token=token.token) as caller:
            line = await asyncio.to_thread(fleet.voice.render, "What are your opening hours?")
            await asyncio.sleep(1)
            spoken = await caller.say(line)
            await caller.heard.first_audible_after(spoken.ended_at, within=10)
            assert (await fleet.state(call.session.session_id, "live")).reason is None


@pytest.mark.parametrize(
    "part", ["llm", pytest.param("stt", marks=pytest.mark.slow), pytest.param("tts", marks=pytest.mark.slow)]
)
async def test_a_provider_that_fails_twice_is_apologised_for_and_ends_the_call(
    fleet: Fleet, part: Literal["stt", "tts", "llm"]
) -> None:
    async with fleet.call() as call:
        try:
            await fleet.set_fault(part, "fail")
            apologised = await fleet.ask(call, "Hello, are you there?")
            await call.caller.heard.silent_since(apologised, gap=0.6, within=15)
            await fleet.ask(call, "Hello, are you there?")
            session = await fleet.over(call.session.session_id, within=20)
        finally:
            await fleet.set_fault(part, "ok")
    assert (session.status, session.reason) == ("failed", "provider_failed")
    spoken = [turn.text for turn in await fleet.turns(call.session.session_id) if turn.role == "assistant"]
    assert any("again" in (text or "").lower() for text in spoken)
    assert any("goodbye" in (text or "").lower() for text in spoken)


async def test_every_key_of_a_call_expires(fleet: Fleet) -> None:
    fleet_wide = {"muster:{workers}:leases", "muster:{workers}:status", "muster:{workers}:ready"}
    async with fleet.call() as call:
        await fleet.ask(call, "Please open a ticket for me, my router is broken.")
        with redis.Redis.from_url(fleet.stack.settings["REDIS_URL"], decode_responses=True) as client:
            keys = set(client.scan_iter("muster:*"))
            immortal = {key for key in keys if client.ttl(key) == -1}
    assert any(call.session.session_id in key for key in keys)
    tenants = {key for key in immortal if key.endswith(("}:live", "}:open"))}
    assert immortal - fleet_wide == tenants, "only the index of holds, whose members expire by score, and the open door"


async def test_redis_restarted_between_calls_loses_nothing(fleet: Fleet) -> None:
    async with fleet.call() as call:
        fleet.client.leave(call.session.session_id)
        await fleet.over(call.session.session_id)
    fleet.stack.kill("redis", signal.SIGTERM)
    fleet.stack.start("redis")
    deadline = time.monotonic() + 20
    while True:
        try:
            async with fleet.call() as again:
                assert fleet.client.session(call.session.session_id).reason == "left"
                await fleet.state(again.session.session_id, "live")
            break
        except (AssertionError, TimeoutError):
            assert time.monotonic() < deadline


@pytest.mark.slow
async def test_a_killed_child_does_not_end_the_call_and_its_successor_remembers(fleet: Fleet) -> None:
    async with fleet.call() as call:
        session_id = call.session.session_id
        answered = await fleet.ask(call, "How much is the premium plan?")
        await call.caller.heard.silent_since(answered, gap=1.0, within=20)
        killed_at = time.time()
        os.kill(await asyncio.to_thread(fleet.child_of, session_id), signal.SIGKILL)
        resumed = await call.caller.heard.first_audible_after(killed_at, within=8)
        print(f"\nchild killed -> audible again: {resumed - killed_at:.2f} s")
        await call.caller.heard.silent_since(resumed, gap=1.0, within=20)
        session = await fleet.state(session_id, "live")
        assert (session.epoch, session.reason) == (2, None)
        assert await fleet.agents_in(call.token.room) == [f"agent-{session_id}-2"]
        answered = await fleet.ask(call, "How much is it per month?")
        await call.caller.heard.silent_since(answered, gap=1.0, within=20)
        fleet.client.leave(session_id)
        assert (await fleet.over(session_id)).reason == "left"
        turns = await fleet.turns(session_id)
    said = [(turn.role, turn.specialist) for turn in turns if turn.role != "event"]
    assert [role for role, _ in said] == ["assistant", "user", "assistant", "assistant", "user", "assistant"]
    # Who was handed over to sales before is still there after.
    assert [specialist for _, specialist in said[2:]] == ["sales"] * 4


async def test_a_used_idle_child_survives_the_drain_signal_and_a_busy_one_shows_it(fleet: Fleet) -> None:
    log = fleet.stack.log("worker-1")
    async with fleet.call(quiet_before=False) as call:
        async with fleet.call(identity="grace", quiet_before=False) as other:
            fleet.client.leave(other.session.session_id)
            await fleet.over(other.session.session_id)
        before = len(log.read_text())
        draining = asyncio.create_task(asyncio.to_thread(fleet.stack.kill, "worker-1", signal.SIGTERM))
        await fleet.shown(call.session.session_id, "DRAINING")
        # Nobody could take it over; it is tried each second, and said once.
        await asyncio.sleep(2.5)
        assert log.read_text()[before:].count("No other worker is free") == 1
        assert (await fleet.state(call.session.session_id, "live")).reason is None
        fleet.client.leave(call.session.session_id)
        async with asyncio.timeout(15):
            await draining
    assert "WorkerLost" not in log.read_text()[before:]
    fleet.stack.start("worker-1")
