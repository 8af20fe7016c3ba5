"""These tests run where Pipecat is installed; `tests/test_pipecat.py` runs them where it is not."""

from importlib.util import find_spec

import pytest

collect_ignore_glob = ["test_*.py"] if find_spec("pipecat") is None else []


def pytest_configure(config: pytest.Config) -> None:
    """What Pipecat warns of while it imports its own modules."""
    for warning in ("'audioop' is deprecated", "`AudioContextTTSService` is deprecated"):
        config.addinivalue_line("filterwarnings", f"ignore:{warning}:DeprecationWarning")
