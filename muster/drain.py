"""`muster drain`: have a worker hand its calls over and exit, and wait until it has."""

import os
import time
from collections.abc import Mapping

from rich.console import Console

from local.parts import AGENT_SERVICE
from muster.client import MusterClient, Worker
from muster.errors import MusterError

_INTERVAL = 0.2


def run_drain(name: str, *, patience: float, urls: Mapping[str, str], console: Console) -> int:
    """Asks the worker of this name to drain and says how far it is, for `patience` seconds; the exit code."""
    try:
        with MusterClient(urls[AGENT_SERVICE], api_key=os.environ.get("MUSTER_API_KEY")) as client:
            asked = {worker.worker for worker in client.drain(name).workers}
            return _follow(client, asked, patience=patience, console=console)
    except MusterError as error:
        console.print(str(error), style="red", markup=False)
        return 1


def _follow(client: MusterClient, asked: set[str], *, patience: float, console: Console) -> int:
    started, told = time.monotonic(), ""
    while left := [worker for worker in client.workers().workers if worker.worker in asked]:
        if (now := _progress(left)) != told:
            console.print(told := now, highlight=False)
        if time.monotonic() - started > patience:
            console.print(f"Not gone after {patience:g} s. It goes on draining.", style="red")
            return 1
        time.sleep(_INTERVAL)
    console.print(f"It has gone, after {time.monotonic() - started:.1f} s.", highlight=False)
    return 0


def _progress(workers: list[Worker]) -> str:
    calls = sum(worker.busy for worker in workers)
    if not all(worker.draining for worker in workers):
        return f"Asked; it has {_counted(calls)}."
    return f"Draining: {_counted(calls)} left." if calls else "Draining: no call left."


def _counted(calls: int) -> str:
    return "1 call" if calls == 1 else f"{calls} calls"
