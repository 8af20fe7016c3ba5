"""Where this tree is, and where the local stack keeps what outlives it."""

import os
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def cache_directory(environ: Mapping[str, str] = os.environ) -> Path:
    """What was built or fetched once: `$MUSTER_CACHE`, or `~/.cache/muster`."""
    given = environ.get("MUSTER_CACHE")
    return Path(given).absolute() if given else Path.home() / ".cache" / "muster"


def home_directory(environ: Mapping[str, str] = os.environ) -> Path:
    """The running stack's state, and the logs of the last ones: `$MUSTER_HOME`, or `run` in the cache."""
    given = environ.get("MUSTER_HOME")
    return Path(given).absolute() if given else cache_directory(environ) / "run"
