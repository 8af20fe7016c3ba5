"""What came back in a scenario: each answer as it was observed, and what was wrong with it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from muster.evals.scenario import Line, Script


@dataclass(frozen=True, slots=True)
class ToolUse:
    """A tool that was called; None for arguments and result that cannot be seen from outside."""

    name: str
    arguments: Mapping[str, object] | None = None
    result: Mapping[str, object] | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What the agent did with one line.

    `said` is what the caller heard, `specialist` who said the end of it. `recognised` is what the agent understood
    of a spoken line. `troubles` are sentences about what must not happen whatever a scenario expects.
    """

    said: str
    specialist: str | None
    hands_over: tuple[str, ...] = ()
    tools: tuple[ToolUse, ...] = ()
    interrupted: bool = False
    recognised: str | None = None
    troubles: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LineResult:
    """One line of a scenario, its answer, and one sentence for each expectation that it did not meet.

    `unchecked` names expectations that this mode cannot see.
    """

    line: Line
    answer: Answer
    failures: tuple[str, ...]
    unchecked: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Outcome:
    """One scenario, held once. `error` is why it could not be held to its end; `number` counts repetitions from 1."""

    script: Script
    lines: tuple[LineResult, ...]
    seconds: float
    error: str | None = None
    number: int = field(default=1)

    @property
    def passed(self) -> bool:
        return self.error is None and not any(result.failures for result in self.lines)

    @property
    def name(self) -> str:
        """The scenario's name, with the number from the second repetition on."""
        return self.script.name if self.number == 1 else f"{self.script.name} #{self.number}"

    @property
    def problems(self) -> tuple[str, ...]:
        """Everything that was wrong, one sentence each, with the number of the line."""
        found = [
            f"line {number}: {failure}"
            for number, result in enumerate(self.lines, start=1)
            for failure in result.failures
        ]
        return (*found, self.error) if self.error else tuple(found)

    @property
    def unchecked(self) -> tuple[str, ...]:
        return tuple(
            f"line {number}: {note}" for number, result in enumerate(self.lines, start=1) for note in result.unchecked
        )
