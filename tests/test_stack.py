"""The local stack on real servers: it starts together, says what is wrong, and leaves no process behind."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner

from local.errors import PartDied, PartNotStarted, SettingMissing, StackNotRunning, StackRunning
from local.guard import MARKER, marked_processes
from local.livekit_server import find_livekit_server
from local.logs import tail
from local.parts import AGENT_SERVICE, ALL_PARTS, LIVEKIT, PROVIDERS, REDIS, WORKER, StackOptions, StackPlan
from local.paths import ROOT
from local.ports import HOST, PortPicker
from local.readiness import answers_http, answers_ping
from local.redis_server import find_redis_server
from local.stack import Stack
from local.state import StackState, StateFile
from muster.cli import main

LIGHT = frozenset({REDIS, LIVEKIT})

#: `muster up` with the light parts only.
SUPERVISOR = """
import sys
from contextlib import suppress
from pathlib import Path
from rich.console import Console
from local.parts import StackOptions
from muster.cli import launched_stack

options = StackOptions(
    parts=frozenset(sys.argv[2:]), preferred_ports=False, home=Path(sys.argv[1]), directory=Path(sys.argv[1], "run")
)
with launched_stack(options, Console(width=200)) as stack:
    stack.wait_ready()
    print("serving", flush=True)
    stack.wait()
"""


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2].partition("/")[0])


def wait_until(condition: Callable[[], bool], *, seconds: float) -> bool:
    """Processes of other sessions end without an event for us; so it is looked at until it is true."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def nothing_is_left(state: StackState) -> bool:
    return not list(marked_processes(stack_id=state.stack_id, groups=set(state.parts.values())))


@pytest.fixture
def options(tmp_path: Path) -> StackOptions:
    return StackOptions(parts=LIGHT, preferred_ports=False, home=tmp_path / "home")


@pytest.fixture
def redis_only(tmp_path: Path) -> StackOptions:
    return StackOptions(parts=frozenset({REDIS}), preferred_ports=False, home=tmp_path / "home")


@pytest.fixture
def plan_environment() -> dict[str, str]:
    """The user's environment without any choice of the user's."""
    chosen = ("REDIS_URL", "LIVEKIT_", "OPENAI_", "ELEVEN_", "MUSTER_")
    return {name: value for name, value in os.environ.items() if not name.startswith(chosen)}


#: Starts a command as a script does in the background.
IN_BACKGROUND = ("sh", "-c", 'trap "" INT; exec "$@"', "sh")


@contextmanager
def supervised(home: Path, *, starter: Sequence[str] = ()) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [*starter, sys.executable, "-c", SUPERVISOR, str(home), REDIS, LIVEKIT],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line == "serving\n":
                break
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    with supervised(tmp_path) as process:
        yield process


def test_the_parts_serve_when_the_stack_is_ready_and_are_gone_when_it_has_stopped(options: StackOptions) -> None:
    ready: list[str] = []
    with Stack(options=options, on_ready=lambda name, seconds: ready.append(name)) as stack:
        state = StateFile(home=stack.directory.parent.parent).running()
        redis, livekit = port_of(stack.urls[REDIS]), port_of(stack.urls[LIVEKIT])
        assert answers_ping(redis)
        assert answers_http(f"http://{HOST}:{livekit}/")
        assert sorted(ready) == [LIVEKIT, REDIS]
        assert state.parts[REDIS] == stack.pid(REDIS)
        assert stack.settings["LIVEKIT_API_SECRET"] not in (stack.directory / "livekit.yaml").read_text()
    assert nothing_is_left(state)
    assert not answers_ping(redis)
    with pytest.raises(StackNotRunning):
        StateFile(home=stack.directory.parent.parent).running()


def test_the_state_file_is_readable_by_its_owner_only(redis_only: StackOptions) -> None:
    with Stack(options=redis_only):
        assert redis_only.home is not None
        assert (redis_only.home / "stack.json").stat().st_mode & 0o777 == 0o600


def test_a_killed_supervisor_leaves_no_process(supervisor: subprocess.Popen[str], tmp_path: Path) -> None:
    state = StateFile(home=tmp_path).running()
    supervisor.kill()
    assert wait_until(lambda: nothing_is_left(state), seconds=5)
    assert not answers_ping(port_of(state.urls[REDIS]))


def test_after_a_killed_supervisor_the_next_stack_starts(supervisor: subprocess.Popen[str], tmp_path: Path) -> None:
    earlier = StateFile(home=tmp_path).running()
    supervisor.kill()
    supervisor.wait()
    options = StackOptions(parts=frozenset({REDIS}), preferred_ports=False, home=tmp_path)
    with Stack(options=options):
        assert nothing_is_left(earlier)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_the_stack_in_order(
    supervisor: subprocess.Popen[str], tmp_path: Path, number: signal.Signals
) -> None:
    state = StateFile(home=tmp_path).running()
    supervisor.send_signal(number)
    output, _ = supervisor.communicate(timeout=12)
    assert "Stopping" in output
    assert supervisor.returncode == 128 + signal.SIGINT
    assert nothing_is_left(state)
    assert "Received SIGTERM scheduling shutdown" in (tmp_path / "run" / "redis.log").read_text()


def test_a_stack_in_a_script_s_background_stops_on_sigint(tmp_path: Path) -> None:
    with supervised(tmp_path, starter=IN_BACKGROUND) as supervisor:
        state = StateFile(home=tmp_path).running()
        supervisor.send_signal(signal.SIGINT)
        output, _ = supervisor.communicate(timeout=12)
    assert "Stopping" in output
    assert supervisor.returncode == 128 + signal.SIGINT
    assert nothing_is_left(state)


def test_a_second_signal_kills_at_once(supervisor: subprocess.Popen[str], tmp_path: Path) -> None:
    state = StateFile(home=tmp_path).running()
    # A stopped process does not follow SIGTERM, so the orderly stop has to wait for it.
    os.kill(state.parts[REDIS], signal.SIGSTOP)
    os.kill(state.parts[LIVEKIT], signal.SIGSTOP)
    supervisor.send_signal(signal.SIGINT)
    assert supervisor.stdout is not None
    assert any("Stopping" in line for line in supervisor.stdout)
    begun = time.monotonic()
    supervisor.send_signal(signal.SIGINT)
    supervisor.wait(timeout=12)
    # The orderly stop would wait a second for each of the two that do not follow.
    assert time.monotonic() - begun < 1.8
    assert nothing_is_left(state)


def test_a_part_that_dies_is_named_with_the_end_of_its_log_and_ends_the_command(
    supervisor: subprocess.Popen[str], tmp_path: Path
) -> None:
    state = StateFile(home=tmp_path).running()
    os.kill(state.parts[REDIS], signal.SIGKILL)
    output, _ = supervisor.communicate(timeout=12)
    assert supervisor.returncode == 1
    assert "redis ended with exit code -9" in output
    assert "Ready to accept connections" in output
    assert nothing_is_left(state)


def test_a_part_that_dies_wakes_whoever_waits(redis_only: StackOptions) -> None:
    with Stack(options=redis_only) as stack:
        os.kill(stack.pid(REDIS), signal.SIGKILL)
        with pytest.raises(PartDied, match="redis ended with exit code -9"):
            stack.wait()


def test_a_guard_that_dies_ends_the_stack(redis_only: StackOptions) -> None:
    with Stack(options=redis_only) as stack:
        assert redis_only.home is not None
        os.kill(StateFile(home=redis_only.home).running().parts["guard"], signal.SIGKILL)
        with pytest.raises(PartDied, match="guard ended"):
            stack.wait()


def test_a_part_can_be_killed_and_started_again_on_purpose(redis_only: StackOptions) -> None:
    with Stack(options=redis_only) as stack:
        port, first = port_of(stack.urls[REDIS]), stack.pid(REDIS)
        stack.kill(REDIS)
        assert not answers_ping(port)
        stack.start(REDIS)
        assert answers_ping(port)
        assert stack.pid(REDIS) != first
        stack.check()


def test_starting_twice_says_which_process_runs_it_and_where(redis_only: StackOptions) -> None:
    with Stack(options=redis_only) as stack, pytest.raises(StackRunning) as refusal:
        Stack(options=redis_only).launch()
    assert str(os.getpid()) in str(refusal.value)
    assert stack.urls[REDIS] in str(refusal.value)


def test_a_broken_program_is_named(redis_only: StackOptions, tmp_path: Path) -> None:
    broken = tmp_path / "bin" / "livekit-server"
    broken.parent.mkdir()
    broken.write_bytes(b"\x7fELF of another machine")
    broken.chmod(0o755)
    options = StackOptions(
        parts=frozenset({LIVEKIT}),
        preferred_ports=False,
        home=redis_only.home,
        environment={"PATH": str(broken.parent)},
    )
    with pytest.raises(PartNotStarted, match="livekit could not be started"), Stack(options=options):
        pass


def test_the_guard_kills_a_marked_process_that_left_its_group_and_no_other(tmp_path: Path) -> None:
    stack_id = "a-stack-of-this-test"
    sleep = ["sleep", "60"]
    marked = subprocess.Popen(sleep, env=os.environ | {MARKER: stack_id}, start_new_session=True)
    grouped = subprocess.Popen(sleep, start_new_session=True)
    forgotten = subprocess.Popen(sleep, start_new_session=True)
    other = subprocess.Popen(sleep, env=os.environ | {MARKER: stack_id + "-not"}, start_new_session=True)
    try:
        guard = subprocess.Popen([sys.executable, "-m", "local.guard", stack_id], cwd=ROOT, stdin=subprocess.PIPE)
        guard.communicate(f"+{grouped.pid}\n+{forgotten.pid}\n-{forgotten.pid}\n".encode(), timeout=5)
        assert marked.wait(timeout=1) == -signal.SIGKILL
        assert grouped.wait(timeout=1) == -signal.SIGKILL
        assert forgotten.poll() is None
        assert other.poll() is None
    finally:
        for process in (marked, grouped, forgotten, other):
            process.kill()
            process.wait()


def test_a_taken_port_is_replaced_by_a_free_one() -> None:
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
        picked = PortPicker().pick(port)
    assert picked != port
    with socket.create_server((HOST, picked)):
        assert PortPicker().pick(picked) != picked


def test_no_port_is_given_out_twice() -> None:
    ports = PortPicker()
    free = ports.pick()
    assert ports.pick(free) != free


def test_the_plan_says_which_port_it_replaced(tmp_path: Path, plan_environment: dict[str, str]) -> None:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, 6379))
            listener.listen()
        except OSError:
            # Somebody else's Redis takes the port just as well.
            pass
        options = StackOptions(parts=frozenset({REDIS}))
        plan = StackPlan(options=options, environ=plan_environment, directory=tmp_path, stack_id="plan")
    port = port_of(plan.urls[REDIS])
    assert port != 6379
    assert plan.notes == [f"port 6379 is taken: Redis listens on {port}"]


def plan_all(tmp_path: Path, environ: dict[str, str], *, workers: int = 1, slots: int = 2) -> StackPlan:
    return StackPlan(
        options=StackOptions(preferred_ports=False, workers=workers, slots=slots),
        environ=environ,
        directory=tmp_path,
        stack_id="plan",
    )


def test_without_keys_the_product_talks_to_the_stand_ins(tmp_path: Path, plan_environment: dict[str, str]) -> None:
    plan = plan_all(tmp_path, plan_environment)
    assert plan.settings["OPENAI_BASE_URL"] == plan.settings["ELEVEN_BASE_URL"] == plan.urls[PROVIDERS] + "/v1"
    assert plan.notes == []


def test_a_key_of_the_user_chooses_the_real_service_and_it_is_said(
    tmp_path: Path, plan_environment: dict[str, str]
) -> None:
    plan = plan_all(tmp_path, plan_environment | {"OPENAI_API_KEY": "a-key"})
    assert plan.settings["OPENAI_API_KEY"] == "a-key"
    assert "OPENAI_BASE_URL" not in plan.settings
    assert plan.settings["ELEVEN_BASE_URL"] == plan.urls[PROVIDERS] + "/v1"
    assert plan.notes == ["OpenAI: the real service, with your OPENAI_API_KEY; calls cost money"]


def test_a_base_url_of_the_user_wins(tmp_path: Path, plan_environment: dict[str, str]) -> None:
    mine = {"OPENAI_BASE_URL": "http://127.0.0.1:1/v1", "OPENAI_API_KEY": "a-key"}
    plan = plan_all(tmp_path, plan_environment | mine)
    assert {name: plan.settings[name] for name in mine} == mine


def test_a_given_livekit_needs_its_key(tmp_path: Path, plan_environment: dict[str, str]) -> None:
    with pytest.raises(SettingMissing, match="LIVEKIT_API_KEY must be set"):
        plan_all(tmp_path, plan_environment | {"LIVEKIT_URL": "ws://127.0.0.1:1"})


def test_given_servers_are_used_and_not_started(tmp_path: Path, plan_environment: dict[str, str]) -> None:
    given = {
        "REDIS_URL": "redis://127.0.0.1:1/3",
        "LIVEKIT_URL": "ws://127.0.0.1:1",
        "LIVEKIT_API_KEY": "key",
        "LIVEKIT_API_SECRET": "secret",
    }
    plan = plan_all(tmp_path, plan_environment | given)
    assert {name: plan.settings[name] for name in given} == given
    assert {part.kind for part in plan.parts} == ALL_PARTS - LIGHT


def test_each_worker_is_a_part_with_the_slots_asked_for(tmp_path: Path, plan_environment: dict[str, str]) -> None:
    plan = plan_all(tmp_path, plan_environment, workers=2, slots=3)
    workers = [part for part in plan.parts if part.kind == WORKER]
    assert [part.name for part in workers] == ["worker-1", "worker-2"]
    for part in workers:
        assert part.environment["MUSTER_SLOTS"] == "3"
        assert part.environment["OPENBLAS_NUM_THREADS"] == part.environment["OMP_NUM_THREADS"] == "1"
        assert part.environment["LANGSMITH_TRACING"] == "false"


def test_only_the_product_gets_the_product_s_secrets(tmp_path: Path, plan_environment: dict[str, str]) -> None:
    plan = plan_all(tmp_path, plan_environment)
    secret = plan.settings["LIVEKIT_API_SECRET"]
    holders = {part.name for part in plan.parts if secret in " ".join(part.environment.values())}
    assert PROVIDERS not in holders
    assert REDIS not in holders
    assert AGENT_SERVICE in holders
    assert not [part.name for part in plan.parts if secret in " ".join(part.command)]


def test_livekit_tells_the_agent_service_about_its_rooms(tmp_path: Path, plan_environment: dict[str, str]) -> None:
    plan = plan_all(tmp_path, plan_environment)
    assert json.loads((tmp_path / "livekit.yaml").read_text())["webhook"] == {
        "api_key": plan.settings["LIVEKIT_API_KEY"],
        "urls": [f"{plan.urls[AGENT_SERVICE]}/webhooks/livekit"],
    }


def test_the_parts_reach_each_other_past_any_proxy(tmp_path: Path, plan_environment: dict[str, str]) -> None:
    plan = plan_all(tmp_path, plan_environment | {"NO_PROXY": "intranet", "HTTP_PROXY": "http://127.0.0.1:1"})
    assert {part.environment["NO_PROXY"] for part in plan.parts} == {f"intranet,{HOST},localhost"}


def test_status_says_what_to_do_when_no_stack_runs(tmp_path: Path) -> None:
    answer = CliRunner(env={"MUSTER_HOME": str(tmp_path)}).invoke(main, ["status"])
    assert answer.exit_code == 1
    assert "muster up" in answer.output
    with pytest.raises(StackNotRunning):
        StateFile(home=tmp_path).running()


def test_status_shows_the_running_stack(tmp_path: Path, redis_only: StackOptions) -> None:
    with Stack(options=redis_only) as stack:
        answer = CliRunner(env={"MUSTER_HOME": str(redis_only.home)}).invoke(main, ["status"])
    assert answer.exit_code == 0
    assert stack.urls[REDIS] in answer.output
    assert str(os.getpid()) in answer.output


def test_a_call_with_nothing_to_say_is_refused() -> None:
    answer = CliRunner().invoke(main, ["call"])
    assert answer.exit_code == 2
    assert "--say" in answer.output


@pytest.mark.parametrize("command", ["up", "demo", "call", "status"])
def test_every_command_has_help(command: str) -> None:
    overview = CliRunner().invoke(main, ["--help"])
    answer = CliRunner().invoke(main, [command, "--help"])
    assert command in overview.output
    assert answer.exit_code == 0


def test_the_tail_of_a_log_is_its_last_lines(tmp_path: Path) -> None:
    log = tmp_path / "part.log"
    log.write_text("".join(f"line {number}\n" for number in range(30_000)))
    assert tail(log, lines=2) == "line 29998\nline 29999"


@pytest.fixture(autouse=True)
def _servers_are_there() -> None:
    """Fails where a server is missing in CI, as everywhere else: `make test` has set both up."""
    find_redis_server()
    find_livekit_server()
