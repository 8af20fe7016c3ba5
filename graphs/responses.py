"""Makes one answer of a stream of events, for those who do not speak it as it comes."""

from collections.abc import AsyncIterator

from graphs.entities import (
    AgentEvent,
    AgentResponse,
    Passage,
    PassagesOffered,
    TextDelta,
    ToolCalled,
    Transferred,
    UsageReported,
)


async def collect(events: AsyncIterator[AgentEvent]) -> AgentResponse:
    """The whole answer; raises what the stream raises."""
    pieces: list[TextDelta] = []
    transfers: list[Transferred] = []
    tools: list[str] = []
    passages: dict[str, Passage] = {}
    prompt_tokens = completion_tokens = 0
    async for event in events:
        match event:
            case TextDelta():
                pieces.append(event)
            case Transferred():
                transfers.append(event)
            case ToolCalled(name=name):
                tools.append(name)
            case PassagesOffered(passages=found):
                passages.update((passage.id, passage) for passage in found)
            case UsageReported():
                prompt_tokens += event.prompt_tokens
                completion_tokens += event.completion_tokens
    return AgentResponse(
        text="".join(piece.text for piece in pieces),
        specialist=pieces[-1].specialist if pieces else "",
        transfers=tuple(transfers),
        tools=tuple(tools),
        passages=tuple(passages.values()),
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
    )
