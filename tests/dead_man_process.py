"""A process with an armed dead man's switch: says "armed", and lives for as long as the switch lets it.

`python -m tests.dead_man_process REDIS_URL AGE RENEWS WITNESS`: the lease was renewed `AGE` seconds ago; RENEWS and
WITNESS are "yes" or "no".
"""

import asyncio
import sys
import time

from worker.call.dead_man import DeadMan
from worker.fleet import workers
from worker.fleet.child import Child
from worker.fleet.redis_operations import connect_async, run_async
from worker.fleet.table import Table
from worker.fleet.times import BEAT


async def _renew(table: Table) -> None:
    while True:
        table.renewed_at = time.monotonic_ns()
        await asyncio.sleep(BEAT)


async def _live(redis_url: str, age: float, *, renews: bool, is_witness: bool) -> None:
    table = Table.create(slots=1)
    table.renewed_at = time.monotonic_ns() - round(age * 1e9)
    child = Child(worker_id="worker@test#1", table=table, index=0)
    child.install_handlers()
    async with connect_async(redis_url) as client, asyncio.TaskGroup() as group:
        if renews:
            group.create_task(_renew(table))
        dead_man = DeadMan(child, ask=lambda: run_async(client, workers.may_renew()), witness=lambda: is_witness)
        group.create_task(dead_man.keep())
        await asyncio.sleep(0.1)
        print("armed", flush=True)
        await asyncio.sleep(60)


if __name__ == "__main__":
    _, url, age, renews, witness = sys.argv
    asyncio.run(_live(url, float(age), renews=renews == "yes", is_witness=witness == "yes"))
