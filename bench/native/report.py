"""The figures of LiveKit Agents' own workers under each fault."""

import asyncio
import tempfile
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from bench.native.faults import (
    BACK_WITHIN,
    DRAIN_WATCHED,
    WOKEN_WITHIN,
    Doubled,
    Drain,
    Loss,
    NativeFaults,
    ServerLoss,
)
from bench.report import Figure, Report
from local.caller_voice import CallerVoice
from local.marks import marks_of
from local.parts import LIVEKIT, PROVIDERS, REDIS, StackOptions
from local.stack import Stack

Result = TypeVar("Result")
Found = tuple[dict[str, Figure], list[str]]

#: What the caller says, each time.
_QUESTION = " ".join(map(str, marks_of(0, 3)))


def measure_native_faults(*, faults: Iterable[str], count: int) -> Report:
    """Each of these faults of `FAULTS`, `count` times, on a stack of its own."""
    # Redis holds nothing here: Muster's settings, from which the providers are taken, want its address.
    parts = frozenset({REDIS, LIVEKIT, PROVIDERS})
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        with Stack(options=StackOptions(parts=parts, preferred_ports=False, marked=True, home=home)) as stack:
            question = CallerVoice(providers=stack.urls[PROVIDERS]).render(_QUESTION)
            natives = NativeFaults(stack=stack, home=home, question=question)
            found = [asyncio.run(FAULTS[fault](natives, count)) for fault in faults]
    return Report(
        "LiveKit Agents' own workers, two of them, under faults",
        {name: figure for figures, _ in found for name, figure in figures.items()},
        [note for _, notes in found for note in notes],
    )


async def _killed(natives: NativeFaults, count: int) -> Found:
    return _lost("job process killed", await _rounds(natives.job_killed, count))


async def _frozen(natives: NativeFaults, count: int) -> Found:
    what = "machine lost"
    losses = await _rounds(natives.machine_lost, count)
    figures, notes = _lost(what, losses)
    woken = _figure(loss.audible_when_woken for loss in losses)
    notes.append(f"{what}: audible {len(woken.values)} of {count} times within {WOKEN_WITHIN:g} s of SIGCONT.")
    return {**figures, f"{what}: SIGCONT to audible": woken}, notes


def _lost(what: str, losses: Sequence[Loss]) -> Found:
    back = _figure(loss.audible_again for loss in losses)
    return (
        {f"{what}: audible again": back, f"{what}: ghost in the room": _figure(loss.ghost for loss in losses)},
        [
            f"{what}: the agent came back {len(back.values)} of {len(losses)} times within {BACK_WITHIN:g} s; "
            f"its ghost stayed longer than that {sum(loss.ghost is None for loss in losses)} times."
        ],
    )


async def _drained(natives: NativeFaults, count: int) -> Found:
    what = "SIGTERM to the worker"
    drains: list[Drain] = await _rounds(natives.drained, count)
    asked = [answer for drain in drains for answer in drain.answered]
    wanted = [served for drain in drains for served in drain.dispatches]
    figures = {
        f"{what}: exit during the call": _figure(drain.exited for drain in drains),
        f"{what}: hang-up to exit": _figure(drain.exited_after_hang_up for drain in drains),
        f"{what}: dispatch meanwhile to audible": _figure(wanted),
    }
    return figures, [
        f"{what}: {sum(drain.exited is None for drain in drains)} of {count} had not exited after {DRAIN_WATCHED:g} s; "
        f"their calls answered {sum(asked)} of {len(asked)} questions meanwhile.",
        f"{what}: {sum(served is not None for served in wanted)} of {len(wanted)} dispatches meanwhile were served.",
    ]


async def _doubled(natives: NativeFaults, count: int) -> Found:
    rounds: list[Doubled] = await _rounds(natives.dispatched_twice, count)
    return {}, [
        f"two dispatches for one room: {each.came} agents came, {each.greeted} greeted, {each.answered} answered."
        for each in rounds
    ]


async def _server_killed(natives: NativeFaults, count: int) -> Found:
    what = "LiveKit killed and started again"
    losses: list[ServerLoss] = await _rounds(natives.server_killed, count)
    back = _figure(loss.audible_again for loss in losses)
    figures = {
        f"{what}: serves again": _figure(loss.serves_again for loss in losses),
        f"{what}: audible again": back,
        f"{what}: next dispatch to audible": _figure(loss.next_dispatch for loss in losses),
    }
    return figures, [
        f"{what}: the call went on {len(back.values)} of {count} times, with the same job process "
        f"{sum(loss.same_agent for loss in losses)} times; the next question was answered "
        f"{sum(loss.answered for loss in losses)} times; the caller's own client gave up "
        f"{sum(loss.caller_lost for loss in losses)} times.",
        f"{what}: {sum(loss.next_dispatch is not None for loss in losses)} of {count} dispatches afterwards served.",
    ]


async def _rounds(work: Callable[[], Awaitable[Result]], count: int) -> list[Result]:
    return [await work() for _ in range(count)]


def _figure(values: Iterable[float | None]) -> Figure:
    """Of those that happened."""
    return Figure([value for value in values if value is not None])


#: By the names under which they are asked for.
FAULTS: Mapping[str, Callable[[NativeFaults, int], Coroutine[Any, Any, Found]]] = {
    "job-killed": _killed,
    "machine-lost": _frozen,
    "drained": _drained,
    "dispatched-twice": _doubled,
    "server-killed": _server_killed,
}
