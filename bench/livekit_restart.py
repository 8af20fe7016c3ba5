"""What becomes of a call when the LiveKit server is killed: back soon enough it goes on, later it ends."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from bench.disturbed import (
    Outcome,
    answers_again,
    broken_off,
    ended,
    faulty_stack,
    hold,
    session_of,
    word_totals,
    wrong_words,
)
from bench.marked_call import MarkedCall, marked_call
from bench.report import Figure, Report
from bench.service import SessionNotFound
from bench.verdicts import verdict
from local.parts import LIVEKIT
from local.stack import Stack

#: Seconds the server is away: within the grace for lost callers, and for longer.
AWAY = (5.0, 12.0, 18.0, 35.0)
_GRACE = 20.0
#: Seconds from the server's return until both are in the room again, and seconds they then have to hear each other.
_REJOINED_WITHIN = 30.0
_HEARING = 1.0
#: Seconds from the server's return until a session that does not go on must be over.
_OVER_WITHIN = 30.0
_POLL = 0.05
_OVERLAP = 0.1


@dataclass(frozen=True)
class Trial:
    """One kill."""

    away: float
    #: Seconds from the server's return until the caller had the agent's track again; None when it never came.
    rejoined_after: float | None
    #: Whether the first question afterwards was answered.
    is_answered: bool
    #: The session's state and reason in the end, before anybody asks it to leave, and its epoch.
    status: str
    reason: str | None
    epoch: int | None
    #: Seconds from the kill to the session's end, if it ended.
    over_after: float | None
    #: Agents whose track the caller had.
    agents: int
    outcome: Outcome

    @property
    def goes_on(self) -> bool:
        """Whether the session still had an agent who answers, the same one or the next."""
        return self.status == "live" and self.is_answered


def measure_livekit_restart(*, count: int, away: Sequence[float] = AWAY) -> Report:
    """`count` kills for each of the seconds that the server is `away`, one after the other on a stack of its own."""
    # The SDK tells of every attempt to connect.
    logging.getLogger("livekit").setLevel(logging.CRITICAL)
    with faulty_stack(workers=1) as stack:
        trials, broken = hold(partial(_restart, stack, seconds) for _ in range(count) for seconds in away)
    return report(trials, broken)


async def _restart(stack: Stack, away: float) -> Trial:
    async with marked_call(stack) as call:
        await answers_again(call)
        killed_at = time.time()
        await asyncio.to_thread(stack.kill, LIVEKIT)
        await asyncio.sleep(away - (time.time() - killed_at))
        await asyncio.to_thread(stack.start, LIVEKIT)
        rejoined_after, is_answered = None, False
        if away < _GRACE:
            rejoined_after, is_answered = await _go_on(call, time.time(), killed_at)
            session = await session_of(call)
        else:
            session = await ended(call, within=_OVER_WITHIN)
        with suppress(SessionNotFound):
            await asyncio.to_thread(call.client.leave, call.session_id)
        await ended(call)
        outcome = await Outcome.of(call)
        agents = len({track.identity for track in call.caller.tracks})
    over_at = session.timings.ended_at
    over_after = None if over_at is None else over_at - killed_at
    state = session.status, session.reason, session.epoch
    return Trial(away, rejoined_after, is_answered, *state, over_after, agents, outcome)


async def _go_on(call: MarkedCall, back_at: float, killed_at: float) -> tuple[float | None, bool]:
    """Wait until the caller has an agent again, and ask it something."""
    while not any(track.started_at > killed_at for track in call.caller.tracks):
        if time.time() > back_at + _REJOINED_WITHIN:
            return None, False
        await asyncio.sleep(_POLL)
    rejoined_after = max(track.started_at for track in call.caller.tracks) - back_at
    await asyncio.sleep(_HEARING)
    return rejoined_after, await answers_again(call)


def report(trials: Sequence[Trial], broken: Sequence[str]) -> Report:
    """What a reader is told of these trials, and of the calls that broke off."""
    within = [trial for trial in trials if trial.away < _GRACE]
    later = [trial for trial in trials if trial.away >= _GRACE]
    figures = {
        f"LiveKit away for {away:g} s: its return to the agent at the caller": Figure(
            [trial.rejoined_after for trial in within if trial.away == away and trial.rejoined_after is not None]
        )
        for away in sorted({trial.away for trial in within})
    }
    ends = [trial.over_after for trial in later if trial.over_after is not None]
    figures["LiveKit away for longer: its kill to the session's end"] = Figure(ends)
    notes = [*_goings_on(within), *_ends(later), *_words(trials), *broken_off(broken)]
    return Report("A call whose LiveKit server is killed", figures, notes)


def _goings_on(trials: Sequence[Trial]) -> Iterator[str]:
    for away in sorted({trial.away for trial in trials}):
        some = [trial for trial in trials if trial.away == away]
        on = sum(trial.goes_on for trial in some)
        next_agent = sum(trial.goes_on and trial.agents > 1 for trial in some)
        told = f"{on} of {len(some)} sessions went on, {next_agent} of them with another agent"
        yield verdict(on == len(some), f"away for {away:g} s: {told}")
        for trial in some:
            if not trial.goes_on:
                answered = "answered" if trial.is_answered else "not answered"
                yield f"  {trial.status}, {trial.reason}, epoch {trial.epoch}; the question afterwards {answered}"


def _ends(trials: Sequence[Trial]) -> Iterator[str]:
    for away in sorted({trial.away for trial in trials}):
        some = [trial for trial in trials if trial.away == away]
        ends = Counter(f"{trial.status}/{trial.reason}" for trial in some)
        told = ", ".join(f"{end} ({times})" for end, times in ends.items())
        yield verdict(ends["ended/room_closed"] == len(some), f"away for {away:g} s: {told}")


def _words(trials: Sequence[Trial]) -> Iterator[str]:
    worst = max((trial.outcome.overlap for trial in trials), default=0.0)
    yield verdict(worst <= _OVERLAP, f"two agents audible at the same time at most {1000 * worst:.0f} ms")
    wrong = sum(not trial.outcome.words.is_exact for trial in trials)
    yield verdict(not wrong, f"calls whose words were not stored once each: {wrong}")
    yield f"{len(trials)} calls: {word_totals([trial.outcome for trial in trials])}."
    yield from wrong_words([trial.outcome for trial in trials])
