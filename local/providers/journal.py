"""A record of what was asked of the providers: one JSON object a line."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO


@dataclass(slots=True)
class Entry:
    """One request; times are seconds, and `first` is how long its first audio or token took."""

    kind: str
    at: float
    provider: str
    text: str = ""
    audio: float = 0.0
    first: float | None = None
    wall: float = 0.0
    outcome: str = "done"

    def mark_first(self) -> None:
        if self.first is None:
            self.first = round(time.time() - self.at, 4)


class Journal:
    """Appends to `file`, or keeps nothing without one: what callers said belongs nowhere else."""

    def __init__(self, file: TextIO | None = None) -> None:
        self._file = file

    @classmethod
    def at(cls, path: Path | None) -> "Journal":
        return cls(path.open("a", buffering=1) if path else None)

    @contextmanager
    def request(self, kind: str, provider: str, *, text: str = "") -> Iterator[Entry]:
        """Writes the entry when the block ends: "done", "failed" by an exception or "cut" by the client."""
        entry = Entry(kind, at=time.time(), provider=provider, text=text)
        begin = time.perf_counter()
        try:
            yield entry
        except BaseException as error:
            entry.outcome = "failed" if isinstance(error, Exception) else "cut"
            raise
        finally:
            entry.wall = round(time.perf_counter() - begin, 4)
            if self._file:
                self._file.write(json.dumps(asdict(entry)) + "\n")

    def close(self) -> None:
        if self._file:
            self._file.close()
