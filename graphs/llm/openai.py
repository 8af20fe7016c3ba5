"""Any OpenAI-compatible chat model as an `LLMPort`."""

import json
import uuid
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from openai import APIError, APIStatusError, AsyncOpenAI, OpenAIError
from openai.types.chat import ChatCompletionChunk
from openai.types.chat.chat_completion_chunk import ChoiceDelta

from graphs.entities import LLMEvent, Message, Token, ToolCall, ToolCallStarted, ToolSchema, UsageReported
from graphs.errors import LLMUnavailable

_RETRYABLE_STATUS = frozenset({408, 409, 429})


class OpenAILLM:
    """Chat completions of one model, streamed.

    `timeout` in seconds bounds connecting and each wait for more of the answer. Nothing is retried here:
    a caller would hear a retry as silence, so who speaks to the caller decides (see `FallbackLLM`).
    Without a `temperature` it is the model's own.
    """

    def __init__(
        self, client: AsyncOpenAI, *, model: str, timeout: float = 10.0, temperature: float | None = None
    ) -> None:
        self._client = client.with_options(max_retries=0, timeout=timeout)
        self._model = model
        self._sampling = {} if temperature is None else {"temperature": temperature}

    async def __call__(
        self, messages: Sequence[Message], tools: Sequence[ToolSchema]
    ) -> AsyncGenerator[LLMEvent, None]:
        body: dict[str, Any] = {"messages": [_wire_message(message) for message in messages], **self._sampling}
        if tools:
            body["tools"] = [_wire_tool(tool) for tool in tools]
        calls, usage = _ToolCalls(), list[UsageReported]()
        try:
            # The SDK walks every typed message on each call, 20 ms at 100 messages on the event loop;
            # `extra_body` replaces the empty list in the request without the walk.
            stream = await self._client.chat.completions.create(
                model=self._model,
                messages=[],
                stream=True,
                stream_options={"include_usage": True},
                extra_body=body,
            )
            try:
                async for chunk in stream:
                    usage += _usage(chunk)
                    for event in _events(chunk, calls):
                        yield event
            finally:
                await stream.close()
        except (OpenAIError, json.JSONDecodeError) as error:
            raise LLMUnavailable(cause=error, retryable=_is_retryable(error)) from error
        for call in calls.finished():
            yield call
        for consumed in usage[-1:]:
            yield consumed


class _ToolCalls:
    """Tool calls put together from their pieces, by index."""

    def __init__(self) -> None:
        self._calls: dict[int, ToolCall] = {}

    def add(self, delta: ChoiceDelta) -> list[ToolCallStarted]:
        """The calls whose names became known by this piece."""
        started = []
        for piece in delta.tool_calls or ():
            # A server that gives no id gets one that no other call of the turn has: it is the call's idempotency key.
            known = self._calls.get(piece.index) or ToolCall(
                id=piece.id or f"call_{uuid.uuid4().hex}", name="", arguments=""
            )
            name = (piece.function and piece.function.name) or ""
            arguments = (piece.function and piece.function.arguments) or ""
            call = ToolCall(id=known.id, name=known.name + name, arguments=known.arguments + arguments)
            self._calls[piece.index] = call
            if name and not known.name:
                started.append(ToolCallStarted(call_id=call.id, name=call.name))
        return started

    def finished(self) -> list[ToolCall]:
        return [self._calls[index] for index in sorted(self._calls)]


def _events(chunk: ChatCompletionChunk, calls: _ToolCalls) -> list[LLMEvent]:
    events: list[LLMEvent] = []
    for choice in chunk.choices[:1]:
        if choice.delta.content:
            events.append(Token(choice.delta.content))
        events += calls.add(choice.delta)
    return events


def _usage(chunk: ChatCompletionChunk) -> list[UsageReported]:
    # Some servers count in every chunk what was consumed until then.
    return [UsageReported(chunk.usage.prompt_tokens, chunk.usage.completion_tokens)] if chunk.usage else []


def _is_retryable(error: Exception) -> bool:
    if isinstance(error, APIStatusError):
        return error.status_code in _RETRYABLE_STATUS or error.status_code >= 500
    # What breaks inside a stream that had begun well, such as "overloaded", is the server's trouble of the moment.
    return isinstance(error, APIError | json.JSONDecodeError)


def _wire_message(message: Message) -> dict[str, object]:
    wire: dict[str, object] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        wire["content"] = message.content or None
        wire["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        wire["tool_call_id"] = message.tool_call_id
    return wire


def _wire_tool(tool: ToolSchema) -> dict[str, object]:
    function = {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
    return {"type": "function", "function": function}
