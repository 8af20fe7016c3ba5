"""What an agent can be told for one session: who answers, in what voice, with which tools."""

from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any, Literal, Self, TypeVar

from graphs.errors import ConfigurationInvalid

Part = TypeVar("Part")

#: JSON schema of a tool without arguments.
NO_PARAMETERS: Mapping[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}


@dataclass(frozen=True, slots=True)
class SecretReference:
    """A value that only the worker knows, by its name."""

    secret: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HTTPToolConfiguration:
    """A tool that is an HTTP endpoint; `timeout` in seconds bounds a whole call of it.

    `parameters` is a JSON schema of a flat object. The arguments are the query of a GET and the JSON body of a POST.
    """

    name: str
    description: str
    method: Literal["GET", "POST"]
    url: str
    parameters: Mapping[str, Any] = field(default_factory=lambda: NO_PARAMETERS)
    headers: Mapping[str, str | SecretReference] = field(default_factory=dict)
    timeout: float = 3.0

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Self:
        headers = {
            name: _made(SecretReference, value) if isinstance(value, Mapping) else str(value)
            for name, value in record.get("headers", {}).items()
        }
        return _made(cls, {**record, "headers": headers})


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecialistConfiguration:
    """A specialist without a file of its own; the fields are those of `roster.Specialist`."""

    name: str
    title: str
    description: str
    instructions: str
    tools: tuple[HTTPToolConfiguration, ...] = ()
    bridge: str = ""
    sources: tuple[str, ...] = ()

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Self:
        tools = tuple(map(HTTPToolConfiguration.of, record.get("tools", ())))
        return _made(cls, {**record, "tools": tools, "sources": tuple(record.get("sources", ()))})


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentConfiguration:
    """How the agent of one session differs from the others; what is empty or None is as the worker's settings say.

    `specialists` are names of the roster and specialists of their own, the first one greets; without any it is the
    whole roster. `instructions` are added to those of every specialist.
    """

    specialists: tuple[str | SpecialistConfiguration, ...] = ()
    instructions: str = ""
    greeting: str | None = None
    voice: str | None = None
    language: str | None = None
    model: str | None = None
    temperature: float | None = None

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Self:
        """The configuration of a session's record; raises ConfigurationInvalid."""
        try:
            named = (
                each if isinstance(each, str) else SpecialistConfiguration.of(each)
                for each in record.get("specialists", ())
            )
            return _made(cls, {**record, "specialists": tuple(named)})
        except (AttributeError, TypeError) as error:
            raise ConfigurationInvalid(f"The configuration cannot be read: {error}") from error

    def record(self) -> dict[str, Any]:
        """The same as plain JSON; what is as it would be anyway is left out."""
        return _record(self)


def _made(kind: type[Part], values: Mapping[str, Any]) -> Part:
    """The part with these fields; one that is missing or unknown is a TypeError."""
    return kind(**values)


def _record(part: Any) -> dict[str, Any]:
    given = ((each.name, getattr(part, each.name), _default(each)) for each in fields(part))
    return {name: _plain(value) for name, value, default in given if value != default}


def _default(each: Field[Any]) -> Any:
    return each.default if each.default_factory is MISSING else each.default_factory()


def _plain(value: Any) -> Any:
    if isinstance(value, str | int | float):
        return value
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(one) for one in value]
    return _record(value)
