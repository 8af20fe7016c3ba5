"""A caller in a room with an agent that LiveKit dispatched."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass

from bench.marked_call import REJOIN_WITHIN, caller_token
from bench.native.fleet import NativeAgent, NativeFleet
from local.audio import Samples
from local.caller import Caller

#: Seconds from the dispatch to the greeting, after which the dispatch counts as lost.
GREETED_WITHIN = 20.0
#: Calls that are tried when dispatches are lost.
_ATTEMPTS = 3
#: Seconds without a sound after which the agent has finished, and an answer may last.
_QUIET = 0.8
_LONGEST_ANSWER = 20.0
#: Seconds a caller who hears nothing waits before asking again.
_ASK_AGAIN = 8.0
_ANSWERED_WITHIN = 15.0


class NobodyCame(Exception):
    """Dispatch after dispatch brought no agent."""


@dataclass(frozen=True)
class NativeCall:
    """A call whose agent has greeted; the agent was wanted at `dispatched_at`, Unix seconds."""

    caller: Caller
    fleet: NativeFleet
    room: str
    question: Samples
    dispatched_at: float

    async def agent(self) -> NativeAgent:
        """The only agent in the room."""
        [agent] = await self.fleet.agents(self.room)
        return agent

    async def quiet(self) -> None:
        """Wait until the agent has finished speaking. Raises `TimeoutError`."""
        await self.caller.heard.silent_since(time.time(), gap=_QUIET, within=_LONGEST_ANSWER)

    async def is_answered(self, *, within: float = _ANSWERED_WITHIN) -> bool:
        """Ask, and hear the answer out; whether there was one."""
        try:
            spoken = await self.caller.say(self.question)
            await self.caller.heard.first_audible_after(spoken.ended_at, within=within)
            await self.quiet()
        except (TimeoutError, ConnectionError):
            return False
        return True

    async def audible_after(self, moment: float, *, within: float) -> float | None:
        """When the agent was heard again after `moment`, while the caller asks again and again; None if never."""
        asking = asyncio.create_task(self._ask_again_and_again(), name="native-asking")
        try:
            return await self.caller.heard.first_audible_after(moment, within=within)
        except (TimeoutError, ConnectionError):
            return None
        finally:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)

    async def _ask_again_and_again(self) -> None:
        while True:
            with suppress(ConnectionError):
                await self.caller.say(self.question)
            await asyncio.sleep(_ASK_AGAIN)


@asynccontextmanager
async def native_call(
    fleet: NativeFleet, settings: Mapping[str, str], question: Samples, *, dispatches: int = 1
) -> AsyncIterator[NativeCall]:
    """A caller who has been greeted and hangs up at the end; an attempt that brings nobody is followed by others.

    `settings` are the stack's, `question` is a line that the agent answers; `dispatches` are made for the one room.
    Raises `NobodyCame`.
    """
    for _ in range(_ATTEMPTS):
        room = f"native-{uuid.uuid4().hex[:10]}"
        async with AsyncExitStack() as hanging_up:
            caller = await hanging_up.enter_async_context(
                Caller(url=settings["LIVEKIT_URL"], token=caller_token(settings, room), rejoin_within=REJOIN_WITHIN)
            )
            dispatched_at = time.time()
            for _ in range(dispatches):
                await fleet.dispatch(room)
            try:
                await caller.heard.first_audible_after(dispatched_at, within=GREETED_WITHIN)
            except TimeoutError:
                continue
            call = NativeCall(caller, fleet, room, question, dispatched_at)
            await call.quiet()
            yield call
            return
    raise NobodyCame(f"{_ATTEMPTS} dispatches brought no agent within {GREETED_WITHIN:g} s each")
