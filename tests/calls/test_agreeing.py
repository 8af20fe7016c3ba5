"""Two agents of a session agree in a real room who answers, without Redis."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from livekit import rtc

from tests.calls.calling import Fleet, new_room
from tests.fleet_sessions import new_session
from worker.call.agreeing import Agreement, Verdict
from worker.call.room import connect
from worker.call.settings import CallSettings
from worker.fleet.session import Session

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]


@asynccontextmanager
async def agent_of(fleet: Fleet, session: Session) -> AsyncIterator[rtc.Room]:
    """An agent of the session in its room."""
    settings = CallSettings.from_env(fleet.settings)
    room = rtc.Room()
    await connect(room, session, settings)
    try:
        yield room
    finally:
        await room.disconnect()


async def sees(room: rtc.Room, identity: str) -> None:
    deadline = time.monotonic() + 5
    while identity not in room.remote_participants:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


async def test_an_owner_learns_from_its_successor_in_the_room_what_became_of_the_baton(fleet: Fleet) -> None:
    owner = new_session(room=new_room())
    successor = replace(owner, epoch=2)
    verdicts = [Verdict.TAKEN, Verdict.RENOUNCED]
    async with agent_of(fleet, owner) as owners:
        agreement = Agreement(owners, owner)
        async with agent_of(fleet, successor) as successors:
            await sees(owners, successor.agent_identity)
            assert await agreement.ask(2) is Verdict.UNKNOWN, "nobody answers yet"
            Agreement(successors, successor).answer(lambda: verdicts.pop(0))
            assert [await agreement.ask(2), await agreement.ask(2)] == [Verdict.TAKEN, Verdict.RENOUNCED]
        deadline = time.monotonic() + 5
        while await agreement.ask(2) is not Verdict.GONE:
            assert time.monotonic() < deadline


async def test_a_successor_tells_neither_a_younger_agent_nor_a_stranger(fleet: Fleet) -> None:
    session = replace(new_session(room=new_room()), epoch=2)
    younger, stranger = replace(session, epoch=3), replace(new_session(room=session.room), epoch=1)
    asked: list[Verdict] = []

    def decide() -> Verdict:
        asked.append(Verdict.RENOUNCED)
        return Verdict.RENOUNCED

    async with agent_of(fleet, session) as room:
        Agreement(room, session).answer(decide)
        for other in (younger, stranger):
            async with agent_of(fleet, other) as others:
                await sees(others, session.agent_identity)
                answer = await others.local_participant.perform_rpc(
                    destination_identity=session.agent_identity, method="muster.baton", payload=""
                )
                assert answer == Verdict.UNKNOWN
    assert asked == []
