"""What keepers have done in others' place, counted for operators.

Key space (the workers' slot):
    muster:{workers}:actions  HASH  `Action`, with `:<reason>` behind an end -> how often, by all keepers of the fleet;
                                    expires `KEPT` after the last one

Each action is also logged where it is done. A count is sent with the keeper's beat and not repeated when its answer is
lost, so that in an outage of Redis some may be missing and none is counted twice.
"""

from collections import Counter
from collections.abc import Mapping
from enum import StrEnum

import redis.asyncio

from worker.fleet.redis_operations import Operation, pairs, run_async
from worker.fleet.session import Reason

#: Seconds the counts outlive the last action.
KEPT = 7 * 24 * 3600.0

_KEY = "muster:{workers}:actions"

# ARGV: lifetime in ms, then actions and how often each.
_ADD = """#!lua flags=allow-oom
for i = 2, #ARGV, 2 do redis.call('HINCRBY', KEYS[1], ARGV[i], ARGV[i + 1]) end
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return 1"""

_READ = """#!lua flags=no-writes
return redis.call('HGETALL', KEYS[1])"""


class Action(StrEnum):
    """What a keeper does for sessions and workers that cannot do it themselves."""

    #: A session of a lost owner was given to the next one.
    RECOVERED = "recovered"
    #: A session was ended; counted by its reason.
    ENDED = "ended"
    #: The message of a session that waits was published again.
    REPUBLISHED = "republished"
    #: A process whose event loop hung was killed.
    HUNG_KILLED = "hung_killed"
    #: A room held by a session without a record was given back.
    RELEASED_UNRECORDED = "released_unrecorded"
    #: A room held by a session that is over was given back.
    RELEASED_OVER = "released_over"
    #: An agent that nobody vouches for was taken out of its room.
    ORPHAN_REMOVED = "orphan_removed"
    #: An entry without the session or worker that it is about was removed.
    STALE_INDEX_REMOVED = "stale_index_removed"
    #: Joins were opened in a Redis that was started or emptied.
    JOINS_OPENED = "joins_opened"


class Actions:
    """Counts what one keeper does."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._unsent: Counter[str] = Counter()

    def count(self, action: Action, *, reason: Reason | None = None, times: int = 1) -> int:
        """Note that it was done, an end with its reason; how often this keeper has done it so far."""
        name = f"{action}:{reason}" if reason else str(action)
        self.counts[name] += times
        self._unsent[name] += times
        return self.counts[name]

    async def send(self, client: "redis.asyncio.Redis") -> None:
        """Add what was not sent yet to the fleet's counts; raises `StateUnavailable`."""
        if self._unsent:
            unsent, self._unsent = self._unsent, Counter()
            await run_async(client, _add(unsent))


def _add(counts: Mapping[str, int]) -> Operation[None]:
    flat = [part for item in counts.items() for part in item]
    return Operation(script=_ADD, keys=[_KEY], arguments=[round(KEPT * 1000), *flat], parse=lambda raw: None)


def read() -> Operation[Mapping[str, int]]:
    """The fleet's counts, by name."""
    return Operation(
        script=_READ, keys=[_KEY], parse=lambda raw: {name: int(times) for name, times in pairs(raw).items()}
    )
