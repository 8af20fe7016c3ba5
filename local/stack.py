"""The supervisor of the local stack: starts its parts together, watches them, and leaves none behind."""

import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from threading import Condition, Thread
from types import TracebackType
from typing import Self

from local.errors import LocalError, PartDied, PartNotReady, PartNotStarted
from local.guard import Guard
from local.link import Link
from local.logs import tail
from local.parts import (
    AGENT_SERVICE,
    CHAT_WORKER,
    CONTROL_PLANE,
    FLOWER,
    FLOWER_USER,
    LINK,
    LIVEKIT,
    PROVIDERS,
    REDIS,
    WORKER,
    Part,
    StackOptions,
    StackPlan,
    link_name,
)
from local.paths import ROOT, home_directory
from local.state import StackState, StateFile

#: Stages of an orderly stop and the seconds each may take: calls end while all they need is still there.
_STOP_STAGES = (
    ({WORKER, CHAT_WORKER, FLOWER}, 8.0),
    ({AGENT_SERVICE, CONTROL_PLANE}, 1.5),
    ({LIVEKIT, PROVIDERS}, 1.0),
    ({REDIS, LINK}, 1.0),
)

#: Seconds from a part's start until it must serve, and from its kill until it is reaped.
_READY_WITHIN = 120.0
_REAPED_WITHIN = 0.5
_KEPT_RUNS = 20


class _Process:
    """One life of a part."""

    def __init__(self, part: Part) -> None:
        self.part = part
        self.popen: subprocess.Popen[bytes] | None = None
        self.ready = False
        self.ended = False
        self.end_is_expected = False
        self.leaves_orphans = False

    def spawn(self) -> None:
        self._set_earlier_log_aside()
        with self.part.log.open("wb") as log:
            self.popen = subprocess.Popen(
                self.part.command,
                cwd=ROOT,
                env=dict(self.part.environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _set_earlier_log_aside(self) -> None:
        """A line of an earlier life must not look like a sign of this one's readiness."""
        if self.part.log.exists():
            self.part.log.rename(self.part.log.with_suffix(f".{time.time_ns()}.log"))

    def signal(self, number: signal.Signals) -> None:
        """To the part's first process only: how its children end is its own business."""
        if self.popen is not None:
            self.popen.send_signal(number)

    def kill(self) -> None:
        """The part and everything in its group; after its end the group's number may be someone else's."""
        if self.popen is not None and not self.ended:
            with suppress(ProcessLookupError):
                os.killpg(self.popen.pid, signal.SIGKILL)


class Stack:
    """The local stack as one thing: `launch`, `wait_ready`, then `wait` or work with it, then `stop`.

    As a context manager it is launched, waited for and stopped. No process of it outlives its supervisor,
    whichever way that ends (see local/guard.py). `on_ready` is told each part's name and the seconds from
    its start to its readiness; `on_failure` that the stack is broken. Both are called from other threads.
    """

    def __init__(
        self,
        *,
        options: StackOptions | None = None,
        environ: Mapping[str, str] = os.environ,
        on_ready: Callable[[str, float], None] = lambda name, seconds: None,
        on_failure: Callable[[], None] = lambda: None,
    ) -> None:
        self._options = options or StackOptions()
        self._environ = environ
        self._on_ready = on_ready
        self._on_failure = on_failure
        self._home = self._options.home or home_directory({**environ, **self._options.environment})
        self._state_file = StateFile(home=self._home)
        self._id = secrets.token_hex(8)
        self._started_at = time.time()
        self._changed = Condition()
        self._processes: dict[str, _Process] = {}
        self._ending = False
        self.failure: LocalError | None = None

    def __enter__(self) -> Self:
        self.launch()
        try:
            self.wait_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def urls(self) -> Mapping[str, str]:
        """Where to reach agent_service, control_plane, livekit, providers, flower and redis."""
        return self._plan.urls

    @property
    def settings(self) -> Mapping[str, str]:
        """The environment by which the product finds this stack, secrets included."""
        return self._plan.settings

    @property
    def notes(self) -> list[str]:
        """In what this stack differs from the usual one, for people."""
        return self._plan.notes

    @property
    def directory(self) -> Path:
        """Logs and data of this run."""
        return self._directory

    @property
    def flower_login(self) -> tuple[str, str]:
        """Flower's user and password."""
        return FLOWER_USER, self._plan.flower_password

    def pid(self, name: str) -> int:
        """The first process of a running part."""
        process = self._processes[name].popen
        assert process is not None, f"{name} has not been started"
        return process.pid

    def is_running(self, name: str) -> bool:
        """Whether the part's first process is there."""
        process = self._processes[name].popen
        return process is not None and process.poll() is None

    def exit_code(self, name: str) -> int | None:
        """How a part has ended; None while it runs."""
        process = self._processes[name].popen
        return None if process is None else process.returncode

    def link(self, worker: str, to: str) -> Link:
        """The link through which a worker reaches `REDIS` or `LIVEKIT`, in a stack with links."""
        return Link(self._directory / f"{link_name(worker, to)}.socket")

    def log(self, name: str) -> Path:
        """The log of a part."""
        return self._processes[name].part.log

    def launch(self) -> None:
        """Start every part at once, as far as none needs another; return without waiting.

        Raises `StackRunning`, or another `LocalError` when a part cannot be had.
        """
        self._lock = self._state_file.lock()
        try:
            self._directory = self._options.directory or self._new_run()
            self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._plan = StackPlan(
                options=self._options, environ=self._environ, directory=self._directory, stack_id=self._id
            )
            self._guard = Guard(
                stack_id=self._id,
                log=self._directory / "guard.log",
                lock=self._lock,
                on_death=lambda code: self._report_death("guard", code, self._directory / "guard.log"),
            )
        except BaseException:
            os.close(self._lock)
            raise
        self._processes = {part.name: _Process(part) for part in self._plan.parts}
        self._write_state()
        for process in self._processes.values():
            self._supervise(process)

    def wait_ready(self) -> None:
        """Return when every part serves.

        Raises `PartNotStarted`, `PartDied` or `PartNotReady`.
        """
        with self._changed:
            self._changed.wait_for(lambda: self.failure or all(process.ready for process in self._processes.values()))
        self.check()

    def wait(self) -> None:
        """Block until a part dies, then raise `PartDied`."""
        with self._changed:
            self._changed.wait_for(lambda: self.failure)
        self.check()

    def check(self) -> None:
        """Raise what broke the stack, if anything did."""
        if self.failure is not None:
            raise self.failure

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL, *, with_orphans: bool = True) -> None:
        """End one part on purpose and wait for its end; the stack goes on without it.

        Without `with_orphans` its children are left to themselves, until the stack ends.
        """
        process = self._processes[name]
        process.end_is_expected = True
        process.leaves_orphans = not with_orphans
        process.signal(number)
        with self._changed:
            self._changed.wait_for(lambda: process.ended)

    def start(self, name: str) -> None:
        """Start a part that has ended and wait until it serves.

        Raises `PartDied` or `PartNotReady`.
        """
        process = self._processes[name] = _Process(self._processes[name].part)
        self._supervise(process)
        self.wait_ready()

    def stop(self) -> None:
        """Stop the parts in reverse order, at most 12 seconds in all; nothing of the stack is left."""
        with self._changed:
            self._ending = True
            self._changed.notify_all()
        for kinds, patience in _STOP_STAGES:
            self._stop_stage([each for each in self._processes.values() if each.part.kind in kinds], patience=patience)
        with self._changed:
            self._changed.wait_for(self._all_ended, timeout=_REAPED_WITHIN)
        self._guard.close()
        self._state_file.clear()
        os.close(self._lock)

    def kill_all(self) -> None:
        """End every part at once; for a second Ctrl-C while `stop` is under way."""
        for process in self._processes.values():
            process.kill()

    def _stop_stage(self, processes: list[_Process], *, patience: float) -> None:
        for process in processes:
            process.signal(signal.SIGTERM)
        with self._changed:
            self._changed.wait_for(lambda: all(process.ended for process in processes), timeout=patience)
        for process in processes:
            if not process.ended:
                process.kill()

    def _all_ended(self) -> bool:
        return all(process.ended for process in self._processes.values())

    def _supervise(self, process: _Process) -> None:
        Thread(target=self._live, args=(process,), name=process.part.name, daemon=True).start()

    def _live(self, process: _Process) -> None:
        """A part's life in its own thread: wait for what it needs, start, become ready, end."""
        with self._changed:
            self._changed.wait_for(lambda: self._ending or self._needs_are_met(process))
            if not self._ending:
                self._spawn(process)
        if process.popen is not None:
            self._await_readiness(process)
            code = process.popen.wait()
            if not process.leaves_orphans:
                process.kill()
            self._guard.forget(process.popen.pid)
        with self._changed:
            process.ended = True
            self._changed.notify_all()
        if process.popen is not None and not (self._ending or process.end_is_expected):
            self._report_death(process.part.name, code, process.part.log)

    def _spawn(self, process: _Process) -> None:
        try:
            process.spawn()
        except OSError as error:
            self._fail(PartNotStarted(part=process.part.name, error=error))
        else:
            self._guard.protect(self.pid(process.part.name))

    def _needs_are_met(self, process: _Process) -> bool:
        return all(self._processes[name].ready for name in process.part.after)

    def _await_readiness(self, process: _Process) -> None:
        assert process.popen is not None
        started = time.monotonic()
        while process.popen.poll() is None and not process.part.is_ready():
            waited = time.monotonic() - started
            if waited > _READY_WITHIN:
                self._fail(
                    PartNotReady(
                        part=process.part.name,
                        seconds=waited,
                        log=process.part.log,
                        tail=tail(process.part.log),
                    )
                )
                return
            with self._changed:
                # A port and a log have no event to wait for; the stack's end is one.
                if self._changed.wait_for(lambda: self._ending, timeout=0.05):
                    return
        if process.popen.poll() is None:
            self._on_ready(process.part.name, time.monotonic() - started)
            with self._changed:
                process.ready = True
                self._write_state()
                self._changed.notify_all()

    def _report_death(self, name: str, code: int, log: Path) -> None:
        self._fail(PartDied(part=name, code=code, log=log, tail=tail(log)))

    def _fail(self, failure: LocalError) -> None:
        with self._changed:
            if self._ending or self.failure is not None:
                return
            self.failure = failure
            self._changed.notify_all()
        self._on_failure()

    def _write_state(self) -> None:
        user, password = self.flower_login
        started = {name: process.popen.pid for name, process in self._processes.items() if process.popen is not None}
        self._state_file.write(
            StackState(
                pid=os.getpid(),
                stack_id=self._id,
                started_at=self._started_at,
                directory=str(self._directory),
                urls=self._plan.urls,
                flower_user=user,
                flower_password=password,
                parts={**started, "guard": self._guard.pid},
            )
        )

    def _new_run(self) -> Path:
        """A directory named by the time of day; the oldest ones make room."""
        runs = self._home / "runs"
        runs.mkdir(parents=True, exist_ok=True, mode=0o700)
        for old in sorted(runs.iterdir())[: -_KEPT_RUNS + 1]:
            shutil.rmtree(old)
        return runs / f"{time.strftime('%Y%m%d-%H%M%S')}-{self._id[:4]}"
