"""The health file of a worker: its keeper touches it while the lease holds, a health check looks at its age.

`python -m worker.fleet.health FILE` exits with 0 when the file is fresh, else with 1 and the reason.
"""

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

logger = logging.getLogger(__name__)

#: Seconds without a renewed lease after which a worker counts as unhealthy. Far more than a restart of Redis takes:
#: calls go on without it, and whoever replaces an unhealthy worker would end them.
STALE = 60.0


class HealthFile:
    """The file, if the settings name one. One that cannot be written is logged, once: no call has to end with it."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._is_told = False

    def touch(self) -> None:
        """Say that the lease was renewed now."""
        if self._path is not None:
            with self._telling_failures():
                self._path.touch()

    def remove(self) -> None:
        """Say that there is no lease any more."""
        if self._path is not None:
            with self._telling_failures():
                self._path.unlink(missing_ok=True)

    @contextmanager
    def _telling_failures(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if not self._is_told:
                logger.error("health checks will find this worker unhealthy: %s", error)
            self._is_told = True


def complaint(path: Path) -> str | None:
    """What is wrong with the worker this file belongs to; None when nothing is."""
    try:
        age = time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return f"{path} is not there: the worker has no lease"
    return f"{path} is {age:.0f} s old: the worker's lease is not renewed" if age > STALE else None


if __name__ == "__main__":
    sys.exit(complaint(Path(sys.argv[1])))
