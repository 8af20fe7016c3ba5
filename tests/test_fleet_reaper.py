"""The leading keeper's judgement, on a real Redis and a clock that the test turns."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator

import pytest
import redis.asyncio

from tests.fleet_sessions import new_session
from worker.fleet import admission, record_moves, records, workers
from worker.fleet.actions import Actions
from worker.fleet.endings import Endings
from worker.fleet.errors import RoomServerAway, StaleEpoch
from worker.fleet.ghosts import Ghosts, RoomServerSettings
from worker.fleet.lasting import Observation
from worker.fleet.reaper import Reaper
from worker.fleet.recovery import MOST_IN_A_ROW, Recovery
from worker.fleet.redis_operations import connect_async, run_async
from worker.fleet.session import Reason, Session, State, owner_of
from worker.fleet.times import (
    BEAT,
    CLOSED,
    LEASE,
    LEAVING,
    SETTLED,
    UNCLAIMED,
    UNHELD,
    UNOWNED_SEEN,
    UNOWNED_UNSEEN,
    UNPUBLISHED,
    UNRECORDED,
)

WORKER = "worker@test#00000000"


class Bench:
    """A reaper, its clock and what it publishes."""

    def __init__(self, client: "redis.asyncio.Redis") -> None:
        self.client = client
        self.now = 0.0
        self.published: list[str] = []
        self.actions = Actions()
        #: Who is in LiveKit's rooms; None while it does not answer.
        self.in_rooms: list[tuple[str, str]] | None = []
        self.endings = Endings(client=client, actions=self.actions, remove_ghost=Ghosts(RoomServerSettings()).remove)
        self.recovery = Recovery(
            client=client,
            actions=self.actions,
            endings=self.endings,
            publish=lambda session: self.published.append(session.task_id),
            lifetime=60,
        )
        self.reaper = Reaper(
            client=client,
            tenant="default",
            worker_id=WORKER,
            actions=self.actions,
            endings=self.endings,
            recovery=self.recovery,
            agents=self.agents,
            clock=lambda: self.now,
        )

    async def agents(self) -> list[tuple[str, str]]:
        if self.in_rooms is None:
            raise RoomServerAway()
        return self.in_rooms

    async def is_open(self) -> bool:
        """Whether both say so: who asks whether joins are open, and who gives rooms."""
        answers = {
            (await run_async(self.client, workers.fleet())).ready,
            await run_async(self.client, admission.is_open("default")),
        }
        assert len(answers) == 1
        return answers.pop()

    async def lease(self, *held: Session) -> None:
        holdings = [workers.holding(session.session_id, session.epoch) for session in held]
        status = workers.WorkerStatus(
            worker_id=WORKER, name="worker", slots=2, busy=0, draining=False, started_at=0.0, holdings=holdings
        )
        await run_async(self.client, workers.renew(status))

    async def admit(self, session: Session, *, hold: float = 30) -> None:
        admit = admission.admit("default", session.room, session.session_id, join_ttl=hold, limit=9)
        assert (await run_async(self.client, admit)).outcome == "admitted"

    async def queue(self, session: Session, *, hold: float = 30) -> Session:
        await self.admit(session, hold=hold)
        await run_async(self.client, record_moves.create(session, lifetime=60))
        return session

    async def claim(self, session: Session, *, owner: str = WORKER) -> Session:
        return await run_async(self.client, record_moves.claim(session.session_id, epoch=1, owner=owner, lifetime=60))

    async def judge(self, *, after: float = 0.0) -> None:
        """Judge now, and again after so many seconds."""
        await self.reaper.judge()
        if after:
            self.now += after
            await self.reaper.judge()

    async def get(self, session: Session) -> Session:
        found = await run_async(self.client, records.read(session.session_id))
        assert found is not None
        return found

    async def holders(self) -> list[str]:
        return [*await run_async(self.client, admission.holders("default"))]


@pytest.fixture
async def bench(redis_url: str) -> AsyncIterator[Bench]:
    async with connect_async(redis_url) as client:
        bench = Bench(client)
        await bench.lease()
        yield bench
        await bench.endings.close()


async def test_a_session_whose_owner_has_no_lease_waits_for_another_and_its_ghost_is_looked_for(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    session = await bench.claim(await bench.queue(new_session()), owner="gone@test#1")
    with caplog.at_level(logging.INFO):
        await bench.judge()
        await bench.endings.close()
    waiting = await bench.get(session)
    assert (waiting.state, waiting.epoch, waiting.owner) == (State.RECOVERING, 2, "")
    assert bench.published == [f"{session.session_id}.2"]
    assert await bench.holders() == [session.session_id]
    assert bench.actions.counts["recovered"] == 1
    assert f"session {session.session_id}: no LiveKit settings" in caplog.text


async def test_the_old_owner_is_refused_and_the_next_one_claims(bench: Bench) -> None:
    session = await bench.claim(await bench.queue(new_session()), owner="gone@test#1")
    await bench.judge()
    with pytest.raises(StaleEpoch):
        await run_async(bench.client, records.append_turn(session, {"text": "too late"}, lifetime=60))
    with pytest.raises(StaleEpoch):
        await run_async(bench.client, record_moves.end(session, Reason.LEFT))
    claimed = await run_async(bench.client, record_moves.claim(session.session_id, epoch=2, owner=WORKER, lifetime=60))
    assert (claimed.state, claimed.owner, claimed.agent_identity[-2:]) == (State.CONNECTING, WORKER, "-2")


async def test_a_session_that_kills_one_owner_after_the_other_fails_in_the_end(bench: Bench) -> None:
    session = await bench.queue(new_session())
    for epoch in range(1, MOST_IN_A_ROW + 2):
        claim = record_moves.claim(session.session_id, epoch=epoch, owner=f"gone@test#{epoch}", lifetime=60)
        await run_async(bench.client, claim)
        await bench.judge()
    failed = await bench.get(session)
    assert (failed.state, failed.reason) == (State.FAILED, Reason.WORKER_LOST)
    assert await bench.holders() == []
    assert bench.actions.counts == {"ended:worker_lost": 1, "recovered": MOST_IN_A_ROW}


async def test_owners_that_were_there_for_long_are_not_counted(bench: Bench) -> None:
    session = await bench.queue(new_session())
    key = records.record_key(session.session_id)
    for epoch in range(1, MOST_IN_A_ROW + 4):
        claim = record_moves.claim(session.session_id, epoch=epoch, owner=f"gone@test#{epoch}", lifetime=60)
        await run_async(bench.client, claim)
        await bench.client.hset(key, "claimed_at", str(time.time() - SETTLED - 1))
        await bench.judge()
    assert (await bench.get(session)).state is State.RECOVERING


async def test_a_session_that_nobody_goes_on_with_is_published_again_and_then_fails(bench: Bench) -> None:
    session = await bench.claim(await bench.queue(new_session()), owner="gone@test#1")
    await bench.judge()
    await bench.judge(after=UNCLAIMED + 0.1)
    assert bench.published == [f"{session.session_id}.2"] * 2
    await bench.client.hset(records.record_key(session.session_id), "join_deadline", "1")
    await bench.judge()
    failed = await bench.get(session)
    assert (failed.state, failed.reason) == (State.FAILED, Reason.WORKER_LOST)
    assert await bench.holders() == []


async def test_a_session_between_two_owners_leaves_at_once(bench: Bench) -> None:
    session = await bench.claim(await bench.queue(new_session()), owner="gone@test#1")
    await bench.judge()
    left = await run_async(bench.client, record_moves.leave(session.session_id, command_id="1", lifetime=60))
    assert (left.outcome, left.session.reason) == ("cancelled", Reason.LEFT)


async def test_a_session_that_was_leaving_when_its_worker_died_keeps_its_reason(bench: Bench) -> None:
    session = await bench.claim(await bench.queue(new_session()), owner="gone@test#1")
    leaving = record_moves.move(
        session.session_id,
        State.ENDING,
        epoch=1,
        owner=session.owner,
        lifetime=60,
        stamp="ending_at",
        fields={"reason": Reason.LEFT},
    )
    await run_async(bench.client, leaving)
    await bench.judge()
    ended = await bench.get(session)
    assert (ended.state, ended.reason) == (State.ENDED, Reason.LEFT)


async def test_a_session_whose_owner_was_stopped_while_it_left_ends_and_gives_its_room_back(bench: Bench) -> None:
    session = await bench.queue(new_session())
    claimed = await bench.claim(session, owner="worker@gone#1")
    # It was told no reason: it was cancelled.
    leaving = record_moves.move(
        session.session_id, State.ENDING, epoch=1, owner=claimed.owner, lifetime=60, stamp="ending_at"
    )
    await run_async(bench.client, leaving)
    await bench.judge()
    assert ((await bench.get(session)).reason, await bench.holders()) == (Reason.WORKER_LOST, [])


async def test_an_owner_with_a_lease_that_runs_its_session_is_never_touched(bench: Bench) -> None:
    session = await bench.claim(await bench.queue(new_session()), owner=owner_of(WORKER))
    await bench.lease(session)
    await bench.judge(after=3600)
    assert (await bench.get(session)).state is State.CONNECTING
    assert await bench.holders() == [session.session_id]


async def test_what_no_process_of_a_living_owner_runs_goes_on_with_another(bench: Bench) -> None:
    """Child and keeper died together, or the claim came when its child had given up."""
    session = await bench.claim(await bench.queue(new_session()), owner=owner_of(WORKER))
    await bench.lease()
    await bench.judge(after=UNHELD - 0.1)
    assert (await bench.get(session)).state is State.CONNECTING
    await bench.judge(after=0.2)
    await bench.endings.close()
    assert ((await bench.get(session)).state, bench.published) == (State.RECOVERING, [f"{session.session_id}.2"])


async def test_what_a_worker_lists_once_was_not_unheld_before(bench: Bench) -> None:
    session = await bench.claim(await bench.queue(new_session()), owner=owner_of(WORKER))
    await bench.judge(after=UNHELD - 0.1)
    await bench.lease(session)
    await bench.judge()
    await bench.lease()
    await bench.judge(after=UNHELD - 0.1)
    assert (await bench.get(session)).state is State.CONNECTING


async def test_a_join_past_its_deadline_fails_although_its_hold_has_ended_by_itself(bench: Bench) -> None:
    session = await bench.queue(new_session(join_ttl=-1), hold=0.001)
    await asyncio.sleep(0.01)
    assert await bench.holders() == []
    await bench.judge()
    failed = await bench.get(session)
    assert (failed.state, failed.reason) == (State.FAILED, Reason.JOIN_EXPIRED)


async def lost_for(bench: Bench, seconds: float) -> Session:
    """A session whose last moment to be claimed by a second owner has passed so many seconds ago."""
    session = await bench.claim(await bench.queue(new_session()), owner="gone@test#1")
    step = record_moves.recover(session, most=3, settled=60, patience=-seconds, lifetime=60)
    return await run_async(bench.client, step)


async def test_a_lost_call_is_given_up_only_after_redis_was_seen_for_long_enough(bench: Bench) -> None:
    session = await lost_for(bench, 1)
    await bench.judge(after=UNOWNED_SEEN - 0.1)
    assert (await bench.get(session)).state is State.RECOVERING
    # Its message may be void after an outage; there are some more.
    assert bench.published
    bench.reaper.forget_sessions()
    await bench.judge(after=UNOWNED_SEEN - 0.1)
    assert (await bench.get(session)).state is State.RECOVERING
    await bench.judge(after=0.2)
    given_up = await bench.get(session)
    assert (given_up.state, given_up.reason) == (State.FAILED, Reason.WORKER_LOST)


async def test_a_lost_call_is_given_up_at_last_however_little_was_seen_of_it(bench: Bench) -> None:
    session = await lost_for(bench, UNOWNED_UNSEEN + 1)
    await bench.judge()
    assert (await bench.get(session)).reason is Reason.WORKER_LOST


async def test_a_lost_call_in_its_time_is_not_given_up_however_long_it_was_seen(bench: Bench) -> None:
    session = await lost_for(bench, -20)
    await bench.judge(after=2 * UNOWNED_SEEN)
    assert (await bench.get(session)).state is State.RECOVERING


async def test_a_session_without_a_record_is_not_listed_for_long(bench: Bench) -> None:
    listed, recent = new_session(room="kept"), admission.recent("default", count=9)
    await bench.queue(listed)
    await bench.admit(new_session(room="never recorded"), hold=0.001)
    await asyncio.sleep(0.01)
    await bench.judge()
    # `/join` may be just writing it.
    both = await run_async(bench.client, recent)
    assert len(both) == 2
    long_ago = (time.time() - UNRECORDED) * 1000 - 1
    await bench.client.zadd("muster:{t:default}:recent", dict.fromkeys(both, long_ago))
    bench.reaper.forget_sessions()
    await bench.judge()
    assert await run_async(bench.client, recent) == [listed.session_id]
    assert bench.actions.counts == {"stale_index_removed": 1}


async def test_a_worker_without_a_lease_is_not_listed_for_long(bench: Bench) -> None:
    await bench.client.hset("muster:{workers}:status", "left@test#1", "{}")
    await bench.reaper.sweep()
    assert await bench.client.hkeys("muster:{workers}:status") == [WORKER]
    assert bench.actions.counts == {"stale_index_removed": 1}


async def test_an_unpublished_session_is_published_soon_and_then_every_few_seconds(bench: Bench) -> None:
    session = await bench.queue(new_session())
    await bench.judge(after=UNPUBLISHED - 0.1)
    assert bench.published == []
    await bench.judge(after=0.2)
    assert bench.published == [session.session_id]
    assert (await bench.get(session)).published_at is not None
    await bench.judge(after=UNCLAIMED - 0.1)
    assert len(bench.published) == 1
    await bench.judge(after=0.2)
    assert len(bench.published) == 2
    await bench.claim(session)
    await bench.judge(after=UNCLAIMED + 1)
    assert len(bench.published) == 2


async def test_a_hold_without_a_record_is_released_and_its_room_is_free(bench: Bench) -> None:
    session = new_session()
    await bench.admit(session)
    await bench.judge(after=UNRECORDED - 0.1)
    assert await bench.holders() == [session.session_id]
    await bench.judge(after=0.2)
    assert await bench.holders() == []
    await bench.admit(new_session(room=session.room))


async def test_a_session_that_is_over_holds_its_room_only_while_its_owner_leaves(bench: Bench) -> None:
    leaving = await bench.claim(await bench.queue(new_session(room="leaving")))
    dead = await bench.claim(await bench.queue(new_session(room="dead")), owner="gone@test#1")
    for session in (leaving, dead):
        await run_async(bench.client, record_moves.end(session, Reason.LEFT))
    await bench.judge(after=LEAVING - 0.1)
    assert await bench.holders() == [leaving.session_id]
    await bench.judge(after=0.2)
    assert await bench.holders() == []
    assert (await bench.get(leaving)).reason is Reason.LEFT


async def test_joins_open_one_lease_after_they_were_found_closed_without_a_break(bench: Bench) -> None:
    await bench.reaper.open_joins()
    bench.now += LEASE - 0.1
    await bench.reaper.open_joins()
    bench.reaper.forget_joins()
    bench.now += 0.2
    await bench.reaper.open_joins()
    assert not await bench.is_open()
    bench.now += LEASE
    await bench.reaper.open_joins()
    assert await bench.is_open()


async def test_joins_wait_for_a_call_that_cannot_register_as_long_as_it_may_live(bench: Bench) -> None:
    bench.in_rooms = [("room", "agent-unknown-1")]
    await bench.reaper.open_joins()
    bench.now += CLOSED - 0.1
    await bench.reaper.open_joins()
    assert not await bench.is_open()
    bench.now += 0.2
    await bench.reaper.open_joins()
    assert await bench.is_open()


async def test_joins_open_as_soon_as_every_call_has_its_room_again(bench: Bench) -> None:
    session = new_session()
    bench.in_rooms = [(session.room, session.agent_identity)]
    await bench.reaper.open_joins()
    bench.now += LEASE
    await bench.reaper.open_joins()
    assert not await bench.is_open()
    await bench.admit(session)
    await bench.reaper.open_joins()
    assert await bench.is_open()


async def test_joins_do_not_wait_for_ever_for_livekit(bench: Bench) -> None:
    bench.in_rooms = None
    await bench.reaper.open_joins()
    bench.now += CLOSED - 0.1
    await bench.reaper.open_joins()
    assert not await bench.is_open()
    bench.now += 0.2
    await bench.reaper.open_joins()
    assert await bench.is_open()


def test_only_a_whole_lease_without_a_break_suffices_to_judge() -> None:
    now = 0.0
    observation = Observation(lambda: now)

    def beats(seconds: float) -> None:
        nonlocal now
        for _ in range(round(seconds / BEAT)):
            now += BEAT
            observation.saw()

    beats(LEASE)
    assert not observation.suffices
    beats(BEAT)
    assert observation.suffices
    observation.broke()
    assert not observation.suffices
    beats(LEASE)
    assert not observation.suffices
    beats(BEAT)
    assert observation.suffices
    # The keeper itself was suspended.
    now += LEASE
    assert not observation.suffices
    beats(BEAT)
    assert not observation.suffices
