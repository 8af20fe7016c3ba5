"""The liveness table: shared memory in which a worker's children, its parent and its keeper see each other.

Layout, in 64-bit words, each read and written in one piece:
    header  draining, parent's pid, when the lease's last renewal was sent, how often Redis was found emptied
    slots   one per process of the pool: pid (0: no session here, -1: left without an end), stamp, epoch, unused,
            session id (8 words, padded with zeros)

Times are nanoseconds of the machine's monotonic clock, which all its processes share.
"""

import mmap
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

_WORD = 8
_HEADER = 4
_SLOT = 12
_ID = 4
_ID_BYTES = (_SLOT - _ID) * _WORD


#: In the place of a pid: the child lives, but whether the session it ran has an end is not known.
ABANDONED = -1


@dataclass(frozen=True)
class Holding:
    """The session a child said it runs; `stamp` is its last sign of life."""

    pid: int
    stamp: int
    epoch: int
    session_id: str


class Slot:
    """One pool process's place in the table."""

    def __init__(self, memory: memoryview, words: memoryview, start: int) -> None:
        self._id = memory[(start + _ID) * _WORD : (start + _SLOT) * _WORD]
        self._words = words[start : start + _SLOT]

    def hold(self, session_id: str, epoch: int) -> None:
        """Say that the calling process runs this session; counts as the first stamp."""
        encoded = session_id.encode()
        if len(encoded) > _ID_BYTES:
            raise ValueError(f"session ids have at most {_ID_BYTES} bytes")
        self._id[:] = encoded.ljust(_ID_BYTES, b"\0")
        self._words[2] = epoch
        self.stamp()
        # Last, because whoever finds a pid believes the rest.
        self._words[0] = os.getpid()

    def stamp(self) -> None:
        """Give a sign of life, from the session's event loop."""
        self._words[1] = time.monotonic_ns()

    def clear(self) -> None:
        """Say that no session runs here, and that the one that did has its end on record."""
        self._words[0] = 0

    def abandon(self) -> None:
        """Leave what was held and not cleared to the keeper; it clears the slot."""
        if self._words[0]:
            self._words[0] = ABANDONED

    def read(self) -> Holding | None:
        """What the slot says, or None when no session runs here."""
        pid, stamp, epoch = self._words[0], self._words[1], self._words[2]
        session_id = bytes(self._id).rstrip(b"\0").decode()
        if not pid or pid != self._words[0]:
            return None
        return Holding(pid, stamp, epoch, session_id)


class Table:
    """All slots and the header, over a file that exists only as long as a process has it open."""

    def __init__(self, fileno: int) -> None:
        self.fileno = fileno
        # Kept as an attribute: the views live as long as the mapping does.
        self._mapping = mmap.mmap(fileno, 0)
        memory = memoryview(self._mapping)
        self._words = memory.cast("q")
        starts = range(_HEADER, len(self._words) - _SLOT + 1, _SLOT)
        self.slots: Sequence[Slot] = [Slot(memory, self._words, start) for start in starts]

    @classmethod
    def create(cls, *, slots: int) -> Self:
        """An empty table that belongs to the calling process, the worker's parent."""
        fileno = _anonymous_file()
        os.ftruncate(fileno, (_HEADER + slots * _SLOT) * _WORD)
        table = cls(fileno)
        table._words[1] = os.getpid()
        return table

    @property
    def draining(self) -> bool:
        """Whether the worker takes no new session."""
        return bool(self._words[0])

    @draining.setter
    def draining(self, draining: bool) -> None:
        self._words[0] = draining

    @property
    def parent_pid(self) -> int:
        """The process that made the table."""
        return self._words[1]

    @property
    def renewed_at(self) -> int:
        """When the last successful renewal of the worker's lease was sent; 0 before the first."""
        return self._words[2]

    @renewed_at.setter
    def renewed_at(self, sent_at: int) -> None:
        self._words[2] = sent_at

    @property
    def emptied(self) -> int:
        """How often Redis was found without the worker's lease after it had one: it has lost its data."""
        return self._words[3]

    @emptied.setter
    def emptied(self, times: int) -> None:
        self._words[3] = times


def _anonymous_file() -> int:
    if sys.platform == "linux":
        return os.memfd_create("muster-liveness")
    fileno, path = tempfile.mkstemp(prefix="muster-liveness-")
    os.unlink(path)
    return fileno
