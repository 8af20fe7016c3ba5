"""What two callers notice when Redis is killed and comes back, with its data or without, and what joins answer."""

import asyncio
import shutil
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path

from livekit import api

from bench.disturbed import (
    Outcome,
    answers_again,
    broken_off,
    ended,
    faulty_stack,
    hold,
    session_of,
    settle,
    word_totals,
    wrong_words,
)
from bench.marked_call import MarkedCall, marked_call
from bench.report import Figure, Report
from bench.service import AgentService, RequestRefused, ServiceUnreachable, Turn
from bench.verdicts import verdict
from local.parts import AGENT_SERVICE, REDIS
from local.stack import Stack

_CALLERS = ("ada", "ben")
#: Seconds the callers talk before, and after joins are served again.
_BEFORE = 6.0
_AFTER = 5.0
#: Seconds between two joins while Redis is away and in the first seconds after, and how long those are.
_JOIN_PAUSE = 0.5
_FIRST_SECONDS = 8.0
#: Seconds until a join must be served again.
_SERVED_WITHIN = 30.0
_OVERLAP = 0.1
_UNAVAILABLE = 503


class Outage(StrEnum):
    """What happens to Redis."""

    SHORT = "down 5 s"
    LONG = "down 20 s"
    EMPTIED = "without its data, down 5 s"

    @property
    def seconds(self) -> float:
        """How long it is away."""
        return 20.0 if self is Outage.LONG else 5.0


@dataclass(frozen=True)
class JoinAnswer:
    """What a join was told, and after how many seconds; `session_id` of an accepted one, 0 where nobody answered."""

    room: str
    status: int
    seconds: float
    retry_after: float | None = None
    session_id: str | None = None


@dataclass(frozen=True)
class Talk:
    """One caller's call through an outage."""

    state: str
    #: Epochs and agents that it took; one each when nobody took it over.
    epoch: int | None
    agents_heard: int
    agents_in_room: int
    outcome: Outcome
    #: Turns that were stored before the outage and are not any more.
    forgotten: int

    @property
    def goes_on(self) -> bool:
        """Whether the same agent still had the call."""
        return self.state == "live" and self.epoch == 1 and self.agents_heard == 1 and self.agents_in_room == 1


@dataclass(frozen=True)
class Trial:
    """One outage."""

    outage: Outage
    talks: Sequence[Talk]
    #: Joins of rooms of their own while Redis was away.
    refused: Sequence[JoinAnswer]
    #: Joins of a room that has a call, in the first seconds after, and that call's session.
    repeated: Sequence[JoinAnswer]
    running: str
    #: Seconds from Redis's return to the first join that was accepted; None when none was.
    served_after: float | None
    #: Whether a third caller was greeted and answered afterwards.
    serves: bool


def measure_redis_restart(*, count: int, outages: Sequence[Outage] = tuple(Outage)) -> Report:
    """`count` restarts of each of these kinds, on a stack of its own, under two callers who talk all along."""
    with faulty_stack() as stack:
        trials, broken = hold(partial(_restart, stack, outage) for _ in range(count) for outage in outages)
    return report(trials, broken)


async def _restart(stack: Stack, outage: Outage) -> Trial:
    async with AsyncExitStack() as exits:
        calls = [await exits.enter_async_context(marked_call(stack, identity=caller)) for caller in _CALLERS]
        until = asyncio.Event()
        talking = [asyncio.create_task(call.converse(until)) for call in calls]
        await asyncio.sleep(_BEFORE)
        stored = [await call.turns() for call in calls]
        refused = await _be_away(stack, outage)
        back_at = time.time()
        repeated, served_after = await asyncio.gather(_join_again(stack, calls[0].room), _served(stack, back_at))
        await asyncio.sleep(_AFTER)
        until.set()
        await asyncio.gather(*talking)
        for call in calls:
            await settle(call)
        talks = [await _talk(stack, call, before, outage) for call, before in zip(calls, stored, strict=True)]
        serves = await _serves(stack)
    return Trial(outage, talks, refused, repeated, calls[0].session_id, served_after, serves)


async def _be_away(stack: Stack, outage: Outage) -> list[JoinAnswer]:
    """Take Redis away for its time; what joins were told meanwhile."""
    await asyncio.to_thread(stack.kill, REDIS)
    until = time.monotonic() + outage.seconds
    if outage is Outage.EMPTIED:
        await asyncio.to_thread(_empty, stack.directory / REDIS)
    answers = []
    while time.monotonic() < until - _JOIN_PAUSE:
        answers.append(await _join(stack, _room()))
        await asyncio.sleep(_JOIN_PAUSE)
    await asyncio.sleep(max(until - time.monotonic(), 0.0))
    await asyncio.to_thread(stack.start, REDIS)
    return answers


def _empty(directory: Path) -> None:
    shutil.rmtree(directory)
    directory.mkdir()


async def _join_again(stack: Stack, room: str) -> list[JoinAnswer]:
    """Join a room that has a call, in the first seconds."""
    until, answers = time.monotonic() + _FIRST_SECONDS, []
    while time.monotonic() < until:
        answers.append(await _join(stack, room, caller=_CALLERS[0]))
        await asyncio.sleep(_JOIN_PAUSE)
    return answers


async def _served(stack: Stack, since: float) -> float | None:
    """Seconds until a join of another room is accepted; nobody waits for its agent, who is told to leave."""
    while time.time() < since + _SERVED_WITHIN:
        answer = await _join(stack, _room())
        if answer.session_id is not None:
            await asyncio.to_thread(AgentService(stack.urls[AGENT_SERVICE]).leave, answer.session_id)
            return time.time() - since
        await asyncio.sleep(_JOIN_PAUSE)
    return None


async def _join(stack: Stack, room: str, *, caller: str = "cleo") -> JoinAnswer:
    def ask() -> JoinAnswer:
        started = time.monotonic()
        with AgentService(stack.urls[AGENT_SERVICE]) as client:
            try:
                joined = client.join(room=room, user_id=caller)
            except RequestRefused as refusal:
                return JoinAnswer(room, refusal.status, time.monotonic() - started, refusal.retry_after)
            except ServiceUnreachable:
                return JoinAnswer(room, 0, time.monotonic() - started)
        return JoinAnswer(room, 202, time.monotonic() - started, session_id=joined.session_id)

    return await asyncio.to_thread(ask)


async def _talk(stack: Stack, call: MarkedCall, before: Sequence[Turn], outage: Outage) -> Talk:
    """What became of one call; it ends with this."""
    session = await session_of(call)
    agents = await _agents_in(stack, call.room)
    if not session.over:
        await asyncio.to_thread(call.client.leave, call.session_id)
        await ended(call)
    after = await call.turns()
    kept = {turn.item_id for turn in after}
    forgotten = [turn for turn in before if turn.item_id not in kept]
    # A server without its data cannot tell what was stored there before; the words were stored all the same.
    outcome = await Outcome.of(call, and_turns=forgotten if outage is Outage.EMPTIED else ())
    heard = len({track.identity for track in call.caller.tracks})
    return Talk(session.status, session.epoch, heard, agents, outcome, len(forgotten))


async def _agents_in(stack: Stack, room: str) -> int:
    settings = stack.settings
    async with api.LiveKitAPI(
        settings["LIVEKIT_URL"], settings["LIVEKIT_API_KEY"], settings["LIVEKIT_API_SECRET"]
    ) as server:
        answer = await server.room.list_participants(api.ListParticipantsRequest(room=room))
    return sum(participant.identity.startswith("agent-") for participant in answer.participants)


async def _serves(stack: Stack) -> bool:
    try:
        async with marked_call(stack, identity="cleo") as call:
            is_answered = await answers_again(call)
            await asyncio.to_thread(call.client.leave, call.session_id)
            await ended(call)
    except (TimeoutError, RequestRefused):
        return False
    return is_answered


def _room() -> str:
    return f"restart-{uuid.uuid4().hex[:10]}"


def report(trials: Sequence[Trial], broken: Sequence[str]) -> Report:
    """What a reader is told of these trials, and of the calls that broke off."""
    figures = {}
    for outage in Outage:
        some = [trial for trial in trials if trial.outage is outage]
        figures[f"Redis {outage}: its return to a join accepted"] = Figure(
            [trial.served_after for trial in some if trial.served_after is not None]
        )
        figures[f"Redis {outage}: a join's answer meanwhile"] = Figure(
            [answer.seconds for trial in some for answer in trial.refused]
        )
    notes = [note for outage in Outage for note in _judge(outage, [t for t in trials if t.outage is outage])]
    return Report("Calls and joins while Redis is restarted", figures, [*notes, *broken_off(broken)])


def _judge(outage: Outage, trials: Sequence[Trial]) -> Iterator[str]:
    if not trials:
        return
    talks = [talk for trial in trials for talk in trial.talks]
    outcomes = [talk.outcome for talk in talks]
    yield f"Redis {outage} (n = {len(trials)}, {len(talks)} calls): {word_totals(outcomes)}."
    stayed = sum(talk.goes_on for talk in talks)
    yield verdict(stayed == len(talks), f"calls that went on with the same agent, alone: {stayed} of {len(talks)}")
    worst = max(outcome.overlap for outcome in outcomes)
    yield verdict(worst <= _OVERLAP, f"two agents audible at the same time at most {1000 * worst:.0f} ms")
    exact = sum(outcome.words.is_exact for outcome in outcomes)
    yield verdict(exact == len(talks), f"calls whose words were stored once each: {exact} of {len(talks)}")
    yield from wrong_words(outcomes)
    again, never = (sum(len(each) for each in kind) for kind in _answers(outcomes))
    yield verdict(not again + never, f"utterances answered twice: {again}, not at all: {never}")
    refused = [answer for trial in trials for answer in trial.refused]
    right = sum(answer.status == _UNAVAILABLE and answer.retry_after is not None for answer in refused)
    yield verdict(
        right == len(refused),
        f"joins meanwhile answered with 503 and Retry-After: {right} of {len(refused)} ({_statuses(refused)})",
    )
    served = sum(trial.served_after is not None and trial.serves for trial in trials)
    yield verdict(served == len(trials), f"a join was accepted and answered afterwards {served} times")
    repeated = [(answer, trial.running) for trial in trials for answer in trial.repeated]
    fine = sum(answer.status == _UNAVAILABLE or answer.session_id == running for answer, running in repeated)
    yield verdict(
        fine == len(repeated),
        f"joins of a live room in the first {_FIRST_SECONDS:g} s with 503 or the running session: {fine} of"
        f" {len(repeated)} ({_statuses([answer for answer, _ in repeated])})",
    )
    if forgotten := sum(talk.forgotten for talk in talks):
        yield f"turns stored before that the server no longer has: {forgotten}."


def _answers(outcomes: Sequence[Outcome]) -> tuple[list[list[int]], list[list[int]]]:
    return [outcome.doubled() for outcome in outcomes], [outcome.unanswered for outcome in outcomes]


def _statuses(answers: Sequence[JoinAnswer]) -> str:
    counts = Counter(answer.status for answer in answers)
    return ", ".join(f"{status or 'no answer'}: {times}" for status, times in sorted(counts.items())) or "none"
