"""What happens in a turn: a specialist's model call, and the tools it asked for."""

import logging
from collections.abc import Callable, Sequence
from contextlib import aclosing
from typing import Protocol

from langgraph.runtime import Runtime

from graphs.entities import (
    AgentEvent,
    Exchange,
    JSONObject,
    TextDelta,
    Token,
    ToolCall,
    ToolCalled,
    ToolCallStarted,
    ToolSchema,
    Transferred,
    UsageReported,
)
from graphs.errors import ToolError, ToolRefused
from graphs.ports import LLMPort
from graphs.prompt import prompt
from graphs.retrieval import Retrieval
from graphs.roster import TRANSFER, Roster, Specialist, parse_arguments
from graphs.state import State, Turn, Update

logger = logging.getLogger(__name__)

#: In one turn: a caller waits for every call of the model, and must not be passed around.
MAX_MODEL_CALLS = 4
MAX_HOPS = 2
#: A caller must never hear nothing, whatever a model does.
NOTHING_SAID = "I am sorry, I did not catch that. Could you say it again?"


class Node(Protocol):
    """One step of a turn, as LangGraph calls it."""

    async def __call__(self, state: State, runtime: Runtime[Turn]) -> Update: ...


def offered_tools(specialist: Specialist, state: State, roster: Roster) -> Sequence[ToolSchema]:
    """What the model may call; nothing in the last call of a turn, so that it ends in words."""
    if state["model_calls"] >= MAX_MODEL_CALLS - 1:
        return ()
    own = [tool.schema for tool in specialist.tools]
    transfer = roster.transfer_schema(specialist.name) if state["hops"] < MAX_HOPS else None
    return [transfer, *own] if transfer else own


class _Voice:
    """Says a specialist's words as they come, and knows what this turn has said."""

    def __init__(self, specialist: Specialist, spoken: str, emit: Callable[[AgentEvent], None]) -> None:
        self._specialist = specialist
        self._emit = emit
        self.spoken = spoken
        self.silent = True

    def say(self, text: str) -> None:
        if self.silent and self.spoken and not (self.spoken[-1].isspace() or text[0].isspace()):
            text = f" {text}"
        self.silent = False
        self.spoken += text
        self._emit(TextDelta(text=text, specialist=self._specialist.name))

    def bridge(self) -> None:
        """Fill the silence of a hand-over, unless the model already says something itself."""
        if self.silent and self._specialist.bridge:
            # The space tells the voice that the sentence is whole, long before the colleague says anything.
            self.say(f"{self._specialist.bridge} ")


def answer(specialist: Specialist, *, roster: Roster, llm: LLMPort, retrieval: Retrieval | None = None) -> Node:
    """One model call of a specialist: speaks its text at once, keeps its tool calls for the next node."""

    async def node(state: State, runtime: Runtime[Turn]) -> Update:
        voice = _Voice(specialist, state["spoken"], runtime.stream_writer)
        found = await retrieval.look_up(specialist, state, runtime) if retrieval else Update()
        tools = offered_tools(specialist, state, roster)
        calls: list[ToolCall] = []
        messages = prompt(specialist, {**state, **found}, runtime.context)
        async with aclosing(llm(messages, tools)) as events:
            async for event in events:
                match event:
                    case Token(text) if text:
                        voice.say(text)
                    case ToolCallStarted(name=name) if name == TRANSFER and tools:
                        voice.bridge()
                    case ToolCall() if tools:
                        calls.append(event)
                    case UsageReported():
                        runtime.stream_writer(event)
        if not calls and voice.silent and (state["hops"] or not voice.spoken):
            voice.say(NOTHING_SAID)
        return {
            "active": specialist.name,
            "spoken": voice.spoken,
            "calls": [call.record() for call in calls],
            "model_calls": state["model_calls"] + 1,
            **found,
        }

    return node


class _Desk:
    """Runs the tool calls of one answer, in order, and knows who is responsible after each."""

    def __init__(self, state: State, roster: Roster, runtime: Runtime[Turn]) -> None:
        self._roster = roster
        self._turn = runtime.context
        self._emit: Callable[[AgentEvent], None] = runtime.stream_writer
        self._asking = roster[str(state["active"])]
        self.active = self._asking.name
        self.hops = state["hops"]

    async def run(self, call: ToolCall) -> JSONObject:
        """The call's result; an error in it is told to the model, which may correct itself."""
        try:
            return self._transfer(call) if call.name == TRANSFER else await self._use_tool(call)
        except ToolError as error:
            logger.warning("tool call failed", extra={"turn_id": self._turn.turn_id, "error": type(error).__name__})
            return {"error": str(error)}

    def _transfer(self, call: ToolCall) -> JSONObject:
        schema = self._roster.transfer_schema(self.active)
        if schema is None or self.hops >= MAX_HOPS:
            raise ToolRefused("Nobody else can take this call. Answer it yourself.")
        source, self.active = self.active, str(parse_arguments(call, schema)["specialist"])
        self.hops += 1
        self._emit(Transferred(source=source, target=self.active))
        return {"transferred_to": self.active}

    async def _use_tool(self, call: ToolCall) -> JSONObject:
        tool = self._asking.tool(call.name)
        arguments = parse_arguments(call, tool.schema)
        if tool.has_side_effects:
            await self._turn.confirmed.wait()
        self._emit(ToolCalled(name=tool.name, call_id=call.id))
        return await tool.run(arguments, idempotency_key=f"{self._turn.turn_id}:{call.id}")


def run_tools(roster: Roster) -> Node:
    """Runs what the model asked for, hand-overs included; each call is remembered as soon as it is done."""

    async def node(state: State, runtime: Runtime[Turn]) -> Update:
        desk, turn = _Desk(state, roster, runtime), runtime.context
        update: Update = {"calls": [], "messages": []}
        for record in state["calls"]:
            call, asking = ToolCall(**record), desk.active
            result = await desk.run(call)
            exchange = Exchange(turn.turn_id, call, result, specialist=asking, receiver=desk.active)
            turn.remember(exchange)
            update["messages"] += [message.record() for message in exchange.messages]
        return update | {"active": desk.active, "hops": desk.hops}

    return node
