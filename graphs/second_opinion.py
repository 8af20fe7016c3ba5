"""A router's verdict, asked for while a specialist's model call runs, and heeded until the specialist speaks."""

import asyncio
from collections.abc import Coroutine
from typing import Any

from graphs.entities import LLMEvent, Token, ToolCallStarted, UsageReported
from graphs.roster import TRANSFER


class SecondOpinion:
    """Who should answer instead of the specialist who has begun to.

    `asking` gives a specialist's name or None. The specialist's first word is held back for it until `patience` seconds
    after the start; from that word on it does not count any more.
    """

    def __init__(self, asking: Coroutine[Any, Any, str | None], *, patience: float) -> None:
        self._asking = asking
        self._patience = patience
        self._counts = True

    @property
    def _other(self) -> str | None:
        is_given = self._verdict.done() and not self._verdict.cancelled()
        return self._verdict.result() if self._counts and is_given else None

    async def beside(self, speaking: Coroutine[Any, Any, None]) -> str | None:
        """Run the specialist's model call, and end it when somebody else is named first: the name, or None.

        Raises what the call raises.
        """
        # In this order: preparing the router's request must not delay the specialist's.
        call, self._verdict = asyncio.create_task(speaking), asyncio.create_task(self._asking)
        self._patience_ends = asyncio.get_running_loop().time() + self._patience
        try:
            await asyncio.wait([call, self._verdict], return_when=asyncio.FIRST_COMPLETED)
            if self._other is None:
                await call
            await self._wait()
            return self._other
        finally:
            call.cancel()
            self._verdict.cancel()
            await asyncio.wait([call, self._verdict])

    async def lets_happen(self, event: LLMEvent) -> bool:
        """Whether the specialist may go on with this event; its first word waits for the verdict."""
        if not self._counts or isinstance(event, UsageReported) or event == Token(""):
            return True
        if not (isinstance(event, ToolCallStarted) and event.name == TRANSFER):
            await self._wait()
        if self._other is not None:
            return False
        # Also when the specialist hands over without being told to: nobody waits for a second opinion on that.
        self._counts = False
        return True

    async def _wait(self) -> None:
        if self._counts and not self._verdict.done():
            left = self._patience_ends - asyncio.get_running_loop().time()
            await asyncio.wait([self._verdict], timeout=max(left, 0))
