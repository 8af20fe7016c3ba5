"""When an entry of a stream was written, on a real Redis: read late, or from a server with another clock."""

import asyncio
import time

import pytest

from worker.call.moments import Moments
from worker.fleet.errors import StateUnavailable
from worker.fleet.redis_operations import connect_async


async def test_an_entry_that_is_read_late_was_written_when_it_was(redis_url: str) -> None:
    async with connect_async(redis_url) as client:
        moments = Moments("session", clock=lambda: time.time() - 1000)
        await moments.compare_clocks(client)
        written = time.time() - 1000
        entry = await client.xadd("moments", {"any": "thing"})
        await client.delete("moments")
        await asyncio.sleep(0.1)
        assert moments.of(str(entry)) == pytest.approx(written, abs=0.05)


async def test_no_entry_is_older_than_its_reader_or_not_written_yet(redis_url: str) -> None:
    now = [1000.0]
    moments = Moments("session", clock=lambda: now[0])
    async with connect_async(redis_url) as client:
        await moments.compare_clocks(client)
    now[0] += 5
    assert moments.of("1-0") == 1000
    assert moments.of(f"{2**45}-0") == 1005
    assert moments.of("") == 1005


async def test_without_a_clock_to_compare_with_an_entry_is_written_when_it_is_read() -> None:
    moments = Moments("session", clock=lambda: 1000.0)
    async with connect_async("redis://127.0.0.1:1/0") as client:
        with pytest.raises(StateUnavailable):
            await moments.compare_clocks(client)
    assert moments.of("1-0") == 1000
