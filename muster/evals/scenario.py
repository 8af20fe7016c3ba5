"""Scenarios: what a caller says line by line and what is expected back, read from YAML."""

import re
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from muster.errors import ScenarioInvalid

#: The scenarios that come with Muster, about the demo company.
SHIPPED = Path(__file__).parent / "scenarios"

Text = Annotated[str, Field(min_length=1, max_length=2000)]
#: A text, or several of which one is enough.
Phrase = Text | Annotated[tuple[Text, ...], Field(min_length=1)]


def alternatives(phrase: Phrase) -> tuple[str, ...]:
    """The texts of a phrase, any of which is enough."""
    return (phrase,) if isinstance(phrase, str) else phrase


class _Strict(BaseModel):
    """No unknown fields, so that a misspelled expectation is an error and not a pass."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ToolExpectation(_Strict):
    """A tool that must be called; of its arguments only those named here are looked at."""

    name: Text
    arguments: Mapping[str, Phrase | bool | int | float] = Field(default_factory=dict)


class Line(_Strict):
    """One thing the caller says, and what is expected of the answer; what is left out is not looked at."""

    caller: Text
    specialist: Text | None = None
    hands_over: tuple[Text, ...] | None = None
    tools: tuple[ToolExpectation, ...] | None = None
    no_tools: bool = False
    says: tuple[Phrase, ...] = ()
    says_not: tuple[Phrase, ...] = ()
    barge_in_at: int | None = Field(default=None, ge=1, le=200)

    @field_validator("tools", mode="before")
    @classmethod
    def _a_name_is_a_tool(cls, tools: Any) -> Any:
        if not isinstance(tools, list):
            return tools
        return [{"name": tool} if isinstance(tool, str) else tool for tool in tools]

    @field_validator("says", "says_not", mode="before")
    @classmethod
    def _phrases_can_be_matched(cls, phrases: Any) -> Any:
        if not isinstance(phrases, list):
            raise ValueError("must be a list of phrases")
        for phrase in phrases:
            for text in phrase if isinstance(phrase, list) else [phrase]:
                if not isinstance(text, str):
                    raise ValueError(f"{text!r} is not a text: put it in quotes")
                if (pattern := pattern_of(text)) is not None:
                    _compile(pattern)
                elif not re.search(r"\w", text):
                    raise ValueError(f"{text!r} has no word in it")
        return phrases

    @model_validator(mode="after")
    def _tools_are_wanted_or_not(self) -> Self:
        if self.no_tools and self.tools:
            raise ValueError("no_tools and tools contradict each other")
        return self

    @property
    def expected_tools(self) -> tuple[ToolExpectation, ...] | None:
        """The tools that must be called, in this order and no others; None when it does not matter."""
        return () if self.no_tools else self.tools


class Scenario(_Strict):
    """One conversation. `slots` are facts about the caller, `documents` files that the agent answers from."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$", max_length=100)
    description: str = ""
    audio: bool = False
    slots: Mapping[str, str | bool | int | float | None] = Field(default_factory=dict)
    documents: tuple[Text, ...] = ()
    lines: tuple[Line, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _can_be_held(self) -> Self:
        cut = [line.barge_in_at is not None for line in self.lines]
        if cut[-1]:
            raise ValueError("barge_in_at in the last line: the next line is what the caller says over the answer")
        if self.audio and any(first and second for first, second in pairwise(cut)):
            raise ValueError("spoken aloud, a line that interrupts cannot be interrupted itself")
        if self.audio and self.documents:
            raise ValueError("documents are for text only: spoken calls take those of MUSTER_KNOWLEDGE_INDEX")
        return self


class ScenarioFile(_Strict):
    """What a file holds."""

    scenarios: tuple[Scenario, ...] = Field(min_length=1)


@dataclass(frozen=True, slots=True)
class Script:
    """A scenario and the file it comes from."""

    scenario: Scenario
    file: Path

    @property
    def name(self) -> str:
        return self.scenario.name


def pattern_of(text: str) -> str | None:
    """The regular expression of a text between slashes; None for a plain text."""
    return text[1:-1] if len(text) > 2 and text.startswith("/") and text.endswith("/") else None


def load(paths: Sequence[Path]) -> list[Script]:
    """Every scenario of these files, and of the `.yaml` and `.yml` files in these folders, in order.

    Raises `ScenarioInvalid`, which names file, line and field.
    """
    scripts = [script for file in _files(paths) for script in _read(file)]
    twice = [name for name, count in Counter(script.name for script in scripts).items() if count > 1]
    if twice:
        files = ", ".join(str(script.file) for script in scripts if script.name == twice[0])
        raise ScenarioInvalid(f"Two scenarios are named {twice[0]}: {files}")
    return scripts


def _files(paths: Sequence[Path]) -> Iterator[Path]:
    for path in paths:
        if not path.is_dir():
            yield path
            continue
        inside = sorted(file for file in path.iterdir() if file.suffix in {".yaml", ".yml"})
        if not inside:
            raise ScenarioInvalid(f"{path}: no .yaml file in this folder")
        yield from inside


def _read(file: Path) -> list[Script]:
    try:
        # One parse for the values and one for where each of them stands.
        text = file.read_text(encoding="utf-8")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        _refuse_repeated_fields(file, root)
        content = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError) as error:
        raise ScenarioInvalid(f"{file}: cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise ScenarioInvalid(f"{_place(file, error)}: not YAML: {_problem(error)}") from error
    try:
        held = ScenarioFile.model_validate(content)
    except ValidationError as error:
        raise ScenarioInvalid("\n".join(_explanations(file, root, error))) from error
    return [Script(scenario, file) for scenario in held.scenarios]


def _place(file: Path, error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    return f"{file}:{mark.line + 1}" if mark else str(file)


def _problem(error: yaml.YAMLError) -> str:
    return str(getattr(error, "problem", None) or error).splitlines()[0]


def _refuse_repeated_fields(file: Path, node: yaml.Node | None) -> None:
    """YAML itself would take the last of them and say nothing."""
    children: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        seen: set[Hashable] = set()
        for key, value in node.value:
            if key.value in seen:
                raise ScenarioInvalid(f"{file}:{key.start_mark.line + 1}: {key.value} stands here twice")
            seen.add(key.value)
            children.append(value)
    elif isinstance(node, yaml.SequenceNode):
        children = node.value
    for child in children:
        _refuse_repeated_fields(file, child)


def _explanations(file: Path, root: yaml.Node | None, error: ValidationError) -> list[str]:
    """One line for each field that is wrong, with its place in the file, in the file's order."""
    problems = error.errors(include_url=False, include_input=False)
    # A list counts as empty when all it holds is wrong.
    inner = {problem["loc"][:depth] for problem in problems for depth in range(len(problem["loc"]))}
    told: dict[tuple[int, str], str] = {}
    for problem in problems:
        if problem["loc"] not in inner or len(problems) == 1:
            # A union reports each of its members.
            told.setdefault(_locate(root, problem["loc"]), problem["msg"].removeprefix("Value error, "))
    return [f"{file}:{line}: {field}: {message}" for (line, field), message in sorted(told.items())]


def _locate(root: yaml.Node | None, location: Sequence[int | str]) -> tuple[int, str]:
    """The line of the file, and the path to the field, as far down as the file has it."""
    node, line, path = root, 1 if root is None else root.start_mark.line + 1, ""
    for step in location:
        if isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
            node = node.value[step]
            line, path = node.start_mark.line + 1, f"{path}[{step + 1}]"
            continue
        if not isinstance(node, yaml.MappingNode):
            break
        found = next(((key, value) for key, value in node.value if key.value == step), None)
        path = f"{path}.{step}" if path else str(step)
        if found is None:
            break
        node, line = found[1], found[0].start_mark.line + 1
    return line, path or "the file"


def _compile(pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"/{pattern}/ is not a regular expression: {error}") from None
