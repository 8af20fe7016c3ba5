"""Tickets: both stores keep what they are given, once per idempotency key."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from graphs.errors import TicketsUnavailable
from graphs.ports import OpenTicketPort
from graphs.tickets import TICKET_EXPIRY, RedisTickets, SQLiteTickets


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    async with Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture(params=["redis", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> OpenTicketPort:
    if request.param == "sqlite":
        return SQLiteTickets(tmp_path / "tickets.db")
    return RedisTickets(request.getfixturevalue("redis"), tenant="default")


async def test_a_ticket_has_a_short_id_that_can_be_read_out(store: OpenTicketPort) -> None:
    ticket_id = await store("red light", idempotency_key="turn:call")
    assert ticket_id[0] == "T" and ticket_id[1:].isdigit() and len(ticket_id) <= 8


async def test_the_same_key_opens_one_ticket_even_at_the_same_moment(store: OpenTicketPort) -> None:
    opened = await asyncio.gather(*(store("red light", idempotency_key="turn:call") for _ in range(5)))
    assert len(set(opened)) == 1


async def test_other_keys_open_other_tickets(store: OpenTicketPort) -> None:
    opened = {await store("red light", idempotency_key=f"turn:{number}") for number in range(20)}
    assert len(opened) == 20


async def test_redis_keeps_the_ticket_and_its_key_for_ninety_days(redis: Redis) -> None:
    ticket_id = await RedisTickets(redis, tenant="acme")("red light", idempotency_key="turn:call")
    ticket, key = f"muster:{{t:acme}}:ticket:{ticket_id}", "muster:{t:acme}:ticket_key:turn:call"
    assert await redis.hget(ticket, "summary") == b"red light"
    assert await redis.get(key) == ticket_id.encode()
    for name in (ticket, key):
        assert TICKET_EXPIRY - 10 < await redis.ttl(name) <= TICKET_EXPIRY
    assert len(await redis.keys("*")) == 2


async def test_a_client_that_decodes_gets_the_same_answer(redis_url: str) -> None:
    async with Redis.from_url(redis_url) as plain, Redis.from_url(redis_url, decode_responses=True) as decoding:
        ticket_id = await RedisTickets(plain, tenant="default")("a", idempotency_key="k")
        assert await RedisTickets(decoding, tenant="default")("a", idempotency_key="k") == ticket_id


async def test_the_file_keeps_the_ticket_for_the_next_process(tmp_path: Path) -> None:
    path = tmp_path / "tickets.db"
    ticket_id = await SQLiteTickets(path)("red light", idempotency_key="turn:call")
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT id, summary FROM tickets").fetchall() == [(ticket_id, "red light")]


async def test_a_store_that_is_away_says_so(tmp_path: Path) -> None:
    once = Retry(NoBackoff(), retries=0)
    async with Redis(unix_socket_path=str(tmp_path / "nobody.sock"), retry=once) as client:
        with pytest.raises(TicketsUnavailable):
            await RedisTickets(client, tenant="default")("a", idempotency_key="k")
    with pytest.raises(TicketsUnavailable):
        await SQLiteTickets(tmp_path / "missing" / "tickets.db")("a", idempotency_key="k")
