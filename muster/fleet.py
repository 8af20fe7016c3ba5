"""What `muster status` says of the fleet: its workers, and what their keepers have done for others."""

import os
from collections.abc import Mapping

from rich.console import Console

from local.parts import AGENT_SERVICE
from muster.client import MusterClient, Worker
from muster.errors import MusterError


def print_fleet(urls: Mapping[str, str], *, console: Console) -> None:
    """Prints what the agent service knows, if there is one that answers."""
    if AGENT_SERVICE not in urls:
        return
    try:
        with MusterClient(urls[AGENT_SERVICE], api_key=os.environ.get("MUSTER_API_KEY")) as client:
            fleet = client.workers()
    except MusterError as error:
        console.print(f"Workers: {error}", markup=False)
        return
    console.print("Workers: " + (", ".join(map(_described, fleet.workers)) or "none"), highlight=False)
    if fleet.actions:
        done = ", ".join(f"{name} {times}" for name, times in fleet.actions.items())
        console.print(f"Done by keepers: {done}", highlight=False)


def _described(worker: Worker) -> str:
    return f"{worker.name} {worker.busy}/{worker.slots}" + (" draining" if worker.draining else "")
