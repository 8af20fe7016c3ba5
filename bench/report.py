"""What a measurement found: rows of figures, each with its count and its spread."""

import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Figure:
    """All values of one thing that was measured, in seconds."""

    values: Sequence[float]

    @property
    def p50(self) -> float:
        """The median."""
        return median(self.values)

    @property
    def p95(self) -> float:
        """The smallest value that at least 95 % of all do not exceed."""
        return self._percentile(0.95)

    @property
    def p99(self) -> float:
        """The smallest value that at least 99 % of all do not exceed."""
        return self._percentile(0.99)

    @property
    def worst(self) -> float:
        """The largest value."""
        return max(self.values)

    def _percentile(self, share: float) -> float:
        return sorted(self.values)[math.ceil(share * len(self.values)) - 1]


@dataclass(frozen=True)
class Report:
    """A measurement's figures by name, and what a reader must know about them."""

    title: str
    figures: Mapping[str, Figure]
    notes: Sequence[str] = field(default_factory=tuple)
    #: Of the milliseconds in the table.
    decimals: int = 0

    def to_json(self) -> dict[str, Any]:
        """Every single value, and the machine they come from."""
        return {
            "title": self.title,
            "machine": {"cores": os.cpu_count(), "system": platform.platform(), "load": os.getloadavg()},
            "figures": {
                name: {"n": len(figure.values), "p50": figure.p50, "p95": figure.p95, "p99": figure.p99}
                | {"worst": figure.worst, "values": list(figure.values)}
                for name, figure in self.figures.items()
                if figure.values
            },
            "notes": list(self.notes),
        }


def print_report(console: Console, report: Report) -> None:
    """The report as a table in milliseconds."""
    table = Table("", "n", "p50 ms", "p95 ms", "p99 ms", "worst ms", title=report.title, title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, figure in report.figures.items():
        if figure.values:
            row = (
                f"{1000 * value:,.{report.decimals}f}" for value in (figure.p50, figure.p95, figure.p99, figure.worst)
            )
            table.add_row(name, str(len(figure.values)), *row)
    console.print(table)
    for note in report.notes:
        console.print(note)
