"""How a Lua script is described once and run by a blocking or an asyncio client."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Generic, TypeVar

import redis
import redis.asyncio
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError
from redis.retry import Retry

from worker.fleet.errors import StateUnavailable

Answer = TypeVar("Answer")

#: Seconds a `/join` may wait for one answer of Redis; a frozen server then costs one to two of them.
REQUEST_TIMEOUT = 1.0
#: Milliseconds of the server's clock, for scripts.
NOW = "local clock = redis.call('TIME'); local now = clock[1] * 1000 + math.floor(clock[2] / 1000)\n"


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
        raise StateUnavailable() from error
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
        raise StateUnavailable() from error
    return [operation.parse(raw) for operation, raw in zip(operations, answers, strict=True)]


async def run_async(client: "redis.asyncio.Redis", operation: Operation[Answer]) -> Answer:
    """The same through an asyncio client."""
    values = [str(value) for value in (*operation.keys, *operation.arguments)]
    try:
        try:
            raw = await client.evalsha(_digest(operation.script), len(operation.keys), *values)
        except NoScriptError:
            raw = await client.eval(operation.script, len(operation.keys), *values)
    except RedisError as error:
        raise StateUnavailable() from error
    return operation.parse(raw)


def connect(url: str) -> "redis.Redis":
    """A blocking client that fails after `REQUEST_TIMEOUT` instead of retrying: a timed-out write may have happened."""
    return redis.Redis.from_url(
        url,
        decode_responses=True,
        retry=Retry(NoBackoff(), 0),
        socket_timeout=REQUEST_TIMEOUT,
        socket_connect_timeout=REQUEST_TIMEOUT,
    )


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
