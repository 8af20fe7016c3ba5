"""A live call goes to another worker while the caller talks: by a drain, by command, and when one of both dies."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from click.testing import CliRunner

from local.caller import Caller
from local.parts import AGENT_SERVICE
from muster.cli import main
from muster.client import Session
from tests.calls.calling import Fleet, OngoingCall, new_room
from tests.calls.conftest import BRIEF
from worker.fleet import records
from worker.fleet.handing_over import Command
from worker.fleet.redis_operations import connect_async
from worker.fleet.times import READY_WITHIN

pytestmark = pytest.mark.timeout(90)


@asynccontextmanager
async def call_in_progress(pair: Fleet) -> AsyncIterator[OngoingCall]:
    """A caller whom sales have answered a question."""
    async with pair.call() as call:
        answered = await pair.ask(call, "How much is the premium plan?")
        await call.caller.heard.silent_since(answered, gap=1.0, within=20)
        yield call


def worker_of(session: Session) -> str:
    assert session.worker is not None
    return session.worker.partition("@")[0]


async def in_epoch(pair: Fleet, call: OngoingCall, epoch: int, *, within: float) -> Session:
    deadline = time.monotonic() + within
    while (session := await pair.state(call.session.session_id, "live", "recovering")).epoch != epoch:
        assert time.monotonic() < deadline, f"epoch {session.epoch}, not {epoch}"
        await asyncio.sleep(0.02)
    return session


async def alone_in(pair: Fleet, call: OngoingCall, epoch: int, *, within: float = 5) -> None:
    """Wait until the agent of this epoch is the only one in the room."""
    deadline = time.monotonic() + within
    while (agents := await pair.agents_in(call.token.room)) != [f"agent-{call.session.session_id}-{epoch}"]:
        assert time.monotonic() < deadline, agents
        await asyncio.sleep(0.05)


async def goes_on(pair: Fleet, call: OngoingCall, *, apologies: int = 0) -> None:
    """The caller's next question is answered once, by the same specialist, and nothing else was said."""
    answered = await pair.ask(call, "How much is it per month?")
    await call.caller.heard.silent_since(answered, gap=1.0, within=20)
    pair.client.leave(call.session.session_id)
    assert (await pair.over(call.session.session_id)).reason == "left"
    said = [(turn.role, turn.specialist) for turn in await pair.turns(call.session.session_id) if turn.role != "event"]
    assert [role for role, _ in said] == [
        *("assistant", "user", "assistant"),
        *["assistant"] * apologies,
        *("user", "assistant"),
    ]
    assert {specialist for _, specialist in said[2:]} == {"sales"}


@pytest.mark.slow
async def test_a_drained_worker_hands_its_call_over_and_exits(pair: Fleet) -> None:
    async with call_in_progress(pair) as call:
        worker = worker_of(await pair.state(call.session.session_id, "live"))
        asked_at = time.time()
        draining = asyncio.create_task(asyncio.to_thread(pair.stack.kill, worker, signal.SIGTERM))
        session = await in_epoch(pair, call, 2, within=15)
        taken_after = time.time() - asked_at
        async with asyncio.timeout(15):
            await draining
        print(f"\nSIGTERM -> taken: {taken_after:.2f} s, -> exit: {time.time() - asked_at:.2f} s")
        assert pair.stack.exit_code(worker) == 0
        assert worker_of(session) != worker
        await alone_in(pair, call, 2)
        await goes_on(pair, call)
    pair.stack.start(worker)


@pytest.mark.slow
async def test_muster_handover_moves_a_call_to_the_chosen_worker(pair: Fleet) -> None:
    async with call_in_progress(pair) as call:
        session = await pair.state(call.session.session_id, "live")
        other = "worker-2" if worker_of(session) == "worker-1" else "worker-1"
        arguments = ["handover", session.session_id, "--to", other, "--agent-service", pair.stack.urls[AGENT_SERVICE]]
        command = await asyncio.to_thread(CliRunner().invoke, main, arguments)
        assert command.exit_code == 0, command.output
        print(f"\n{command.output}")
        assert worker_of(await in_epoch(pair, call, 2, within=1)) == other
        await alone_in(pair, call, 2)
        await goes_on(pair, call)


@pytest.mark.slow
async def test_a_successor_killed_before_the_pass_leaves_the_call_where_it_is(pair: Fleet) -> None:
    async with pair.call() as call:
        session_id = call.session.session_id
        # While the answer is being given the baton cannot be passed.
        await pair.ask(call, "What plans do you offer?")
        await asyncio.to_thread(pair.client.hand_over, session_id)
        successor = await asyncio.to_thread(pair.child_of, f"{session_id}.2")
        os.kill(successor, signal.SIGKILL)
        await call.caller.heard.silent_since(time.time(), gap=1.0, within=30)
        assert (await pair.state(session_id, "live")).epoch == 1
        await alone_in(pair, call, 1)
        await pair.ask(call, "How much is the premium plan?")
        turns = await pair.turns(session_id)
    assert not any(turn.interrupted for turn in turns)
    assert len([turn for turn in turns if turn.role == "user"]) == 2


@pytest.mark.slow
async def test_a_successor_killed_after_the_pass_is_recovered_like_any_owner(pair: Fleet) -> None:
    async with call_in_progress(pair) as call:
        session_id = call.session.session_id
        await asyncio.to_thread(pair.client.hand_over, session_id)
        await in_epoch(pair, call, 2, within=15)
        killed_at = time.time()
        os.kill(await asyncio.to_thread(pair.child_of, f"{session_id}.2"), signal.SIGKILL)
        await in_epoch(pair, call, 3, within=5)
        resumed = await call.caller.heard.first_audible_after(killed_at, within=10)
        await call.caller.heard.silent_since(resumed, gap=1.0, within=20)
        await alone_in(pair, call, 3)
        await goes_on(pair, call, apologies=1)


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_a_call_goes_to_and_fro_while_its_caller_talks(pair: Fleet) -> None:
    rounds = 6
    taken_after, answered_after = [], []
    async with call_in_progress(pair) as call:
        session_id = call.session.session_id
        line = await asyncio.to_thread(pair.voice.render, "How much is it per month?")
        for number in range(rounds):
            asked_at = time.time()
            await asyncio.to_thread(pair.client.hand_over, session_id)
            # Into different moments of the hand-over.
            await asyncio.sleep(0.3 * number)
            spoken = await call.caller.say(line)
            answered = await call.caller.heard.first_audible_after(spoken.ended_at, within=12)
            await call.caller.heard.silent_since(answered, gap=1.0, within=20)
            session = await in_epoch(pair, call, number + 2, within=READY_WITHIN)
            assert session.timings.claimed_at is not None
            taken_after.append(session.timings.claimed_at - asked_at)
            answered_after.append(answered - spoken.ended_at)
            await alone_in(pair, call, number + 2)
        pair.client.leave(session_id)
        await pair.over(session_id)
        said = [turn for turn in await pair.turns(session_id) if turn.role != "event"]
    print(f"\nasked -> passed: {[f'{seconds:.2f}' for seconds in taken_after]} s")
    print(f"words -> answer: {[f'{seconds:.2f}' for seconds in answered_after]} s")
    assert [turn.role for turn in said] == ["assistant", *["user", "assistant"] * (rounds + 1)]
    assert all("month" in (turn.text or "").lower() for turn in said[3::2])


@pytest.mark.slow
async def test_a_call_that_waits_for_its_caller_moves_when_its_worker_drains(pair: Fleet) -> None:
    token = await asyncio.to_thread(pair.client.token, room=new_room(), identity="ada")
    assert token.session is not None
    session_id = token.session.session_id
    worker = worker_of(await pair.state(session_id, "waiting"))
    async with asyncio.timeout(15):
        asked_at = time.time()
        await asyncio.to_thread(pair.stack.kill, worker, signal.SIGTERM)
    print(f"\nSIGTERM -> exit: {time.time() - asked_at:.2f} s")
    assert pair.stack.exit_code(worker) == 0
    session = await pair.state(session_id, "waiting")
    assert (session.epoch, worker_of(session) != worker) == (2, True)
    async with Caller(url=token.url, token=token.token) as caller:
        greeted_at = await caller.heard.first_audible_after(asked_at, within=10)
        await caller.heard.silent_since(greeted_at, gap=1.0, within=15)
        pair.client.leave(session_id)
        await pair.over(session_id)
        turns = await pair.turns(session_id)
    assert [(turn.role, turn.text) for turn in turns] == [("assistant", BRIEF["MUSTER_GREETING"])]
    pair.stack.start(worker)


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_redis_that_freezes_at_the_pass_leaves_one_agent_that_answers(fleet: Fleet, pair: Fleet) -> None:
    async with call_in_progress(pair) as call:
        session_id = call.session.session_id
        line = await asyncio.to_thread(pair.voice.render, "How much is it per month?")
        for _ in range(3):
            await pair.state(session_id, "live")
            async with connect_async(pair.settings["REDIS_URL"]) as client:
                # Also those whose baton was taken back.
                before = await _ready(client, session_id)
                await asyncio.to_thread(pair.client.hand_over, session_id)
                deadline = time.monotonic() + 15
                while await _ready(client, session_id) == before:
                    assert time.monotonic() < deadline
                    await asyncio.sleep(0.001)
            os.kill(fleet.stack.pid("redis"), signal.SIGSTOP)
            frozen_at = time.time()
            try:
                spoken = await call.caller.say(line)
                # Nobody knows whose the call is; in the room it is settled.
                await asyncio.sleep(max(0.0, frozen_at + 4 - time.time()))
            finally:
                os.kill(fleet.stack.pid("redis"), signal.SIGCONT)
            answered = await call.caller.heard.first_audible_after(spoken.ended_at, within=12)
            print(
                f"\nfrozen at 0 s, last word {spoken.ended_at - frozen_at:.2f} s, answer {answered - frozen_at:.2f} s"
            )
            await call.caller.heard.silent_since(answered, gap=1.5, within=20)
        session = await pair.state(session_id, "live")
        assert session.epoch is not None
        await alone_in(pair, call, session.epoch, within=15)
        pair.client.leave(session_id)
        assert (await pair.over(session_id)).reason == "left"
        said = [turn.role for turn in await pair.turns(session_id) if turn.role != "event"]
    assert said.count("user") == 4


async def _ready(client: Any, session_id: str) -> set[str]:
    """The epochs whose successor has said that it hears the caller."""
    entries = await client.xrange(records.commands_key(session_id))
    return {each["epoch"] for _, each in entries if each["kind"] == Command.READY}
