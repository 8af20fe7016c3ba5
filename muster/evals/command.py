"""`muster eval`: holds scripted conversations and says which of them went as expected."""

import asyncio
import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console

if TYPE_CHECKING:
    from muster.evals.outcome import Outcome
    from muster.evals.scenario import Script

#: Conversations at a time in text mode; a remote model answers them side by side.
_TOGETHER = 4


@click.command("eval")
@click.argument("paths", nargs=-1, type=click.Path(exists=True, path_type=Path), metavar="[PATH]...")
@click.option(
    "--mode",
    type=click.Choice(["text", "audio"]),
    default="text",
    show_default=True,
    help="In this process, or spoken in real calls; audio takes the scenarios marked `audio: true`.",
)
@click.option("--only", multiple=True, metavar="NAME", help="Only the scenario of this name; repeatable.")
@click.option("--repeat", type=click.IntRange(1, 100), default=1, show_default=True, help="Times to hold each of them.")
@click.option("--junit", type=click.Path(dir_okay=False, path_type=Path), help="Write JUnit XML into this file.")
@click.option("--html", type=click.Path(dir_okay=False, path_type=Path), help="Write an HTML report into this file.")
def evaluate(
    paths: tuple[Path, ...], mode: str, only: tuple[str, ...], repeat: int, junit: Path | None, html: Path | None
) -> None:
    """Hold scripted conversations and compare each answer with what is expected.

    PATH is a YAML file of scenarios or a folder of them; without any, the 30 about the demo company. The model is the
    one of OPENAI_API_KEY or OPENAI_BASE_URL, and without both a stand-in that is started for it.

    Exit codes: 0 all passed, 1 some failed, 2 a scenario file cannot be used.
    """
    console = Console()
    scripts = _scripts(paths, mode=mode, only=only, console=console)
    outcomes = _hold(scripts, mode=mode, repeat=repeat, console=console)
    _report(outcomes, mode=mode, junit=junit, html=html, console=console)
    raise SystemExit(0 if all(outcome.passed for outcome in outcomes) else 1)


def _scripts(paths: Sequence[Path], *, mode: str, only: Sequence[str], console: Console) -> "list[Script]":
    from muster.errors import ScenarioInvalid
    from muster.evals.scenario import SHIPPED, load

    try:
        scripts = load(paths or [SHIPPED])
    except ScenarioInvalid as error:
        _complain(console, str(error))
        raise SystemExit(2) from None
    if unknown := sorted(set(only) - {script.name for script in scripts}):
        raise click.UsageError(f"There is no scenario {unknown[0]}.")
    chosen = [script for script in scripts if not only or script.name in only]
    if mode == "audio":
        chosen = [script for script in chosen if script.scenario.audio]
    if not chosen:
        raise click.UsageError("None of these scenarios is marked `audio: true`.")
    return chosen


def _hold(scripts: "Sequence[Script]", *, mode: str, repeat: int, console: Console) -> "list[Outcome]":
    from graphs.errors import GraphError
    from local.errors import LocalError
    from worker.fleet.errors import SettingsInvalid

    try:
        return _hold_text(scripts, repeat, console) if mode == "text" else _hold_audio(scripts, repeat, console)
    except (LocalError, SettingsInvalid, GraphError) as error:
        _complain(console, str(error))
        raise SystemExit(1) from None


def _hold_text(scripts: "Sequence[Script]", repeat: int, console: Console) -> "list[Outcome]":
    with ExitStack() as stack:
        environ: Mapping[str, str] = os.environ
        is_given = bool(environ.get("OPENAI_API_KEY") or environ.get("OPENAI_BASE_URL"))
        if not is_given:
            console.print("The model is the stand-in: neither OPENAI_API_KEY nor OPENAI_BASE_URL is set.", style="dim")
            environ = {**environ, **_start_stand_in(stack)}
        return asyncio.run(_converse(scripts, repeat=repeat, environ=environ, through_proxies=is_given))


def _start_stand_in(stack: ExitStack) -> Mapping[str, str]:
    """The settings by which the stand-in is found; it has a home of its own and disturbs no `muster up`."""
    from local.parts import PROVIDERS, StackOptions
    from local.stack import Stack

    home = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    options = StackOptions(parts=frozenset({PROVIDERS}), speech=False, preferred_ports=False, home=home)
    return stack.enter_context(Stack(options=options)).settings


async def _converse(
    scripts: "Sequence[Script]", *, repeat: int, environ: Mapping[str, str], through_proxies: bool
) -> "list[Outcome]":
    from muster.evals.agent import open_runner

    turnstile = asyncio.Semaphore(_TOGETHER)
    async with AsyncExitStack() as stack:
        runner = open_runner(environ, stack, through_proxies=through_proxies)

        async def hold(script: "Script", number: int) -> "Outcome":
            async with turnstile:
                return await runner.run(script, number=number)

        return list(await asyncio.gather(*(hold(script, n) for script in scripts for n in range(1, repeat + 1))))


def _hold_audio(scripts: "Sequence[Script]", repeat: int, console: Console) -> "list[Outcome]":
    from muster.evals.audio import hold_calls

    return hold_calls(scripts, repeat=repeat, console=console)


def _report(
    outcomes: "Sequence[Outcome]", *, mode: str, junit: Path | None, html: Path | None, console: Console
) -> None:
    from muster.evals.junit import junit_xml
    from muster.evals.page import html_page
    from muster.evals.table import print_outcomes

    print_outcomes(console, outcomes)
    if junit is not None:
        junit.write_text(junit_xml(outcomes, mode=mode), encoding="utf-8")
    if html is not None:
        html.write_text(html_page(outcomes, title=f"muster eval, {mode}"), encoding="utf-8")


def _complain(console: Console, text: str) -> None:
    console.print(text, style="red", markup=False, highlight=False, soft_wrap=True)
