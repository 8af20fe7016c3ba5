"""Our own `llm.LLM`: LiveKit asks it for a reply, and the conversation behind `AgentPort` gives it."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any

import openai
from livekit.agents import APIConnectionError, APIConnectOptions, APIError, APIStatusError, APITimeoutError, llm
from livekit.agents.types import DEFAULT_API_CONNECT_OPTIONS

from graphs.entities import AgentEvent, TextDelta, UsageReported, UserTurn
from graphs.errors import LLMUnavailable
from graphs.ports import AgentPort
from worker.call.baton import Baton

#: LiveKit takes it for a request that it has closed itself, and ends the reply without an error.
_CLIENT_CLOSED_REQUEST = 499

#: Told each event of a turn: its id, the event, and when it came (`time.time()`).
Observer = Callable[[str, AgentEvent, float], None]


class AgentLLM(llm.LLM[Any]):
    """Turns a user's item of the chat context into a turn of the agent, and its text into chunks.

    The agent remembers the conversation itself, so that only the newest user item is read. Every answer is asked for as
    a draft: words that are committed when it begins make it none.
    """

    def __init__(
        self,
        agent: AgentPort,
        *,
        observe: Observer,
        warm: Callable[[], Awaitable[object]],
        baton: Baton | None = None,
    ) -> None:
        super().__init__()
        self.agent = agent
        #: A draft made before it was taken would not know what the last owner has said.
        self.baton = baton or Baton(is_held=True)
        self.observe = observe
        self._warm = warm
        #: One turn at a time: an interrupted turn is closed before the next one starts.
        self.turn_lock = asyncio.Lock()
        #: Called when a caller's words want to be answered: a text that is being answered stops (see `thinking.py`).
        self.give_way: Callable[[], None] = _nothing

    @property
    def model(self) -> str:
        """The name under which LiveKit reports it."""
        return "muster-graph"

    @property
    def provider(self) -> str:
        """The provider under which LiveKit reports it."""
        return "muster"

    async def _prewarm_impl(self) -> None:
        await self._warm()

    def chat(
        self,
        *,
        chat_ctx: llm.ChatContext,
        tools: list[llm.Tool] | None = None,
        conn_options: APIConnectOptions = DEFAULT_API_CONNECT_OPTIONS,
        **_: Any,
    ) -> llm.LLMStream:
        """A stream of the reply to the newest user item."""
        return _TurnStream(self, chat_ctx=chat_ctx, tools=tools or [], conn_options=conn_options)


class _TurnStream(llm.LLMStream):
    def __init__(self, llm: AgentLLM, **options: Any) -> None:
        super().__init__(llm, **options)
        self._agent_llm = llm
        # A sentence that was spoken is not repeated by a retry.
        self._retry_on_chunk_sent = False

    async def _run(self) -> None:
        turn = _newest_turn(self._chat_ctx)
        await self._agent_llm.baton.wait()
        self._agent_llm.give_way()
        async with self._agent_llm.turn_lock:
            try:
                async with aclosing(self._agent_llm.agent.respond(turn, draft=True)) as events:
                    async for event in events:
                        self._agent_llm.observe(turn.turn_id, event, time.time())
                        self._send(turn, event)
            except LLMUnavailable as error:
                # The client's own error may quote a server that quotes the caller.
                raise _livekit_error(error) from None

    def _send(self, turn: UserTurn, event: AgentEvent) -> None:
        if isinstance(event, TextDelta):
            delta = llm.ChoiceDelta(role="assistant", content=event.text)
            self._event_ch.send_nowait(llm.ChatChunk(id=turn.turn_id, delta=delta))
        elif isinstance(event, UsageReported):
            usage = llm.CompletionUsage(
                prompt_tokens=event.prompt_tokens,
                completion_tokens=event.completion_tokens,
                total_tokens=event.prompt_tokens + event.completion_tokens,
            )
            self._event_ch.send_nowait(llm.ChatChunk(id=turn.turn_id, usage=usage))


def _newest_turn(chat_ctx: llm.ChatContext) -> UserTurn:
    newest = next(
        item for item in reversed(chat_ctx.items) if isinstance(item, llm.ChatMessage) and item.role == "user"
    )
    return UserTurn(turn_id=newest.id, text=newest.text_content or "")


def _nothing() -> None:
    pass


def _livekit_error(error: LLMUnavailable) -> APIError:
    """What the model's client reported, as LiveKit names it; LiveKit asks again when it is retryable."""
    message, cause = str(error), error.cause
    if isinstance(cause, openai.APIStatusError) and cause.status_code != _CLIENT_CLOSED_REQUEST:
        return APIStatusError(
            message, status_code=cause.status_code, request_id=cause.request_id, retryable=error.retryable
        )
    if isinstance(cause, openai.APITimeoutError):
        return APITimeoutError(message, retryable=error.retryable)
    return APIConnectionError(message, retryable=error.retryable)
