"""A breaker: when a server does not answer, requests stop waiting for it one after the other."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from worker.fleet.errors import FleetError, StateUnavailable

#: Seconds after a stall in which nobody waits for the server.
PAUSE = 1.0
#: Seconds for which a request waits for its turn.
PATIENCE = 1.0
#: Seconds from which on a failure counts as a stall. A shorter one, such as a refused connection, costs nobody
#: anything, and the server's return is noticed at once.
STALL = 0.3


class Breaker:
    """Refuses attempts for `PAUSE` after one that stalled, then lets a single one find out; safe in many threads.

    No more than `at_a_time` are under way, and who waits longer than `patience` seconds for its turn is refused too.
    """

    def __init__(
        self,
        *,
        at_a_time: int,
        patience: float = PATIENCE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._turns = threading.Semaphore(at_a_time)
        self._patience = patience
        self._clock = clock
        self._lock = threading.Lock()
        self._stalled_at: float | None = None
        self._is_probed = False

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Whatever is done with the server belongs in here; raises `StateUnavailable` when it must not be tried."""
        if not self._turns.acquire(timeout=self._patience):
            raise StateUnavailable("Too many requests wait for Redis.")
        try:
            # Only now: what it waited for may have been the end of those that stalled.
            with self._probe():
                yield
        finally:
            self._turns.release()

    @contextmanager
    def _probe(self) -> Iterator[None]:
        started = self._clock()
        probes = self._enter(started)
        failed = True
        try:
            yield
            failed = False
        except FleetError as error:
            # Every other one is an answer, such as that there is no such session.
            failed = isinstance(error, StateUnavailable)
            raise
        finally:
            self._leave(stalled=failed and self._clock() - started >= STALL, probes=probes)

    def _enter(self, now: float) -> bool:
        """Whether this attempt is the one that finds out."""
        with self._lock:
            if self._stalled_at is None:
                return False
            if self._is_probed or now - self._stalled_at < PAUSE:
                raise StateUnavailable("Redis did not answer a moment ago; try again in a second.")
            self._is_probed = True
            return True

    def _leave(self, *, stalled: bool, probes: bool) -> None:
        with self._lock:
            self._stalled_at = self._clock() if stalled else None
            if probes:
                self._is_probed = False
