"""What a caller notices when a worker's machine stops for a while: the next agent, and the old one when it wakes up.

Every process of the worker is stopped; ten seconds later all go on, long after another worker has the call. With a
partition the old agent does not learn from the LiveKit server what happened meanwhile: what the server sends is lost,
the connection is reset before the processes go on, and new connections are made at once.
"""

import asyncio
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import psutil

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
    tree_of,
    word_totals,
    worker_of,
    wrong_words,
)
from bench.marked_call import MarkedCall, audible_seconds, marked_call
from bench.report import Figure, Report
from bench.service import HandOverImpossible
from bench.verdicts import verdict
from local.link import Link
from local.marks import WORDS
from local.parts import LIVEKIT
from local.stack import Stack
from worker.fleet import workers
from worker.fleet.redis_operations import connect, run
from worker.fleet.times import LEASE

_WORKERS = 2
#: Seconds the machine stands still, and seconds the old agent is listened for afterwards.
_STOPPED = 10.0
_WATCHED = 8.0
#: Seconds after the beginning of the longest answer at which the machine stops: most of it is still to be said.
_MOMENT = (0.2, 0.8)
_JUST_BEFORE = 0.3
#: The number of the utterance whose answer the stop cuts off.
_CUT = 0
#: Seconds until the next agent must be audible, until the worker must be there again, and until it has the call again.
_AUDIBLE_WITHIN = 25.0
_USABLE_WITHIN = 30.0
_HANDED_OVER_WITHIN = 20.0
_POLL = 0.1
#: Seconds beside the lease that the next agent may take.
_BESIDES_LEASE = 1.3
_OVERLAP = 0.1
_EXITED = r"pid:{pid} exited with '([^']+)'"


@dataclass(frozen=True)
class Trial:
    """One machine lost and found."""

    is_partitioned: bool
    #: Whether the agent was audible just before the stop.
    was_speaking: bool
    #: Seconds from the stop to the next agent's first sound; None when none came.
    silence: float | None
    #: Seconds in which the old agent was audible after its machine went on.
    zombie: float
    #: What became of the call's process, and of the worker's parent and keeper.
    child: str
    worker: str
    #: Seconds until the worker had its lease again and served nobody; None when it did not.
    usable_after: float | None
    #: Whether the call was handed over to the worker again and it answered there.
    serves_again: bool
    outcome: Outcome


@dataclass(frozen=True)
class _Machine:
    """A worker, as it was before it stopped."""

    name: str
    processes: Sequence[psutil.Process]
    child: int
    link: Link
    log: Callable[[], str]

    def stop(self) -> None:
        """All at once; the keeper must not see its worker stand still, nor the worker its keeper."""
        for process in self.processes:
            process.suspend()

    def resume(self) -> None:
        for process in self.processes:
            process.resume()

    @property
    def child_end(self) -> str:
        """How the call's process ended, in Celery's words."""
        if psutil.pid_exists(self.child):
            return "lives"
        found = re.search(_EXITED.format(pid=self.child), self.log())
        return found[1] if found else "gone"

    @property
    def rest(self) -> str:
        """Whether the other processes are the same as before."""
        gone = sum(not process.is_running() for process in self.processes if process.pid != self.child)
        return "the same processes" if not gone else f"{gone} of {len(self.processes) - 1} other processes replaced"


def measure_machine_loss(*, count: int, seed: int = 0) -> Report:
    """`count` losses without and as many with a partition, at moments that `seed` determines."""
    moments = random.Random(seed)
    with faulty_stack(workers=_WORKERS, links=True) as stack:
        trials, broken = hold(partial(_lose, stack, number % 2 == 1, moments) for number in range(2 * count))
    return report(trials, broken, seed=seed)


async def _lose(stack: Stack, is_partitioned: bool, moments: random.Random) -> Trial:
    async with marked_call(stack) as call:
        session = await session_of(call)
        machine = await asyncio.to_thread(_machine, stack, call)
        identity = f"agent-{session.session_id}-{session.epoch}"
        await call.ask(WORDS)
        await asyncio.sleep(moments.uniform(*_MOMENT))
        if is_partitioned:
            machine.link.deafen()
        stopped_at = time.time()
        machine.stop()
        was_speaking = call.caller.heard.audible_between(stopped_at - _JUST_BEFORE, stopped_at)
        try:
            silence = await _silence(call, stopped_at, identity)
            await asyncio.sleep(max(stopped_at + _STOPPED - time.time(), 0.0))
            if is_partitioned:
                machine.link.cut()
                machine.link.mend()
        finally:
            resumed_at = time.time()
            machine.resume()
        usable_after, _ = await asyncio.gather(
            _usable(stack, machine.name, resumed_at), asyncio.sleep(resumed_at + _WATCHED - time.time())
        )
        zombie = audible_seconds(call.caller.tracks, since=resumed_at, identity=identity)
        child, worker = machine.child_end, machine.rest
        serves_again = usable_after is not None and silence is not None and await _serves(call, machine.name)
        await asyncio.to_thread(call.client.leave, call.session_id)
        await ended(call)
        outcome = await Outcome.of(call)
    return Trial(is_partitioned, was_speaking, silence, zombie, child, worker, usable_after, serves_again, outcome)


def _machine(stack: Stack, call: MarkedCall) -> _Machine:
    session = call.client.session(call.session_id)
    name = worker_of(session)
    child = process_of(stack, session, workers=_WORKERS)
    # The call's process goes on first: nobody ends it before it could speak.
    processes = sorted(tree_of(stack.pid(name)), key=lambda process: process.pid != child)
    link, log = stack.link(name, LIVEKIT), stack.log(name)
    return _Machine(name, processes, child, link, lambda: log.read_text(errors="replace"))


async def _silence(call: MarkedCall, since: float, identity: str) -> float | None:
    try:
        return await audible_after(call, since, besides=identity, within=_AUDIBLE_WITHIN) - since
    except TimeoutError:
        return None


async def _usable(stack: Stack, worker: str, since: float) -> float | None:
    """Seconds until the fleet counts the worker again, without a call."""

    def is_idle() -> bool:
        with connect(stack.settings["REDIS_URL"]) as client:
            fleet = run(client, workers.fleet())
        return any(each.name.partition("@")[0] == worker and not each.busy for each in fleet.workers)

    deadline = time.time() + _USABLE_WITHIN
    while time.time() < deadline:
        if await asyncio.to_thread(is_idle):
            return time.time() - since
        await asyncio.sleep(_POLL)
    return None


async def _serves(call: MarkedCall, worker: str) -> bool:
    """Whether the call can go on at this worker."""
    await settle(call)
    try:
        await asyncio.to_thread(call.client.hand_over, call.session_id, to=worker)
    except HandOverImpossible:
        return False
    deadline = time.time() + _HANDED_OVER_WITHIN
    while worker_of(await session_of(call)) != worker:
        if time.time() > deadline:
            return False
        await asyncio.sleep(_POLL)
    return await answers_again(call)


def report(trials: Sequence[Trial], broken: Sequence[str], *, seed: int) -> Report:
    """What a reader is told of these trials, and of the calls that broke off."""
    plain = [trial for trial in trials if not trial.is_partitioned]
    parted = [trial for trial in trials if trial.is_partitioned]
    figures = {
        "Muster: all processes of a worker stopped to audible again": _silences(trials),
        "  without partition": _silences(plain),
        "  with partition": _silences(parted),
        "old agent audible after it goes on, without partition": Figure([trial.zombie for trial in plain]),
        "old agent audible after it goes on, with partition": Figure([trial.zombie for trial in parted]),
        "from going on until the worker is in the fleet, idle": Figure(
            [trial.usable_after for trial in trials if trial.usable_after is not None]
        ),
    }
    notes = [*_verdicts(trials), *_notes(trials, seed), *broken_off(broken)]
    return Report("A call whose worker's machine stops for 10 s", figures, notes)


def _silences(trials: Sequence[Trial]) -> Figure:
    return Figure([trial.silence for trial in trials if trial.silence is not None])


def _verdicts(trials: Sequence[Trial]) -> Iterator[str]:
    silences, limit = _silences(trials), LEASE + _BESIDES_LEASE
    silent = sum(trial.silence is None for trial in trials)
    yield verdict(not silent, f"of {len(trials)} losses {silent} ended the call")
    if silences.values:
        yield verdict(silences.p50 <= limit, f"audible again p50 {silences.p50:.2f} s, at most {limit:g} s")
    for name, some in _kinds(trials):
        audible = [trial.zombie for trial in some if trial.zombie]
        yield verdict(
            not audible,
            f"{name} (n = {len(some)}): old agent audible {len(audible)} times, in all {1000 * sum(audible):.0f} ms",
        )
    unusable = sum(trial.usable_after is None for trial in trials)
    yield verdict(not unusable, f"the worker was not back in the fleet within {_USABLE_WITHIN:g} s {unusable} times")
    idle = sum(not trial.serves_again for trial in trials)
    yield verdict(not idle, f"the worker did not answer in the call that was handed back to it {idle} times")
    worst = max((trial.outcome.overlap for trial in trials), default=0.0)
    yield verdict(worst <= _OVERLAP, f"two agents audible at the same time at most {1000 * worst:.0f} ms")
    yield from _word_verdicts(trials)


def _word_verdicts(trials: Sequence[Trial]) -> Iterator[str]:
    lost = sum(len(trial.outcome.words.lost) for trial in trials)
    yield verdict(not lost, f"stopped while the agent was speaking: {lost} words lost")
    yield foreign_verdict([trial.outcome for trial in trials])
    yield answer_verdict([trial.outcome for trial in trials])
    again = sum(len(trial.outcome.doubled(cut=[_CUT])) for trial in trials)
    yield verdict(not again, f"utterances answered once more than the cut-off answer asks for: {again}")


def _kinds(trials: Sequence[Trial]) -> Iterator[tuple[str, Sequence[Trial]]]:
    yield "without partition", [trial for trial in trials if not trial.is_partitioned]
    yield "with partition", [trial for trial in trials if trial.is_partitioned]


def _notes(trials: Sequence[Trial], seed: int) -> Iterator[str]:
    speaking = sum(trial.was_speaking for trial in trials)
    yield f"The agent was audible just before the stop {speaking} times."
    yield f"{len(trials)} calls, seed {seed}: {word_totals([trial.outcome for trial in trials])}."
    yield from wrong_words([trial.outcome for trial in trials])
    for name, some in _kinds(trials):
        yield f"{name}: the call's process: {_counts(trial.child for trial in some)}; the rest of the worker:" + (
            f" {_counts(trial.worker for trial in some)}."
        )


def _counts(what: Iterator[str]) -> str:
    return ", ".join(f"{each} ({times})" for each, times in Counter(what).most_common()) or "nothing"
