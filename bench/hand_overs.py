"""When each hand-over of a session took place, read from the session's own command stream."""

from collections.abc import Iterator
from dataclasses import dataclass

import redis

from worker.fleet.handing_over import Command
from worker.fleet.records import commands_key


@dataclass(frozen=True)
class HandOver:
    """One pass of a session to `epoch`: when its successor heard the caller, and when it was passed (Unix seconds)."""

    epoch: int
    ready_at: float
    passed_at: float

    @property
    def is_in_order(self) -> bool:
        """Whether the successor had said that it hears before the session was passed to it, as the protocol wants."""
        return self.ready_at <= self.passed_at

    @property
    def both_heard(self) -> float:
        """Seconds in which both agents heard the caller."""
        return max(0.0, self.passed_at - self.ready_at)


def hand_overs(state: "redis.Redis", session_id: str) -> list[HandOver]:
    """All that were passed, in their order."""
    return list(_passes(state, session_id))


def _passes(state: "redis.Redis", session_id: str) -> Iterator[HandOver]:
    ready: dict[str, float] = {}
    # The library's type does not say which of its shapes this protocol version answers with.
    entries: list[tuple[str, dict[str, str]]] = state.xrange(commands_key(session_id))  # type: ignore[assignment]
    for entry, command in entries:
        at = int(entry.partition("-")[0]) / 1000
        if command["kind"] == Command.READY:
            ready[command["epoch"]] = at
        elif command["kind"] == Command.PASSED:
            # To a successor that was never ready nothing may be passed; the stream orders what came in one millisecond.
            yield HandOver(int(command["epoch"]), ready.get(command["epoch"], float("inf")), at)
