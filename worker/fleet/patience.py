"""Patience: whoever asks is answered in time, however long Redis takes with the work behind it."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import NoReturn, TypeVar

from worker.fleet.errors import StateUnavailable

Answer = TypeVar("Answer")


def too_slow() -> StateUnavailable:
    """What it means that nobody waits any longer."""
    return StateUnavailable("Redis answers too slowly.")


def _refuse() -> NoReturn:
    raise too_slow()


class Patience:
    """Does work in up to `at_a_time` threads and waits `seconds` for it, its turn included.

    No client's time-outs add up to such a bound: a new connection alone is several questions and answers.
    """

    def __init__(self, *, seconds: float, at_a_time: int) -> None:
        self._seconds = seconds
        self._threads = ThreadPoolExecutor(at_a_time, thread_name_prefix="patience")

    def wait_for(self, work: Callable[[], Answer], *, give_up: Callable[[], Answer] = _refuse) -> Answer:
        """The work's answer; when time is over, that of `give_up`, which raises `StateUnavailable` if none is given.

        Work that has not begun by then never does; what has begun goes on alone.
        """
        under_way = self._threads.submit(work)
        if wait([under_way], timeout=self._seconds).done:
            return under_way.result()
        under_way.cancel()
        return give_up()
