"""Locks between processes; the kernel frees them when their holders are gone."""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def open_lock(path: Path) -> int:
    """A descriptor for `try_lock`; closing it (and every inherited copy of it) frees the lock."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o600)


def try_lock(descriptor: int) -> bool:
    """Take the lock if nobody holds it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def exclusive(path: Path, *, when_held: Callable[[], None]) -> Iterator[None]:
    """One process at a time; `when_held` is told once when another one has to be waited for."""
    descriptor = open_lock(path)
    try:
        if not try_lock(descriptor):
            when_held()
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
