"""Fences in a real room: what a successor does about older agents, and an agent about one of its own name."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest
from livekit import rtc

from tests.calls.calling import Fleet, new_room
from tests.calls.test_agreeing import agent_of, sees
from tests.fleet_sessions import new_session
from worker.call.ending import Ending
from worker.call.fences import Fences
from worker.call.presence import Presence
from worker.call.room import open_ghosts
from worker.call.settings import CallSettings
from worker.fleet.session import Session
from worker.fleet.times import OUTLIVED

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]


def fences_of(room: rtc.Room, session: Session, *, remove: Callable[[str], Awaitable[None]]) -> Fences:
    async def is_ours() -> bool:
        return True

    return Fences(
        room,
        session,
        ending=Ending(session.session_id),
        remove=remove,
        is_ours=is_ours,
        is_holder=lambda: True,
        run=asyncio.create_task,
    )


async def test_an_older_agent_is_gone_before_the_next_one_speaks_although_livekit_failed_at_first(fleet: Fleet) -> None:
    older = new_session(room=new_room())
    younger = replace(older, epoch=2)
    ghosts = open_ghosts(CallSettings.from_env(fleet.settings))
    attempts: list[str] = []

    async def remove(identity: str) -> None:
        attempts.append(identity)
        if len(attempts) > 1:
            await ghosts.remove_identity(younger, identity)

    async with agent_of(fleet, older), agent_of(fleet, younger) as room:
        await sees(room, older.agent_identity)
        await fences_of(room, younger, remove=remove).remove_older()
        assert older.agent_identity not in room.remote_participants
    assert attempts == [older.agent_identity] * 2


async def test_an_agent_that_cannot_be_taken_out_is_outlived(fleet: Fleet) -> None:
    older = new_session(room=new_room())
    younger = replace(older, epoch=2)

    async def refuse(identity: str) -> None:
        pass

    async with agent_of(fleet, older), agent_of(fleet, younger) as room:
        await sees(room, older.agent_identity)
        started = time.monotonic()
        await fences_of(room, younger, remove=refuse).remove_older()
        assert time.monotonic() - started >= OUTLIVED


async def test_an_agent_that_another_process_of_its_epoch_puts_out_says_nothing_in_the_record(fleet: Fleet) -> None:
    session = new_session(room=new_room())
    ending = Ending(session.session_id)
    async with agent_of(fleet, session) as room:
        Presence(room, session, ending=ending, grace=20)
        async with agent_of(fleet, session):
            deadline = time.monotonic() + 5
            while not ending.is_decided:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.02)
    assert ending.superseded and ending.reason is None
