"""`muster doctor` on real servers: each thing that can be wrong is named in one line, with what to do."""

import json
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread

import pytest
import redis
from click.testing import CliRunner, Result
from werkzeug.serving import make_server

from api.keys import ApiKeys, generate
from local.errors import LocalError
from local.parts import LIVEKIT, REDIS, StackOptions
from local.paths import ROOT
from local.ports import HOST, PortPicker
from local.stack import Stack
from muster.checks import (
    ELEVENLABS,
    OPENAI,
    Provider,
    check_agent_service,
    check_api_key,
    check_health,
    check_livekit,
    check_provider,
    check_redis,
    check_workers,
    place,
)
from muster.cli import PROCESSES, main
from muster.doctor import diagnose
from muster.examination import Finding, examine, ok
from muster.machine import check_disk, check_ports
from muster.settings import READERS
from tests.open_fleet import agent_service, open_joins

SECRETS = {"OPENAI_API_KEY": "openai-hunter2", "ELEVEN_API_KEY": "eleven-hunter2"}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A real Redis and a real LiveKit server."""
    home = tmp_path_factory.mktemp("home")
    options = StackOptions(parts=frozenset({REDIS, LIVEKIT}), preferred_ports=False, home=home)
    chosen = ("REDIS_", "LIVEKIT_", "OPENAI_", "ELEVEN_", "MUSTER_")
    environ = {name: value for name, value in os.environ.items() if not name.startswith(chosen)}
    environ |= {name: os.environ[name] for name in ("MUSTER_CACHE",) if name in os.environ}
    try:
        with Stack(options=options, environ=environ) as running:
            yield running
    except LocalError as missing:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(missing))


@pytest.fixture
def redis_of_stack(stack: Stack) -> Iterator["redis.Redis"]:
    """The stack's Redis, empty, and set up again as it was after the test."""
    with redis.Redis.from_url(stack.settings["REDIS_URL"]) as client:
        client.flushall()
        yield client
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("appendonly", "yes")


@contextmanager
def http_server(status: int, *, body: bytes = b"{}", date: float | None = None) -> Iterator[str]:
    """The URL of a server that answers every request like this, at the unix time `date`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response_only(status)
            self.send_header("Date", formatdate(time.time() if date is None else date, usegmt=True))
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            self.do_GET()

        def log_message(self, *arguments: object) -> None:
            """Nothing: the tests look at what is found."""

    with ThreadingHTTPServer((HOST, 0), Handler) as server:
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://{HOST}:{server.server_port}"
        server.shutdown()
        thread.join()


@contextmanager
def silent_server() -> Iterator[str]:
    """Host and port of a server that takes every connection and says nothing."""
    with socket.create_server((HOST, 0)) as server:
        yield f"{HOST}:{server.getsockname()[1]}"


@contextmanager
def served_agent(redis_url: str, **environ: str) -> Iterator[str]:
    """The URL of the real agent service."""
    server = make_server(HOST, 0, agent_service(redis_url, **environ), threaded=True)
    thread = Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://{HOST}:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def nobody() -> str:
    return f"{HOST}:{PortPicker().pick()}"


def told(findings: Sequence[Finding]) -> str:
    return "\n".join(f"{each.outcome} {each.subject}: {each.detail} -> {each.remedy}" for each in findings)


def doctor(environ: Mapping[str, str], *arguments: str) -> Result:
    """The command with no other settings than these."""
    variables = {name: None for name in os.environ if name.startswith(("REDIS_", "LIVEKIT_", "OPENAI_", "ELEVEN_"))}
    return CliRunner().invoke(main, ["doctor", *arguments], env={**variables, **environ})


def test_a_complete_deployment_passes(stack: Stack, redis_of_stack: "redis.Redis") -> None:
    made = generate("control-plane")
    url = stack.settings["REDIS_URL"]
    open_joins(url)
    with served_agent(url, MUSTER_API_KEYS=made.entry) as agent, http_server(200) as provider:
        result = doctor(
            {
                **stack.settings,
                **SECRETS,
                "OPENAI_BASE_URL": f"{provider}/v1",
                "ELEVEN_BASE_URL": f"{provider}/v1",
                "AGENT_SERVICE_URL": agent,
                "AGENT_SERVICE_API_KEY": made.key,
                "MUSTER_API_KEYS": made.entry,
                "LIVEKIT_PUBLIC_URL": stack.settings["LIVEKIT_URL"],
            }
        )
    assert result.exit_code == 0, result.output
    assert "0 failed" in result.output
    for line in (
        "settings of the worker: complete",
        "clock: as LiveKit's",
        "LiveKit knows the key and its secret",
        "1 of 1 take calls, 2 of 2 slots free",
        "AGENT_SERVICE_API_KEY: the agent service accepts it",
        "OpenAI: ",
        "ElevenLabs: ",
    ):
        assert line in result.output


def test_everything_missing_is_named_at_once_and_no_secret_is_shown() -> None:
    environ = {
        "REDIS_URL": f"redis://:redis-hunter2@{nobody()}/0",
        **SECRETS,
        "OPENAI_BASE_URL": "http://no:hunter2@[/v1",
    }
    result = doctor(environ, "--process", "worker")
    assert result.exit_code == 1
    for variable in ("LIVEKIT_URL", "LIVEKIT_API_KEY", "LIVEKIT_API_SECRET"):
        assert f"{variable}: Field required" in result.output
    assert "hunter2" not in result.output


def test_each_process_is_checked_for_what_it_reads() -> None:
    assert tuple(process.replace(" ", "-") for process in READERS) == PROCESSES
    result = doctor({}, "--process", "control-plane")
    assert "settings of the control plane: settings missing or wrong: LIVEKIT_URL" in result.output
    assert "OPENAI_API_KEY" not in result.output


def test_the_findings_can_be_read_by_machines() -> None:
    result = doctor({}, "--process", "agent-service", "--json")
    answer = json.loads(result.output)
    assert (result.exit_code, answer["ok"]) == (1, False)
    [settings] = [each for each in answer["findings"] if each["outcome"] == "failed"]
    assert settings["subject"] == "settings of the agent service"
    assert "REDIS_URL: Field required" in settings["detail"]


def test_a_redis_that_forgets_is_named_with_what_to_set(stack: Stack, redis_of_stack: "redis.Redis") -> None:
    redis_of_stack.config_set("maxmemory-policy", "allkeys-lru")
    redis_of_stack.config_set("appendonly", "no")
    found = check_redis("REDIS_URL", stack.settings["REDIS_URL"])
    assert [each.outcome for each in found] == ["failed", "warning"]
    assert "maxmemory-policy is allkeys-lru" in found[0].detail
    assert "CONFIG SET maxmemory-policy noeviction" in str(found[0].remedy)
    assert "appendonly" in found[1].detail


@pytest.mark.parametrize("url", ["amqp://127.0.0.1", "127.0.0.1:6379", "redis://127.0.0.1:port/0"])
def test_what_is_no_url_of_a_redis_is_said_so(url: str) -> None:
    [found] = check_redis("BROKER_URL", url)
    assert (found.outcome, found.detail) == ("failed", "is not the URL of a Redis server")


def test_a_redis_that_is_away_is_said_so() -> None:
    address = nobody()
    [found] = check_redis("REDIS_URL", f"redis://:hunter2@{address}/0")
    assert found.outcome == "failed"
    assert address in found.detail


def test_a_fleet_without_a_worker_is_said_so(stack: Stack, redis_of_stack: "redis.Redis") -> None:
    [found] = check_workers(stack.settings["REDIS_URL"])
    assert (found.outcome, found.detail) == ("warning", "none takes calls")
    open_joins(stack.settings["REDIS_URL"], slots=3)
    [found] = check_workers(stack.settings["REDIS_URL"])
    assert (found.outcome, found.detail) == ("ok", "1 of 1 take calls, 3 of 3 slots free")


@pytest.mark.parametrize("wrong", ["LIVEKIT_API_KEY", "LIVEKIT_API_SECRET"])
def test_a_wrong_livekit_key_or_secret_is_told_from_an_absent_server(stack: Stack, wrong: str) -> None:
    settings = {**stack.settings, wrong: "wrong" * 10}
    found = check_livekit(
        "LIVEKIT_URL",
        settings["LIVEKIT_URL"],
        key=settings["LIVEKIT_API_KEY"],
        secret=settings["LIVEKIT_API_SECRET"],
    )
    assert [(each.subject, each.outcome) for each in found] == [
        ("LIVEKIT_URL", "ok"),
        ("clock", "ok"),
        ("LIVEKIT_API_KEY", "failed"),
    ]
    assert found[-1].detail == "LiveKit refuses the key or its secret"


def test_a_livekit_that_is_away_is_said_so() -> None:
    address = nobody()
    [found] = check_livekit("LIVEKIT_URL", f"ws://{address}", key="key", secret="s" * 32)
    assert found.outcome == "failed"
    assert address in found.detail
    [found] = check_livekit("LIVEKIT_URL", "livekit.example")
    assert found.detail == "is not the URL of a LiveKit server"


@pytest.mark.parametrize(
    ("off", "outcome", "detail"),
    [
        (-90, "failed", "90 s ahead of LiveKit"),
        (3600, "failed", "3600 s behind LiveKit"),
        (-20, "warning", "20 s ahead"),
        (0, "ok", ""),
    ],
)
def test_a_clock_by_which_tokens_fail_is_found(off: int, outcome: str, detail: str) -> None:
    # The header is exact to a second, so that a busy machine may see one more or less.
    nearby = [detail.replace(str(abs(off)), str(abs(off) + more)) for more in (-1, 0, 1)]
    with http_server(200, date=time.time() + off) as url:
        found = check_livekit("LIVEKIT_URL", url.replace("http", "ws"))
    assert [each.outcome for each in found] == ["ok", outcome]
    assert any(text in found[1].detail for text in nearby)


def test_a_refused_token_is_put_down_to_the_clock_first() -> None:
    with http_server(401, date=time.time() + 600) as url:
        found = check_livekit("LIVEKIT_URL", url.replace("http", "ws"), key="key", secret="s" * 32)
    assert [each.outcome for each in found] == ["warning", "failed", "failed"]
    assert "Set the clock right first" in str(found[-1].remedy)


def test_a_secret_that_can_be_guessed_is_named(stack: Stack) -> None:
    found = doctor({**stack.settings, "LIVEKIT_API_SECRET": "secret"}, "--process", "control-plane")
    assert "LIVEKIT_API_SECRET: it has fewer than 32 characters" in found.output


@pytest.mark.parametrize(
    ("status", "body", "outcome", "detail"),
    [
        (401, b"{}", "failed", "does not know the key"),
        (401, b'{"detail": {"status": "missing_permissions"}}', "warning", "the key is limited"),
        (403, b"{}", "warning", "the key is limited"),
        (404, b"{}", "warning", "where a list should be"),
        (500, b"{}", "failed", "answered 500"),
        (200, b"{}", "ok", "accepts the key"),
    ],
)
@pytest.mark.parametrize("provider", [OPENAI, ELEVENLABS], ids=lambda provider: provider.name)
def test_a_provider_s_answer_is_understood(
    provider: Provider, status: int, body: bytes, outcome: str, detail: str
) -> None:
    with http_server(status, body=body) as url:
        [found] = check_provider(provider, {**SECRETS, f"{provider.prefix}_BASE_URL": f"{url}/v1/"})
    assert (found.subject, found.outcome) == (provider.name, outcome)
    assert detail in found.detail


def test_a_provider_out_of_reach_is_told_from_a_refused_key() -> None:
    address = nobody()
    [found] = check_provider(OPENAI, {**SECRETS, "OPENAI_BASE_URL": f"http://{address}/v1"})
    assert (found.outcome, found.remedy) == ("failed", "Correct OPENAI_BASE_URL.")
    assert f"{address} cannot be reached" in found.detail
    assert check_provider(OPENAI, {}) == []


def test_an_agent_service_without_a_usable_redis_is_said_so(stack: Stack, redis_of_stack: "redis.Redis") -> None:
    redis_of_stack.config_set("maxmemory-policy", "allkeys-lru")
    with served_agent(stack.settings["REDIS_URL"]) as url:
        [found] = check_agent_service(url)
    assert found.outcome == "failed"
    assert found.detail.startswith("redis_misconfigured: ")


def test_what_is_not_the_agent_service_is_said_so() -> None:
    with http_server(200, body=b"<html>") as url:
        [found] = check_agent_service(url)
    assert "not as the agent service" in found.detail
    [found] = check_agent_service(f"http://{nobody()}")
    assert (found.outcome, found.remedy) == ("warning", "Start it, or correct AGENT_SERVICE_URL.")


def test_a_key_the_agent_service_does_not_know_is_named(stack: Stack, redis_of_stack: "redis.Redis") -> None:
    made = generate("client")
    assert ApiKeys.parse(made.entry)
    with served_agent(stack.settings["REDIS_URL"], MUSTER_API_KEYS=made.entry) as url:
        asked = {key: check_api_key(url, "MUSTER_API_KEY", key) for key in (made.key, "another", None)}
    assert [found.outcome for [found] in asked.values()] == ["ok", "failed", "failed"]
    assert asked["another"][0].detail == "the agent service does not know it"
    assert asked[None][0].detail == "the agent service asks for a key"
    assert "muster key" in str(asked[None][0].remedy)


def test_a_control_plane_without_a_key_of_its_own_is_said_so(stack: Stack) -> None:
    environ = {**stack.settings, "MUSTER_API_KEYS": generate("client").entry, "AGENT_SERVICE_URL": f"http://{nobody()}"}
    result = doctor(environ, "--process", "control-plane")
    assert "API keys: the control plane has no AGENT_SERVICE_API_KEY" in result.output


def test_a_part_that_is_down_is_named() -> None:
    [found] = check_health("Flower", f"http://{nobody()}/healthcheck")
    assert (found.outcome, found.remedy) == ("failed", "Look into the log of Flower.")


def test_who_takes_a_port_is_named() -> None:
    free = PortPicker().pick()
    with socket.create_server((HOST, 0)) as server:
        port = server.getsockname()[1]
        [one, other] = check_ports({free: "Flower", port: "the agent service"}, replaceable=False)
        [_, replaced] = check_ports({free: "Flower", port: "the agent service"}, replaceable=True)
    assert (one.outcome, one.detail) == ("ok", f"free: {free} (Flower)")
    assert (other.outcome, other.subject) == ("warning", f"port {port}")
    assert f"({os.getpid()})" in other.detail
    assert replaced.outcome == "ok"
    assert "make up` finds another one" in replaced.detail


def test_the_running_stack_is_found_and_looked_at(stack: Stack, redis_of_stack: "redis.Redis") -> None:
    home = stack.directory.parent.parent
    title, found = diagnose(environ={"MUSTER_HOME": str(home)})
    assert title == f"The running stack of process {os.getpid()}:"
    outcomes = {each.subject: each.outcome for each in found}
    assert outcomes.items() >= {"Redis": "ok", "workers": "warning", "LiveKit": "ok", "clock": "ok"}.items()


def test_a_new_machine_is_told_that_it_needs_nothing_and_what_is_still_to_be_made(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    environ = {"PATH": "", "HOME": str(tmp_path), "MUSTER_CACHE": str(tmp_path / "cache")}
    answer = subprocess.run(
        [sys.executable, "-m", "muster", "doctor"],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (200, limits[1])),
    )
    assert (answer.returncode, answer.stderr) == (0, "")
    assert "`make up` needs neither" in answer.stdout
    assert "warning  LiveKit server: not built yet" in answer.stdout
    assert "Run `make setup`" in answer.stdout
    assert "warning  files: 200 may be open" in answer.stdout
    assert not (tmp_path / "cache" / "run" / "stack.json").exists()


def test_a_server_of_another_processor_is_not_taken_for_one(tmp_path: Path) -> None:
    broken = tmp_path / "livekit-server"
    broken.write_bytes(b"\x7fELF of another machine")
    broken.chmod(0o755)
    _, found = diagnose(environ={"PATH": str(tmp_path), "MUSTER_CACHE": str(tmp_path)})
    [server] = [each for each in found if each.subject == "LiveKit server"]
    assert server.outcome == "warning"
    assert "does not run" in server.detail


def test_a_disk_without_room_for_the_build_is_named(tmp_path: Path) -> None:
    environ = {"MUSTER_CACHE": str(tmp_path / "not" / "made"), "PATH": ""}
    [found] = check_disk(environ, build_space=10**18)
    assert (found.outcome, found.remedy) == (
        "warning",
        "Make room for 1000000000.0 GB, or point MUSTER_CACHE elsewhere.",
    )
    assert str(tmp_path) in found.detail
    [found] = check_disk(environ, build_space=0)
    assert found.outcome == "ok"


def test_everything_silent_is_over_within_ten_seconds() -> None:
    with ExitStack() as servers:
        quiet = {
            name: servers.enter_context(silent_server()) for name in ("redis", "livekit", "openai", "eleven", "agent")
        }
        begun = time.monotonic()
        result = doctor(
            {
                **SECRETS,
                "REDIS_URL": f"redis://{quiet['redis']}/0",
                "LIVEKIT_URL": f"ws://{quiet['livekit']}",
                "LIVEKIT_API_KEY": "key",
                "LIVEKIT_API_SECRET": "s" * 32,
                "OPENAI_BASE_URL": f"http://{quiet['openai']}/v1",
                "ELEVEN_BASE_URL": f"http://{quiet['eleven']}/v1",
                "AGENT_SERVICE_URL": f"http://{quiet['agent']}",
            }
        )
        assert time.monotonic() - begun < 10
    assert result.exit_code == 1
    for subject in ("REDIS_URL", "LIVEKIT_URL", "OpenAI", "ElevenLabs"):
        assert f"failed   {subject}: " in result.output
    assert "does not answer in time" in result.output


def test_a_check_that_hangs_holds_up_no_other() -> None:
    never = Event()

    def hang() -> Sequence[Finding]:
        never.wait()
        return []

    found = examine({"name server": hang, "Python": lambda: [ok("Python", "3")]}, within=0.2)
    never.set()
    assert [(each.subject, each.outcome) for each in found] == [("name server", "failed"), ("Python", "ok")]


def test_a_defect_in_a_check_is_not_hidden() -> None:
    def stumble() -> Sequence[Finding]:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        examine({"check": stumble}, within=1)


@pytest.mark.parametrize(
    ("url", "shown"),
    [("redis://user:hunter2@host:6379/0", "host:6379"), ("ws://host", "host"), ("redis:///0", "an empty host")],
)
def test_only_host_and_port_of_a_url_are_shown(url: str, shown: str) -> None:
    assert place(url) == shown


def test_a_key_is_shown_once_with_its_entry() -> None:
    runner: Callable[..., Result] = CliRunner().invoke
    result = runner(main, ["key", "web-app"])
    key, entry = (line.split()[-1] for line in result.output.splitlines())
    assert ApiKeys.parse(entry).name_of(f"Bearer {key}") == "web-app"
    assert runner(main, ["key", "web app"]).exit_code == 2
