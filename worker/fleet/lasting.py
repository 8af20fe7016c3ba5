"""For how long something was seen to be so, and for how long Redis was."""

import time
from collections.abc import Callable

from worker.fleet.times import LEASE, UNBROKEN


class Lasting:
    """For how long something has been so, by looking again and again; what was not seen in a round is forgotten."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._since: dict[str, float] = {}
        self._seen: set[str] = set()

    def seconds(self, what: str) -> float:
        """Note that `what` is so; the answer is 0 the first time."""
        self._seen.add(what)
        now = self._clock()
        return now - self._since.setdefault(what, now)

    def restart(self, what: str) -> None:
        """Count from now."""
        self._since[what] = self._clock()

    def next_round(self) -> None:
        """Forget what was not noted since the last call."""
        self._since = {what: since for what, since in self._since.items() if what in self._seen}
        self._seen.clear()


class Observation:
    """Since when a keeper has seen Redis without a break.

    A keeper that was suspended itself has seen nothing meanwhile.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since: float | None = None
        self._last = 0.0

    def saw(self) -> None:
        """Redis answered."""
        now = self._clock()
        if self._since is None or now - self._last > UNBROKEN:
            self._since = now
        self._last = now

    def broke(self) -> None:
        """Redis did not answer."""
        self._since = None

    @property
    def suffices(self) -> bool:
        """Whether it has lasted a whole lease."""
        return self._since is not None and self._last - self._since >= LEASE and self._clock() - self._last <= UNBROKEN
