"""How the agent of one session may be configured, as a client asks for it; the worker reads the same JSON.

`graphs.configuration` has the same fields: what is valid here is what the worker can read.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from api.asked import Asked
from worker.fleet.roster import roster_names
from worker.fleet.tool_hosts import URL_PATTERN, may_call

#: The longest configuration, in bytes of JSON.
CONFIGURATION_LIMIT = 32 * 1024
#: The tool that every specialist has.
TRANSFER = "transfer_to"
#: Headers that are the request's own, and would make another request of it.
OWN_HEADERS = frozenset(
    {
        "accept",
        "accept-encoding",
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "expect",
        "host",
        "idempotency-key",
        "keep-alive",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
#: Something to say: a letter or a digit.
_SPEAKABLE = r"[\p{L}\p{N}]"


def _on_roster(name: str) -> str:
    if name not in roster_names():
        raise ValueError(f"not on the roster: {', '.join(roster_names())}")
    return name


def _not_generated(name: str) -> str:
    if name == TRANSFER:
        raise ValueError("this tool is there already")
    return name


def _not_own(headers: dict[str, Any]) -> dict[str, Any]:
    if {name.lower() for name in headers} & OWN_HEADERS:
        raise ValueError("a header that is the request's own")
    return headers


def _distinct(names: Sequence[str]) -> None:
    if len(set(names)) < len(names):
        raise ValueError("names are given more than once")


def _closed(is_open: bool) -> bool:
    if is_open:
        raise ValueError("arguments that have no name here are never given")
    return is_open


def _kind_of_specialist(given: Any) -> str:
    return "name" if isinstance(given, str) else "own"


Speakable = Annotated[str, Field(min_length=1, pattern=_SPEAKABLE)]
RosterName = Annotated[
    str, AfterValidator(_on_roster), Field(title="Name", json_schema_extra={"enum": list(roster_names())})
]
SpecialistName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,31}$")]
ToolName = Annotated[
    str,
    Field(pattern=r"^[a-z][a-z0-9_]{0,63}$", json_schema_extra={"not": {"const": TRANSFER}}),
    AfterValidator(_not_generated),
]
ParameterName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_-]{0,63}$")]
HeaderName = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9-]{0,63}$")]
HeaderText = Annotated[str, Field(pattern=r"^[!-~]([ -~]{0,510}[!-~])?$")]
#: To a `Literal[False]` zero is false as well.
Closed = Annotated[bool, AfterValidator(_closed), Field(json_schema_extra={"const": False})]
ToolURL = Annotated[
    str,
    Field(
        max_length=2_000,
        pattern=URL_PATTERN,
        description="Its scheme, host and port must be listed in MUSTER_TOOL_HOSTS.",
    ),
]
Source = Annotated[str, Field(min_length=1, max_length=256)]


class TextParameter(Asked):
    """An argument that is a text, or one of some texts."""

    type: Literal["string"]
    description: str = Field(default="", max_length=500)
    enum: Annotated[list[Annotated[str, Field(max_length=100)]], Field(min_length=1, max_length=32)] | None = None


class ValueParameter(Asked):
    """An argument that is a number, a whole number, true or false."""

    type: Literal["number", "integer", "boolean"]
    description: str = Field(default="", max_length=500)


Parameter = Annotated[TextParameter | ValueParameter, Field(discriminator="type")]


class ToolParameters(Asked):
    """JSON schema of a flat object: the arguments that a model may give."""

    type: Literal["object"]
    properties: Annotated[
        dict[ParameterName, Parameter], Field(max_length=16, json_schema_extra={"additionalProperties": False})
    ]
    required: list[ParameterName] = Field(default=[], max_length=16, json_schema_extra={"uniqueItems": True})
    additional_properties: Closed = Field(default=False, alias="additionalProperties")

    @model_validator(mode="after")
    def required_are_there(self) -> Self:
        """Without it no call of the tool could be right."""
        _distinct(self.required)
        if not set(self.required) <= self.properties.keys():
            raise ValueError("what is required is not among the properties")
        return self


class SecretReference(Asked):
    """A header's whole value that only the worker knows, as MUSTER_SECRET_ and this name."""

    secret: str = Field(pattern=r"^[A-Z][A-Z0-9_]{0,63}$")


class HTTPToolConfiguration(Asked):
    """A tool that is an HTTP endpoint; its arguments are the query of a GET and the JSON body of a POST.

    A GET may be asked for words that the caller has not finished saying, a POST never. `timeout` is in seconds.
    """

    name: ToolName
    description: str = Field(min_length=1, max_length=500)
    method: Literal["GET", "POST"]
    url: ToolURL
    parameters: ToolParameters | None = None
    headers: Annotated[
        dict[HeaderName, HeaderText | SecretReference],
        Field(max_length=8, json_schema_extra={"additionalProperties": False}),
        AfterValidator(_not_own),
    ] = Field(default={})
    timeout: float = Field(default=3.0, ge=0.1, le=10)


def _distinct_tools(tools: list[HTTPToolConfiguration]) -> list[HTTPToolConfiguration]:
    _distinct([tool.name for tool in tools])
    return tools


class SpecialistConfiguration(Asked):
    """A specialist of this session alone.

    `description` tells the others when to hand over to it, `bridge` is spoken while it hands a caller over, `sources`
    are the documents it answers from.
    """

    name: SpecialistName
    title: str = Field(min_length=1, max_length=80)
    description: str = Field(min_length=1, max_length=500)
    instructions: str = Field(min_length=1, max_length=16_000)
    tools: Annotated[list[HTTPToolConfiguration], AfterValidator(_distinct_tools)] = Field(default=[], max_length=8)
    bridge: str = Field(default="", max_length=300)
    sources: list[Source] = Field(default=[], max_length=32)


EitherSpecialist = Annotated[
    Annotated[RosterName, Tag("name")] | Annotated[SpecialistConfiguration, Tag("own")],
    Discriminator(_kind_of_specialist),
]


def _distinct_specialists(specialists: list[str | SpecialistConfiguration]) -> list[str | SpecialistConfiguration]:
    _distinct([each if isinstance(each, str) else each.name for each in specialists])
    return specialists


class AgentConfiguration(Asked):
    """How the agent of this session differs from the others; what is left out is as the worker's settings say.

    The first of `specialists` greets; each is a name of the roster or a specialist of this session alone.
    `instructions` are added to those of every specialist. At most 32 KiB of JSON.
    """

    specialists: (
        Annotated[list[EitherSpecialist], Field(min_length=1, max_length=8), AfterValidator(_distinct_specialists)]
        | None
    ) = None
    instructions: str = Field(default="", max_length=16_000)
    greeting: Annotated[Speakable, Field(max_length=500)] | None = None
    voice: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")] | None = None
    language: Annotated[str, Field(pattern=r"^[a-z]{2,3}(-[A-Za-z0-9]{2,8}){0,2}$")] | None = None
    model: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}$")] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None

    @model_validator(mode="after")
    def is_small(self) -> Self:
        """It is kept with the session and read with it each time."""
        if len(json.dumps(self.record())) > CONFIGURATION_LIMIT:
            raise ValueError(f"at most {CONFIGURATION_LIMIT} bytes of JSON are allowed")
        return self

    def record(self) -> dict[str, Any]:
        """What was asked for, as plain JSON for the worker."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True, exclude_none=True)

    def unlisted_urls(self, hosts: frozenset[str]) -> Iterator[str]:
        """Where the URLs stand whose hosts are not among these."""
        for number, specialist in enumerate(self.specialists or ()):
            tools = () if isinstance(specialist, str) else specialist.tools
            for position, tool in enumerate(tools):
                if not may_call(tool.url, hosts):
                    yield f"specialists.{number}.tools.{position}.url"
