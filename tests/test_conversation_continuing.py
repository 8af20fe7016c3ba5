"""A conversation goes on in another process: the turn stream is the truth, a checkpoint a shorter way to it."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import redis.asyncio

from graphs import entities
from graphs.entities import Message, TextDelta, UserTurn
from graphs.errors import MemoryUnavailable
from graphs.roster import Roster, Specialist, Tool
from graphs.supervisor import SupervisorAgent
from tests.fleet_sessions import new_session
from tests.open_fleet import claim, client_of
from tests.redis_server import RedisServer
from tests.scripted_llm import ScriptedLLM, Step, calls, says, transfers
from worker.conversation.continuing import BEGINNING, WORTHWHILE, Conversation, open_conversation
from worker.conversation.transcript import Transcript, Turn, exchange_turn
from worker.fleet import record_moves, records
from worker.fleet.errors import StateUnavailable
from worker.fleet.redis_operations import connect_async, run, run_async
from worker.fleet.session import Reason, Session

NOTHING = {"type": "object", "properties": {}, "additionalProperties": False}


def claimed(redis_url: str, **fields: Any) -> Session:
    queued = replace(new_session(), **fields)
    with client_of(redis_url) as client:
        run(client, record_moves.create(queued, lifetime=60))
    return claim(redis_url, queued.session_id)


def roster() -> Roster:
    async def note(arguments: Mapping[str, object], *, idempotency_key: str) -> Mapping[str, object]:
        return {"summary": "It is noted."}

    tool = Tool(name="note", description="Note it.", parameters=NOTHING, run=note)
    return Roster(
        Specialist(name=name, title=name, description=name, instructions=name, tools=(tool,))
        for name in ("desk", "sales")
    )


class Owner:
    """A process that owns the session: an agent with what it has loaded, and everything it stores."""

    def __init__(self, begun: entities.Session, transcript: Transcript, model: ScriptedLLM) -> None:
        self.begun = begun
        self.transcript = transcript
        self.agent = SupervisorAgent(
            roster(),
            llm=model,
            slots=begun.slots,
            history=begun.messages,
            active=begun.active or None,
            on_exchange=lambda exchange: transcript.add(exchange_turn(exchange)),
        )

    async def turn(self, number: int | str, text: str, *, heard: str | None = None) -> None:
        """One turn as the voice pipeline stores it; `heard` is what a caller who interrupts has heard."""
        turn_id, specialist = f"turn-{number}", self.agent.active
        self.agent.commit_user(Message(id=turn_id, role="user", content=text))
        self.transcript.add(
            Turn(item_id=turn_id, role="user", at=0.0, turn_id=turn_id, text=text, specialist=specialist)
        )
        said = ""
        async for event in self.agent.respond(UserTurn(turn_id, text)):
            if isinstance(event, TextDelta):
                said, specialist = said + event.text, event.specialist
        reply = Turn(
            item_id=f"reply-{number}",
            role="assistant",
            at=0.0,
            turn_id=turn_id,
            text=said if heard is None else heard,
            specialist=specialist,
            interrupted=heard is not None,
        )
        self.agent.commit_assistant(turn_id, reply.text, interrupted=reply.interrupted, item_id=reply.item_id)
        self.transcript.add(reply)


@asynccontextmanager
async def owner(redis_url: str, session: Session, *scripts: list[Step]) -> AsyncIterator[Owner]:
    lost = partial(pytest.fail, "another owner holds the session")
    async with opened(redis_url, session, on_lost=lost) as (conversation, client):
        transcript = Transcript(session, client=client, lifetime=60, on_lost=lost)
        process = Owner(await conversation.load(), transcript, ScriptedLLM(*scripts))
        writing = asyncio.create_task(transcript.write(then=partial(conversation.compact, process.agent, transcript)))
        yield process
        assert await transcript.flush(timeout=5)
        # A checkpoint that is being written is finished by the server, whoever waits for it.
        await asyncio.sleep(0.05)
        writing.cancel()
        with suppress(asyncio.CancelledError):
            await writing


@asynccontextmanager
async def opened(
    redis_url: str, session: Session, *, on_lost: Callable[[], None]
) -> AsyncIterator[tuple[Conversation, Any]]:
    async with (
        connect_async(redis_url) as client,
        open_conversation(session, client=client, redis_url=redis_url, lifetime=60, on_lost=on_lost) as conversation,
    ):
        yield conversation, client


async def has_checkpoint(redis_url: str, session: Session) -> bool:
    async with connect_async(redis_url) as client:
        return bool(await client.exists(records.record_key(session.session_id).replace("record", "checkpoints")))


async def test_a_new_session_begins_with_its_slots_and_nothing_else(redis_url: str) -> None:
    session = claimed(redis_url, metadata={"name": "Ada"})
    async with owner(redis_url, session) as process:
        assert process.begun == entities.Session(session.session_id, {"name": "Ada"}, (), active="", cursor="0-0")
        assert process.agent.active == "desk"


async def test_another_process_has_the_history_the_specialist_and_the_slots(redis_url: str) -> None:
    session = claimed(redis_url, metadata={"name": "Ada"})
    scripts = [transfers("sales"), says("Sales here."), calls("note"), says("It is noted, all of it.")]
    async with owner(redis_url, session, *scripts) as first:
        await first.turn(1, "a price")
        await first.turn(2, "note it", heard="It is noted,")
        history = first.agent.history
    async with owner(redis_url, session) as second:
        assert second.agent.history == history
        assert second.agent.active == "sales"
        assert second.begun.slots == {"name": "Ada"}
    assert [message.role for message in history] == ["user", "assistant", "tool", "assistant"] * 2
    assert history[-1].content == "It is noted," and history[-1].interrupted


async def test_words_without_an_answer_are_remembered_once(redis_url: str) -> None:
    session = claimed(redis_url)
    async with owner(redis_url, session) as first:
        first.transcript.add(Turn(item_id="u", role="user", at=0.0, turn_id="u", text="Hello?", specialist="desk"))
    async with owner(redis_url, session, says("Yes?")) as second:
        await second.turn(2, "Are you there?")
        assert [message.content for message in second.agent.history] == ["Hello?", "Are you there?", "Yes?"]


async def test_a_long_conversation_gets_a_checkpoint_and_reads_the_same_through_it(redis_url: str) -> None:
    session = claimed(redis_url)
    turns = WORTHWHILE
    async with owner(redis_url, session, *[says(f"Answer {number}.") for number in range(turns)]) as first:
        for number in range(turns):
            await first.turn(number, f"Question {number}?")
            assert await first.transcript.flush(timeout=5)
        history = first.agent.history
    assert await has_checkpoint(redis_url, session)
    async with owner(redis_url, session, says("More.")) as second:
        assert second.agent.history == history
        await second.turn("more", "And?")
        history = second.agent.history
    async with owner(redis_url, session) as third:
        assert third.agent.history == history


async def test_a_short_conversation_needs_no_checkpoint(redis_url: str) -> None:
    session = claimed(redis_url)
    async with owner(redis_url, session, says("Hello.")) as first:
        await first.turn(1, "Hi.")
    assert not await has_checkpoint(redis_url, session)


async def test_a_checkpoint_that_cannot_be_read_is_replaced_by_the_whole_stream(redis_url: str) -> None:
    session = claimed(redis_url)
    async with owner(redis_url, session, *[says("Yes.") for _ in range(WORTHWHILE)]) as first:
        for number in range(WORTHWHILE):
            await first.turn(number, "Really?")
        history = first.agent.history
    key = records.record_key(session.session_id).replace("record", "checkpoints")
    async with connect_async(redis_url) as client:
        (checkpoint,) = [field for field in map(str, await client.hkeys(key)) if field.startswith("checkpoint")]
        await client.hset(key, checkpoint, "rubbish")
    async with owner(redis_url, session) as second:
        assert second.agent.history == history


async def test_a_continued_session_begins_where_the_old_one_ended(redis_url: str) -> None:
    old = claimed(redis_url, metadata={"name": "Ada"})
    async with owner(redis_url, old, transfers("sales"), says("Sales here.")) as first:
        await first.turn(1, "a price")
        history = first.agent.history
    async with connect_async(redis_url) as client:
        await run_async(client, record_moves.end(old, Reason.CALLER_LEFT))
        new = claimed(redis_url, metadata={"name": "Ada"}, continues=old.session_id)
        async with owner(redis_url, new, says("Ten dollars.")) as second:
            assert (second.agent.history, second.agent.active) == (history, "sales")
            await second.turn(2, "How much?")
        await client.delete(records.record_key(old.session_id).replace("record", "turns"))
    async with owner(redis_url, new) as third:
        assert [message.content for message in third.agent.history if message.role == "user"] == [
            "a price",
            "How much?",
        ]
        assert third.agent.active == "sales"


async def test_who_stands_by_a_call_that_continues_a_silent_one_reads_it_without_writing(redis_url: str) -> None:
    old = claimed(redis_url)
    async with connect_async(redis_url) as client:
        await run_async(client, record_moves.end(old, Reason.CALLER_LEFT))
    new = claimed(redis_url, continues=old.session_id)
    async with owner(redis_url, new):
        stands_by = replace(new, epoch=new.epoch + 1, owner="somebody@else#1")
        async with opened(redis_url, stands_by, on_lost=pytest.fail) as (conversation, _):
            assert (await conversation.load()).messages == ()


async def test_an_outage_never_looks_like_a_new_conversation(own_redis: RedisServer) -> None:
    session = claimed(own_redis.url)
    async with opened(own_redis.url, session, on_lost=pytest.fail) as (conversation, _):
        own_redis.stop()
        with pytest.raises((MemoryUnavailable, StateUnavailable)):
            await conversation.load()
        own_redis.start()


async def test_the_call_goes_on_without_redis_and_its_turns_are_stored_in_order_and_once(
    own_redis: RedisServer,
) -> None:
    session = claimed(own_redis.url)
    async with owner(own_redis.url, session, *[says(f"Answer {number}.") for number in range(6)]) as process:
        await process.turn(0, "Before.")
        assert await process.transcript.flush(timeout=5)
        own_redis.stop()
        for number in range(1, 5):
            await process.turn(number, "Meanwhile.")
        await asyncio.sleep(0.7)
        own_redis.start()
        await process.turn(5, "Afterwards.")
        assert await process.transcript.flush(timeout=10)
        stored = await run_async(process.transcript._client, records.turns_after(session.session_id, "0-0"))
    expected = [f"{kind}-{number}" for number in range(6) for kind in ("turn", "reply")]
    assert [turn["item_id"] for _, turn in stored] == expected


async def test_an_owner_that_has_lost_the_session_writes_no_checkpoint(redis_url: str) -> None:
    session = claimed(redis_url)
    lost: list[bool] = []
    stale = replace(session, owner="somebody@else#1")
    async with opened(redis_url, stale, on_lost=lambda: lost.append(True)) as (conversation, client):
        transcript = Transcript(stale, client=client, lifetime=60, on_lost=pytest.fail)
        transcript.written = WORTHWHILE
        await conversation.compact(SupervisorAgent(roster(), llm=ScriptedLLM(), slots={}), transcript)
    assert lost == [True]
    assert not await has_checkpoint(redis_url, session)


async def test_everything_of_a_conversation_lives_as_long_as_its_record(redis_url: str) -> None:
    session = claimed(redis_url)
    async with owner(redis_url, session, *[says("Yes.") for _ in range(WORTHWHILE)]) as process:
        for number in range(WORTHWHILE):
            await process.turn(number, "Really?")
    async with connect_async(redis_url) as client:
        await run_async(client, record_moves.end(session, Reason.LEFT))
        keys = [key async for key in client.scan_iter(match=f"muster:{{s:{session.session_id}}}:*")]
        lifetimes = [await client.pttl(key) for key in keys]
    assert len(keys) >= 3
    assert max(lifetimes) - min(lifetimes) < 1000 and min(lifetimes) > 23 * 3600 * 1000


async def turns_of(client: "redis.asyncio.Redis", session: Session) -> list[dict[str, Any]]:
    return [turn for _, turn in await run_async(client, records.turns_after(session.session_id, BEGINNING))]


async def test_a_conversation_outlives_a_redis_that_loses_its_data_and_then_its_owner(redis_url: str) -> None:
    session = claimed(redis_url)
    lost = partial(pytest.fail, "another owner holds the session")
    async with opened(redis_url, session, on_lost=lost) as (conversation, client):
        transcript = Transcript(session, client=client, lifetime=60, on_lost=lost)
        process = Owner(await conversation.load(), transcript, ScriptedLLM(transfers("sales"), says("Sales here.")))
        writing = asyncio.create_task(transcript.write(then=partial(conversation.compact, process.agent, transcript)))
        await process.turn(1, "A price, please.")
        assert await transcript.flush(timeout=5)
        stored = await turns_of(client, session)
        await client.flushdb()
        await run_async(client, record_moves.create(session, lifetime=60))
        conversation.lose()
        transcript.restart()
        for _ in range(250):
            if await has_checkpoint(redis_url, session):
                break
            await asyncio.sleep(0.02)
        writing.cancel()
        await asyncio.wait([writing])
        begun = await conversation.load()
        assert stored and await turns_of(client, session) == stored
    assert begun.messages == tuple(process.agent.history)
    assert (begun.active, len(begun.messages)) == ("sales", 4)


async def test_the_words_of_a_call_live_as_long_as_its_record_however_it_ends(redis_url: str) -> None:
    left, cancelled = claimed(redis_url), claimed(redis_url)
    async with connect_async(redis_url) as client:
        for session in (left, cancelled):
            await run_async(client, records.append_turn(session, {"text": "Hello."}, lifetime=60))
        await run_async(client, record_moves.end(left, Reason.LEFT))
        # What the caller heard last is known when the pipeline is closed.
        await run_async(client, records.append_turn(left, {"text": "Good"}, lifetime=60))
        await run_async(client, record_moves.recover(cancelled, most=3, settled=60, patience=30, lifetime=60))
        await run_async(client, record_moves.leave(cancelled.session_id, command_id="leave", lifetime=60))
        for session in (left, cancelled):
            lifetimes = [await client.pttl(key) for key in records.lasting_keys(session.session_id)]
            assert min(each for each in lifetimes if each != -2) > 23 * 3600 * 1000


@pytest.mark.parametrize("steps", range(24))
async def test_writing_that_is_cancelled_at_any_step_ends(redis_url: str, steps: int) -> None:
    session = claimed(redis_url)
    async with opened(redis_url, session, on_lost=pytest.fail) as (conversation, client):
        transcript = Transcript(session, client=client, lifetime=60, on_lost=pytest.fail)
        transcript.written = WORTHWHILE
        agent = SupervisorAgent(roster(), llm=ScriptedLLM(), slots={})
        writing = asyncio.create_task(transcript.write(then=partial(conversation.compact, agent, transcript)))
        await client.ping()
        transcript.add(Turn(item_id="turn", role="user", at=0.0, turn_id="turn", text="Hello."))
        for _ in range(steps):
            await asyncio.sleep(0)
        writing.cancel()
        ended, _ = await asyncio.wait([writing], timeout=1)
        writing.cancel()
        assert ended == {writing}
