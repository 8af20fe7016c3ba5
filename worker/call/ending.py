"""Why a call ends: the first reason wins, and everything waits on it in one place."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from worker.fleet.session import Reason

logger = logging.getLogger(__name__)


class Ending:
    """The call's one way out; belongs to the call's event loop.

    `superseded` is how an owner stops that lost its session to another epoch: nothing is recorded then. `handed_over`
    is how one stops that has passed it on, `given_back` one that leaves it to whoever claims it next (`is_lost` when it
    could not go on itself), and `renounced` one that stood by and has promised not to take it.
    """

    def __init__(self, session_id: str) -> None:
        self._session_id = session_id
        self._decided = asyncio.Event()
        self.reason: Reason | None = None
        self.superseded = False
        self.handed_over = False
        self.given_back = False
        self.is_lost = False
        self.renounced = False
        #: Whether the caller was told that the call is over.
        self.is_told = False

    @property
    def is_decided(self) -> bool:
        """Whether the call is over."""
        return self._decided.is_set()

    def decide(self, reason: Reason) -> None:
        """End the call for this reason, unless it is ending already."""
        if not self.is_decided:
            self.reason = reason
            self._decided.set()

    def supersede(self) -> None:
        """End this owner's part without a word in the record."""
        if not self.is_decided:
            self.superseded = True
            self._decided.set()

    def hand_over(self) -> None:
        """End this owner's part, which another one has already taken over, whatever was decided meanwhile."""
        self.superseded = self.handed_over = True
        self._decided.set()

    def give_back(self, *, is_lost: bool = False) -> None:
        """End this owner's part; the session waits for the next one."""
        if not self.is_decided:
            self.given_back, self.is_lost = True, is_lost
            self._decided.set()

    def renounce(self) -> None:
        """Never take what may have been passed to this agent; to be called before it was taken."""
        self.superseded = self.renounced = True
        self._decided.set()

    def guard(self, handle: Callable[..., None]) -> Callable[..., None]:
        """A handler for an emitter, which swallows what its handlers raise: the call would go silent, so it ends."""

        def handler(*arguments: Any) -> None:
            try:
                handle(*arguments)
            except Exception:
                logger.exception("a handler failed", extra={"session": self._session_id})
                self.decide(Reason.INTERNAL_ERROR)

        return handler

    async def wait(self) -> None:
        """Until the end is decided."""
        await self._decided.wait()

    async def unless_decided(self, work: Coroutine[Any, Any, None], *, timeout: float | None = None) -> bool:
        """Do `work` until the end is decided or `timeout` seconds are over; True when it was finished."""
        working = asyncio.create_task(work)
        deciding = asyncio.create_task(self.wait())
        try:
            await asyncio.wait({working, deciding}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                working.result()
                return True
            return False
        finally:
            for task in (working, deciding):
                task.cancel()
            await asyncio.gather(working, deciding, return_exceptions=True)


class Countdown:
    """A timer that can be started again and stopped; at its end it decides the reason."""

    def __init__(self, ending: Ending, reason: Reason, *, seconds: float) -> None:
        self._ending = ending
        self._reason = reason
        self._seconds = seconds
        self._handle: asyncio.TimerHandle | None = None

    @property
    def is_running(self) -> bool:
        """Whether it counts."""
        return self._handle is not None

    def start(self) -> None:
        """Start counting, from the beginning if it is running already."""
        self.stop()
        self._handle = asyncio.get_running_loop().call_later(self._seconds, self._ending.decide, self._reason)

    def stop(self) -> None:
        """Stop counting."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
