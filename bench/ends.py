"""Waiting for the end of a session, when all of it is stored."""

import asyncio
import time

from bench.service import AgentService

#: Seconds it may take, and between two looks.
_OVER_WITHIN = 15.0
_POLL = 0.1


async def leave(client: AgentService, session_id: str) -> None:
    """Ask the agent to leave and wait until the session is over; raises `TimeoutError`."""
    await asyncio.to_thread(client.leave, session_id)
    deadline = time.monotonic() + _OVER_WITHIN
    while True:
        session = await asyncio.to_thread(client.session, session_id)
        if session.over:
            return
        if time.monotonic() > deadline:
            raise TimeoutError(f"session {session_id} is still {session.status} after {_OVER_WITHIN:g} s")
        await asyncio.sleep(_POLL)
