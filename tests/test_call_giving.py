"""Both sides of a live hand-over with Redis lost at the pass, and owners that leave a session to the next one."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import pytest
import redis

from graphs import entities
from tests.fleet_sessions import new_session
from tests.redis_server import RedisServer
from worker.call.agreeing import Verdict
from worker.call.baton import Baton
from worker.call.commands import SOCKET_TIMEOUT, commands
from worker.call.ending import Ending
from worker.call.handing_over import Giver, Messages, Successor, Wish
from worker.call.own_record import OwnRecord
from worker.call.talking import _Talk
from worker.conversation.transcript import Transcript, Turn
from worker.fleet import admission, handing_over, record_moves, records, workers
from worker.fleet.actions import Actions
from worker.fleet.child import Child
from worker.fleet.endings import Endings
from worker.fleet.errors import StateUnavailable
from worker.fleet.recovery import Recovery
from worker.fleet.redis_operations import connect, connect_async, run
from worker.fleet.session import Reason, Session, State
from worker.fleet.table import Table
from worker.fleet.times import SETTLED

OWNER, SUCCESSOR = (f"{name}@test#00000000" for name in ("owner", "successor"))
HOLD = 60.0


@dataclass
class Hearing:
    """A call that says nothing; its ear can be seen."""

    hears: bool = True
    says_nothing: bool = True

    def fall_deaf(self) -> None:
        self.hears = False


async def _nobody(session: Session) -> None:
    pass


@dataclass
class Agent:
    """What one process of a worker has of a session."""

    session: Session
    client: Any
    baton: Baton
    ending: Ending = field(init=False)
    record: OwnRecord = field(init=False)
    published: list[Session] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ending = Ending(self.session.session_id)
        actions = Actions()
        endings = Endings(client=self.client, actions=actions, remove_ghost=_nobody)
        self.record = OwnRecord(
            self.session,
            client=self.client,
            child=Child(worker_id=self.session.owner, table=Table.create(slots=1), index=0),
            ending=self.ending,
            baton=self.baton,
            recovery=Recovery(
                client=self.client, actions=actions, endings=endings, publish=self.published.append, lifetime=HOLD
            ),
            hold=HOLD,
            emptied=0,
        )


@contextmanager
def server_client(server: RedisServer) -> Iterator["redis.Redis"]:
    with connect(server.url) as client:
        yield client


def live_session(client: "redis.Redis") -> Session:
    session = new_session()
    run(client, admission.admit(session.tenant, session.room, session.session_id, join_ttl=HOLD, limit=9))
    run(client, record_moves.create(session, lifetime=HOLD))
    run(client, record_moves.claim(session.session_id, epoch=1, owner=OWNER, lifetime=HOLD))
    step = record_moves.move(
        session.session_id, State.LIVE, epoch=1, owner=OWNER, lifetime=HOLD, stamp="first_audio_at"
    )
    return run(client, step)


def standing_by(client: "redis.Redis", live: Session) -> Session:
    offered = run(client, record_moves.offer(live)).offered_epoch
    run(client, record_moves.stand_by(live.session_id, offered=offered, owner=SUCCESSOR))
    return replace(live, epoch=offered, owner=SUCCESSOR)


def pass_on(client: "redis.Redis", live: Session, successor: Session) -> None:
    run(client, record_moves.give(live, offered=successor.epoch, is_open=False, lifetime=HOLD))


def read(client: "redis.Redis", session: Session) -> Session:
    record = run(client, records.read(session.session_id))
    assert record is not None
    return record


def lease_successor(client: "redis.Redis") -> None:
    name = SUCCESSOR.partition("@")[0]
    status = workers.WorkerStatus(worker_id=SUCCESSOR, name=name, slots=1, busy=0, draining=False, started_at=0.0)
    run(client, workers.renew(status))


@dataclass
class Passing:
    """An owner that hands over to a successor which is ready at once; Redis goes just before the pass."""

    owner: Agent
    transcript: Transcript
    hearing: Hearing
    asked: list[int]
    running: "asyncio.Task[None]"


@asynccontextmanager
async def passing(
    server: RedisServer, client: "redis.Redis", live: Session, ask: Callable[[int], Verdict], *, is_applied: bool
) -> AsyncIterator[Passing]:
    hearing, messages, wish, asked = Hearing(), Messages.none(), Wish(), list[int]()

    def publish(offered: Session, queue: str) -> None:
        run(client, record_moves.stand_by(live.session_id, offered=offered.epoch, owner=SUCCESSOR))
        messages.ready.add(offered.epoch)

    def is_stored() -> bool:
        # The last look before the pass.
        if not messages.ready:
            return True
        if is_applied:
            pass_on(client, live, replace(live, epoch=max(messages.ready)))
        messages.ready.clear()
        server.freeze()
        return True

    async def answer(epoch: int) -> Verdict:
        asked.append(epoch)
        return ask(epoch)

    async with connect_async(server.url) as own_client:
        owner = Agent(live, own_client, Baton(is_held=True))
        transcript = Transcript(
            live, client=own_client, lifetime=HOLD, on_lost=owner.ending.supersede, is_sure=owner.record.is_sure
        )
        giver = Giver(
            live,
            client=own_client,
            baton=owner.baton,
            ending=owner.ending,
            call=hearing,
            is_writing=lambda: False,
            is_stored=is_stored,
            messages=messages,
            wish=wish,
            accept=lambda epoch: None,
            refuse=lambda epoch: None,
            ask=answer,
            publish=publish,
            place=lambda: 0,
            record=owner.record,
            lifetime=HOLD,
        )
        wish.ask("")
        tasks = [asyncio.create_task(giver.run()), asyncio.create_task(transcript.write())]
        try:
            yield Passing(owner, transcript, hearing, asked, tasks[0])
        finally:
            server.thaw()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


class Taking:
    """What taking the baton needs of a service."""

    def __init__(self, agent: Agent) -> None:
        self.session, self.ending, self.record = agent.session, agent.ending, agent.record


class Unreadable:
    """A conversation in a Redis that has gone away."""

    async def load(self) -> entities.Session:
        raise StateUnavailable


async def until(is_so: Callable[[], bool], *, within: float) -> float:
    begun = time.monotonic()
    while not is_so():
        assert time.monotonic() - begun < within
        await asyncio.sleep(0.01)
    return time.monotonic() - begun


def words(text: str) -> Turn:
    return Turn(item_id=text, role="user", at=0.0, text=text)


@pytest.mark.parametrize("is_applied", [True, False])
async def test_redis_lost_at_the_pass_leaves_the_caller_with_the_owner_whom_the_successor_leaves_it_to(
    own_redis: RedisServer, is_applied: bool
) -> None:
    with server_client(own_redis) as client:
        lease_successor(client)
        live = live_session(client)
        async with passing(own_redis, client, live, lambda epoch: Verdict.RENOUNCED, is_applied=is_applied) as giving:
            baton = giving.owner.baton
            await until(lambda: baton.is_given, within=5)
            baton.user_state_changed(True)
            parked = asyncio.create_task(baton.may_answer())
            await asyncio.sleep(0.3)
            assert not parked.done(), "who answers is not known"
            # One answer of Redis is waited for, and Redis is still away.
            assert await asyncio.wait_for(parked, 3)
            assert baton.is_held and giving.hearing.hears and giving.asked == [2]
            giving.transcript.add(words("said while Redis is away"))
            assert not await giving.transcript.flush(timeout=0.3)
            own_redis.thaw()
            assert await giving.transcript.flush(timeout=8)
            assert not giving.owner.ending.is_decided
            assert handing_over.owns(read(client, live), live)
            assert [turn["text"] for _, turn in run(client, records.turns_after(live.session_id, "0-0"))] == [
                "said while Redis is away"
            ]


async def test_redis_lost_at_the_pass_does_not_keep_an_owner_whose_successor_has_taken_the_call(
    own_redis: RedisServer,
) -> None:
    with server_client(own_redis) as client:
        lease_successor(client)
        live = live_session(client)
        async with passing(own_redis, client, live, lambda epoch: Verdict.TAKEN, is_applied=True) as giving:
            await until(lambda: giving.owner.ending.handed_over, within=8)
            assert not (giving.owner.baton.is_held or giving.hearing.hears)


async def test_an_owner_that_hears_of_neither_redis_nor_the_successor_answers_nobody_until_it_does(
    own_redis: RedisServer,
) -> None:
    with server_client(own_redis) as client:
        lease_successor(client)
        live = live_session(client)
        async with passing(own_redis, client, live, lambda epoch: Verdict.UNKNOWN, is_applied=False) as giving:
            await until(lambda: len(giving.asked) >= 2, within=10)
            assert not giving.owner.baton.is_held
            own_redis.thaw()
            await until(lambda: giving.owner.ending.handed_over, within=8)
            assert read(client, live).owner == SUCCESSOR


@asynccontextmanager
async def successor_of(redis_url: str, client: "redis.Redis", live: Session) -> AsyncIterator[tuple[Agent, Successor]]:
    session = standing_by(client, live)
    async with connect_async(redis_url) as own_client, connect_async(redis_url, timeout=SOCKET_TIMEOUT) as listener:
        agent = Agent(session, own_client, Baton(is_held=False))
        successor = Successor(
            session,
            client=own_client,
            listener=listener,
            baton=agent.baton,
            ending=agent.ending,
            messages=Messages.none(),
            begun=entities.Session(session.session_id, {}, (), active="desk", cursor="0-0"),
            lifetime=HOLD,
        )
        yield agent, successor


@pytest.fixture
def client(redis_url: str) -> Iterator["redis.Redis"]:
    with connect(redis_url) as client:
        yield client


async def test_a_successor_either_has_taken_the_baton_or_never_will(redis_url: str, client: "redis.Redis") -> None:
    async with successor_of(redis_url, client, live_session(client)) as (agent, successor):
        agent.baton.take(is_open=False)
        assert successor.decide() is Verdict.TAKEN
        assert not agent.ending.is_decided
    async with successor_of(redis_url, client, live_session(client)) as (agent, successor):
        assert [successor.decide(), successor.decide()] == [Verdict.RENOUNCED, Verdict.RENOUNCED]
        assert agent.ending.is_decided and agent.ending.superseded
    async with successor_of(redis_url, client, live_session(client)) as (agent, successor):
        agent.ending.decide(Reason.CALLER_LEFT)
        assert successor.decide() is Verdict.UNKNOWN
        assert agent.ending.reason is Reason.CALLER_LEFT


async def test_what_was_passed_in_vain_to_one_who_renounced_it_is_its_last_owner_s(
    redis_url: str, client: "redis.Redis"
) -> None:
    live = live_session(client)
    async with successor_of(redis_url, client, live) as (agent, successor):
        pass_on(client, live, agent.session)
        successor.decide()
        ending = asyncio.create_task(agent.record.end())
        await asyncio.sleep(0.2)
        assert not ending.done(), "it stays until the session has an owner"
        run(client, record_moves.take_back(live, offered=agent.session.epoch))
        await ending
        assert handing_over.owns(read(client, live), live)
        assert agent.published == []


async def test_what_was_passed_in_vain_and_not_taken_back_goes_on_with_another(
    redis_url: str, client: "redis.Redis"
) -> None:
    live = live_session(client)
    async with successor_of(redis_url, client, live) as (agent, successor):
        pass_on(client, live, agent.session)
        successor.decide()
        async with asyncio.timeout(8):
            await agent.record.end()
        assert (read(client, live).state, read(client, live).epoch) == (State.RECOVERING, 3)
        assert [session.epoch for session in agent.published] == [3]


@pytest.mark.parametrize("is_taken", [True, False])
@pytest.mark.parametrize("reason", [Reason.INTERNAL_ERROR, Reason.PROVIDER_FAILED])
async def test_a_call_that_breaks_soon_after_the_pass_goes_on_with_another_worker(
    redis_url: str, client: "redis.Redis", is_taken: bool, reason: Reason
) -> None:
    live = live_session(client)
    async with successor_of(redis_url, client, live) as (agent, _):
        pass_on(client, live, agent.session)
        if is_taken:
            agent.baton.take(is_open=False)
        agent.ending.decide(reason)
        await agent.record.end()
        left = read(client, live)
        assert (left.state, left.epoch, left.recoveries, left.reason) == (State.RECOVERING, 3, 1, None)
        assert [session.epoch for session in agent.published] == [3]
        assert await agent.record.outcome() == "handed_over"


async def test_a_call_that_breaks_in_every_worker_fails(redis_url: str, client: "redis.Redis") -> None:
    live = live_session(client)
    for _ in range(3):
        recovering = run(client, record_moves.recover(live, most=3, settled=60, patience=30, lifetime=HOLD))
        live = run(client, record_moves.claim(live.session_id, epoch=recovering.epoch, owner=OWNER, lifetime=HOLD))
    step = record_moves.move(
        live.session_id, State.LIVE, epoch=live.epoch, owner=OWNER, lifetime=HOLD, stamp="recovered_at"
    )
    live = run(client, step)
    async with successor_of(redis_url, client, live) as (agent, _):
        pass_on(client, live, agent.session)
        agent.baton.take(is_open=False)
        agent.ending.decide(Reason.INTERNAL_ERROR)
        await agent.record.end()
        over = read(client, live)
        assert (over.state, over.reason) == (State.FAILED, Reason.WORKER_LOST)
        assert agent.published == []
        assert run(client, admission.holder(live.tenant, live.room)) is None


async def test_a_call_that_breaks_long_after_the_pass_or_with_a_farewell_or_ends_is_over(
    redis_url: str, client: "redis.Redis"
) -> None:
    for reason, taken_ago, is_told in (
        (Reason.INTERNAL_ERROR, SETTLED + 1, False),
        (Reason.PROVIDER_FAILED, 1.0, True),
        (Reason.CALLER_LEFT, 1.0, False),
    ):
        live = live_session(client)
        async with successor_of(redis_url, client, live) as (agent, _):
            pass_on(client, live, agent.session)
            agent.baton.take(is_open=False)
            agent.baton.taken_at = time.monotonic() - taken_ago
            agent.ending.is_told = is_told
            agent.ending.decide(reason)
            await agent.record.end()
            assert read(client, live).reason is reason
            assert agent.published == []


async def test_a_session_that_is_given_back_waits_for_the_next_owner_and_is_nobody_s_loss(
    redis_url: str, client: "redis.Redis"
) -> None:
    session = new_session()
    run(client, record_moves.create(session, lifetime=HOLD))
    waiting = run(client, record_moves.claim(session.session_id, epoch=1, owner=OWNER, lifetime=HOLD))
    async with connect_async(redis_url) as own_client:
        agent = Agent(waiting, own_client, Baton(is_held=True))
        agent.ending.give_back()
        await agent.record.end()
        left = read(client, session)
        assert (left.state, left.epoch, left.owner, left.recoveries) == (State.RECOVERING, 2, "", 0)
        assert left.published_at is not None
        assert [each.epoch for each in agent.published] == [2]
        assert await agent.record.outcome() == "handed_over"


async def test_a_successor_has_followed_the_conversation_when_redis_is_lost_after_the_pass(
    own_redis: RedisServer,
) -> None:
    with server_client(own_redis) as client:
        live = live_session(client)

        def say(role: Literal["user", "assistant"], text: str) -> None:
            turn = Turn(item_id=text, role=role, at=0.0, turn_id="hello", text=text, specialist="sales")
            run(client, records.append_turn(live, asdict(turn), lifetime=HOLD))

        say("user", "hello")
        async with successor_of(own_redis.url, client, live) as (agent, successor):
            agent.baton.user_state_changed(True)
            listening = asyncio.create_task(successor.listen())
            await until(lambda: len(successor.followed().messages) == 1, within=3)
            agent.baton.user_state_changed(False)
            parked = asyncio.create_task(agent.baton.may_answer())
            await asyncio.sleep(0.2)
            assert not parked.done(), "what was said before is not what was parked"
            say("assistant", "good evening")
            await until(lambda: len(successor.followed().messages) == 2, within=3)
            own_redis.freeze()
            followed = successor.followed()
            assert [message.content for message in followed.messages] == ["hello", "good evening"]
            assert followed.active == "sales"
            own_redis.thaw()
            say("user", "and goodbye")
            assert await asyncio.wait_for(parked, 3) is False
            agent.ending.supersede()
            await listening


async def test_a_successor_that_went_on_with_what_it_had_followed_follows_no_longer(
    redis_url: str, client: "redis.Redis"
) -> None:
    live = live_session(client)
    async with successor_of(redis_url, client, live) as (agent, successor):
        pass_on(client, live, agent.session)
        # A catch-up needs neither a room nor a pipeline, which a real one could not do without.
        talk = _Talk(Taking(agent), None, None, None, None, Unreadable())  # type: ignore[arg-type]
        listening = asyncio.create_task(successor.listen())
        await talk._catch_up(successor)
        turn = Turn(item_id="1", role="user", at=0.0, turn_id="1", text="its own", specialist="desk")
        run(client, records.append_turn(agent.session, asdict(turn), lifetime=HOLD))
        await asyncio.wait_for(listening, 3)
        assert successor.followed().messages == ()


async def hear(agent: Agent) -> "asyncio.Task[bool]":
    """A turn of the caller's that is over, and parked."""
    agent.baton.user_state_changed(True)
    await asyncio.sleep(0.1)
    agent.baton.user_state_changed(False)
    parked = asyncio.create_task(agent.baton.may_answer())
    await asyncio.sleep(0.1)
    return parked


async def ready(agent: Agent, successor: Successor, client: "redis.Redis") -> "asyncio.Task[None]":
    agent.baton.ear.hears.set()
    standing = asyncio.create_task(successor.stand_by())
    await until(lambda: client.xlen(records.commands_key(agent.session.session_id)) == 1, within=3)
    return standing


async def read_commands(agent: Agent, successor: Successor) -> None:
    async with asyncio.timeout(3):
        async for command in commands(agent.session.session_id, agent.client):
            successor._messages.hear(command, epoch=agent.session.epoch, wish=Wish())
            if successor._messages.passed.is_set():
                return


async def test_what_is_said_after_the_pass_is_answered_also_by_one_who_reads_of_it_late(
    redis_url: str, client: "redis.Redis"
) -> None:
    live = live_session(client)
    async with successor_of(redis_url, client, live) as (agent, successor):
        standing = await ready(agent, successor, client)
        pass_on(client, live, agent.session)
        await asyncio.sleep(0.1)
        parked = await hear(agent)
        await read_commands(agent, successor)
        await standing
        agent.baton.take(is_open=False, passed_at=successor.passed_at)
        assert await asyncio.wait_for(parked, 3) is True


async def test_what_is_said_after_the_owner_s_last_turn_is_answered_also_by_one_who_reads_that_late(
    redis_url: str, client: "redis.Redis"
) -> None:
    live = live_session(client)
    async with successor_of(redis_url, client, live) as (agent, successor):
        standing = await ready(agent, successor, client)
        turn = Turn(item_id="1", role="user", at=0.0, turn_id="1", text="hello", specialist="desk")
        run(client, records.append_turn(live, asdict(turn), lifetime=HOLD))
        await asyncio.sleep(0.1)
        parked = await hear(agent)
        pass_on(client, live, agent.session)
        await read_commands(agent, successor)
        await standing
        await agent.record.insist(successor.notes())
        agent.baton.take(is_open=True, passed_at=successor.passed_at)
        assert await asyncio.wait_for(parked, 3) is True
