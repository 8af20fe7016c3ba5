"""How the outcomes look in a terminal."""

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from muster.evals.outcome import Outcome


def print_outcomes(console: Console, outcomes: Sequence[Outcome]) -> None:
    """One row for each scenario, what was wrong below it, and the score at the end."""
    table = Table("", "scenario", "lines", "answered by", "time", box=None, pad_edge=False)
    for outcome in outcomes:
        table.add_row(
            "[green]passed[/green]" if outcome.passed else "[red]failed[/red]",
            escape(outcome.name),
            f"{len(outcome.lines)}/{len(outcome.script.scenario.lines)}",
            " → ".join(_speakers(outcome)),
            f"{outcome.seconds:.1f} s",
        )
        for problem in outcome.problems:
            table.add_row("", f"[red]{escape(problem)}[/red]")
        for number, result in enumerate(outcome.lines, start=1):
            if result.failures:
                table.add_row("", f"[dim]line {number}, caller: {escape(result.line.caller)}[/dim]")
                table.add_row("", f"[dim]line {number}, answer: {escape(result.answer.said)}[/dim]")
        for note in outcome.unchecked:
            table.add_row("", f"[yellow]not checked, {escape(note)}[/yellow]")
    console.print(table)
    passed = sum(outcome.passed for outcome in outcomes)
    style = "green" if passed == len(outcomes) else "red"
    console.print(f"{passed} of {len(outcomes)} passed", style=style, highlight=False)


def _speakers(outcome: Outcome) -> list[str]:
    """Who answered, one after the other, each named once in a row."""
    names: list[str] = []
    for result in outcome.lines:
        if result.answer.specialist and names[-1:] != [result.answer.specialist]:
            names.append(result.answer.specialist)
    return names
