"""What a caller notices when the process that serves the call is killed: how long it is silent, what is lost."""

import asyncio
import os
import random
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial

from bench.disturbed import (
    Outcome,
    answer_verdict,
    answers_again,
    audible_after,
    broken_off,
    ended,
    faulty_stack,
    foreign_verdict,
    hold,
    process_of,
    session_of,
    settle,
    word_totals,
    wrong_words,
)
from bench.marked_call import MarkedCall, marked_call
from bench.report import Figure, Report
from bench.verdicts import verdict
from local.marks import UTTERANCES, WORD_SECONDS, Mark, marks_in
from local.stack import Stack
from worker.fleet.recovery import MOST_IN_A_ROW

_WORKERS = 2
#: Seconds until the next agent must be audible.
_AUDIBLE_WITHIN = 20.0
#: Words of the utterance that a kill falls into.
_WORDS = 5
#: Seconds after the beginning of an answer in which a kill falls.
_SPEAKING = (0.1, 1.5)
#: Seconds of silence after which any turn is over, unless the settings say otherwise.
_ENDPOINTING = 0.9
#: Seconds after the first word, of which there are five of 0.3 s.
_UTTERANCE = (0.2, 1.3)
#: Seconds: what issue and design ask for.
_P50, _WORST = 1.3, 4.0
_OVERLAP = 0.1


class Phase(StrEnum):
    """What was going on when the process was killed."""

    LISTENING = "nobody spoke"
    OPEN = "the turn was not over yet"
    THINKING = "the agent was thinking"
    SPEAKING = "the agent was speaking"
    UTTERANCE = "the caller was speaking"


#: Seconds after the end of words in which a kill falls; of two spans one is chosen. In the later one every turn is
#: over, stored or not.
_AFTER_WORDS = {Phase.OPEN: ((0.02, 0.6),), Phase.THINKING: ((0.6, 1.1), (0.9, 1.4))}


@dataclass(frozen=True)
class Kill:
    """One kill: its phase, the utterance it fell behind or into, and how many seconds later."""

    phase: Phase
    at: float
    number: int | None = None
    offset: float = 0.0
    #: Seconds to the next agent's first sound; None when none came.
    silence: float | None = None
    is_answered: bool = False
    lost: int = 0
    #: Those of the lost words that were spoken to their end before the kill.
    lost_before: int = 0

    def among(self, lost: Sequence[Mark]) -> "Kill":
        """The same with what is lost of its utterance."""
        own = [mark.word for mark in lost if mark.utterance == self.number]
        is_during = self.phase is Phase.UTTERANCE
        before = [word for word in own if not is_during or (word + 1) * WORD_SECONDS <= self.offset]
        return replace(self, lost=len(own), lost_before=len(before))


@dataclass(frozen=True)
class Killed:
    """One call with all its kills."""

    kills: Sequence[Kill]
    outcome: Outcome

    @property
    def cut(self) -> list[int]:
        """Utterances whose answer was cut off by a kill."""
        return [kill.number for kill in self.kills if kill.phase is Phase.SPEAKING and kill.number is not None]


def measure_recovery(*, count: int, seed: int = 0) -> Report:
    """`count` kills, at moments that `seed` determines, in calls of at most three kills on a stack of its own."""
    moments = random.Random(seed)
    with faulty_stack(workers=_WORKERS) as stack:
        calls, broken = hold(partial(_call, stack, phases, moments) for phases in tuple(plan(count, moments)))
    return report(calls, broken, seed=seed)


def plan(count: int, moments: random.Random) -> Iterator[Sequence[Phase]]:
    """The phases of each call's kills; every phase as often as the others."""
    phases = [list(Phase)[number % len(Phase)] for number in range(count)]
    moments.shuffle(phases)
    for start in range(0, count, MOST_IN_A_ROW):
        yield phases[start : start + MOST_IN_A_ROW]


async def _call(stack: Stack, phases: Sequence[Phase], moments: random.Random) -> Killed:
    kills: list[Kill] = []
    async with marked_call(stack) as call:
        await answers_again(call)
        for phase in phases:
            kills.append(await _kill_and_hear(stack, call, phase, moments))
            if kills[-1].silence is None:
                break
        await asyncio.to_thread(call.client.leave, call.session_id)
        await ended(call)
        outcome = await Outcome.of(call)
    return Killed([kill.among(outcome.words.lost) for kill in kills], outcome)


async def _kill_and_hear(stack: Stack, call: MarkedCall, phase: Phase, moments: random.Random) -> Kill:
    session = await session_of(call)
    pid = await asyncio.to_thread(process_of, stack, session, workers=_WORKERS)
    identity = f"agent-{session.session_id}-{session.epoch}"
    speaking: asyncio.Task[object] | None = None
    number = len(call.said) if phase is not Phase.LISTENING else None
    if phase is Phase.UTTERANCE:
        line = await call.prepare(_WORDS)
        since = time.time()
        speaking = asyncio.create_task(call.speak(_WORDS, line))
        await asyncio.sleep(moments.uniform(*_UTTERANCE))
    else:
        since = await _reach(call, phase, moments)
    killed_at = time.time()
    os.kill(pid, signal.SIGKILL)
    if phase in _AFTER_WORDS and number is not None:
        phase = await _really(call, number, since, killed_at)
    kill = Kill(phase, killed_at, number, killed_at - since)
    try:
        heard_at = await audible_after(call, killed_at, besides=identity, within=_AUDIBLE_WITHIN)
    except TimeoutError:
        return kill
    finally:
        if speaking is not None:
            await speaking
    await settle(call)
    return replace(kill, silence=heard_at - killed_at, is_answered=await answers_again(call))


async def _really(call: MarkedCall, number: int, since: float, killed_at: float) -> Phase:
    """What a kill after the last word of an utterance fell into; to be asked before another agent stores anything."""
    if call.caller.heard.audible_between(since, killed_at):
        return Phase.SPEAKING
    stored = [mark for turn in await call.turns() if turn.role == "user" for mark in marks_in(turn.text or "")]
    is_stored = any(mark.utterance == number % UTTERANCES for mark in stored)
    return Phase.THINKING if is_stored or killed_at - since > _ENDPOINTING else Phase.OPEN


async def _reach(call: MarkedCall, phase: Phase, moments: random.Random) -> float:
    """Be at a moment of this phase; since when it lasts."""
    if phase is Phase.LISTENING:
        since = time.time()
        await asyncio.sleep(moments.uniform(0.0, 1.0))
    elif phase in _AFTER_WORDS:
        since = (await call.say(_WORDS)).ended_at
        await asyncio.sleep(moments.uniform(*moments.choice(_AFTER_WORDS[phase])))
    else:
        since = await call.ask(_WORDS)
        await asyncio.sleep(moments.uniform(*_SPEAKING))
    return since


def report(calls: Sequence[Killed], broken: Sequence[str], *, seed: int) -> Report:
    """What a reader is told of these calls, and of those that broke off."""
    kills = [kill for call in calls for kill in call.kills]
    heard = [kill for kill in kills if kill.silence is not None]
    figures = {"Muster: kill -9 of a call's process to audible again": _silences(heard)} | {
        f"  while {phase}": _silences([kill for kill in heard if kill.phase is phase]) for phase in Phase
    }
    notes = [*_verdicts(calls, kills, figures), *_notes(calls, seed), *broken_off(broken)]
    return Report("A call whose process is killed", figures, notes)


def _silences(kills: Sequence[Kill]) -> Figure:
    return Figure([kill.silence for kill in kills if kill.silence is not None])


def _verdicts(calls: Sequence[Killed], kills: Sequence[Kill], figures: dict[str, Figure]) -> Iterator[str]:
    total = next(iter(figures.values()))
    silent = sum(kill.silence is None for kill in kills)
    yield verdict(not silent, f"of {len(kills)} kills {silent} ended the call")
    if total.values:
        yield verdict(total.p50 <= _P50, f"audible again p50 {total.p50:.2f} s, at most {_P50} s")
        yield verdict(total.worst <= _WORST, f"audible again at worst {total.worst:.2f} s, aim {_WORST:g} s")
    yield from _word_verdicts(calls, kills)
    again = sum(len(call.outcome.doubled(cut=call.cut)) for call in calls)
    yield verdict(not again, f"utterances answered once more than a cut-off answer asks for: {again}")
    yield answer_verdict([call.outcome for call in calls])
    worst = max((call.outcome.overlap for call in calls), default=0.0)
    yield verdict(worst <= _OVERLAP, f"two agents audible at the same time at most {1000 * worst:.0f} ms")
    deaf = sum(not kill.is_answered for kill in kills if kill.silence is not None)
    yield verdict(not deaf, f"the next question after a kill was not answered {deaf} times")


def _word_verdicts(calls: Sequence[Killed], kills: Sequence[Kill]) -> Iterator[str]:
    # All of these words were said before the kill.
    for phase in (Phase.OPEN, Phase.THINKING, Phase.SPEAKING):
        lost = [kill.lost for kill in kills if kill.phase is phase]
        yield verdict(not sum(lost), f"killed while {phase} (n = {len(lost)}): {sum(lost)} words lost")
    elsewhere = sum(len(call.outcome.words.lost) for call in calls) - sum(kill.lost for kill in kills)
    yield verdict(not elsewhere, f"words of other utterances lost: {elsewhere}")
    doubled = sum(len(call.outcome.words.doubled) for call in calls)
    yield verdict(not doubled, f"words stored twice: {doubled}")
    yield foreign_verdict([call.outcome for call in calls])


def _notes(calls: Sequence[Killed], seed: int) -> Iterator[str]:
    kills = [kill for call in calls for kill in call.kills]
    yield _lost([kill for kill in kills if kill.phase is Phase.UTTERANCE], f"killed while {Phase.UTTERANCE}")
    thinking = [kill.offset for kill in kills if kill.phase is Phase.THINKING]
    late = sum(offset > _ENDPOINTING for offset in thinking)
    yield f"Of {len(thinking)} kills while {Phase.THINKING} {late} came more than {_ENDPOINTING:g} s after the words."
    yield f"{len(calls)} calls, seed {seed}: {word_totals([call.outcome for call in calls])}."
    yield from wrong_words([call.outcome for call in calls])
    for index, call in enumerate(calls):
        for kill in call.kills:
            if kill.lost or kill.silence is None or kill.silence > _WORST or not kill.is_answered:
                yield _peculiar(index, kill)


def _lost(kills: Sequence[Kill], when: str) -> str:
    lost, before = sum(kill.lost for kill in kills), sum(kill.lost_before for kill in kills)
    return (
        f"{when} (n = {len(kills)}): {lost} of {_WORDS * len(kills)} words lost, {before} of them said before the kill."
    )


def _peculiar(call: int, kill: Kill) -> str:
    silence = "never audible again" if kill.silence is None else f"audible after {kill.silence:.2f} s"
    answered = "" if kill.is_answered else ", the next question was not answered"
    return (
        f"call {call}: killed {kill.offset:.2f} s in, while {kill.phase}: {silence}, {kill.lost} words lost{answered}"
    )
