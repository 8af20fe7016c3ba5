"""Calls that end by themselves: each timer on a fleet whose timers are short, with real rooms and callers."""

import asyncio
import subprocess
import sys
import time

import pytest

from local.paths import ROOT
from tests.calls.calling import Fleet, new_room

pytestmark = pytest.mark.timeout(90)

#: Joins a room, says that it is there, and stays until it is killed.
_CALLER = """
import asyncio, sys
from local.caller import Caller

async def stay():
    async with Caller(url=sys.argv[1], token=sys.argv[2]) as caller:
        print("here", flush=True)
        await caller.left.wait()

asyncio.run(stay())
"""


async def test_a_caller_who_never_arrives_ends_the_session(impatient_fleet: Fleet) -> None:
    joined = impatient_fleet.client.join(room=new_room(), user_id="ada")
    session = await impatient_fleet.over(joined.session_id, within=8)
    assert (session.status, session.reason) == ("ended", "caller_never_arrived")
    assert session.timings.first_audio_at is None


async def test_silence_on_both_sides_ends_the_session(impatient_fleet: Fleet) -> None:
    async with impatient_fleet.call() as call:
        session = await impatient_fleet.over(call.session.session_id, within=8)
    assert (session.status, session.reason) == ("ended", "idle")


async def test_the_longest_duration_ends_a_call_in_which_people_talk(impatient_fleet: Fleet) -> None:
    async with impatient_fleet.call() as call:
        await impatient_fleet.ask(call, "What plans do you offer?")
        session = await impatient_fleet.over(call.session.session_id, within=12)
    assert (session.status, session.reason) == ("ended", "max_duration")
    assert session.timings.claimed_at is not None and session.timings.ended_at is not None
    assert session.timings.ended_at - session.timings.claimed_at < 9


async def test_the_agent_stays_until_there_is_a_reason_to_go(fleet: Fleet) -> None:
    async with fleet.call() as call:
        await asyncio.sleep(4)
        assert (await fleet.state(call.session.session_id, "live")).reason is None
        assert len(await fleet.agents_in(call.token.room)) == 1


@pytest.mark.slow
async def test_a_caller_whose_connection_is_lost_for_good_ends_the_session(fleet: Fleet) -> None:
    """The media server itself takes 15 to 20 s to miss a caller whose process died."""
    token = await asyncio.to_thread(fleet.client.token, room=new_room(), identity="ada")
    assert token.session is not None
    command = [sys.executable, "-c", _CALLER, token.url, token.token]
    caller = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=subprocess.PIPE)
    assert caller.stdout is not None
    assert (await caller.stdout.readline()).strip() == b"here"
    await fleet.state(token.session.session_id, "live")
    caller.kill()
    await caller.wait()
    lost_at = time.monotonic()
    session = await fleet.over(token.session.session_id, within=50)
    assert (session.status, session.reason) == ("ended", "caller_lost")
    assert time.monotonic() - lost_at > 10
