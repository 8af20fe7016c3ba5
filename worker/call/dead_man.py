"""The dead man's switch: a process that may have lost its session dies before it can talk over the next owner.

The kernel's timer kills it whatever its Python code does, whether it was stopped and resumed or is busy. It is armed
anew from the last renewal of the worker's lease and goes off before the lease ends. While Redis takes no writes nobody
can take the session over, so an outage must not end the call: for a while a room that is connected, without a younger
agent in it, is witness enough.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from worker.fleet.child import Child
from worker.fleet.errors import StateUnavailable
from worker.fleet.times import ARMING, DEAD_MAN, DOUBT, DOUBT_ANSWER, RESPITE, WITNESS

logger = logging.getLogger(__name__)


class DeadMan:
    """Arms the switch for one session in one process.

    `ask` asks Redis whether it takes renewals, and raises when it does not, or does not answer; `witness` tells whether
    the room is proof enough that nobody else has the session.
    """

    def __init__(
        self,
        child: Child,
        *,
        ask: Callable[[], Awaitable[object]],
        witness: Callable[[], bool],
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._child = child
        self._ask = ask
        self._witness = witness
        self._clock = clock
        self._is_over = False

    async def keep(self) -> None:
        """Keep the switch armed until `stand_down`."""
        while not self._is_over:
            await self._arm()
            await asyncio.sleep(ARMING)

    def stand_down(self) -> None:
        """Disarm it: the agent is in no room any more."""
        self._is_over = True
        self._child.disarm()

    async def _arm(self) -> None:
        left = DEAD_MAN - self._age
        if left > DOUBT:
            self._child.arm(left)
        elif self._age < WITNESS and self._witness() and not await self._redis_answers() and not self._is_over:
            self._child.arm(RESPITE)

    @property
    def _age(self) -> float:
        """Seconds since the last renewal of the lease was sent."""
        return (self._clock() - self._child.renewed_at) / 1e9

    async def _redis_answers(self) -> bool:
        try:
            async with asyncio.timeout(DOUBT_ANSWER):
                await self._ask()
        except (TimeoutError, StateUnavailable):
            return False
        return True
