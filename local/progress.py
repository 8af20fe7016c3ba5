"""Says what a long step is doing and how long it usually takes; needs nothing but the standard library."""

import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from local.errors import StepFailed
from local.logs import tail
from local.paths import ROOT

_SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"


class Progress:
    """Runs commands one after the other, each with its log; a spinner on a terminal, else plain lines."""

    def __init__(self, *, logs: Path, stream: TextIO = sys.stdout, reminder: float = 30.0) -> None:
        self._logs = logs
        self._stream = stream
        self._reminder = reminder
        self._interactive = stream.isatty()

    def say(self, text: str) -> None:
        """One line for the user."""
        print(text, file=self._stream, flush=True)

    def run(
        self,
        title: str,
        command: Sequence[str],
        *,
        usually: str,
        advice: str,
        cwd: Path = ROOT,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Run a command to its end; its output goes to a log.

        Raises `StepFailed` with the log's last lines and the advice.
        """
        self._logs.mkdir(parents=True, exist_ok=True)
        log = self._logs / f"{re.sub(r'[^a-z]+', '-', title.lower()).strip('-')}.log"
        with self._displayed(title, usually=usually, log=log), log.open("wb") as output:
            finished = subprocess.run(
                command,
                cwd=cwd,
                env=os.environ | (environment or {}),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                check=False,
            )
            if finished.returncode:
                raise StepFailed(step=title, log=log, tail=tail(log), advice=advice)

    @contextmanager
    def _displayed(self, title: str, *, usually: str, log: Path) -> Iterator[None]:
        started = time.monotonic()
        ended = threading.Event()
        show = self._spin if self._interactive else self._remind
        display = threading.Thread(target=show, args=(f"{title} (usually {usually})", started, ended, log))
        display.start()
        outcome = "failed"
        try:
            yield
            outcome = "done"
        finally:
            ended.set()
            display.join()
            self.say(f"{title}: {outcome} in {_clock(time.monotonic() - started)}")

    def _spin(self, title: str, started: float, ended: threading.Event, log: Path) -> None:
        turn = 0
        while not ended.wait(0.15):
            turn += 1
            head = f"{_SPINNER[turn % len(_SPINNER)]} {title} {_clock(time.monotonic() - started)}"
            line = f"{head}  {tail(log, lines=1).strip()}"[: shutil.get_terminal_size().columns - 1]
            self._stream.write(f"\r\x1b[K{line}")
            self._stream.flush()
        self._stream.write("\r\x1b[K")

    def _remind(self, title: str, started: float, ended: threading.Event, log: Path) -> None:
        self.say(f"{title} ... log: {log}")
        while not ended.wait(self._reminder):
            last = tail(log, lines=1).strip()[:80]
            self.say(f"  still busy after {_clock(time.monotonic() - started)}: {last}")


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
