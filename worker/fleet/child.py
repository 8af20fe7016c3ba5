"""What a session may ask of the pool process it runs in: its slot in the liveness table, its signals, its death."""

import logging
import mmap
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from worker.fleet.table import Slot, Table

logger = logging.getLogger(__name__)

#: Sent by the pool when the soft time limit has passed.
SOFT_LIMIT = signal.SIGUSR1
#: Sent by the parent when the worker drains.
DRAIN = signal.SIGUSR2

_STDERR = 2
_VACANT_WITHIN = 5.0
_VACANT_RETRY = 0.02
#: Seconds a process that retires has after its session, for its result to arrive.
_RETIRES_AFTER = 0.1
#: Bytes that a process must be able to have: a thread's stack, and what it works with.
_ENOUGH = 16 * 1024 * 1024


def _ignore() -> None:
    pass


class Child:
    """One pool process, for all the sessions it runs one after the other."""

    def __init__(self, *, worker_id: str, table: Table, index: int) -> None:
        self.worker_id = worker_id
        self.slot: Slot = table.slots[index]
        self._index = index
        self._table = table
        self._callbacks: Mapping[int, Callable[[], None]] = {}
        self._unheard: set[int] = set()
        self._is_retiring = False

    @property
    def draining(self) -> bool:
        """Whether the worker takes no new session."""
        return self._table.draining

    @property
    def place(self) -> int:
        """How many processes before this one in the pool run a session: calls that leave together are told apart."""
        before = self._table.slots[: self._index]
        return sum(1 for slot in before if slot.read() is not None)

    @property
    def renewed_at(self) -> int:
        """When the last successful renewal of the worker's lease was sent, in `time.monotonic_ns()`."""
        return self._table.renewed_at

    @property
    def emptied(self) -> int:
        """How often Redis was found emptied; when it grows, a session registers again before joins open."""
        return self._table.emptied

    def install_handlers(self) -> None:
        """Handle both signals for the rest of the process's life.

        Not through an event loop: closing a loop resets its signals to their default action, and the next one
        would kill an idle child. SIGALRM is left to the kernel's default, so that a timer a session arms acts even
        when no Python code runs; SIGTERM, too: the pool's own handler would unwind the session, which would record
        an end for a call that another worker can go on with.
        """
        signal.signal(SOFT_LIMIT, self._on_signal)
        signal.signal(DRAIN, self._on_signal)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, 0)

    def begin(self) -> None:
        """Get ready for one session: fresh signals, and a slot the keeper has cleared of what ended badly.

        Raises `TimeoutError` when no keeper cleared it in time; the session's message is then published again.
        """
        # Again, because the pool installs its own handler for SIGUSR1 after the process's initialiser has run.
        self.install_handlers()
        self._unheard.clear()
        deadline = time.monotonic() + _VACANT_WITHIN
        while self.slot.read() is not None:
            if time.monotonic() > deadline:
                raise TimeoutError("no keeper has cleared the slot of its last session")
            time.sleep(_VACANT_RETRY)

    def arm(self, seconds: float) -> None:
        """Have the kernel kill this process after so many seconds, unless it is armed again or disarmed."""
        signal.setitimer(signal.ITIMER_REAL, seconds)

    def disarm(self) -> None:
        """Let it live."""
        signal.setitimer(signal.ITIMER_REAL, 0)

    def die_without_memory(self) -> None:
        """End this process when it could not have a thread's memory: it would go on without its call.

        What fails of that, in threads and in callbacks of libraries, fails unseen. The keeper sees a dead process.
        """
        try:
            mmap.mmap(-1, _ENOUGH).close()
        except (OSError, MemoryError):
            # Not through logging, which needs memory.
            os.write(_STDERR, b"a process that gets no memory any more ends\n")
            os.kill(os.getpid(), signal.SIGKILL)

    def retire(self) -> None:
        """End this process after its session, or after one that has begun meanwhile; the pool replaces it."""
        self._is_retiring = True

    def finish(self) -> None:
        """Leave the slot, to the keeper if the session did not clear it, and disarm what the session may have armed."""
        self.slot.abandon()
        self.install_handlers()
        if self._is_retiring:
            # Not in the middle of the task, which would count as failed. What begins meanwhile disarms it.
            logger.warning("this process runs no other session and ends")
            self.arm(_RETIRES_AFTER)

    @contextmanager
    def watch(
        self,
        *,
        on_soft_limit: Callable[[], None] = _ignore,
        on_drain: Callable[[], None] = _ignore,
    ) -> Iterator[None]:
        """Call back on the two signals, also for one that came between `begin` and here.

        The callbacks run in the main thread, between any two bytecodes: a session wakes its event loop by
        `loop.call_soon_threadsafe` and does nothing else there.
        """
        self._callbacks = {SOFT_LIMIT: on_soft_limit, DRAIN: on_drain}
        try:
            while self._unheard:
                self._callbacks[self._unheard.pop()]()
            yield
        finally:
            self._callbacks = {}

    def _on_signal(self, number: int, frame: object) -> None:
        callback = self._callbacks.get(number)
        if callback is None:
            self._unheard.add(number)
        else:
            callback()
