"""Tools in text turns: what was done is remembered, whatever becomes of the turn that asked for it."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from aiohttp import web

from tests.fleet_sessions import new_session
from tests.open_fleet import client_of
from tests.redis_server import RedisServer
from tests.test_configured_agents import weather_desk
from tests.tool_server import ToolServer
from worker.chat.service import ChatService
from worker.chat.settings import ChatSettings
from worker.fleet import chats, record_moves, records
from worker.fleet.redis_operations import run
from worker.fleet.session import Session, State

#: Seconds Redis is silent; an answer of it is waited for less long.
SILENCE = 1.5


class SlowServer(ToolServer):
    """A model and an endpoint that take as long as a test wants."""

    def __init__(self) -> None:
        super().__init__()
        self.thinking, self.working = asyncio.Event(), asyncio.Event()
        self.think, self.work = asyncio.Event(), asyncio.Event()

    async def _complete(self, request: web.Request) -> web.Response:
        self.thinking.set()
        await self.think.wait()
        return await super()._complete(request)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.working.set()
        await self.work.wait()
        return await super()._answer(request)


@asynccontextmanager
async def opened(redis_url: str, server: ToolServer) -> AsyncIterator[ChatService]:
    settings = ChatSettings.from_env(
        {
            "REDIS_URL": redis_url,
            "OPENAI_API_KEY": "any",
            "OPENAI_BASE_URL": f"{server.origin}/v1",
            "MUSTER_TOOL_HOSTS": server.origin,
        }
    )
    service = ChatService(settings)
    try:
        yield service
    finally:
        await service.aclose()


def written(redis_url: str, configuration: dict[str, Any], *, turn_id: str) -> Session:
    """A session of text with one text that waits for its answer."""
    session = replace(new_session(), state=State.CHAT, epoch=0, room="", configuration=configuration)
    with client_of(redis_url) as client:
        run(client, record_moves.create(session, lifetime=60))
        write(redis_url, session, turn_id=turn_id)
    return session


def write(redis_url: str, session: Session, *, turn_id: str) -> None:
    text = "Book a table in Oslo."
    with client_of(redis_url) as client:
        run(
            client,
            chats.write(
                session.session_id,
                turn_id,
                tenant=session.tenant,
                user_id=session.user_id,
                text=text,
                digest=hashlib.sha256(text.encode()).hexdigest(),
                patience=30,
                command_lifetime=60,
            ),
        )


async def test_a_tool_that_changes_something_is_remembered_although_redis_breaks_its_turn_off(
    own_redis: RedisServer,
) -> None:
    async with SlowServer() as server, opened(own_redis.url, server) as service:
        configuration = {"specialists": [weather_desk(server.origin, method="POST")]}
        session = written(own_redis.url, configuration, turn_id="turn")
        answering = asyncio.create_task(service.answer(session.session_id, "turn", owner="chat@test#1"))
        async with asyncio.timeout(10):
            await server.thinking.wait()
        with own_redis.frozen():
            server.think.set()
            async with asyncio.timeout(10):
                await server.working.wait()
            await asyncio.sleep(SILENCE)
        server.work.set()
        await answering
        with client_of(own_redis.url) as client:
            turns = run(client, records.turns_after(session.session_id, "0-0"))
        assert [turn["role"] for _, turn in turns] == ["user", "event"]

        write(own_redis.url, session, turn_id="turn")
        await service.answer(session.session_id, "turn", owner="chat@test#2")

        assert "It is twenty one degrees." in server.prompts[-1]["messages"][-1]["content"]
