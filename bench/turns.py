"""How long an answer takes: from the end of the caller's speech to the agent's first audible frame, in real calls.

The calls are held by the product's own command, as a user would hold them.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.report import Figure, Report
from local.parts import AGENT_SERVICE, CONTROL_PLANE, LIVEKIT, PROVIDERS, REDIS, WORKER, StackOptions
from local.stack import Stack

#: Eight questions with hand-overs and tools, and one answer that is talked over.
LINES = (
    "What are your opening hours?",
    "How can I pay my bill?",
    "How much is the premium plan?",
    "Do you have a free trial?",
    "My router keeps dropping the connection.",
    "I forgot my password and cannot log in.",
    "Please open a ticket for me.",
    "Thank you, that is all.",
)
INTERRUPTED = ("What plans do you offer?", "Sorry, stop please.")
_SEGMENTS = ("endpointing", "stt", "graph_llm", "tts", "transport")
#: Seconds one call may take.
_CALL_LIMIT = 300


def measure_turns(*, calls: int, first_token_delay: float = 0.0) -> Report:
    """`calls` calls one after the other on a stack of its own, whose model takes so many seconds to its first token."""
    parts = frozenset({REDIS, LIVEKIT, PROVIDERS, AGENT_SERVICE, CONTROL_PLANE, WORKER})
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        options = StackOptions(parts=parts, preferred_ports=False, home=home, first_token_delay=first_token_delay)
        with Stack(options=options):
            return _report([_call(home, number) for number in range(calls)], first_token_delay=first_token_delay)


def _call(home: Path, number: int) -> dict[str, Any]:
    output = home / f"call-{number}"
    command = [sys.executable, "-m", "muster", "call", "--output", str(output)]
    for line in LINES:
        command += ["--say", line]
    # The exit code says whether every line was answered; the report counts what was not.
    subprocess.run(
        [*command, "--interrupt", *INTERRUPTED],
        env={**os.environ, "MUSTER_HOME": str(home)},
        timeout=_CALL_LIMIT,
        check=False,
    )
    result: dict[str, Any] = json.loads((output / "result.json").read_text())
    return result


def _report(results: Sequence[dict[str, Any]], *, first_token_delay: float) -> Report:
    turns = [turn for result in results for turn in result["turns"]]
    paths = [turn["critical_path"] for turn in turns if turn["critical_path"]]
    figures = {
        "end of speech to first audible frame": Figure([turn["latency"] for turn in turns if turn["latency"]]),
        **{f"  {name}": Figure([path[name] for path in paths]) for name in _SEGMENTS},
        "  segments, added up": Figure([path["total"] for path in paths]),
        "difference, absolute": Figure([abs(path["difference"]) for path in paths]),
        "barge-in to silence": Figure([turn["silenced_after"] for turn in turns if turn["silenced_after"]]),
    }
    title = "End of the caller's speech to the agent's first audible frame"
    if first_token_delay:
        title += f"; the model takes {1000 * first_token_delay:g} ms to its first token"
    return Report(title, figures, _notes(results))


def _notes(results: Sequence[dict[str, Any]]) -> list[str]:
    failures = [failure for result in results for failure in result["failures"]]
    warnings = [warning for result in results for warning in result["warnings"]]
    return [
        f"{len(results)} calls.",
        *(failures or ["Every line was answered, every interruption honoured."]),
        *warnings,
    ]
