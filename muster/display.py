"""How a call looks in a terminal: live like a chat, and a summary with its numbers at the end."""

from collections.abc import Sequence
from statistics import median

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from local.transcripts import words_of
from muster.client import Citation, TurnEvent
from muster.conversation import Exchange, Greeting
from muster.measures import CallResult, CriticalPath, critical_path

CALLER_STYLE = "bold cyan"
AGENT_STYLES = {"front_desk": "bold green", "sales": "bold magenta", "tech_support": "bold yellow"}

#: Characters.
WIDEST_NAME = 14

#: Characters of a line that fit beside its figures in a terminal of 80 columns.
WIDEST_LINE = 20


class CallDisplay:
    """Prints a conversation as it happens."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def greeted(self, greeting: Greeting) -> None:
        self._agent(greeting.specialist, greeting.text, note="")

    def said(self, text: str) -> None:
        self._line("caller", CALLER_STYLE, Text(text))

    def answered(self, exchange: Exchange) -> None:
        if words_of(exchange.recognised) != words_of(exchange.said):
            self._aside(f"recognised: {exchange.recognised or '(nothing)'}")
        for event in exchange.events:
            self._aside(_event_text(event))
        if not exchange.answered:
            self._line("agent", "bold red", Text("(no answer)", "red"))
            return
        self._agent(exchange.specialist, exchange.reply, note=_latency_text(exchange))
        for citation in exchange.citations:
            self._aside(_citation_text(citation))
        if exchange.interrupted_by is not None:
            seconds = exchange.interrupted_by.silenced_after
            self._aside(f"interrupted: the agent was silent {seconds:.2f} s after the caller began")

    def _agent(self, specialist: str | None, text: str, *, note: str) -> None:
        style = AGENT_STYLES.get(specialist or "", "bold blue")
        self._line((specialist or "agent").replace("_", " "), style, Text(text), note=note)

    def _aside(self, text: str) -> None:
        self._line("", "dim", Text(f"· {text}", "dim"))

    def _line(self, name: str, style: str, text: Text, *, note: str = "") -> None:
        grid = Table.grid(padding=(0, 2), expand=True)
        grid.add_column(width=WIDEST_NAME, justify="right")
        grid.add_column(ratio=1)
        grid.add_column(justify="right")
        grid.add_row(Text(name, style), text, Text(note, "dim"))
        self._console.print(grid)


def print_summary(console: Console, result: CallResult, *, where: Sequence[tuple[str, str]]) -> None:
    """The numbers of a call, and where what remains of it is kept."""
    console.print()
    console.print(_join_table(result))
    paths = [(one.said, path) for one in result.exchanges if (path := critical_path(one)) is not None]
    if paths:
        console.print(_paths_table(paths))
    if result.latencies:
        spread = f"p50 {median(result.latencies):.2f} s, max {max(result.latencies):.2f} s"
        console.print(f"End of the caller's speech to the first audible answer: {spread}.")
    if result.recording_errors is not None:
        errors = result.recording_errors
        console.print(
            f"Recognising the recording again: {errors.errors} of {len(errors.said)} words differ ({errors.rate:.1%})."
        )
    console.print(f"Session {result.session.session_id}: {result.session.status}, {result.session.reason}.")
    for name, place in where:
        console.print(f"{name}: {place}", soft_wrap=True, highlight=False)
    for warning in result.warnings():
        console.print(f"Note: {warning}", style="yellow")


def _join_table(result: CallResult) -> Table:
    parts = result.join.parts()
    table = Table(title="Join: from the request to the greeting (ms)", title_justify="left", box=SIMPLE_HEAD)
    for name in parts:
        table.add_column(name, justify="right")
    table.add_row(*(_milliseconds(seconds) for seconds in parts.values()))
    return table


def _paths_table(paths: Sequence[tuple[str, CriticalPath]]) -> Table:
    table = Table(
        title="Each answer's critical path (ms)",
        title_justify="left",
        caption="end: endpointing, graph: and model, network: both ways, heard: measured",
        caption_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("after", no_wrap=True)
    for name in ("end", "STT", "graph", "TTS", "network", "sum", "heard", "diff"):
        table.add_column(name, justify="right", no_wrap=True)
    for said, path in paths:
        figures = (*path.segments, path.total, path.measured, path.difference)
        table.add_row(_shortened(said), *map(_milliseconds, figures))
    return table


def _shortened(text: str) -> str:
    return text if len(text) <= WIDEST_LINE else f"{text[: WIDEST_LINE - 1]}…"


def _milliseconds(seconds: float | None) -> str:
    return "?" if seconds is None else str(round(1000 * seconds))


def _latency_text(exchange: Exchange) -> str:
    return "" if exchange.latency is None else f"{exchange.latency:.2f} s"


def _citation_text(citation: Citation) -> str:
    return f"before the model: {citation.passage_id} ({citation.title})"


def _event_text(event: TurnEvent) -> str:
    if event.kind == "transfer":
        return f"hand-over: {event.source} → {event.target}".replace("_", " ")
    return f"{event.kind.replace('_', ' ')}: {event.name or ''}"
