"""`muster.pipecat` with the real Pipecat, which is not in the virtual environment (see `local/pipecat.py`)."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from local.errors import StepFailed
from local.paths import ROOT
from local.pipecat import LOCK, ensure_pipecat, with_pipecat
from local.progress import Progress

LOCKS = (LOCK, ROOT / "requirements.lock")
#: What the lock's head says is left out, and what the virtual environment goes without.
LEFT_OUT = {"docopt", "numba", "resampy", "sentence-transformers"}


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """One in which Python finds Pipecat; without a registry tests are skipped, on CI they fail."""
    try:
        folder = ensure_pipecat(progress=Progress(logs=tmp_path_factory.mktemp("logs")))
    except StepFailed as failure:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(failure))
    return with_pipecat(folder)


def python(*arguments: str, environment: dict[str, str] | None = None) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.timeout(300)
def test_the_service_works_in_pipelines_of_the_real_pipecat(environment: dict[str, str]) -> None:
    done = python("-m", "pytest", "tests/pipecat_service", "-p", "no:cacheprovider", environment=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    # They ran, each of them.
    files = Path(__file__).parent.glob("pipecat_service/test_*.py")
    passed = re.search(r"(\d+) passed in", done.stdout)
    assert passed is not None, done.stdout
    assert int(passed[1]) >= sum(file.read_text().count("async def test_") for file in files)


@pytest.mark.timeout(120)
def test_pipecat_fits_the_packages_of_the_product(environment: dict[str, str]) -> None:
    said = python("-m", "pip", "check", environment=environment).stdout
    missing = re.findall(r"requires ([\w-]+), which is not installed", said)
    assert set(missing) <= LEFT_OUT
    assert len(missing) == len(said.splitlines())


@pytest.mark.timeout(120)
def test_the_example_answers_in_the_terminal(environment: dict[str, str]) -> None:
    unreachable = {"OPENAI_API_KEY": "any", "OPENAI_BASE_URL": "http://127.0.0.1:9/v1"}
    command = [sys.executable, "examples/pipecat_bot.py"]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment | unreachable,
        input="Hello?\n",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "The model did not answer" in done.stdout


def test_the_lock_adds_to_requirements_lock_and_replaces_only_protobuf() -> None:
    ours, base = (set(re.findall(r"^[a-z0-9.-]+(?===)", file.read_text(), re.MULTILINE)) for file in LOCKS)
    assert ours & base == {"protobuf"}
    assert "pipecat-ai" in ours


def test_without_pipecat_the_module_says_what_to_install() -> None:
    done = python("-c", "import sys; sys.modules['pipecat'] = None; import muster.pipecat")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "ImportError: muster.pipecat needs Pipecat 1.14 or newer: pip install 'muster[pipecat]'"
    )


def test_the_command_starts_without_it() -> None:
    done = python("-c", "import muster.cli, sys; print([name for name in sys.modules if 'pipecat' in name])")
    assert done.stdout.strip() == "[]"
