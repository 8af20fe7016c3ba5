"""What the owner of a session is asked to do, read from the session's command stream."""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from typing import Any

import redis.asyncio
from redis.exceptions import RedisError

from worker.fleet import records

logger = logging.getLogger(__name__)

#: Milliseconds one read blocks; below the client's socket timeout, or an idle stream would look broken.
_BLOCK = 2000
#: Seconds between two attempts while Redis is away.
_RETRY = 0.5
#: Seconds the client of `commands` must wait for an answer.
SOCKET_TIMEOUT = 5.0


async def commands(session_id: str, client: "redis.asyncio.Redis") -> AsyncIterator[Mapping[str, str]]:
    """Every command of the session from its first on, in order; goes on after an outage of Redis.

    The stream id of each is its `entry`.
    """
    key, cursor = records.commands_key(session_id), "0-0"
    this = asyncio.current_task()
    # Up to Python 3.11 `asyncio.wait_for`, with which the Redis client sends, may swallow a cancellation.
    while this is not None and not this.cancelling():
        try:
            # The library's type does not say which of its shapes this protocol version answers with.
            answer: Any = await client.xread({key: cursor}, block=_BLOCK, count=10)
        except RedisError:
            logger.warning("commands not readable, trying again", extra={"session": session_id})
            await asyncio.sleep(_RETRY)
            continue
        for _, entries in answer:
            for entry, command in entries:
                cursor = entry
                yield {**command, "entry": entry}
