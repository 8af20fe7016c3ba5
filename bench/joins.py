"""How long a join takes: from `POST /join` to the agent's first audible frame at a caller who waits in the room."""

import asyncio
import time
import uuid
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import httpx
from livekit import api

from bench.report import Figure, Report
from local.caller import Caller
from local.parts import AGENT_SERVICE, LIVEKIT, PROVIDERS, REDIS, WORKER, StackOptions
from local.stack import Stack

_IDENTITY = "caller"
#: Joins that are not counted.
_WARM_UP = 2
#: Seconds the caller is in the room before the agent is called.
_SETTLE = 1.0
#: Seconds until the greeting must be heard, and from the leave until the session must be over.
_HEARD_WITHIN = 15.0
_LEFT_WITHIN = 10.0
_POLL = 0.1
_MILESTONES = ("admitted", "claimed", "connected", "first_audio")


def measure_joins(*, count: int) -> Report:
    """`count` joins one after the other on a stack of its own, each in a new room with the greeting cached."""
    parts = frozenset({REDIS, LIVEKIT, PROVIDERS, AGENT_SERVICE, WORKER})
    with Stack(options=StackOptions(parts=parts, preferred_ports=False)) as stack:
        joins = asyncio.run(_join_again_and_again(stack, count=count))
    figures = {name: Figure([join[name] for join in joins]) for name in joins[0]}
    return Report("POST /join to the first audible frame", figures, ["Each part counts from the one before it."])


async def _join_again_and_again(stack: Stack, *, count: int) -> list[Mapping[str, float]]:
    async with httpx.AsyncClient(base_url=stack.urls[AGENT_SERVICE]) as service:
        return [await _join(stack, service) for _ in range(_WARM_UP + count)][_WARM_UP:]


async def _join(stack: Stack, service: httpx.AsyncClient) -> Mapping[str, float]:
    """Seconds of each part, and in total."""
    room = f"bench-{uuid.uuid4().hex[:8]}"
    async with Caller(url=stack.urls[LIVEKIT], token=_token(stack, room)) as caller:
        await asyncio.sleep(_SETTLE)
        requested_at = time.time()
        joined = (await service.post("/join", json={"room": room, "user_id": _IDENTITY})).raise_for_status().json()
        heard_at = await caller.heard.first_audible_after(requested_at, within=_HEARD_WITHIN)
        await service.post("/leave", json={"session_id": joined["session_id"]})
        timings = (await _over(service, joined["session_id"]))["timings"]
    moments = {name: timings[f"{name}_at"] for name in _MILESTONES} | {"heard": heard_at}
    before = (requested_at, *moments.values())
    parts = {name: moment - earlier for (name, moment), earlier in zip(moments.items(), before, strict=False)}
    return parts | {"total": heard_at - requested_at}


async def _over(service: httpx.AsyncClient, session_id: str) -> dict[str, Any]:
    deadline = time.monotonic() + _LEFT_WITHIN
    while True:
        session: dict[str, Any] = (await service.get(f"/sessions/{session_id}")).raise_for_status().json()
        if session["timings"]["ended_at"] is not None:
            return session
        if time.monotonic() > deadline:
            raise TimeoutError(f"session {session_id} is still {session['status']} after {_LEFT_WITHIN:g} s")
        await asyncio.sleep(_POLL)


def _token(stack: Stack, room: str) -> str:
    settings = stack.settings
    return (
        api.AccessToken(settings["LIVEKIT_API_KEY"], settings["LIVEKIT_API_SECRET"])
        .with_identity(_IDENTITY)
        .with_ttl(timedelta(minutes=5))
        .with_grants(api.VideoGrants(room_join=True, room=room))
        .to_jwt()
    )
