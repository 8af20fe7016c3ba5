"""What is known of the running stack outside of its supervisor: its state file and its lock."""

import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from local.errors import StackNotRunning, StackRunning
from local.locks import open_lock, try_lock

#: Seconds a guard may need after its supervisor was killed.
_CLEANING = 5.0


@dataclass(frozen=True, kw_only=True, slots=True)
class StackState:
    """A running stack as other processes see it; `started_at` in unix seconds."""

    pid: int
    stack_id: str
    started_at: float
    directory: str
    urls: Mapping[str, str]
    flower_user: str
    flower_password: str
    parts: Mapping[str, int]


class StateFile:
    """The state of the one stack of this home directory; readable by its owner only."""

    def __init__(self, *, home: Path) -> None:
        self._path = home / "stack.json"
        self._lock = home / "stack.lock"

    def lock(self) -> int:
        """Become the one stack; the descriptor's closing ends that.

        Raises `StackRunning`.
        """
        descriptor = open_lock(self._lock)
        deadline = time.monotonic() + _CLEANING
        while not try_lock(descriptor):
            state = self._read()
            # A supervisor that is gone leaves the lock to its guard until nothing of its stack is left.
            if (state is not None and psutil.pid_exists(state.pid)) or time.monotonic() > deadline:
                os.close(descriptor)
                raise _already_running(state)
            time.sleep(0.05)
        return descriptor

    def write(self, state: StackState) -> None:
        fresh = self._path.with_suffix(".fresh")
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            json.dump(asdict(state), file, indent=2)
        fresh.replace(self._path)

    def clear(self) -> None:
        self._path.unlink(missing_ok=True)

    def running(self) -> StackState:
        """The stack that runs.

        Raises `StackNotRunning`.
        """
        state = self._read()
        if state is None or not self._is_locked():
            raise StackNotRunning
        return state

    def _read(self) -> StackState | None:
        if not self._path.exists():
            return None
        return StackState(**json.loads(self._path.read_text()))

    def _is_locked(self) -> bool:
        descriptor = open_lock(self._lock)
        try:
            return not try_lock(descriptor)
        finally:
            os.close(descriptor)


def _already_running(state: StackState | None) -> StackRunning:
    if state is None:
        return StackRunning(pid="unknown", urls="just starting")
    return StackRunning(pid=state.pid, urls=", ".join(f"{name} {url}" for name, url in state.urls.items()))
