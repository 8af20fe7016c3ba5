"""The `muster` command: start the local stack, hold a call with it, look at it, find out what is wrong."""

import os
import signal
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

import click
from rich.console import Console
from rich.table import Table

from local.errors import LocalError
from local.parts import (
    AGENT_SERVICE,
    ALL_PARTS,
    CHAT_WORKER,
    CONTROL_PLANE,
    FLOWER,
    LIVEKIT,
    PROVIDERS,
    REDIS,
    StackOptions,
)
from local.paths import home_directory
from local.stack import Stack
from local.state import StateFile
from muster.evals.command import evaluate
from muster.knowledge import knowledge

_TITLES = {
    CONTROL_PLANE: "Control plane: tokens for callers",
    AGENT_SERVICE: "Agent service: /join and /leave",
    LIVEKIT: "LiveKit: the rooms",
    FLOWER: "Flower: the tasks",
    PROVIDERS: "Stand-in speech and language models",
    REDIS: "Redis",
}


#: The kinds of process that have settings, as words of the command line.
PROCESSES = ("worker", "chat-worker", "agent-service", "control-plane")


@click.group()
@click.version_option(package_name="muster")
def main() -> None:
    """Muster: a fleet of voice agents that join a LiveKit call when they are told to.

    \b
    muster demo                         start everything, hold one spoken call, stop
    muster up                           start everything and stay
    muster call --say "What do you sell?"   talk to the agents of `muster up`
    muster handover SESSION             have another worker go on with a call
    muster drain WORKER                 have all its calls go on elsewhere, and the worker exit
    muster chat                         write to them
    muster knowledge add FILE...        documents the agents answer from
    muster eval                         hold scripted conversations and judge them
    muster doctor                       say what is wrong, and what to do
    """


main.add_command(knowledge)
main.add_command(evaluate)


@main.command()
@click.option(
    "--slots",
    type=click.IntRange(1),
    default=2,
    show_default=True,
    envvar="MUSTER_SLOTS",
    show_envvar=True,
    help="Calls per worker at a time.",
)
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="Workers with these slots.")
@click.option("--no-flower", is_flag=True, help="Leave out Flower, the window on the tasks.")
def up(slots: int, workers: int, no_flower: bool) -> None:
    """Start the whole stack on this machine and stay until Ctrl-C.

    Nothing needs an account: speech and language models are stood in for, unless OPENAI_API_KEY or
    ELEVEN_API_KEY is set. A taken port is replaced by a free one.
    """
    console = Console()
    parts = ALL_PARTS - {FLOWER} if no_flower else ALL_PARTS
    with launched_stack(StackOptions(parts=parts, slots=slots, workers=workers), console) as stack:
        stack.wait_ready()
        user, password = stack.flower_login
        console.print(_url_table(stack.urls, user=user, password=password))
        console.print(f"Logs: {stack.directory}")
        console.print("Talk to it from another terminal: [bold]muster call --say 'What are your prices?'[/bold]")
        console.print("Or write to it: [bold]muster chat[/bold]")
        console.print("Ctrl-C stops it.", style="dim")
        with suppress(KeyboardInterrupt):
            stack.wait()
        stack.check()


@main.command()
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="Folder for recording and transcript [default: the run's].",
)
def demo(output: Path | None) -> None:
    """Start the stack, hold one spoken call with its agent, show it like a chat, stop."""
    console = Console()
    with launched_stack(StackOptions(parts=ALL_PARTS - {CHAT_WORKER}), console) as stack:
        # Loads for a second or more: time in which the stack starts.
        from muster.calls import run_demo

        stack.wait_ready()
        code = run_demo(
            urls={**stack.urls, "logs": str(stack.directory)},
            console=console,
            output=output or stack.directory / "call",
        )
    raise SystemExit(code)


@main.command()
@click.option("--say", multiple=True, metavar="TEXT", help="A sentence for the agent; repeat it for more turns.")
@click.option(
    "--interrupt",
    multiple=True,
    nargs=2,
    metavar="TEXT OVER",
    help="Say TEXT, and OVER in the middle of the answer; after all --say.",
)
@click.option(
    "--wav",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Play this recording (16 bit) to the agent, after everything else.",
)
@click.option("--room", help="Name of the room [default: a new one].")
@click.option("--no-leave", is_flag=True, help="Hang up without sending the agent away with /leave.")
@click.option("--output", type=click.Path(path_type=Path), help="Folder for recording, transcript and numbers.")
def call(
    say: tuple[str, ...],
    interrupt: tuple[tuple[str, str], ...],
    wav: Path | None,
    room: str | None,
    no_leave: bool,
    output: Path | None,
) -> None:
    """Call the agents of a running `muster up` and talk to one."""
    if not say and not interrupt and wav is None:
        raise click.UsageError("Nothing to say: give --say TEXT or --wav FILE.")
    console = Console()
    with _readable_errors(console):
        urls = StateFile(home=home_directory()).running().urls
        from muster.calls import run_call

        code = run_call(
            urls=urls,
            script=[*((text, None) for text in say), *interrupt],
            wav=wav,
            room=room,
            leave=not no_leave,
            console=console,
            output=output,
        )
    raise SystemExit(code)


@main.command()
@click.argument("session", required=False)
@click.option("--say", multiple=True, metavar="TEXT", help="A text for the agent instead of the terminal's lines.")
def chat(session: str | None, say: tuple[str, ...]) -> None:
    """Write to the agents of a running `muster up`, line by line.

    SESSION goes on with a call or chat by its id, also with a call that is on the phone; without it a new one begins.
    """
    console = Console()
    with _readable_errors(console):
        urls = StateFile(home=home_directory()).running().urls
        from muster.chatting import run_chat

        code = run_chat(agent_service=urls[AGENT_SERVICE], session_id=session, texts=say, console=console)
    raise SystemExit(code)


@main.command()
@click.argument("session")
@click.option("--to", metavar="WORKER", help="Name of the worker [default: the emptiest other one].")
@click.option(
    "--agent-service", metavar="URL", envvar="AGENT_SERVICE_URL", help="Its address [default: of `muster up`]."
)
def handover(session: str, to: str | None, agent_service: str | None) -> None:
    """Hand the live SESSION over to another worker; the caller hears nothing of it.

    MUSTER_API_KEY is shown to the agent service.
    """
    console = Console()
    with _readable_errors(console):
        urls = {AGENT_SERVICE: agent_service} if agent_service else StateFile(home=home_directory()).running().urls
        from muster.handover import run_handover

        code = run_handover(session, to=to, urls=urls, console=console)
    raise SystemExit(code)


@main.command()
@click.argument("worker")
@click.option(
    "--wait",
    "patience",
    type=click.FloatRange(0),
    default=300.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to look on; the worker goes on draining.",
)
@click.option(
    "--agent-service", metavar="URL", envvar="AGENT_SERVICE_URL", help="Its address [default: of `muster up`]."
)
def drain(worker: str, patience: float, agent_service: str | None) -> None:
    """Have the WORKER of this name take no new call, hand its calls over and exit, as SIGTERM does.

    `muster status` names the workers. MUSTER_API_KEY is shown to the agent service.
    """
    console = Console()
    with _readable_errors(console):
        urls = {AGENT_SERVICE: agent_service} if agent_service else StateFile(home=home_directory()).running().urls
        from muster.drain import run_drain

        code = run_drain(worker, patience=patience, urls=urls, console=console)
    raise SystemExit(code)


@main.command()
def status() -> None:
    """Show the running stack: its addresses, its processes, its workers, its logs."""
    console = Console()
    with _readable_errors(console):
        state = StateFile(home=home_directory()).running()
    console.print(_url_table(state.urls, user=state.flower_user, password=state.flower_password))
    minutes = (time.time() - state.started_at) / 60
    console.print(f"Supervisor: process {state.pid}, for {minutes:.0f} minutes")
    console.print("Parts: " + ", ".join(f"{name} {pid}" for name, pid in state.parts.items()))
    from muster.fleet import print_fleet

    print_fleet(state.urls, console=console)
    console.print(f"Logs: {state.directory}")


@main.command()
@click.option(
    "--process",
    "processes",
    multiple=True,
    type=click.Choice(PROCESSES),
    help="Check the settings of this kind of process only; may be repeated.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def doctor(processes: tuple[str, ...], as_json: bool) -> None:
    """Check settings, Redis, LiveKit, providers, clock and ports, and say what to do.

    With REDIS_URL, LIVEKIT_URL or AGENT_SERVICE_URL in the environment it checks a deployment's settings, else the
    running `muster up`, else whether one can be started. The exit code is 1 when something failed.
    """
    from jwt.warnings import InsecureKeyLengthWarning

    from muster.doctor import diagnose, findings_json, print_findings
    from muster.examination import any_failed

    # It is one of the findings.
    warnings.simplefilter("ignore", InsecureKeyLengthWarning)
    chosen = [process.replace("-", " ") for process in processes]
    title, findings = diagnose(environ=os.environ, processes=chosen)
    if as_json:
        click.echo(findings_json(findings))
    else:
        print_findings(Console(), title, findings)
    raise SystemExit(1 if any_failed(findings) else 0)


@main.command()
@click.argument("name")
def key(name: str) -> None:
    """Make an API key for the client NAME.

    The key is shown once and kept nowhere; the services know its entry, which cannot be used as a key.
    """
    from api.errors import KeyNameInvalid
    from api.keys import generate

    try:
        made = generate(name)
    except KeyNameInvalid as error:
        raise click.UsageError(str(error)) from None
    click.echo(f"The key, for {name} to keep:         {made.key}")
    click.echo(f"Its entry, for MUSTER_API_KEYS:   {made.entry}")


@contextmanager
def launched_stack(options: StackOptions, console: Console) -> Iterator[Stack]:
    """A launched stack that is stopped in the end, whatever happened; its troubles end the command with 1."""
    started = time.monotonic()
    main_thread = threading.get_ident()
    stack = Stack(
        options=options,
        on_ready=lambda name, seconds: console.print(
            f"  [green]ready[/green] {name:<14} {time.monotonic() - started:5.1f} s"
        ),
        # Wakes whatever the command is waiting for; the stack knows what broke.
        on_failure=lambda: signal.pthread_kill(main_thread, signal.SIGINT),
    )
    with _readable_errors(console):
        _let_signals_interrupt()
        stack.launch()
        for note in stack.notes:
            console.print(note, style="yellow")
        try:
            yield stack
        except KeyboardInterrupt:
            stack.check()
            raise SystemExit(128 + signal.SIGINT) from None
        finally:
            _stop(stack, console)


def _stop(stack: Stack, console: Console) -> None:
    def hurry(number: int, frame: FrameType | None) -> None:
        stack.kill_all()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, hurry)
    console.print("Stopping; Ctrl-C again kills at once.", style="dim")
    stack.stop()


def _let_signals_interrupt() -> None:
    """SIGTERM and a closed terminal stop the stack just as Ctrl-C does."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    # A script starts its background commands with SIGINT ignored, and Python leaves it so: a part that breaks would
    # wake no command that waits for a call.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)


@contextmanager
def _readable_errors(console: Console) -> Iterator[None]:
    try:
        yield
    except LocalError as error:
        console.print(str(error), style="red", markup=False, highlight=False)
        raise SystemExit(1) from None


def _url_table(urls: Mapping[str, str], *, user: str, password: str) -> Table:
    table = Table(box=None, show_header=False)
    for name, title in _TITLES.items():
        if name in urls:
            login = f"  [dim]user[/dim] {user} [dim]password[/dim] {password}" if name == FLOWER else ""
            table.add_row(title, f"[bold]{urls[name]}[/bold]{login}")
    return table
