"""Plays scenarios one after the other on a stack of their own and writes one line of JSON for each."""

import asyncio
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, Self

from bench.faults.conversation import COUNTS
from bench.faults.ground import OPTIONS, Ground
from bench.faults.play import Play, Result
from bench.faults.scenario import Scenario
from bench.faults.watcher import Watcher
from local.caller_voice import CallerVoice
from local.marks import UTTERANCES, marks_of
from local.parts import PROVIDERS, REDIS
from local.paths import ROOT
from local.stack import Stack

#: Scenarios after which a stack is replaced, so that its logs stay short.
_MOST = 50


def play_seeds(
    seeds: Iterable[int], *, output: Path | None, log: Path | None, show: Callable[[str], None], is_told: bool
) -> list[int]:
    """Play each, show how it went and write it down; the seeds that did not hold.

    What happens is written to `log`, and with `is_told` it is shown.
    """
    failed: list[int] = []
    outcomes: Counter[str] = Counter()
    missed = 0
    commit()

    def tell(what: str) -> None:
        if log is not None:
            with log.open("a") as file:
                file.write(f"{what}\n")
        if is_told:
            show(what)

    with Arena(tell) as arena:
        for seed in seeds:
            result = arena.play(Scenario.from_seed(seed))
            show(f"{result.outcome:8} {result.seconds:5.1f} s  {result.scenario}")
            for problem in result.problems:
                show(f"         {problem}")
            if output is not None:
                append(output, result)
            outcomes[result.outcome] += 1
            missed += len(result.missed)
            if result.outcome != "held":
                failed.append(seed)
    show(
        ", ".join(f"{outcome}: {count}" for outcome, count in outcomes.items())
        + f"; faults that did not come: {missed}"
    )
    return failed


class Arena:
    """Plays scenarios on one stack for as long as that is whole, then on another one; a context manager.

    `tell` is given what happens, for people. Raises `LocalError` when a stack cannot be had.
    """

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._opened = ExitStack()
        self._ground: Ground | None = None
        self._played = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def play(self, scenario: Scenario) -> Result:
        """Play it; what went wrong is in the result."""
        if self._ground is None:
            self._ground = self._opened.enter_context(open_ground())
        self._tell(f"== {scenario}")
        result = asyncio.run(Play(self._ground, scenario, _with_time(self._tell)).run())
        self._played += 1
        if result.outcome != "held":
            result.logs = str(self._keep_logs(self._ground, scenario))
            self._tell(f"logs: {result.logs}")
        if result.outcome != "held" or self._played >= _MOST or self._ground.stack.failure is not None:
            self._close()
        return result

    def _keep_logs(self, ground: Ground, scenario: Scenario) -> Path:
        kept = Path(tempfile.mkdtemp(prefix=f"muster-faults-{scenario.seed}-"))
        return Path(shutil.copytree(ground.stack.directory, kept / "logs", ignore=_is_no_log))

    def _close(self) -> None:
        self._ground, self._played = None, 0
        self._opened.close()


@contextmanager
def open_ground() -> Iterator[Ground]:
    """A stack in a home of its own, so that several may run side by side, with a watcher; all lines are rendered."""
    with (
        TemporaryDirectory(prefix="muster-faults-", ignore_cleanup_errors=True) as home,
        Stack(options=replace(OPTIONS, home=Path(home))) as stack,
        Watcher(stack.urls[REDIS]) as watcher,
    ):
        _render_lines(CallerVoice(providers=stack.urls[PROVIDERS]))
        ground = Ground(stack, watcher)
        with ground.client:
            yield ground


def _is_no_log(_: str, names: list[str]) -> list[str]:
    return [name for name in names if not name.endswith((".log", ".jsonl"))]


def _render_lines(voice: CallerVoice) -> None:
    """What the callers say, before a fault keeps it from being rendered."""
    for number in range(UTTERANCES):
        voice.render(" ".join(map(str, marks_of(number, COUNTS[number % len(COUNTS)]))))


def to_json(result: Result) -> dict[str, Any]:
    """A line of the result file; times are seconds."""
    return {
        "commit": commit(),
        "seed": result.scenario.seed,
        "outcome": result.outcome,
        "violations": result.violations,
        "trouble": result.trouble,
        "notes": result.notes,
        "scenario": result.scenario.to_json(),
        "calls": [asdict(call) for call in result.calls],
        "missed": result.missed,
        "struck": [{"kind": each.kind, "seconds": round(each.ended - each.began, 2)} for each in result.struck],
        "seconds": round(result.seconds, 1),
        "logs": result.logs,
        "load": os.getloadavg()[0],
        "at": time.time(),
    }


@cache
def commit() -> str:
    """The tree's commit when it was first asked for, with a plus sign when files differ from it."""
    answer = subprocess.run(
        ["git", "describe", "--always", "--abbrev=12", "--dirty=+"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return answer.stdout.strip() or "unknown"


def append(output: Path, result: Result) -> None:
    """Add a result to the file, whole or not at all."""
    with output.open("a") as file:
        file.write(json.dumps(to_json(result)) + "\n")


def _with_time(tell: Callable[[str], None]) -> Callable[[str], None]:
    started = time.monotonic()
    return lambda what: tell(f"{time.monotonic() - started:6.2f}  {what}")
