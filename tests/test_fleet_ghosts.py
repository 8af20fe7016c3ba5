"""Removing a dead agent's participant, on a real LiveKit server."""

import asyncio
import json
import logging
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from livekit import api, rtc

from local.errors import LocalError
from local.parts import LIVEKIT, StackOptions
from local.paths import ROOT
from local.ports import HOST, PortPicker
from local.stack import Stack
from tests.fleet_sessions import new_session
from tests.fleet_workers import empty_fleet
from worker.fleet import ghosts as ghosts_module
from worker.fleet.ghosts import Ghosts, RoomServerSettings
from worker.fleet.recovery import MOST_IN_A_ROW
from worker.fleet.session import Reason

#: A keeper that has just started, with a session that was lost right before; the server is not there.
_TAKES_OUT = """
import asyncio, sys
from worker.fleet.errors import RoomServerAway
from worker.fleet.ghosts import Ghosts, RoomServerSettings

async def take_out(ghosts):
    await asyncio.sleep(float(sys.argv[1]))
    try:
        await ghosts.take_out("room", "agent")
    except RoomServerAway:
        print("asked the server")

async def both():
    server = {"LIVEKIT_URL": "ws://127.0.0.1:9", "LIVEKIT_API_KEY": "key", "LIVEKIT_API_SECRET": 32 * "s"}
    ghosts = Ghosts(RoomServerSettings.from_env(server))
    await asyncio.gather(ghosts.warm_up(), take_out(ghosts))

asyncio.run(both())
"""


@pytest.fixture
def room_server(tmp_path: Path) -> Iterator[RoomServerSettings]:
    """A LiveKit server; without one the test is skipped, on CI it fails."""
    try:
        stack = Stack(
            options=StackOptions(parts=frozenset({LIVEKIT}), preferred_ports=False, home=tmp_path)
        ).__enter__()
    except LocalError as missing:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(missing))
    try:
        yield RoomServerSettings.from_env(stack.settings)
    finally:
        stack.stop()


@asynccontextmanager
async def inside(server: RoomServerSettings, room_name: str, identity: str) -> AsyncIterator[rtc.Room]:
    """A participant in a room."""
    token = api.AccessToken(server.api_key, server.api_secret).with_identity(identity)
    room = rtc.Room()
    await room.connect(server.url, token.with_grants(api.VideoGrants(room_join=True, room=room_name)).to_jwt())
    try:
        yield room
    finally:
        await room.disconnect()


def changes(room: rtc.Room) -> "asyncio.Queue[str]":
    """What the room's metadata is changed to, as a client sees it."""
    seen: asyncio.Queue[str] = asyncio.Queue()
    room.on("room_metadata_changed", lambda old, new: seen.put_nowait(new))
    return seen


async def test_a_ghost_is_removed_and_one_that_is_not_there_is_fine(
    room_server: RoomServerSettings, caplog: pytest.LogCaptureFixture
) -> None:
    session = new_session()
    gone = asyncio.Event()
    ghosts = Ghosts(room_server)
    async with inside(room_server, session.room, session.agent_identity) as room:
        room.on("disconnected", lambda reason: gone.set())
        await ghosts.remove(session)
        async with asyncio.timeout(5):
            await gone.wait()
    with caplog.at_level(logging.INFO):
        await ghosts.remove(session)
        await ghosts.remove(new_session(room="never opened"))
    assert [record for record in caplog.records if record.name == ghosts_module.__name__] == []


async def test_agents_are_found_in_every_room_and_nobody_else(room_server: RoomServerSettings) -> None:
    first, second = new_session(room="first"), new_session(room="second")
    ghosts = Ghosts(room_server)
    async with (
        inside(room_server, "first", first.agent_identity),
        inside(room_server, "first", "caller"),
        inside(room_server, "second", second.agent_identity),
        inside(room_server, "second", "agent-smith"),
    ):
        agents = {("first", first.agent_identity), ("second", second.agent_identity)}
        assert set(await ghosts.agents()) == agents
        await ghosts.take_out("second", second.agent_identity)
        assert set(await ghosts.agents()) == {("first", first.agent_identity)}


async def test_a_failure_is_told_beside_what_stands_in_the_room_s_metadata(
    room_server: RoomServerSettings, caplog: pytest.LogCaptureFixture
) -> None:
    session, ghosts = new_session(), Ghosts(room_server)
    told = {"session": session.session_id, "status": "failed", "reason": "worker_lost"}
    async with inside(room_server, session.room, "caller") as room:
        seen = changes(room)

        async def change_to(metadata: str) -> None:
            async with api.LiveKitAPI(room_server.url, room_server.api_key, room_server.api_secret) as server:
                update = api.UpdateRoomMetadataRequest(room=session.room, metadata=metadata)
                await server.room.update_room_metadata(update)

        async with asyncio.timeout(10):
            await ghosts.tell_failed(session, Reason.WORKER_LOST)
            assert json.loads(await seen.get()) == {"muster": told}
            await change_to('{"theme": "dark", "muster": {"session": "an older one"}}')
            await seen.get()
            await ghosts.tell_failed(session, Reason.WORKER_LOST)
            assert json.loads(await seen.get()) == {"theme": "dark", "muster": told}
            for foreign in ("a poem", "[1]"):
                await change_to(foreign)
                assert await seen.get() == foreign
                await ghosts.tell_failed(session, Reason.WORKER_LOST)
                assert room.metadata == foreign
    assert caplog.text.count("not Muster's to change") == 2
    await ghosts.tell_failed(new_session(room="never opened"), Reason.WORKER_LOST)


async def test_a_caller_s_client_is_told_when_its_call_has_lost_too_many_workers(
    room_server: RoomServerSettings, redis_database: str
) -> None:
    environ = {
        "LIVEKIT_URL": room_server.url,
        "LIVEKIT_API_KEY": room_server.api_key,
        "LIVEKIT_API_SECRET": room_server.api_secret,
    }
    with empty_fleet(redis_database, number=12) as fleet, fleet.worker("dying", slots=1, **environ) as worker:
        fleet.open_joins()
        async with inside(room_server, "a call", "caller") as room:
            seen = changes(room)
            session = fleet.join("a call", fault="panic")
            async with asyncio.timeout(20):
                told = json.loads(await seen.get())
        assert told == {"muster": {"session": session.session_id, "status": "failed", "reason": "worker_lost"}}
        failed = fleet.get(session)
        assert (failed.reason, failed.epoch) == (Reason.WORKER_LOST, MOST_IN_A_ROW + 1)
        assert any("ERROR" in line and "worker_lost" in line for line in worker.lines)


def test_an_agent_is_taken_out_also_while_the_client_is_still_being_imported() -> None:
    """A process of its own, because this one has imported it."""
    for seconds in (0.0, 0.05, 0.1, 0.2):
        command = [sys.executable, "-c", _TAKES_OUT, str(seconds)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (0, "asked the server\n"), done.stderr


async def test_an_absent_room_server_is_logged_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    absent = RoomServerSettings.from_env(
        {
            "LIVEKIT_URL": f"ws://{HOST}:{PortPicker().pick()}",
            "LIVEKIT_API_KEY": "key",
            "LIVEKIT_API_SECRET": "a secret of at least 32 characters",
        }
    )
    session = new_session()
    await Ghosts(absent).remove(session)
    assert caplog.messages == [f"session {session.session_id}: its participant is still in the room"]
