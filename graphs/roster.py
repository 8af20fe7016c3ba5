"""Who can answer a caller: specialists, their tools, and the roster that loads them."""

import importlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from graphs.entities import ToolCall, ToolSchema
from graphs.errors import RosterInvalid, ToolRefused
from graphs.knowledge.catalogue import Catalogue
from graphs.ports import OpenTicketPort, ToolPort

TRANSFER = "transfer_to"


@dataclass(frozen=True, slots=True)
class Tool:
    """Something a specialist can do; `parameters` is a JSON schema of a flat object.

    Without side effects it may run for words that the caller has not finished saying.
    """

    name: str
    description: str
    parameters: Mapping[str, Any]
    run: ToolPort
    has_side_effects: bool = True

    @property
    def schema(self) -> ToolSchema:
        return ToolSchema(name=self.name, description=self.description, parameters=self.parameters)


@dataclass(frozen=True, slots=True)
class Specialist:
    """One who answers callers.

    `title` is for people, `description` tells the other specialists when to hand over to this one, and
    `bridge` is spoken while it hands a caller over: it must not claim that anything is done. `sources` are
    the documents it answers from; without any it is all of them.
    """

    name: str
    title: str
    description: str
    instructions: str
    tools: tuple[Tool, ...] = ()
    bridge: str = ""
    sources: tuple[str, ...] = ()

    def tool(self, name: str) -> Tool:
        for tool in self.tools:
            if tool.name == name:
                return tool
        raise ToolRefused(f"There is no tool {name!r}.")


@dataclass(frozen=True, slots=True)
class Services:
    """What a specialist's module may build its data and tools from."""

    catalogue: Catalogue
    open_ticket: OpenTicketPort


class Roster(Mapping[str, Specialist]):
    """Specialists by name, in order; the first one greets. Raises RosterInvalid."""

    def __init__(self, specialists: Iterable[Specialist]) -> None:
        self._specialists: dict[str, Specialist] = {}
        for specialist in specialists:
            if not specialist.name.isidentifier() or specialist.name in self._specialists:
                raise RosterInvalid(f"{specialist.name!r} is not a name, or it is on the roster twice")
            if any(tool.name == TRANSFER for tool in specialist.tools):
                raise RosterInvalid(f"{specialist.name!r} has a tool named {TRANSFER!r}, which is generated")
            self._specialists[specialist.name] = specialist
        if not self._specialists:
            raise RosterInvalid("The roster is empty")
        # Made once: a caller waits for whatever a turn does before its model call.
        self._transfers = {name: self._describe_others(name) for name in self._specialists}

    def __getitem__(self, name: str) -> Specialist:
        return self._specialists[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._specialists)

    def __len__(self) -> int:
        return len(self._specialists)

    @property
    def first(self) -> str:
        return next(iter(self))

    def transfer_schema(self, source: str) -> ToolSchema | None:
        """The tool by which `source` hands a caller over; None when nobody else is there."""
        return self._transfers[source]

    def _describe_others(self, source: str) -> ToolSchema | None:
        others = [specialist for specialist in self.values() if specialist.name != source]
        if not others:
            return None
        choices = "\n".join(f"{other.name}: {other.description}" for other in others)
        return ToolSchema(
            name=TRANSFER,
            description=f"Hand the caller to a colleague who is better suited:\n{choices}",
            parameters={
                "type": "object",
                "properties": {"specialist": {"type": "string", "enum": [other.name for other in others]}},
                "required": ["specialist"],
                "additionalProperties": False,
            },
        )


def load_roster(names: Sequence[str], services: Services) -> Roster:
    """The roster of these specialists. Raises RosterInvalid."""
    return Roster(load_specialist(name, services) for name in names)


def load_specialist(name: str, services: Services) -> Specialist:
    """Import the named module and call its `specialist(services)`. Raises RosterInvalid.

    A name without a dot is a file of `graphs/specialists`.
    """
    module_name = name if "." in name else f"graphs.specialists.{name}"
    try:
        factory = getattr(importlib.import_module(module_name), "specialist", None)
    except ImportError as error:
        raise RosterInvalid(f"{module_name} cannot be imported") from error
    if not callable(factory):
        raise RosterInvalid(f"{module_name} has no function `specialist`")
    specialist = factory(services)
    if not isinstance(specialist, Specialist):
        raise RosterInvalid(f"{module_name}.specialist() did not return a Specialist")
    return specialist


@dataclass(frozen=True, slots=True)
class _Kind:
    """What a value of one JSON type is, and what it is called."""

    called: str
    fits: Callable[[object], bool]


_KINDS: Mapping[str, _Kind] = {
    "string": _Kind("a text", lambda value: isinstance(value, str) and bool(value.strip())),
    # To Python true and false are whole numbers, and what is no number at all may be one.
    "number": _Kind("a number", lambda value: type(value) in (int, float) and math.isfinite(cast(float, value))),
    "integer": _Kind("a whole number", lambda value: type(value) is int),
    "boolean": _Kind("true or false", lambda value: isinstance(value, bool)),
}


def parse_arguments(call: ToolCall, schema: ToolSchema) -> Mapping[str, object]:
    """The call's arguments as an object that fits the schema's names, types and choices.

    Raises ToolRefused with a sentence from which a model can correct itself.
    """
    try:
        arguments = json.loads(call.arguments or "{}")
    except ValueError as error:
        raise ToolRefused(f"The arguments of {schema.name} are not JSON.") from error
    if not isinstance(arguments, dict):
        raise ToolRefused(f"The arguments of {schema.name} are not an object.")
    properties = schema.parameters.get("properties", {})
    if missing := [name for name in schema.parameters.get("required", ()) if name not in arguments]:
        raise ToolRefused(f"{schema.name} needs {', '.join(missing)}.")
    for name, value in arguments.items():
        if name not in properties:
            raise ToolRefused(f"{schema.name} has no argument {name!r}.")
        _check_value(value, name=name, schema=properties[name])
    return arguments


def _check_value(value: object, *, name: str, schema: Mapping[str, Any]) -> None:
    kind = _KINDS.get(str(schema.get("type")))
    if kind is not None and not kind.fits(value):
        raise ToolRefused(f"{name} must be {kind.called}.")
    if "enum" in schema and value not in schema["enum"]:
        raise ToolRefused(f"{name} must be one of: {', '.join(map(str, schema['enum']))}.")
