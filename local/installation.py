"""What `make setup` does: the virtual environment and the LiveKit server, each made once."""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from local.errors import LiveKitMissing, LocalError
from local.livekit_server import LiveKitBuild, find_livekit_server
from local.locks import exclusive
from local.paths import ROOT, cache_directory
from local.progress import Progress
from local.stand_ins import Machine, too_new, without

_INSTALL_ADVICE = "check the network and pip's settings (`pip config list`), then run it again"


class VirtualEnvironment:
    """The tree's `.venv`, exactly as `requirements.lock` says."""

    def __init__(self, *, root: Path, progress: Progress, machine: Machine | None = None) -> None:
        self._root = root
        self._progress = progress
        self._machine = machine or Machine.this()
        self._folder = root / ".venv"
        self._stamp = self._folder / "muster.stamp"

    @property
    def python(self) -> Path:
        return self._folder / "bin" / "python"

    def ensure(self) -> None:
        """Create or renew it; nothing happens when it is as it should be.

        Raises `StepFailed`.
        """
        with exclusive(self._root / ".venv.lock", when_held=self._say_waiting):
            if self._is_current():
                return
            if not self._python_works():
                self._create()
            self._install()
            self._stamp.write_text(self._fingerprint())

    def _is_current(self) -> bool:
        stamped = self._stamp.exists() and self._stamp.read_text() == self._fingerprint()
        return stamped and self._python_works()

    def _fingerprint(self) -> str:
        """Changes with what is installed, and with the path that the editable installation points to."""
        digest = hashlib.sha256(str(self._root).encode())
        for name in ("requirements.lock", "pyproject.toml"):
            digest.update((self._root / name).read_bytes())
        return digest.hexdigest()

    def _python_works(self) -> bool:
        """Whether its interpreter still runs: it points to one outside that may be gone after an upgrade."""
        if not self.python.exists():
            return False
        return subprocess.run([self.python, "-c", ""], capture_output=True, check=False).returncode == 0

    def _create(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
        self._progress.run(
            "Virtual environment",
            [sys.executable, "-m", "venv", str(self._folder)],
            usually="5 seconds",
            advice="on Debian and Ubuntu: apt install python3-venv",
        )

    def _install(self) -> None:
        pip = [str(self.python), "-m", "pip", "install", "--disable-pip-version-check", "--no-deps"]
        self._progress.run(
            "Python packages",
            [*pip, "--require-hashes", "-r", str(self._write_requirements())],
            usually="1 to 3 minutes",
            advice=_INSTALL_ADVICE,
        )
        self._progress.run(
            "Muster itself",
            [*pip, "--no-build-isolation", "-e", str(self._root)],
            usually="5 seconds",
            advice=_INSTALL_ADVICE,
        )

    def _write_requirements(self) -> Path:
        """The lock without what this machine's system is too old for."""
        requirements = self._folder / "requirements.lock"
        requirements.write_text(without((self._root / "requirements.lock").read_text(), too_new(self._machine)))
        return requirements

    def _say_waiting(self) -> None:
        self._progress.say("Another set-up works on this tree; waiting for it.")


def ensure_livekit_server(*, environ: Mapping[str, str], python: Path, progress: Progress) -> None:
    """Make sure there is a LiveKit server to talk to; a given LIVEKIT_URL is one.

    Raises `StepFailed`.
    """
    if environ.get("LIVEKIT_URL") or _has_livekit_server(environ):
        return
    cache = cache_directory(environ)
    lock = cache / ".livekit-build.lock"
    with exclusive(lock, when_held=lambda: progress.say("Another set-up builds the LiveKit server; waiting.")):
        # The one that was waited for may have built it.
        if not _has_livekit_server(environ):
            LiveKitBuild(cache=cache, python=python, progress=progress, search=environ.get("PATH")).run()


def say_what_is_missing(*, python: Path, progress: Progress) -> None:
    """Name the stand-ins that have no wheel for this machine, and what to do without each."""
    said = subprocess.run([python, "-m", "local.stand_ins"], cwd=ROOT, capture_output=True, text=True, check=True)
    for line in said.stdout.splitlines():
        progress.say(line)


def _has_livekit_server(environ: Mapping[str, str]) -> bool:
    try:
        find_livekit_server(environ)
    except LiveKitMissing:
        return False
    return True


def main(environ: Mapping[str, str] = os.environ) -> int:
    """Set up this tree; 0 when everything is there, 1 when a step failed."""
    progress = Progress(logs=cache_directory(environ) / "logs")
    environment = VirtualEnvironment(root=ROOT, progress=progress)
    try:
        environment.ensure()
        say_what_is_missing(python=environment.python, progress=progress)
        ensure_livekit_server(environ=environ, python=environment.python, progress=progress)
    except LocalError as failure:
        print(f"\n{failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped; what is finished stays, the next run goes on from there.", file=sys.stderr)
        return 130
    return 0
