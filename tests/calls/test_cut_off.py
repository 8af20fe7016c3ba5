"""A caller whose agent is killed in the middle of their sentence need not say its beginning again."""

import asyncio
import os
import signal
import time

import numpy as np
import pytest

from local.caller import quiet_room
from tests.calls.calling import Fleet, OngoingCall
from worker.fleet import drafts
from worker.fleet.redis_operations import connect_async, run_async

pytestmark = [pytest.mark.slow, pytest.mark.timeout(90)]


async def test_words_that_a_killed_agent_had_recognised_are_answered_by_the_next_one(fleet: Fleet) -> None:
    begun, rest = await asyncio.gather(
        asyncio.to_thread(fleet.voice.render, "How much is the premium plan"),
        asyncio.to_thread(fleet.voice.render, "please?"),
    )
    line = np.concatenate([begun, quiet_room(0.2), rest])
    async with fleet.call() as call:
        session_id = call.session.session_id
        child = await asyncio.to_thread(fleet.child_of, session_id)
        speaking = asyncio.create_task(call.caller.say(line))
        await _words_are_kept(fleet, session_id)
        os.kill(child, signal.SIGKILL)
        killed_at = time.time()
        # The rest is spoken to nobody.
        await speaking
        await _is_answered(call, killed_at)
        said = [turn for turn in await fleet.turns(session_id) if turn.role != "event"]
    users = [turn.text or "" for turn in said if turn.role == "user"]
    assert len(users) == 1 and "premium plan" in users[0].lower()
    assert "forty nine" in (said[-1].text or "")


async def test_words_that_a_killed_agent_had_only_heard_are_recognised_by_the_next_one(fleet: Fleet) -> None:
    words = await asyncio.to_thread(fleet.voice.render, "How much is the premium plan please?")
    async with fleet.call() as call:
        session_id = call.session.session_id
        child = await asyncio.to_thread(fleet.child_of, session_id)
        # No silence in which anything could be recognised follows the last word.
        await call.caller.say(words)
        os.kill(child, signal.SIGKILL)
        await _is_answered(call, time.time())
        said = [turn for turn in await fleet.turns(session_id) if turn.role != "event"]
    users = [turn.text or "" for turn in said if turn.role == "user"]
    assert len(users) == 1 and "premium plan" in users[0].lower()
    assert "forty nine" in (said[-1].text or "")


async def _is_answered(call: OngoingCall, killed_at: float) -> None:
    """Hear the next agent say that it goes on, and then the answer."""
    resumed = await call.caller.heard.first_audible_after(killed_at, within=10)
    print(f"\nkill -> audible: {resumed - killed_at:.2f} s")
    await call.caller.heard.silent_since(resumed, gap=1.0, within=15)
    answered = await call.caller.heard.first_audible_after(time.time(), within=12)
    await call.caller.heard.silent_since(answered, gap=1.5, within=20)


async def _words_are_kept(fleet: Fleet, session_id: str) -> None:
    deadline = time.monotonic() + 10
    async with connect_async(fleet.settings["REDIS_URL"]) as client:
        while not await run_async(client, drafts.read(session_id)):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.005)
