"""The commands of the README, run as a user runs them, with the whole stack behind them."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from local.paths import ROOT
from local.state import StateFile

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

_READY_WITHIN = 90.0
_GONE_WITHIN = 5.0


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A home of the test's own, so that a stack of the developer's is left alone."""
    return {**os.environ, "MUSTER_HOME": str(tmp_path)}


@pytest.fixture
def demo(environment: dict[str, str], tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """A running `muster demo`."""
    command = [sys.executable, "-m", "muster", "demo", "--output", str(tmp_path / "call")]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


def _processes_of(stack_id: str) -> list[int]:
    """Living processes that carry the stack's marker, read without the stack's own code."""
    marker = f"MUSTER_STACK_ID={stack_id}".encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            zombie = (folder / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
            if not zombie and marker in (folder / "environ").read_bytes():
                found.append(int(folder.name))
        except (FileNotFoundError, PermissionError, ProcessLookupError):
            continue
    return found


def test_the_demo_holds_a_conversation_and_leaves_nothing_behind(demo: "subprocess.Popen[str]", tmp_path: Path) -> None:
    printed, _ = demo.communicate()
    assert demo.returncode == 0, printed
    result = json.loads((tmp_path / "call" / "result.json").read_text())
    assert len(result["turns"]) >= 6
    assert result["recording"]["rate"] <= 0.15
    assert not result["failures"]
    assert all(abs(path["difference"]) <= max(0.05, 0.1 * path["measured"]) for path in _critical_paths(result))
    assert (tmp_path / "call" / "call.agent.wav").stat().st_size > 1_000_000


def test_no_process_survives_the_killing_of_the_supervisor_during_a_call(
    demo: "subprocess.Popen[str]", tmp_path: Path
) -> None:
    assert demo.stdout is not None
    deadline = time.monotonic() + _READY_WITHIN
    while "caller" not in demo.stdout.readline():
        assert demo.poll() is None and time.monotonic() < deadline
    stack = StateFile(home=tmp_path).running()
    assert len(_processes_of(stack.stack_id)) > 10
    demo.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + _GONE_WITHIN
    while left := _processes_of(stack.stack_id):
        assert time.monotonic() < deadline, f"still there after {_GONE_WITHIN} s: {left}"
        time.sleep(0.1)


def _critical_paths(result: dict[str, object]) -> list[dict[str, float]]:
    turns = result["turns"]
    assert isinstance(turns, list)
    return [turn["critical_path"] for turn in turns if turn["critical_path"]]
