"""Helpers of the tests that hold real calls."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Literal

import httpx
from livekit import api

from local.caller import Caller
from local.caller_voice import CallerVoice
from local.stack import Stack
from muster.client import CallerToken, Joined, MusterClient, Session, Turn
from worker.fleet.app import create_producer

_POLL = 0.05


def new_room() -> str:
    """A room nobody has used."""
    return f"test-{uuid.uuid4().hex[:12]}"


@dataclass(frozen=True)
class OngoingCall:
    """A caller in a room with an agent."""

    caller: Caller
    session: Joined
    token: CallerToken
    #: When the greeting began at the caller's ear, Unix seconds.
    greeted_at: float


@dataclass(frozen=True)
class Fleet:
    """A running stack and what a test needs to use it."""

    stack: Stack
    client: MusterClient
    voice: CallerVoice
    providers: str
    #: The environment of its processes, secrets included.
    settings: Mapping[str, str]

    async def state(self, session_id: str, *wanted: str, within: float = 10) -> Session:
        """The session once it is in one of these states."""
        deadline = time.monotonic() + within
        while True:
            session = await asyncio.to_thread(self.client.session, session_id)
            if session.status in wanted:
                return session
            assert time.monotonic() < deadline, f"{session.status} ({session.reason}), not {wanted}"
            await asyncio.sleep(_POLL)

    async def over(self, session_id: str, *, within: float = 10) -> Session:
        """The session once it has ended or failed."""
        return await self.state(session_id, "ended", "failed", within=within)

    async def shown(self, session_id: str, state: str, *, within: float = 10) -> None:
        """Wait until Flower shows the session's task in this state."""
        task = f"{self.stack.urls['flower']}/api/task/info/{session_id}"
        deadline = time.monotonic() + within
        async with httpx.AsyncClient(auth=self.stack.flower_login) as http:
            while (answer := (await http.get(task)).json())["state"] != state:
                assert time.monotonic() < deadline, answer["state"]
                await asyncio.sleep(_POLL)

    async def turns(self, session_id: str) -> tuple[Turn, ...]:
        """Everything committed so far."""
        return (await asyncio.to_thread(self.client.turns, session_id)).turns

    @asynccontextmanager
    async def call(
        self, *, identity: str = "ada", quiet_before: bool = True, rejoin_within: float = 0.0
    ) -> AsyncIterator[OngoingCall]:
        """A caller who has been greeted; hangs up at the end."""
        started_at = time.time()
        token = await asyncio.to_thread(self.client.token, room=new_room(), identity=identity)
        assert token.session is not None
        async with Caller(url=token.url, token=token.token, rejoin_within=rejoin_within) as caller:
            greeted_at = await caller.heard.first_audible_after(started_at, within=10)
            if quiet_before:
                await caller.heard.silent_since(greeted_at, gap=0.8, within=15)
            yield OngoingCall(caller, token.session, token, greeted_at)

    async def ask(self, call: OngoingCall, text: str, *, within: float = 12) -> float:
        """Say it and wait until the agent begins to answer; the moment it does."""
        line = await asyncio.to_thread(self.voice.render, text)
        spoken = await call.caller.say(line)
        return await call.caller.heard.first_audible_after(spoken.ended_at, within=within)

    async def set_fault(
        self,
        part: Literal["stt", "tts", "llm", "embedding", "openai_stt", "elevenlabs_tts"],
        mode: Literal["ok", "fail", "hang"],
    ) -> None:
        """Break or mend one stand-in provider."""
        async with httpx.AsyncClient() as http:
            (await http.post(f"{self.providers}/faults", json={part: mode})).raise_for_status()

    @asynccontextmanager
    async def livekit(self) -> AsyncIterator[api.LiveKitAPI]:
        """The LiveKit server's own API."""
        settings = self.settings
        async with api.LiveKitAPI(
            settings["LIVEKIT_URL"], settings["LIVEKIT_API_KEY"], settings["LIVEKIT_API_SECRET"]
        ) as client:
            yield client

    def child_of(self, session_id: str) -> int:
        """The process that runs the session, as its worker tells."""
        app = create_producer(self.settings["REDIS_URL"])
        deadline = time.monotonic() + 10
        while True:
            workers = app.control.inspect(timeout=1).active() or {}
            pids = [task["worker_pid"] for active in workers.values() for task in active if task["id"] == session_id]
            if pids:
                return int(pids[0])
            assert time.monotonic() < deadline, "no worker tells who runs the session"

    async def agents_in(self, room: str) -> list[str]:
        """The identities of the agents in a room."""
        async with self.livekit() as client:
            answer = await client.room.list_participants(api.ListParticipantsRequest(room=room))
        return [each.identity for each in answer.participants if each.identity.startswith("agent-")]
