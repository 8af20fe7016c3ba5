"""What becomes of a call with LiveKit Agents' own workers when a process, a machine or the server is lost.

Each fault meets a call of its own on two workers of its own, so that another one is always free beside the one it hits.
"""

import asyncio
import os
import signal
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from livekit import api

from bench.marked_call import caller_token
from bench.native.call import GREETED_WITHIN, NativeCall, native_call
from bench.native.fleet import NativeAgent, NativeFleet, NativeWorker
from local.audio import Samples
from local.caller import Caller
from local.parts import LIVEKIT
from local.stack import Stack

Result = TypeVar("Result")

WORKERS = 2
#: Seconds in which a call may come back.
BACK_WITHIN = 60.0
#: Seconds after SIGCONT in which a frozen agent may speak.
WOKEN_WITHIN = 20.0
#: Seconds a worker that drains is watched with its call going on, and then without.
DRAIN_WATCHED = 90.0
ENDS_WITHIN = 60.0
#: Seconds after SIGTERM at which another caller wants an agent, and asks the first call's whether it is still there.
_DISPATCHED_AFTER = (0.5, 10.0, 30.0)
_ASKED_EVERY = 15.0
#: Seconds in which one of two agents may begin to speak after the other, and to answer.
_BOTH_WITHIN = 6.0
#: Seconds of sound that may still be under way when its source is gone.
_UNDER_WAY = 1.0
_SPEAKING_FOR = 0.5
_POLL = 0.25


@dataclass(frozen=True)
class Loss:
    """A call whose agent was lost; seconds since then, None for what did not happen in time."""

    audible_again: float | None
    #: How long the agent that was lost stood in the room.
    ghost: float | None
    #: Since SIGCONT, where there was one.
    audible_when_woken: float | None = None


@dataclass(frozen=True)
class Drain:
    """A worker that got SIGTERM with a call on it; seconds, None for what did not happen in time."""

    #: Whether the call's agent answered, each time it was asked during the drain.
    answered: tuple[bool, ...]
    #: From SIGTERM to the worker's exit while the call went on.
    exited: float | None
    #: From the call's end to the worker's exit.
    exited_after_hang_up: float | None
    #: From each dispatch during the drain to its agent's first sound.
    dispatches: tuple[float | None, ...]


@dataclass(frozen=True)
class Doubled:
    """A room for which two agents were dispatched: how many came, greeted and answered one question."""

    came: int
    greeted: int
    answered: int


@dataclass(frozen=True)
class ServerLoss:
    """A call whose LiveKit was killed and started again; seconds since the kill."""

    audible_again: float | None
    serves_again: float
    #: Whether the caller's client gave up; whether the agent is the same process as before.
    caller_lost: bool
    same_agent: bool
    #: Whether the call's agent answered the next question as well.
    answered: bool
    #: From a dispatch after that to its agent's first sound.
    next_dispatch: float | None


class NativeFaults:
    """The faults, on one running stack; `question` is a line that its agents answer."""

    def __init__(self, *, stack: Stack, home: Path, question: Samples) -> None:
        """`home` is that of the stack."""
        self._stack = stack
        self._home = home
        self._question = question

    async def job_killed(self) -> Loss:
        """The call's job process gets SIGKILL while its agent speaks."""

        async def kill(call: NativeCall) -> Loss:
            agent = await call.agent()
            await call.caller.say(call.question)
            await call.caller.heard.speaking_for(_SPEAKING_FOR, within=BACK_WITHIN)
            assert agent.pid is not None
            os.kill(agent.pid, signal.SIGKILL)
            return await self._loss(call, agent, time.time())

        return await self._with_call(kill)

    async def machine_lost(self) -> Loss:
        """The worker and all its processes stop; after `BACK_WITHIN` they go on."""

        async def freeze(call: NativeCall) -> Loss:
            agent = await call.agent()
            worker = call.fleet.worker_of(agent)
            worker.freeze()
            loss = await self._loss(call, agent, time.time())
            worker.thaw()
            woken_at = time.time()
            heard_at = await call.audible_after(woken_at, within=WOKEN_WITHIN)
            return Loss(loss.audible_again, loss.ghost, _since(woken_at, heard_at))

        return await self._with_call(freeze)

    async def drained(self) -> Drain:
        """The call's worker gets SIGTERM; the caller stays for `DRAIN_WATCHED` and then hangs up."""

        async def drain(call: NativeCall) -> Drain:
            worker = call.fleet.worker_of(await call.agent())
            worker.terminate()
            terminated_at = time.time()
            exited, answered, dispatches = await asyncio.gather(
                _exit(worker, since=terminated_at, within=DRAIN_WATCHED),
                _answers(call, until=terminated_at + DRAIN_WATCHED),
                self._dispatches(call.fleet),
            )
            await call.caller.hang_up()
            after = None if exited else await _exit(worker, since=time.time(), within=ENDS_WITHIN)
            return Drain(answered, exited, after, dispatches)

        return await self._with_call(drain)

    async def dispatched_twice(self) -> Doubled:
        """Two dispatches for one room, one right after the other."""

        async def ask(call: NativeCall) -> Doubled:
            await asyncio.sleep(_BOTH_WITHIN)
            greeted = _speakers(call.caller, since=call.dispatched_at)
            spoken = await call.caller.say(call.question)
            await asyncio.sleep(_BOTH_WITHIN)
            answered = _speakers(call.caller, since=spoken.ended_at)
            return Doubled(len(await call.fleet.agents(call.room)), greeted, answered)

        return await self._with_call(ask, dispatches=2)

    async def server_killed(self) -> ServerLoss:
        """LiveKit gets SIGKILL and is started again at once."""

        async def kill(call: NativeCall) -> ServerLoss:
            agent = await call.agent()
            killed_at = time.time()
            await asyncio.to_thread(self._stack.kill, LIVEKIT)
            await asyncio.to_thread(self._stack.start, LIVEKIT)
            serves_at = time.time()
            heard_at = await call.audible_after(killed_at + _UNDER_WAY, within=BACK_WITHIN)
            answered = heard_at is not None and await _answers_again(call)
            agents = await _agents_or_none(call)
            return ServerLoss(
                audible_again=_since(killed_at, heard_at),
                serves_again=serves_at - killed_at,
                caller_lost=call.caller.left.is_set(),
                same_agent=agent.pid in {each.pid for each in agents},
                answered=answered,
                next_dispatch=await self._dispatch(call.fleet),
            )

        return await self._with_call(kill)

    async def _with_call(self, work: Callable[[NativeCall], Awaitable[Result]], *, dispatches: int = 1) -> Result:
        async with (
            NativeFleet(stack=self._stack, home=self._home, workers=WORKERS) as fleet,
            native_call(fleet, self._stack.settings, self._question, dispatches=dispatches) as call,
        ):
            return await work(call)

    async def _loss(self, call: NativeCall, agent: NativeAgent, lost_at: float) -> Loss:
        heard_at, gone_at = await asyncio.gather(
            call.audible_after(lost_at + _UNDER_WAY, within=BACK_WITHIN),
            _gone(call, agent, within=BACK_WITHIN),
        )
        return Loss(_since(lost_at, heard_at), _since(lost_at, gone_at))

    async def _dispatches(self, fleet: NativeFleet) -> tuple[float | None, ...]:
        started, served = time.time(), []
        for moment in _DISPATCHED_AFTER:
            await asyncio.sleep(max(0.0, started + moment - time.time()))
            served.append(await self._dispatch(fleet))
        return tuple(served)

    async def _dispatch(self, fleet: NativeFleet) -> float | None:
        """Seconds from a dispatch for another caller to the first sound; None when nobody came in time."""
        room = f"native-{uuid.uuid4().hex[:10]}"
        async with Caller(url=self._stack.urls[LIVEKIT], token=caller_token(self._stack.settings, room)) as caller:
            dispatched_at = time.time()
            await fleet.dispatch(room)
            try:
                return await caller.heard.first_audible_after(dispatched_at, within=GREETED_WITHIN) - dispatched_at
            except TimeoutError:
                return None


async def _gone(call: NativeCall, agent: NativeAgent, *, within: float) -> float | None:
    """When the agent was in the room no longer; None when it still is after `within` seconds."""
    deadline = time.time() + within
    while time.time() < deadline:
        if agent.identity not in {each.identity for each in await call.fleet.agents(call.room)}:
            return time.time()
        await asyncio.sleep(_POLL)
    return None


async def _exit(worker: NativeWorker, *, since: float, within: float) -> float | None:
    """Seconds from `since` to the worker's exit."""
    return time.time() - since if await worker.ended(within=within) else None


async def _answers(call: NativeCall, *, until: float) -> tuple[bool, ...]:
    """Whether the agent answered, asked again and again."""
    answered = []
    while (asked_at := time.time()) < until:
        answered.append(await call.is_answered())
        await asyncio.sleep(max(0.0, min(until, asked_at + _ASKED_EVERY) - time.time()))
    return tuple(answered)


def _speakers(caller: Caller, *, since: float) -> int:
    """How many participants were heard since then."""
    heard = {track.identity for track in caller.tracks if track.heard.audible_between(since, time.time())}
    return len(heard)


async def _answers_again(call: NativeCall) -> bool:
    await call.quiet()
    return await call.is_answered()


async def _agents_or_none(call: NativeCall) -> list[NativeAgent]:
    try:
        return await call.fleet.agents(call.room)
    except api.TwirpError as error:
        if error.code != api.TwirpErrorCode.NOT_FOUND:
            raise
        # Nobody has made the room again since the server that knew it was killed.
        return []


def _since(moment: float, later: float | None) -> float | None:
    return None if later is None else later - moment
