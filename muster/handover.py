"""`muster handover`: have a live session go to another worker, and wait until it has."""

import os
import time
from collections.abc import Mapping

from rich.console import Console

from local.parts import AGENT_SERVICE
from muster.client import MusterClient
from muster.errors import MusterError

#: Seconds the owner may take: it waits until nobody speaks and no answer is due.
PATIENCE = 60.0
_INTERVAL = 0.1


def run_handover(session_id: str, *, to: str | None, urls: Mapping[str, str], console: Console) -> int:
    """Hands the session over and says to whom it went; the exit code."""
    try:
        with MusterClient(urls[AGENT_SERVICE], api_key=os.environ.get("MUSTER_API_KEY")) as client:
            asked = client.hand_over(session_id, to=to)
            asked_at = time.monotonic()
            while (session := client.session(session_id)).epoch == asked.epoch and not session.over:
                if time.monotonic() - asked_at > PATIENCE:
                    console.print(f"{asked.worker} still has the session after {PATIENCE:g} s.", style="red")
                    return 1
                time.sleep(_INTERVAL)
    except MusterError as error:
        console.print(str(error), style="red", markup=False)
        return 1
    if session.over:
        console.print(f"The session is over: {session.reason}.", style="red")
        return 1
    console.print(f"{session.worker} has it, after {time.monotonic() - asked_at:.1f} s.")
    return 0
