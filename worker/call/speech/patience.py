"""How long a provider is waited for."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from livekit.agents import APITimeoutError


@asynccontextmanager
async def bounded(seconds: float) -> AsyncIterator[None]:
    """Cancels the block after `seconds` and raises `APITimeoutError`."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise APITimeoutError() from None
