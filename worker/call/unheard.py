"""An agent whose connection was mended before the caller heard it: another process joins the room in its place."""

import asyncio
import logging
from collections.abc import Callable

from livekit import rtc

from worker.call.ending import Ending

logger = logging.getLogger(__name__)

#: Seconds after the mending in which a caller who is there usually hears the agent.
_HEARD_WITHIN = 3.0


class Unheard:
    """Gives a call back in which the server's word that the caller hears the agent was lost, until `stop`.

    LiveKit does not say it again over a connection that is resumed, and the SDK plays nothing before it. `is_due` tells
    whether the caller is there and this agent the one to speak.
    """

    def __init__(
        self,
        room: rtc.Room,
        *,
        session_id: str,
        ending: Ending,
        is_due: Callable[[], bool],
        within: float = _HEARD_WITHIN,
    ) -> None:
        self._session_id = session_id
        self._ending = ending
        self._is_due = is_due
        self._within = within
        self._is_over = False
        self._handle: asyncio.TimerHandle | None = None
        room.on("reconnected", ending.guard(self._reconnected))

    def stop(self) -> None:
        """The caller hears the agent, or never will."""
        self._is_over = True
        if self._handle is not None:
            self._handle.cancel()

    def _reconnected(self) -> None:
        if not self._is_over:
            if self._handle is not None:
                self._handle.cancel()
            self._handle = asyncio.get_running_loop().call_later(self._within, self._give_back)

    def _give_back(self) -> None:
        if self._is_due() and not self._ending.is_decided:
            logger.warning("the caller is there and does not hear the agent", extra={"session": self._session_id})
            self._ending.give_back(is_lost=True)
