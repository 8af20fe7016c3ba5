"""Which agents in LiveKit's rooms nobody vouches for, on a real Redis and a clock that the test turns."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

import pytest
import redis.asyncio

from tests.fleet_sessions import new_session
from worker.fleet import record_moves, workers
from worker.fleet.actions import Actions
from worker.fleet.errors import RoomServerAway
from worker.fleet.orphans import Orphans
from worker.fleet.redis_operations import connect_async, run_async
from worker.fleet.session import Reason, Session, State
from worker.fleet.times import ORPHANED
from worker.fleet.workers import WorkerStatus

WORKER = "worker@test#00000000"
STATUS = WorkerStatus(worker_id=WORKER, name="worker", slots=2, busy=0, draining=False, started_at=0.0)


class Rooms:
    """LiveKit as the keeper sees it, and a keeper's look at it."""

    def __init__(self, client: "redis.asyncio.Redis") -> None:
        self.client = client
        self.now = 0.0
        self.inside: set[tuple[str, str]] = set()
        self.is_away = False
        self.actions = Actions()
        self.orphans = Orphans(
            client=client,
            actions=self.actions,
            agents=self.agents,
            take_out=self.take_out,
            clock=lambda: self.now,
        )

    async def agents(self) -> Sequence[tuple[str, str]]:
        if self.is_away:
            raise RoomServerAway
        return sorted(self.inside)

    async def take_out(self, room: str, identity: str) -> None:
        self.inside.remove((room, identity))

    def enter(self, session: Session, *, epoch: int = 1) -> None:
        self.inside.add((session.room, replace(session, epoch=epoch).agent_identity))

    async def live(self) -> Session:
        """A session that the worker has on the phone, with its agent in the room."""
        session = new_session()
        await run_async(self.client, record_moves.create(session, lifetime=60))
        await run_async(self.client, record_moves.claim(session.session_id, epoch=1, owner=WORKER, lifetime=60))
        step = record_moves.move(session.session_id, State.LIVE, epoch=1, lifetime=60, stamp="first_audio_at")
        self.enter(session)
        return await run_async(self.client, step)

    async def look(self, *, after: float) -> None:
        """Look now, and again after so many seconds."""
        await self.orphans.remove()
        self.now += after
        await self.orphans.remove()


@pytest.fixture
async def rooms(redis_url: str) -> AsyncIterator[Rooms]:
    async with connect_async(redis_url) as client:
        await run_async(client, workers.renew(STATUS))
        await run_async(client, workers.open_joins(WORKER))
        yield Rooms(client)


async def test_the_agent_of_a_session_that_is_over_is_taken_out_after_a_while(rooms: Rooms) -> None:
    session = await rooms.live()
    await rooms.look(after=2 * ORPHANED)
    await run_async(rooms.client, record_moves.end(session, Reason.CALLER_LEFT))
    await rooms.look(after=ORPHANED - 0.1)
    assert rooms.inside
    await rooms.look(after=0.2)
    assert not rooms.inside
    assert rooms.actions.counts == {"orphan_removed": 1}


async def test_an_agent_of_an_older_epoch_is_one_and_those_of_its_own_and_a_younger_epoch_are_not(rooms: Rooms) -> None:
    session = await rooms.live()
    await run_async(rooms.client, record_moves.recover(session, most=3, settled=60, patience=60, lifetime=60))
    for epoch in (2, 3):
        rooms.enter(session, epoch=epoch)
    await rooms.look(after=ORPHANED)
    assert {identity[-2:] for _, identity in rooms.inside} == {"-2", "-3"}


async def test_whom_a_live_worker_vouches_for_is_left_alone(rooms: Rooms) -> None:
    session = await rooms.live()
    await run_async(rooms.client, record_moves.end(session, Reason.CALLER_LEFT))
    vouching = replace(STATUS, holdings=[workers.holding(session.session_id, 1)])
    await run_async(rooms.client, workers.renew(vouching))
    await rooms.look(after=2 * ORPHANED)
    assert rooms.inside
    await run_async(rooms.client, workers.resign(WORKER))
    await rooms.look(after=2 * ORPHANED)
    assert not rooms.inside


async def test_of_sessions_without_a_record_only_those_seen_before_are_judged(rooms: Rooms) -> None:
    session = await rooms.live()
    rooms.enter(new_session(room="another fleet's"))
    await rooms.orphans.remove()
    await rooms.client.delete(f"muster:{{s:{session.session_id}}}:record")
    await rooms.look(after=2 * ORPHANED)
    assert {room for room, _ in rooms.inside} == {"another fleet's"}


async def test_nobody_is_judged_while_holders_register_again_or_by_what_was_seen_before(rooms: Rooms) -> None:
    session = await rooms.live()
    await rooms.orphans.remove()
    await rooms.client.delete("muster:{workers}:ready", f"muster:{{s:{session.session_id}}}:record")
    await rooms.look(after=2 * ORPHANED)
    assert rooms.inside
    await run_async(rooms.client, workers.open_joins(WORKER))
    await rooms.look(after=ORPHANED - 0.1)
    # Redis was away, or another keeper led.
    rooms.orphans.forget()
    await rooms.look(after=ORPHANED - 0.1)
    assert rooms.inside


async def test_a_livekit_that_is_away_is_logged_once_and_looked_at_again(
    rooms: Rooms, caplog: pytest.LogCaptureFixture
) -> None:
    session = await rooms.live()
    await run_async(rooms.client, record_moves.end(session, Reason.CALLER_LEFT))
    rooms.is_away = True
    await rooms.look(after=ORPHANED)
    assert caplog.text.count("LiveKit does not answer") == 1
    rooms.is_away = False
    await rooms.look(after=ORPHANED)
    assert not rooms.inside
