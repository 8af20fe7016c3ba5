"""Where support tickets are stored: Redis for a fleet, an SQLite file for one machine."""

import asyncio
import random
import sqlite3
import time
from contextlib import closing
from pathlib import Path

from redis.asyncio import Redis
from redis.exceptions import RedisError

from graphs.errors import TicketsUnavailable

#: Seconds for which a ticket is kept in Redis.
TICKET_EXPIRY = 90 * 24 * 3600

_OPEN_TICKET = """#!lua
-- KEYS[1]     muster:{t:<tenant>}:ticket_key:<idempotency key>  STRING  id of the ticket it opened
-- KEYS[2...]  muster:{t:<tenant>}:ticket:<candidate id>         HASH    summary, opened_at
-- ARGV[1..3]  summary, opened_at (unix seconds), expiry (seconds); ARGV[4...] the candidate ids
local known = redis.call('GET', KEYS[1])
if known then return known end
for i = 2, #KEYS do
  if redis.call('EXISTS', KEYS[i]) == 0 then
    redis.call('HSET', KEYS[i], 'summary', ARGV[1], 'opened_at', ARGV[2])
    redis.call('EXPIRE', KEYS[i], ARGV[3])
    redis.call('SET', KEYS[1], ARGV[i + 2], 'EX', ARGV[3])
    return ARGV[i + 2]
  end
end
return false
"""


def _candidates() -> list[str]:
    """Ids to try, short ones first: they are read out on the phone."""
    return [f"T{random.randrange(10 ** (digits - 1), 10**digits)}" for digits in (4, 4, 4, 5, 5, 6, 6, 7)]


class RedisTickets:
    """Tickets of one tenant in Redis 7 or Valkey 8, or newer; an `OpenTicketPort`."""

    def __init__(self, client: Redis, *, tenant: str) -> None:
        self._open = client.register_script(_OPEN_TICKET)
        self._prefix = f"muster:{{t:{tenant}}}"

    async def __call__(self, summary: str, *, idempotency_key: str) -> str:
        candidates = _candidates()
        keys = [f"{self._prefix}:ticket_key:{idempotency_key}"]
        keys += [f"{self._prefix}:ticket:{candidate}" for candidate in candidates]
        try:
            ticket_id = await self._open(keys=keys, args=[summary, time.time(), TICKET_EXPIRY, *candidates])
        except RedisError as error:
            raise TicketsUnavailable from error
        if ticket_id is None:
            raise TicketsUnavailable
        return ticket_id.decode() if isinstance(ticket_id, bytes) else str(ticket_id)


class SQLiteTickets:
    """Tickets in one file; an `OpenTicketPort`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def __call__(self, summary: str, *, idempotency_key: str) -> str:
        try:
            return await asyncio.to_thread(self._store, summary, idempotency_key)
        except sqlite3.Error as error:
            raise TicketsUnavailable from error

    def _store(self, summary: str, idempotency_key: str) -> str:
        with closing(sqlite3.connect(self._path)) as connection, connection:
            connection.execute(
                "CREATE TABLE IF NOT EXISTS tickets "
                "(id TEXT PRIMARY KEY, idempotency_key TEXT UNIQUE, summary TEXT, opened_at REAL)"
            )
            for candidate in _candidates():
                connection.execute(
                    "INSERT OR IGNORE INTO tickets VALUES (?, ?, ?, ?)",
                    (candidate, idempotency_key, summary, time.time()),
                )
                found = connection.execute(
                    "SELECT id FROM tickets WHERE idempotency_key = ?", (idempotency_key,)
                ).fetchone()
                if found:
                    return str(found[0])
        raise TicketsUnavailable
