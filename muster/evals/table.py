"""How the outcomes look in a terminal."""

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Column, Table
from rich.text import Text

from muster.evals.outcome import Outcome


def print_outcomes(console: Console, outcomes: Sequence[Outcome]) -> None:
    """One row for each scenario, what was wrong below it, and the score at the end."""
    table = Table(
        "",
        Column("scenario", no_wrap=True),
        "lines",
        "answered by",
        Column("time", no_wrap=True),
        box=None,
        pad_edge=False,
    )
    for outcome in outcomes:
        table.add_row(
            "[green]passed[/green]" if outcome.passed else "[red]failed[/red]",
            escape(outcome.name),
            f"{len(outcome.lines)}/{len(outcome.script.scenario.lines)}",
            " → ".join(_speakers(outcome)),
            f"{outcome.seconds:.1f} s",
        )
    console.print(table)
    for outcome in outcomes:
        _explain(console, outcome)
    passed = sum(outcome.passed for outcome in outcomes)
    style = "green" if passed == len(outcomes) else "red"
    console.print(f"{passed} of {len(outcomes)} passed", style=style, highlight=False)


def _explain(console: Console, outcome: Outcome) -> None:
    """What was wrong with a scenario and what was said there, and what could not be looked at."""
    lines = [Text(f"not checked, {note}", "yellow") for note in outcome.unchecked]
    if not outcome.passed:
        for number, result in enumerate(outcome.lines, start=1):
            if result.failures:
                lines += [Text(f"line {number}, caller: {result.line.caller}", "dim")]
                lines += [Text(f"line {number}, answer: {result.answer.said}", "dim")]
        lines += [Text(problem, "red") for problem in outcome.problems]
    if lines:
        console.print(Text(f"{outcome.name}:", "bold"))
    for line in lines:
        console.print(Padding(line, (0, 0, 0, 2)))


def _speakers(outcome: Outcome) -> list[str]:
    """Who answered, one after the other, each named once in a row."""
    names: list[str] = []
    for result in outcome.lines:
        if result.answer.specialist and names[-1:] != [result.answer.specialist]:
            names.append(result.answer.specialist)
    return names
