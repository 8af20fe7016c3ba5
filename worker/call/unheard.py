"""An agent whose voice does not get into the room, or not to the caller: another process joins in its place."""

import asyncio
import logging
import math
from collections.abc import Callable

from livekit import rtc

from worker.call.ending import Ending
from worker.fleet.recovery import MOST_IN_A_ROW

logger = logging.getLogger(__name__)

#: Seconds after the mending of its connection in which a caller who is there usually hears the agent.
_HEARD_WITHIN = 3.0
#: Seconds in which the agent's track is usually in the room once the caller is, with room for a busy machine.
_PUBLISHED_WITHIN = 5.0
#: Seconds between two looks.
_LOOK = 0.5


def patience(recoveries: int) -> float:
    """Seconds to wait for the agent's track after so many lost owners in a row.

    The last two wait as long as it takes: a machine that is only slow must not use up the session's owners.
    """
    return _PUBLISHED_WITHIN if recoveries + 1 < MOST_IN_A_ROW else math.inf


class Unheard:
    """Gives a call back in which the server's word was lost that the agent's track is there, or that it is heard.

    LiveKit does not say it again over a connection that is resumed, and the SDK plays nothing before it. `is_due` tells
    whether the caller is there and this agent the one to speak, `is_published` whether its track is in the room.
    """

    def __init__(
        self,
        room: rtc.Room,
        *,
        session_id: str,
        ending: Ending,
        is_due: Callable[[], bool],
        is_published: Callable[[], bool],
        heard_within: float = _HEARD_WITHIN,
        published_within: float,
    ) -> None:
        self._session_id = session_id
        self._ending = ending
        self._is_due = is_due
        self._is_published = is_published
        self._heard_within = heard_within
        self._published_within = published_within
        self._is_over = False
        self._heard: asyncio.TimerHandle | None = None
        room.on("reconnected", ending.guard(self._reconnected))

    async def watch(self) -> None:
        """Look whether the agent's track is in the room, from when the agent is there until it is or `stop`."""
        clock = asyncio.get_running_loop()
        since = clock.time()
        while not (self._is_over or self._is_published()):
            if not self._is_due():
                since = clock.time()
            elif clock.time() - since > self._published_within:
                self._give_back("the agent's track is not in the room")
                return
            await asyncio.sleep(_LOOK)

    def stop(self) -> None:
        """The caller hears the agent, or never will."""
        self._is_over = True
        if self._heard is not None:
            self._heard.cancel()

    def _reconnected(self) -> None:
        if not self._is_over:
            if self._heard is not None:
                self._heard.cancel()
            self._heard = asyncio.get_running_loop().call_later(self._heard_within, self._give_up)

    def _give_up(self) -> None:
        if self._is_due():
            self._give_back("the caller is there and does not hear the agent")

    def _give_back(self, why: str) -> None:
        if not self._ending.is_decided:
            logger.warning("%s", why, extra={"session": self._session_id})
            self._ending.give_back(is_lost=True)
