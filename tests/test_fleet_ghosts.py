"""Removing a dead agent's participant, on a real LiveKit server."""

import asyncio
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from livekit import api, rtc

from local.errors import LocalError
from local.parts import LIVEKIT, StackOptions
from local.ports import HOST, PortPicker
from local.stack import Stack
from tests.fleet_sessions import new_session
from worker.fleet import ghosts as ghosts_module
from worker.fleet.ghosts import Ghosts, RoomServerSettings


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


async def test_a_ghost_is_removed_and_one_that_is_not_there_is_fine(
    room_server: RoomServerSettings, caplog: pytest.LogCaptureFixture
) -> None:
    session = new_session()
    token = api.AccessToken(room_server.api_key, room_server.api_secret).with_identity(session.agent_identity)
    room = rtc.Room()
    gone = asyncio.Event()
    room.on("disconnected", lambda reason: gone.set())
    await room.connect(room_server.url, token.with_grants(api.VideoGrants(room_join=True, room=session.room)).to_jwt())
    ghosts = Ghosts(room_server)
    await ghosts.remove(session)
    async with asyncio.timeout(5):
        await gone.wait()
    with caplog.at_level(logging.INFO):
        await ghosts.remove(session)
        await ghosts.remove(new_session(room="never opened"))
    assert [record for record in caplog.records if record.name == ghosts_module.__name__] == []


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
