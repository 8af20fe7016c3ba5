"""A room whose connection is lost: the call waits for it as long as for a lost caller, and then goes on or ends."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from livekit import rtc

from worker.call.ending import Ending
from worker.call.presence import DECIDED
from worker.fleet.session import Reason

#: Seconds between two looks whether the server is there again.
_LOOK = 1.0


class LostRoom:
    """Decides what becomes of a call that has lost its room although nobody has sent its agent away.

    The SDK reconnects by itself, but gives up while the server may still come back, and it cannot begin again in a call
    that runs. So from then on the call waits for a server that `answers`, and is given back to an owner who joins anew.
    After `grace` seconds without the room, it is closed. `run` runs something beside the call.
    """

    def __init__(
        self,
        room: rtc.Room,
        *,
        ending: Ending,
        answers: Callable[[], Awaitable[bool]],
        run: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
        grace: float,
    ) -> None:
        self._ending = ending
        self._answers = answers
        self._run = run
        self._grace = grace
        self._given_up = asyncio.Event()
        self._waiting: asyncio.Task[None] | None = None
        room.on("reconnecting", ending.guard(self._lost))
        room.on("reconnected", ending.guard(self._regained))
        room.on("disconnected", ending.guard(self._disconnected))

    def _lost(self) -> None:
        if self._waiting is None and not self._ending.is_decided:
            self._waiting = self._run(self._wait())

    def _regained(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def _disconnected(self, reason: rtc.DisconnectReason.ValueType) -> None:
        if reason not in DECIDED:
            self._given_up.set()
            self._lost()

    async def _wait(self) -> None:
        clock = asyncio.get_running_loop()
        until = clock.time() + self._grace
        try:
            async with asyncio.timeout(self._grace):
                await self._given_up.wait()
        except TimeoutError:
            # The SDK's next attempt may be seconds away, and the server there.
            pass
        while not self._ending.is_decided:
            if await self._answers():
                self._ending.give_back(is_lost=True)
            elif clock.time() >= until:
                self._ending.decide(Reason.ROOM_CLOSED)
            else:
                await asyncio.sleep(_LOOK)
