"""A call that has lost its room goes back to an owner who can join again, or ends when nobody could in time."""

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
import redis
from livekit import rtc

from local.ports import HOST, PortPicker
from tests.fleet_sessions import new_session
from tests.test_call_giving import Agent, live_session, read
from tests.test_call_knowledge import CALL
from worker.call import room as rooms
from worker.call.baton import Baton
from worker.call.ending import Ending
from worker.call.errors import RoomGone
from worker.call.lost_room import LostRoom
from worker.call.presence import Presence
from worker.call.settings import CallSettings
from worker.fleet.redis_operations import connect, connect_async
from worker.fleet.session import Reason, Session, State

#: Seconds.
GRACE = 0.3
LOST = rtc.DisconnectReason.UNKNOWN_REASON


@pytest.fixture
def client(redis_url: str) -> Iterator["redis.Redis"]:
    with connect(redis_url) as client:
        yield client


class Waiting:
    """A room whose connection is lost and found, and a server that answers or does not."""

    def __init__(self, session: Session, ending: Ending, *, grace: float) -> None:
        self.ending = ending
        self.room = rtc.Room()
        self.is_there = False
        self.tasks: list[asyncio.Task[None]] = []
        # The caller is not there either, and that is not what is looked at.
        Presence(self.room, session, ending=ending, grace=60)
        LostRoom(self.room, ending=ending, answers=self._answers, run=self._run, grace=grace)

    async def _answers(self) -> bool:
        return self.is_there

    def _run(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        self.tasks.append(asyncio.create_task(work))
        return self.tasks[-1]

    @property
    def outcome(self) -> Reason | str | None:
        return "given back" if self.ending.given_back else self.ending.reason


@asynccontextmanager
async def waiting(
    *, session: Session | None = None, ending: Ending | None = None, grace: float = GRACE
) -> AsyncIterator[Waiting]:
    session = session or new_session()
    lost = Waiting(session, ending or Ending(session.session_id), grace=grace)
    try:
        yield lost
    finally:
        for task in lost.tasks:
            task.cancel()
        ends = await asyncio.gather(*lost.tasks, return_exceptions=True)
        assert not [end for end in ends if isinstance(end, Exception)]


async def test_a_room_that_the_sdk_gives_up_goes_to_another_owner_as_soon_as_the_server_answers() -> None:
    async with waiting(grace=30) as lost:
        lost.room.emit("reconnecting")
        lost.is_there = True
        await asyncio.sleep(0.05)
        assert not lost.ending.is_decided, "the SDK still tries"
        lost.is_there = False
        lost.room.emit("disconnected", LOST)
        await asyncio.sleep(0.05)
        assert not lost.ending.is_decided, "there is no server"
        lost.is_there = True
        await asyncio.wait_for(lost.ending.wait(), 5)
        assert lost.outcome == "given back"


async def test_a_room_without_a_server_is_closed_after_the_grace_although_the_sdk_still_tries() -> None:
    async with waiting() as lost:
        lost.room.emit("reconnecting")
        await asyncio.wait_for(lost.ending.wait(), 5)
        assert lost.outcome is Reason.ROOM_CLOSED


async def test_a_server_that_is_there_at_the_end_of_the_grace_gets_another_owner() -> None:
    async with waiting() as lost:
        lost.is_there = True
        lost.room.emit("reconnecting")
        await asyncio.wait_for(lost.ending.wait(), 5)
        assert lost.outcome == "given back"


async def test_the_grace_counts_from_the_loss_and_not_from_when_the_sdk_gave_up() -> None:
    async with waiting(grace=2) as lost:
        lost.room.emit("reconnecting")
        lost_at = time.monotonic()
        await asyncio.sleep(1.5)
        lost.room.emit("disconnected", LOST)
        await asyncio.wait_for(lost.ending.wait(), 5)
        assert lost.outcome is Reason.ROOM_CLOSED
        assert 2 <= time.monotonic() - lost_at < 3.4


async def test_a_room_that_is_found_again_is_waited_for_anew_when_it_is_lost_again() -> None:
    async with waiting() as lost:
        lost.room.emit("reconnecting")
        lost.room.emit("reconnected")
        await asyncio.sleep(2 * GRACE)
        assert not lost.ending.is_decided
        lost.room.emit("reconnecting")
        await asyncio.wait_for(lost.ending.wait(), 5)
        assert lost.outcome is Reason.ROOM_CLOSED


@pytest.mark.parametrize(
    ("reason", "outcome"),
    [
        (rtc.DisconnectReason.ROOM_DELETED, Reason.ROOM_CLOSED),
        (rtc.DisconnectReason.PARTICIPANT_REMOVED, Reason.LEFT),
    ],
)
async def test_an_agent_that_was_sent_away_does_not_come_back(
    reason: rtc.DisconnectReason.ValueType, outcome: Reason
) -> None:
    async with waiting() as lost:
        lost.is_there = True
        lost.room.emit("disconnected", reason)
        assert lost.outcome is outcome
        assert not lost.tasks


async def test_the_session_of_a_lost_room_waits_for_its_next_owner_and_counts_as_lost(
    client: "redis.Redis", redis_url: str
) -> None:
    session = live_session(client)
    async with connect_async(redis_url) as connection:
        agent = Agent(session, connection, Baton(is_held=True))
        async with waiting(session=session, ending=agent.ending) as lost:
            lost.is_there = True
            lost.room.emit("disconnected", LOST)
            await asyncio.wait_for(agent.ending.wait(), 5)
            await agent.record.end()
    record = read(client, session)
    assert (record.state, record.epoch, record.owner, record.recoveries) == (State.RECOVERING, 2, "", 1)
    assert [each.epoch for each in agent.published] == [2]


@pytest.fixture
def nowhere() -> CallSettings:
    """Settings of a call whose LiveKit server is not there."""
    server = {"LIVEKIT_URL": f"ws://{HOST}:{PortPicker().pick()}", "LIVEKIT_API_SECRET": 32 * "s"}
    return CallSettings.from_env(CALL | server | {"MUSTER_CALLER_LOST_GRACE": "3"})


async def test_a_server_that_is_not_there_does_not_answer(nowhere: CallSettings) -> None:
    assert not await rooms.answers(new_session(), nowhere)


async def test_a_room_is_joined_again_for_as_long_as_a_caller_may_be_lost(nowhere: CallSettings) -> None:
    session = replace(new_session(), epoch=2)
    began = time.monotonic()
    with pytest.raises(RoomGone):
        await rooms.connect_again(rtc.Room(), session, nowhere, is_given_up=lambda: False)
    assert 3 <= time.monotonic() - began < 20


async def test_nobody_joins_again_for_a_call_that_is_over(nowhere: CallSettings) -> None:
    attempts: list[None] = []

    def is_given_up() -> bool:
        attempts.append(None)
        return True

    with pytest.raises(RoomGone):
        await rooms.connect_again(rtc.Room(), new_session(), nowhere, is_given_up=is_given_up)
    assert len(attempts) == 1
