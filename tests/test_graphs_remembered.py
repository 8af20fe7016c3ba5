"""The lasting state of a conversation: the same session comes back, whole, or an error does."""

import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import TypedDict

import pytest
import redis
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph

from graphs.checkpointer import Fence, RedisCheckpointer, open_checkpointer
from graphs.entities import Exchange, Message, Session, ToolCall
from graphs.errors import MemoryUnavailable, MemoryUnreadable, StaleWriter
from graphs.remembered import SessionMemory
from tests.fleet_sessions import new_session
from tests.redis_server import RedisServer
from worker.fleet import record_moves, records
from worker.fleet.redis_operations import connect, run

TTL = 60.0


def session(turns: int = 1, *, session_id: str | None = None) -> Session:
    """A conversation with a tool call and, in each turn, a reply that was cut off."""
    messages: list[Message] = []
    for turn in range(turns):
        call = ToolCall(id=f"call-{turn}", name="open_ticket", arguments='{"summary": "Der Router blinkt – rot"}')
        said = Message(id=f"user-{turn}", role="user", content="My router is broken.", specialist="support")
        reply = Message(id=f"reply-{turn}", role="assistant", content="I have", interrupted=True, specialist="support")
        made = Exchange(said.id, call, {"summary": "A ticket is open."}, specialist="support", receiver="support")
        messages += [said, *made.messages, reply]
    return Session(
        session_id=session_id or uuid.uuid4().hex,
        slots={"name": "Zoë", "locale": "de", "address": {"city": "Köln", "floors": [1, 2.5]}, "phone": None},
        messages=tuple(messages),
        active="support",
        cursor="1700000000000-3",
    )


@pytest.fixture
async def checkpointer(redis_url: str) -> AsyncIterator[RedisCheckpointer]:
    async with open_checkpointer(redis_url, ttl=TTL, keep=1) as opened:
        yield opened


async def test_another_process_finds_the_same_session(redis_url: str) -> None:
    saved = session(3)
    async with open_checkpointer(redis_url, ttl=TTL, keep=1) as checkpointer:
        await SessionMemory(checkpointer, session_id=saved.session_id).save(saved)
    async with open_checkpointer(redis_url, ttl=TTL, keep=1) as checkpointer:
        assert await SessionMemory(checkpointer, session_id=saved.session_id).load() == saved


async def test_any_checkpointer_will_do() -> None:
    saved = session(3)
    memory: BaseCheckpointSaver[str] = InMemorySaver()
    await SessionMemory(memory, session_id=saved.session_id).save(saved)
    assert await SessionMemory(memory, session_id=saved.session_id).load() == saved


async def test_a_session_that_was_never_saved_is_none(checkpointer: RedisCheckpointer) -> None:
    saved = session()
    await SessionMemory(checkpointer, session_id=saved.session_id).save(saved)
    assert await SessionMemory(checkpointer, session_id="another").load() is None


async def test_a_session_with_nothing_said_is_not_none(checkpointer: RedisCheckpointer) -> None:
    saved = replace(session(), messages=(), slots={}, active="", cursor="")
    memory = SessionMemory(checkpointer, session_id=saved.session_id)
    await memory.save(saved)
    assert await memory.load() == saved


async def test_a_save_replaces_all_that_was_remembered(checkpointer: RedisCheckpointer) -> None:
    saved = session(3)
    memory = SessionMemory(checkpointer, session_id=saved.session_id)
    await memory.save(saved)
    shorter = replace(saved, messages=saved.messages[1:3], slots={"name": "Zoë"}, active="sales", cursor="2-0")
    await memory.save(shorter)
    assert await memory.load() == shorter


async def test_another_sessions_state_is_not_saved_as_this_ones(checkpointer: RedisCheckpointer) -> None:
    memory = SessionMemory(checkpointer, session_id="mine")
    with pytest.raises(ValueError, match="another session"):
        await memory.save(session())
    assert await memory.load() is None


async def test_a_hundred_saves_take_no_more_room_than_the_last(checkpointer: RedisCheckpointer, redis_url: str) -> None:
    saved = session(100)
    memory = SessionMemory(checkpointer, session_id=saved.session_id)
    for turn in range(1, 101):
        await memory.save(replace(saved, messages=saved.messages[: 4 * turn]))
    again = session(100)
    await SessionMemory(checkpointer, session_id=again.session_id).save(again)
    with redis.Redis.from_url(redis_url) as client:
        many, once = (
            sum(client.memory_usage(key, samples=0) or 0 for key in client.scan_iter(f"muster:{{s:{of}}}:*"))
            for of in (saved.session_id, again.session_id)
        )
    assert await memory.load() == saved
    assert many <= once * 1.05, (many, once)


async def test_a_former_owner_leaves_what_the_next_one_saved(redis_url: str) -> None:
    record, client = new_session(), connect(redis_url)
    run(client, record_moves.create(record, lifetime=TTL))
    key, session_id = records.record_key(record.session_id), record.session_id
    saved = session(3, session_id=session_id)

    async def save(state: Session, *, epoch: int, owner: str) -> None:
        fence = Fence(key, epoch=epoch, owner=owner)
        async with open_checkpointer(redis_url, ttl=TTL, keep=1, fence=fence) as checkpointer:
            await SessionMemory(checkpointer, session_id=session_id).save(state)

    run(client, record_moves.claim(session_id, epoch=1, owner="first", lifetime=TTL))
    await save(replace(saved, cursor="1-0"), epoch=1, owner="first")
    client.hset(key, mapping={"epoch": "2", "owner": "second"})
    await save(saved, epoch=2, owner="second")
    with pytest.raises(StaleWriter):
        await save(replace(saved, messages=()), epoch=1, owner="first")
    client.delete(key)
    with pytest.raises(StaleWriter):
        await save(replace(saved, messages=()), epoch=2, owner="second")
    client.close()
    async with open_checkpointer(redis_url, ttl=TTL) as checkpointer:
        assert await SessionMemory(checkpointer, session_id=session_id).load() == saved


async def test_a_redis_that_does_not_answer_is_not_a_session_that_was_never_saved(
    redis_server: RedisServer,
) -> None:
    saved = session()
    async with open_checkpointer(redis_server.url, ttl=TTL, keep=1, timeout=0.2) as checkpointer:
        memory = SessionMemory(checkpointer, session_id=saved.session_id)
        await memory.save(saved)
        with redis_server.frozen():
            with pytest.raises(MemoryUnavailable):
                await memory.load()
            with pytest.raises(MemoryUnavailable):
                await memory.save(replace(saved, messages=()))
        assert await memory.load() is not None


class Other(TypedDict):
    active: str


async def test_a_state_that_is_not_a_session_is_an_error(checkpointer: RedisCheckpointer) -> None:
    graph = StateGraph(Other)
    graph.add_node("other", lambda state: {"active": "sales"})
    graph.add_edge(START, "other")
    graph.add_edge("other", END)
    await graph.compile(checkpointer=checkpointer).ainvoke({"active": ""}, {"configurable": {"thread_id": "odd"}})
    with pytest.raises(MemoryUnreadable):
        await SessionMemory(checkpointer, session_id="odd").load()
