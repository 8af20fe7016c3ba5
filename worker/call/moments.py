"""When an entry of a session's streams was written, by this process's own clock."""

from collections.abc import Callable
from typing import Any

import redis.asyncio

from worker.fleet import records
from worker.fleet.redis_operations import NOW, Operation, run_async

_SCRIPT = f"#!lua flags=no-writes\n{NOW}return now"


class Moments:
    """Tells how long ago an entry was written that is read late, because the way to Redis was cut meanwhile.

    No entry counts as written before these moments were made, or in the future: a server that took over may have
    another clock.
    """

    def __init__(self, session_id: str, *, clock: Callable[[], float]) -> None:
        self._key = records.turns_key(session_id)
        self._clock = clock
        self._since = clock()
        #: Seconds by which the own clock is ahead of the server's.
        self._ahead: float | None = None

    async def compare_clocks(self, client: "redis.asyncio.Redis") -> None:
        """To be done while Redis answers; raises `StateUnavailable`."""
        await run_async(client, Operation(script=_SCRIPT, keys=[self._key], parse=self._compare))

    def _compare(self, milliseconds: Any) -> None:
        self._ahead = self._clock() - int(milliseconds) / 1000

    def of(self, entry: str) -> float:
        """When the entry of this stream id was written; now, when that cannot be told."""
        now = self._clock()
        if self._ahead is None or not entry:
            return now
        return min(now, max(self._since, int(entry.partition("-")[0]) / 1000 + self._ahead))
