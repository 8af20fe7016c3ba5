"""Pipecat in a folder of its own, for the tests and examples of `muster.pipecat`.

It stands beside the virtual environment because it needs an older protobuf than requirements.lock has.

    python -m local.pipecat examples/pipecat_bot.py     # runs a file with it
"""

import hashlib
import os
import shutil
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path

from local.errors import LocalError
from local.locks import exclusive
from local.paths import ROOT, cache_directory
from local.progress import Progress

LOCK = Path(__file__).with_name("pipecat.lock")


def ensure_pipecat(*, progress: Progress, environ: Mapping[str, str] = os.environ) -> Path:
    """The folder of its packages, exactly as `pipecat.lock` says; fetched once. Raises `StepFailed`."""
    cache = cache_directory(environ)
    made_for = f"{sysconfig.get_platform()} {sys.implementation.cache_tag}"
    folder = cache / f"pipecat-{hashlib.sha256(LOCK.read_bytes() + made_for.encode()).hexdigest()[:16]}"
    waiting = "Another process fetches Pipecat; waiting for it."
    with exclusive(cache / ".pipecat.lock", when_held=lambda: progress.say(waiting)):
        if not folder.exists():
            _install(folder, progress)
    return folder


def _install(folder: Path, progress: Progress) -> None:
    unfinished = folder.with_suffix(".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    pip = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--no-deps", "--only-binary", ":all:"]
    progress.run(
        "Pipecat",
        [*pip, "--require-hashes", "--target", str(unfinished), "--requirement", str(LOCK)],
        usually="10 seconds",
        advice="check the network and pip's settings (`pip config list`), then run it again",
    )
    unfinished.rename(folder)


def with_pipecat(folder: Path, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """An environment in which Python finds these packages before its own, and this tree."""
    paths = [str(folder), str(ROOT), *filter(None, [environ.get("PYTHONPATH")])]
    return {**environ, "PYTHONPATH": os.pathsep.join(paths)}


def main(arguments: list[str]) -> int:
    """Become Python with Pipecat, with these arguments; 1 when it could not be fetched."""
    try:
        folder = ensure_pipecat(progress=Progress(logs=cache_directory() / "logs", stream=sys.stderr))
    except LocalError as failure:
        print(f"\n{failure}", file=sys.stderr)
        return 1
    os.execve(sys.executable, [sys.executable, *arguments], with_pipecat(folder))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
