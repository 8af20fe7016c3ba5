"""How a Lua script is described once and run by a blocking or an asyncio client."""

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Generic, TypeVar

import redis
import redis.asyncio
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from worker.fleet.errors import StateUnavailable

Answer = TypeVar("Answer")

#: Seconds a request may wait for one answer of Redis.
REQUEST_TIMEOUT = 1.0
#: How many requests of one process talk to one Redis server at a time. More would not be faster: one process keeps
#: no more than a few connections busy.
AT_A_TIME = 16
#: A moment, in Unix seconds, that no server's clock reaches.
NEVER = 2.0**40
#: Milliseconds of the server's clock, for scripts.
NOW = "local clock = redis.call('TIME'); local now = clock[1] * 1000 + math.floor(clock[2] / 1000)\n"


#: What Redis or its client said, in words for whoever runs it; of several that fit, the first.
_TROUBLES = {
    AuthenticationError: "Redis does not accept the user or password in its URL.",
    BusyLoadingError: "Redis is still loading its data.",
    ReadOnlyError: "Redis takes no writes: it is a read-only replica.",
    OutOfMemoryError: "Redis is full: its maxmemory is reached.",
    NoPermissionError: "Redis does not permit its user what the fleet needs.",
    RedisTimeoutError: "Redis did not answer in time.",
    ResponseError: "Redis refused a command.",
    redis.ConnectionError: "Redis could not be reached, or hung up.",
}


def unavailable(error: RedisError) -> StateUnavailable:
    """What a failure of Redis or of the way to it means to the fleet."""
    return StateUnavailable(next((words for kind, words in _TROUBLES.items() if isinstance(error, kind)), None))


def too_late() -> StateUnavailable:
    """What it means that Redis got to a step when nobody waited for it any more."""
    return StateUnavailable("Redis answered too late.")


@dataclass(frozen=True, kw_only=True)
class Operation(Generic[Answer]):
    """One atomic step in Redis: a script, the keys it touches (all of one slot), and how its answer reads.

    Scripts start with `#!lua`, so that a key that was not declared fails on a single server too.
    """

    script: str
    keys: Sequence[str]
    arguments: Sequence[str | int | float] = ()
    parse: Callable[[Any], Answer]


@cache
def _digest(script: str) -> str:
    return hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()


def run(client: "redis.Redis", operation: Operation[Answer]) -> Answer:
    """Run it; raises `StateUnavailable` for every failure of Redis."""
    values = [str(value) for value in (*operation.keys, *operation.arguments)]
    try:
        try:
            raw = client.evalsha(_digest(operation.script), len(operation.keys), *values)
        except NoScriptError:
            raw = client.eval(operation.script, len(operation.keys), *values)
    except RedisError as error:
        raise unavailable(error) from error
    return operation.parse(raw)


def run_many(client: "redis.Redis", operations: Sequence[Operation[Answer]]) -> list[Answer]:
    """Run them in one round trip, not atomically together; raises `StateUnavailable`."""
    pipeline = client.pipeline(transaction=False)
    for operation in operations:
        values = [str(value) for value in (*operation.keys, *operation.arguments)]
        pipeline.eval(operation.script, len(operation.keys), *values)
    try:
        answers = pipeline.execute()
    except RedisError as error:
        raise unavailable(error) from error
    return [operation.parse(raw) for operation, raw in zip(operations, answers, strict=True)]


async def run_async(client: "redis.asyncio.Redis", operation: Operation[Answer]) -> Answer:
    """The same through an asyncio client; a cancellation meanwhile is never lost."""
    values = [str(value) for value in (*operation.keys, *operation.arguments)]
    this = asyncio.current_task()
    cancelled_before = this.cancelling() if this else 0
    try:
        try:
            raw = await client.evalsha(_digest(operation.script), len(operation.keys), *values)
        except NoScriptError:
            raw = await client.eval(operation.script, len(operation.keys), *values)
    except RedisError as error:
        raise unavailable(error) from error
    finally:
        # Up to Python 3.11 `asyncio.wait_for`, with which the client sends, may swallow it.
        if this is not None and this.cancelling() > cancelled_before:
            raise asyncio.CancelledError
    return operation.parse(raw)


def connect(url: str, *, timeout: float = REQUEST_TIMEOUT, connections: int = AT_A_TIME) -> "redis.Redis":
    """A blocking client that fails after `timeout` seconds instead of retrying: a timed-out write may have happened.

    It can be shared by many threads. Who finds all of its `connections` in use waits as long for one.
    """
    pool = redis.BlockingConnectionPool.from_url(
        url,
        max_connections=connections,
        timeout=timeout,
        decode_responses=True,
        retry=Retry(NoBackoff(), 0),
        socket_timeout=timeout,
        socket_connect_timeout=timeout,
    )
    return redis.Redis.from_pool(pool)


def connect_async(url: str, *, timeout: float = REQUEST_TIMEOUT) -> "redis.asyncio.Redis":
    """An asyncio client without retries; `timeout` in seconds must exceed any blocking read made with it."""
    return redis.asyncio.Redis.from_url(
        url,
        decode_responses=True,
        retry=redis.asyncio.retry.Retry(NoBackoff(), 0),
        socket_timeout=timeout,
        socket_connect_timeout=REQUEST_TIMEOUT,
    )


def pairs(flat: Sequence[str]) -> dict[str, str]:
    """Redis' flat field-value list as a dictionary."""
    return dict(zip(flat[::2], flat[1::2], strict=True))
