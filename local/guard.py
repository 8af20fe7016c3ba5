"""The guard of a stack: a process that kills whatever its supervisor leaves, however the supervisor ends.

Only the supervisor holds the other end of the guard's input. It writes `+GROUP` and `-GROUP` lines there; the
input's end means that the supervisor is gone, even by `kill -9`.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import BinaryIO

from local.paths import ROOT

#: Every process of a stack carries the stack's id in this variable: one that left its group is found by it.
MARKER = "MUSTER_STACK_ID"

_ROUNDS = 100
#: Seconds between two rounds.
_ROUND_PAUSE = 0.02


class Guard:
    """The supervisor's handle on its guard process."""

    def __init__(self, *, stack_id: str, log: Path, lock: int, on_death: Callable[[int], None]) -> None:
        """`lock` is inherited, so that the stack's lock is free only when nothing of the stack is left;
        `on_death` is told the exit code when the guard ends before `close`."""
        self._closing = False
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "local.guard", stack_id],
                cwd=ROOT,
                env={name: value for name, value in os.environ.items() if name != MARKER},
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=(lock,),
                start_new_session=True,
                bufsize=0,
            )
        self._on_death = on_death
        Thread(target=self._watch, name="guard", daemon=True).start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def protect(self, group: int) -> None:
        """Kill this process group when the supervisor is gone."""
        self._tell(f"+{group}\n")

    def forget(self, group: int) -> None:
        """The group has ended; its number may come to belong to someone else."""
        self._tell(f"-{group}\n")

    def close(self) -> None:
        """Let the guard kill what is left and end."""
        self._closing = True
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line.encode())
        except BrokenPipeError:
            # A guard that died ends the whole stack (`on_death`); the line does not matter any more.
            return

    def _watch(self) -> None:
        code = self._process.wait()
        if not self._closing:
            self._on_death(code)


def guard(*, stack_id: str, orders: BinaryIO) -> None:
    """Follow the supervisor's orders until their end, then kill all that is left of its stack."""
    groups: set[int] = set()
    for order in orders:
        group = int(order[1:])
        if order.startswith(b"+"):
            groups.add(group)
        else:
            groups.discard(group)
    for _ in range(_ROUNDS):
        # Again and again: a process can fork between being found and being killed.
        if not kill_all(groups=groups, stack_id=stack_id):
            return
        time.sleep(_ROUND_PAUSE)


def kill_all(*, groups: Iterable[int], stack_id: str) -> bool:
    """Kill the groups and every marked process; whether a marked process was alive."""
    for group in groups:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)
    found = False
    for pid in marked_processes(stack_id=stack_id, groups=set(groups)):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
        found = True
    return found


def marked_processes(*, stack_id: str, groups: set[int]) -> Iterator[int]:
    """Living processes that carry the marker, or whose session one of the groups began (Linux only)."""
    marker = f"{MARKER}={stack_id}".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        pid = int(folder.name)
        try:
            state, _parent, _group, session = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
            # Some processes write their title over their environment; their session still tells.
            marked = int(session) in groups or marker in (folder / "environ").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        if marked and state != "Z" and pid != os.getpid():
            yield pid


if __name__ == "__main__":
    guard(stack_id=sys.argv[1], orders=sys.stdin.buffer)
