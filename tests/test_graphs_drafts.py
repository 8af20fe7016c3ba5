"""Drafts: an answer to words that may still change leaves no trace until the words are certain."""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from typing import Any

import pytest

from graphs.entities import Exchange, Message, UserTurn
from graphs.errors import LLMUnavailable
from graphs.responses import collect
from graphs.roster import Roster, Specialist, Tool
from graphs.supervisor import SpecialistAgent, SupervisorAgent
from tests.scripted_llm import ScriptedLLM, Step, calls, says, transfers

CARD = {"type": "object", "properties": {}, "additionalProperties": False}


class Clerk:
    """Specialists with a tool that changes something and one that only looks; keeps what ran and what was stored."""

    def __init__(self, *scripts: Sequence[Step]) -> None:
        self.ran: list[str] = []
        self.stored: list[Exchange] = []
        self.llm = ScriptedLLM(*scripts)
        tools = (self._tool("charge", has_side_effects=True), self._tool("look_up", has_side_effects=False))
        specialists = [
            Specialist(name=name, title=name, description=name, instructions=name, tools=tools, bridge="One moment.")
            for name in ("desk", "sales")
        ]
        self.agent = SupervisorAgent(Roster(specialists), llm=self.llm, slots={}, on_exchange=self.stored.append)

    def _tool(self, name: str, *, has_side_effects: bool) -> Tool:
        async def run(arguments: Mapping[str, object], *, idempotency_key: str) -> Mapping[str, object]:
            self.ran.append(f"{name} {idempotency_key}")
            return {"summary": "Done."}

        return Tool(name=name, description=name, parameters=CARD, run=run, has_side_effects=has_side_effects)

    @property
    def told(self) -> list[tuple[str, str]]:
        return [(message.id, message.content) for message in self.agent.history if not message.tool_calls]

    async def draft(self, turn_id: str, text: str) -> str:
        async with aclosing(self.agent.respond(UserTurn(turn_id, text), draft=True)) as events:
            return (await collect(events)).text

    def commit(self, turn_id: str, text: str) -> None:
        self.agent.commit_user(Message(id=turn_id, role="user", content=text))


async def settle() -> None:
    """Let everything that can go on do so."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_a_discarded_draft_leaves_no_trace() -> None:
    clerk = Clerk([*calls("look_up")], transfers("sales"), says("Sales here."), says("Hello."))
    await clerk.draft("draft", "I want to")
    clerk.commit("turn", "I want to cancel")
    await clerk.draft("turn", "I want to cancel")
    assert clerk.told == [("turn", "I want to cancel")]
    assert (clerk.agent.active, clerk.stored) == ("desk", [])


async def test_a_draft_that_is_cut_off_leaves_no_trace() -> None:
    clerk = Clerk([*says("Well"), asyncio.Event()], says("Hello."))
    async with aclosing(clerk.agent.respond(UserTurn("draft", "I want"), draft=True)) as events:
        await anext(events)
    assert clerk.agent.history == ()
    assert await clerk.draft("other", "I want tea") == "Hello."
    assert [message.content for message in clerk.llm.requests[1].messages[1:]] == ["I want tea"]


async def test_a_tool_with_side_effects_waits_until_the_words_are_certain() -> None:
    clerk = Clerk(calls("charge"), says("Charged."))
    answering = asyncio.create_task(clerk.draft("draft", "charge my card"))
    await settle()
    assert (clerk.ran, clerk.stored) == ([], [])
    clerk.commit("turn", "Charge my card.")
    await settle()
    assert clerk.ran == []
    clerk.agent.confirm("draft", turn_id="turn")
    assert await answering == "Charged."
    assert clerk.ran == ["charge draft:call_1"]
    assert [exchange.turn_id for exchange in clerk.stored] == ["turn"]


async def test_a_tool_of_a_discarded_draft_never_runs() -> None:
    clerk = Clerk(calls("charge"), says("Which card?"))
    answering = asyncio.create_task(clerk.draft("draft", "charge my"))
    await settle()
    answering.cancel()
    await asyncio.gather(answering, return_exceptions=True)
    clerk.commit("turn", "charge my other card")
    assert await clerk.draft("turn", "charge my other card") == "Which card?"
    assert clerk.ran == []


async def test_a_look_up_runs_in_a_draft_and_counts_when_it_is_confirmed() -> None:
    clerk = Clerk(calls("look_up"), says("It is ten."))
    assert await clerk.draft("draft", "the price") == "It is ten."
    assert clerk.ran == ["look_up draft:call_1"]
    assert (clerk.agent.history, clerk.stored) == ((), [])
    clerk.commit("turn", "The price?")
    clerk.agent.confirm("draft", turn_id="turn")
    clerk.agent.commit_assistant("turn", "It is ten.", interrupted=False, item_id="reply")
    assert [message.role for message in clerk.agent.history] == ["user", "assistant", "tool", "assistant"]
    assert clerk.told[0] == ("turn", "The price?")


async def test_a_hand_over_of_a_draft_counts_only_when_it_is_confirmed() -> None:
    clerk = Clerk(transfers("sales"), says("Sales here."))
    await clerk.draft("draft", "a price")
    assert clerk.agent.active == "desk"
    clerk.commit("turn", "a price")
    assert clerk.agent.active == "desk"
    clerk.agent.confirm("draft", turn_id="turn")
    assert clerk.agent.active == "sales"
    assert [(one.specialist, one.receiver) for one in clerk.stored] == [("desk", "sales")]


async def test_a_draft_of_committed_words_is_none() -> None:
    clerk = Clerk(calls("charge"), says("Charged."))
    clerk.commit("turn", "charge my card")
    assert await clerk.draft("turn", "charge my card") == "Charged."
    assert clerk.ran == ["charge turn:call_1"]
    assert clerk.told[0] == ("turn", "charge my card")


async def test_words_committed_under_the_draft_s_own_id_confirm_it() -> None:
    clerk = Clerk(calls("charge"), says("Charged."))
    answering = asyncio.create_task(clerk.draft("turn", "charge my card"))
    await settle()
    clerk.commit("turn", "charge my card")
    assert await answering == "Charged."


async def test_a_confirmed_draft_that_is_asked_again_answers_the_same_turn() -> None:
    gate = asyncio.Event()
    broken = LLMUnavailable(cause=OSError(), retryable=True)
    clerk = Clerk([gate, broken], calls("charge"), says("Charged."))
    answering = asyncio.create_task(clerk.draft("draft", "charge my card"))
    await settle()
    clerk.commit("turn", "charge my card")
    clerk.agent.confirm("draft", turn_id="turn")
    gate.set()
    with pytest.raises(LLMUnavailable):
        await answering
    assert await clerk.draft("draft", "charge my card") == "Charged."
    assert [message.content for message in clerk.llm.requests[1].messages[1:]] == ["charge my card"]
    assert clerk.ran == ["charge turn:call_1"]


async def test_what_a_turn_has_done_is_stored_although_the_caller_interrupts_it() -> None:
    clerk = Clerk(calls("charge"), [*says("Char"), asyncio.Event()])
    async with aclosing(clerk.agent.respond(UserTurn("turn", "charge my card"))) as events:
        async for event in events:
            if getattr(event, "text", "") == "Char":
                break
    assert [exchange.call.name for exchange in clerk.stored] == ["charge"]
    assert clerk.stored[0].is_done
    assert len(clerk.agent.history) == 3


async def test_a_refused_call_is_stored_as_not_done() -> None:
    clerk = Clerk(calls("fly"), says("I cannot."))
    await clerk.draft("turn", "fly")
    clerk.commit("turn", "fly")
    assert [exchange.is_done for exchange in clerk.stored] == [False]


async def test_a_conversation_goes_on_with_the_specialist_it_is_told() -> None:
    specialist = Specialist(name="desk", title="", description="", instructions="")
    other = Specialist(name="sales", title="", description="", instructions="")
    agent: Any = SupervisorAgent(Roster([specialist, other]), llm=ScriptedLLM(), slots={}, active="sales")
    assert agent.active == "sales"
    assert SpecialistAgent(specialist, llm=ScriptedLLM(), slots={}).active == "desk"
