"""A model for tests of the graph: an `LLMPort` that plays a script and keeps what it was asked."""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from graphs.entities import (
    AgentEvent,
    LLMEvent,
    Message,
    TextDelta,
    Token,
    ToolCall,
    ToolCallStarted,
    ToolSchema,
    UserTurn,
)
from graphs.ports import AgentPort

Step = LLMEvent | asyncio.Event | Exception | Callable[[], None]


@dataclass(frozen=True)
class Request:
    """What one model call was given."""

    messages: tuple[Message, ...]
    tools: tuple[str, ...]

    @property
    def system(self) -> str:
        return self.messages[0].content

    @property
    def last(self) -> Message:
        return self.messages[-1]


class ScriptedLLM:
    """Plays one script per call: yields events, waits for an `asyncio.Event`, calls a function, raises."""

    def __init__(self, *scripts: Sequence[Step]) -> None:
        self._scripts = list(scripts)
        self.requests: list[Request] = []
        self.schemas: list[ToolSchema] = []
        self.closed = 0

    def goes_on_with(self, *scripts: Sequence[Step]) -> None:
        """Play these from the next call on, whatever was left of the earlier ones."""
        self._scripts[len(self.requests) :] = scripts

    async def __call__(
        self, messages: Sequence[Message], tools: Sequence[ToolSchema]
    ) -> AsyncGenerator[LLMEvent, None]:
        self.requests.append(Request(tuple(messages), tuple(tool.name for tool in tools)))
        self.schemas += tools
        try:
            for step in self._scripts[len(self.requests) - 1]:
                if isinstance(step, asyncio.Event):
                    await step.wait()
                elif isinstance(step, Exception):
                    raise step
                elif callable(step):
                    step()
                else:
                    yield step
        finally:
            self.closed += 1


def says(*pieces: str) -> list[Step]:
    return [Token(piece) for piece in pieces]


def calls(name: str, arguments: object = None, *, call_id: str = "call_1") -> list[Step]:
    """A tool call; arguments that are a text are sent as they are, well-formed or not."""
    text = arguments if isinstance(arguments, str) else json.dumps(arguments or {})
    return [ToolCallStarted(call_id, name), ToolCall(call_id, name, text)]


def transfers(target: str, *, call_id: str = "call_t") -> list[Step]:
    return calls("transfer_to", {"specialist": target}, call_id=call_id)


async def take(agent: AgentPort, text: str, *, turn_id: str = "turn_1") -> list[AgentEvent]:
    """All events of one turn."""
    async with aclosing(agent.respond(UserTurn(turn_id, text))) as events:
        return [event async for event in events]


def spoken(events: Sequence[AgentEvent]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))
