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
        #: Closed, it keeps tools from ending.
        self.gate = asyncio.Event()
        self.gate.set()
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
            await self.gate.wait()
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
    for _ in range(200):
        await asyncio.sleep(0)


async def cut_off(clerk: Clerk, turn_id: str, text: str) -> None:
    """Cancel an answer when it has come as far as it can."""
    answering = asyncio.create_task(clerk.draft(turn_id, text))
    await settle()
    answering.cancel()
    await asyncio.gather(answering, return_exceptions=True)


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
    await cut_off(clerk, "draft", "charge my")
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


async def test_a_tool_with_side_effects_that_has_begun_is_finished_and_remembered_although_the_turn_is_cut_off() -> (
    None
):
    clerk = Clerk(calls("charge", call_id="c1"), says("Yes?"), transfers("sales"), says("Sales."))
    clerk.gate.clear()
    clerk.commit("turn", "charge my card")
    await cut_off(clerk, "turn", "charge my card")
    assert clerk.stored == []
    clerk.gate.set()
    await settle()
    assert (clerk.ran, [one.call.id for one in clerk.stored]) == (["charge turn:c1"], ["c1"])
    clerk.commit("next", "hello?")
    assert await clerk.draft("next", "hello?") == "Yes?"
    assert [message.role for message in clerk.llm.requests[1].messages] == [
        "system",
        "user",
        "assistant",
        "tool",
        "user",
    ]


async def test_a_tool_that_ends_late_stands_in_its_own_turn_and_undoes_no_hand_over() -> None:
    clerk = Clerk(calls("charge", call_id="c1"), transfers("sales"), says("Sales."))
    clerk.gate.clear()
    clerk.commit("turn", "charge my card")
    await cut_off(clerk, "turn", "charge my card")
    clerk.commit("next", "a price")
    assert await clerk.draft("next", "a price") == "One moment. Sales."
    clerk.gate.set()
    await settle()
    assert clerk.agent.active == "sales"
    assert [one.receiver for one in clerk.stored] == ["sales", "sales"]
    assert [message.id for message in clerk.agent.history] == [
        "turn",
        "turn:c1",
        "turn:c1:result",
        "next",
        "next:call_t",
        "next:call_t:result",
    ]


async def test_who_leaves_can_wait_for_tools_of_turns_that_were_cut_off() -> None:
    clerk = Clerk(calls("charge", call_id="c1"))
    clerk.gate.clear()
    clerk.commit("turn", "charge my card")
    assert await clerk.agent.finish_tools(timeout=0)
    await cut_off(clerk, "turn", "charge my card")
    assert not await clerk.agent.finish_tools(timeout=0.01)
    asyncio.get_running_loop().call_later(0.01, clerk.gate.set)
    assert await clerk.agent.finish_tools(timeout=5)
    assert [one.call.id for one in clerk.stored] == ["c1"]


async def test_a_tool_that_only_looks_ends_with_its_turn() -> None:
    clerk = Clerk(calls("look_up"), says("Yes?"))
    clerk.gate.clear()
    clerk.commit("turn", "the price")
    await cut_off(clerk, "turn", "the price")
    clerk.gate.set()
    await settle()
    assert (clerk.ran, clerk.stored) == ([], [])


async def test_an_answer_closed_while_its_tool_waits_for_the_words_never_runs_it_even_when_they_are_committed() -> None:
    clerk = Clerk(calls("charge"), says("Which card?"))
    events = clerk.agent.respond(UserTurn("draft", "charge my"), draft=True)
    waiting = asyncio.ensure_future(anext(events))
    await settle()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await events.aclose()
    clerk.commit("turn", "charge my card")
    clerk.agent.confirm("draft", turn_id="turn")
    await settle()
    assert (clerk.ran, clerk.stored) == ([], [])


async def test_what_a_draft_did_before_it_was_cut_off_counts_when_its_words_turn_out_to_be_certain() -> None:
    clerk = Clerk([*transfers("sales")], [*says("Sales"), asyncio.Event()])
    async with aclosing(clerk.agent.respond(UserTurn("draft", "a price"), draft=True)) as events:
        async for event in events:
            if getattr(event, "text", "") == "Sales":
                break
    clerk.commit("turn", "a price")
    clerk.agent.confirm("draft", turn_id="turn")
    assert (clerk.agent.active, [one.turn_id for one in clerk.stored]) == ("sales", ["turn"])


async def test_confirming_twice_remembers_once() -> None:
    clerk = Clerk(calls("look_up"), says("It is ten."))
    await clerk.draft("draft", "the price")
    clerk.commit("turn", "the price")
    clerk.agent.confirm("draft", turn_id="turn")
    clerk.agent.confirm("draft", turn_id="turn")
    assert len(clerk.stored) == 1 and len(clerk.agent.history) == 3


async def test_a_failed_draft_that_is_asked_again_does_not_count_twice() -> None:
    broken = LLMUnavailable(cause=OSError(), retryable=True)
    clerk = Clerk(calls("look_up"), [broken], calls("look_up", call_id="call_2"), says("It is ten."))
    with pytest.raises(LLMUnavailable):
        await clerk.draft("draft", "the price")
    assert await clerk.draft("draft", "the price") == "It is ten."
    clerk.commit("turn", "the price")
    clerk.agent.confirm("draft", turn_id="turn")
    assert [one.call.id for one in clerk.stored] == ["call_2"]


async def test_exchanges_of_a_draft_keep_their_order_across_the_confirmation() -> None:
    both = [*calls("look_up", call_id="c1"), *calls("charge", call_id="c2")]
    clerk = Clerk(both, says("Charged."))
    answering = asyncio.create_task(clerk.draft("draft", "charge what I owe"))
    await settle()
    clerk.commit("turn", "charge what I owe")
    clerk.agent.confirm("draft", turn_id="turn")
    assert await answering == "Charged."
    assert [one.call.id for one in clerk.stored] == ["c1", "c2"]
    assert [message.id for message in clerk.agent.history] == [
        "turn",
        "turn:c1",
        "turn:c1:result",
        "turn:c2",
        "turn:c2:result",
    ]


@pytest.mark.parametrize("steps", range(0, 122, 2))
async def test_a_turn_cancelled_at_any_step_leaves_whole_exchanges_and_an_agent_that_answers(steps: int) -> None:
    asked = [calls("look_up", call_id="c1"), calls("charge", call_id="c2"), transfers("sales"), says("Sales.")]
    clerk = Clerk(*asked, *asked)
    clerk.commit("turn", "do it all")
    answering = asyncio.create_task(clerk.draft("turn", "do it all"))
    for _ in range(steps):
        await asyncio.sleep(0)
    answering.cancel()
    await asyncio.gather(answering, return_exceptions=True)
    await settle()
    requests = [call.id for message in clerk.agent.history for call in message.tool_calls]
    assert requests == [message.tool_call_id for message in clerk.agent.history if message.role == "tool"]
    assert requests == [one.call.id for one in clerk.stored]
    assert [ran for ran in clerk.ran if ran.startswith("charge")] == ["charge turn:c2"] * requests.count("c2")
    assert clerk.agent.active == ("sales" if "call_t" in requests else "desk")
    clerk.llm.goes_on_with(says("Yes?"))
    assert await clerk.draft("next", "hello?") == "Yes?"
