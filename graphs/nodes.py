"""What happens in a turn: a specialist's model call, and the tools it asked for."""

import json
import logging
import uuid
from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import aclosing
from functools import partial
from typing import Protocol

from langgraph.runtime import Runtime

from graphs.entities import (
    AgentEvent,
    Exchange,
    JSONObject,
    LLMEvent,
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
from graphs.roster import TRANSFER, Roster, Specialist, Tool, parse_arguments
from graphs.router import AgentRouterPort, sticky
from graphs.second_opinion import SecondOpinion
from graphs.state import State, Turn, Update

logger = logging.getLogger(__name__)

#: In one turn: a caller waits for every call of the model, and must not be passed around.
MAX_MODEL_CALLS = 4
MAX_HOPS = 2
#: Seconds from the start of a router's call for which a specialist's first word may be held back.
ROUTER_PATIENCE = 0.3
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


class _ModelCall:
    """One model call of a specialist: speaks its text as it comes, and keeps its tool calls."""

    def __init__(self, specialist: Specialist, state: State, runtime: Runtime[Turn]) -> None:
        self._specialist = specialist
        self._state = state
        self._runtime = runtime
        self._emit: Callable[[AgentEvent], None] = runtime.stream_writer
        self.voice = _Voice(specialist, state["spoken"], self._emit)
        self.calls: list[ToolCall] = []
        self.found = Update()

    async def run(
        self, llm: LLMPort, tools: Sequence[ToolSchema], retrieval: Retrieval | None, opinion: SecondOpinion | None
    ) -> None:
        """Until the model's answer is over, or the opinion does not let it begin."""
        if retrieval is not None:
            self.found = await retrieval.look_up(self._specialist, self._state, self._runtime)
        messages = prompt(self._specialist, {**self._state, **self.found}, self._runtime.context)
        offered = {tool.name for tool in tools}
        async with aclosing(llm(messages, tools)) as events:
            async for event in events:
                if opinion is not None and not await opinion.lets_happen(event):
                    return
                self._heed(event, offered)

    def _heed(self, event: LLMEvent, offered: Set[str]) -> None:
        match event:
            case Token(text) if text:
                self.voice.say(text)
            case ToolCallStarted(name=name) if name == TRANSFER and name in offered:
                self.voice.bridge()
            case ToolCall() if offered:
                self.calls.append(event)
            case UsageReported():
                self._emit(event)

    def hand_over(self, target: str) -> None:
        """Do what the specialist would have done to hand the caller over."""
        self.voice.bridge()
        arguments = json.dumps({"specialist": target})
        self.calls = [ToolCall(id=f"call_{uuid.uuid4().hex}", name=TRANSFER, arguments=arguments)]


def answer(
    specialist: Specialist,
    *,
    roster: Roster,
    llm: LLMPort,
    router: AgentRouterPort = sticky,
    retrieval: Retrieval | None = None,
) -> Node:
    """One model call of a specialist; the first one of a turn runs beside the router's second thoughts.

    Text is spoken at once, tool calls are for the next node.
    """

    async def node(state: State, runtime: Runtime[Turn]) -> Update:
        call, turn = _ModelCall(specialist, state, runtime), runtime.context
        running = partial(call.run, llm, offered_tools(specialist, state, roster), retrieval)
        if state["model_calls"] or turn.has_begun or len(roster) == 1:
            await running(None)
        else:
            asking = router.reconsider(specialist.name, roster, turn.history, report=runtime.stream_writer)
            opinion = SecondOpinion(asking, patience=ROUTER_PATIENCE)
            if other := await opinion.beside(running(opinion)):
                call.hand_over(other)
        if not call.calls and call.voice.silent and (state["hops"] or not call.voice.spoken):
            call.voice.say(NOTHING_SAID)
        return {
            "active": specialist.name,
            "spoken": call.voice.spoken,
            "calls": [one.record() for one in call.calls],
            "model_calls": state["model_calls"] + 1,
            **call.found,
        }

    return node


class _Desk:
    """Does what one answer asked for, in order, and knows who is responsible after each call."""

    def __init__(self, state: State, roster: Roster, runtime: Runtime[Turn]) -> None:
        self._roster = roster
        self._turn = runtime.context
        self._emit: Callable[[AgentEvent], None] = runtime.stream_writer
        self._asking = roster[str(state["active"])]
        self.active = self._asking.name
        self.hops = state["hops"]

    async def run(self, call: ToolCall) -> Exchange:
        """What became of the call, remembered; an error in it is told to the model, which may correct itself."""
        asking = self.active
        try:
            if call.name == TRANSFER:
                return self._remember(call, self._transfer(call), asking=asking)
            tool = self._asking.tool(call.name)
            arguments = parse_arguments(call, tool.schema)
        except ToolError as error:
            return self._remember(call, self._failure(error), asking=asking)
        if not tool.has_side_effects:
            return await self._use(tool, arguments, call)
        await self._turn.confirmed.wait()
        return await self._turn.finish(self._use(tool, arguments, call))

    def _transfer(self, call: ToolCall) -> JSONObject:
        schema = self._roster.transfer_schema(self.active)
        if schema is None or self.hops >= MAX_HOPS:
            raise ToolRefused("Nobody else can take this call. Answer it yourself.")
        source, self.active = self.active, str(parse_arguments(call, schema)["specialist"])
        self.hops += 1
        self._emit(Transferred(source=source, target=self.active))
        return {"transferred_to": self.active}

    async def _use(self, tool: Tool, arguments: Mapping[str, object], call: ToolCall) -> Exchange:
        asking = self.active
        self._emit(ToolCalled(name=tool.name, call_id=call.id))
        try:
            result = await tool.run(arguments, idempotency_key=f"{self._turn.turn_id}:{call.id}")
        except ToolError as error:
            result = self._failure(error)
        return self._remember(call, result, asking=asking)

    def _failure(self, error: ToolError) -> JSONObject:
        logger.warning("tool call failed", extra={"turn_id": self._turn.turn_id, "error": type(error).__name__})
        return {"error": str(error)}

    def _remember(self, call: ToolCall, result: JSONObject, *, asking: str) -> Exchange:
        exchange = Exchange(self._turn.turn_id, call, result, specialist=asking, receiver=self.active)
        self._turn.remember(exchange)
        return exchange


def run_tools(roster: Roster) -> Node:
    """Runs what the model asked for, hand-overs included; each call is remembered as soon as it is done."""

    async def node(state: State, runtime: Runtime[Turn]) -> Update:
        desk = _Desk(state, roster, runtime)
        exchanges = [await desk.run(ToolCall(**record)) for record in state["calls"]]
        messages = [message.record() for exchange in exchanges for message in exchange.messages]
        return {"calls": [], "messages": messages, "active": desk.active, "hops": desk.hops}

    return node
