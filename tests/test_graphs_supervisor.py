"""The supervisor graph: who answers, what is said at once, and what is remembered."""

import asyncio
import json
from collections.abc import Mapping
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any

import pytest

from graphs.entities import Message, TextDelta, Token, ToolCalled, Transferred, UsageReported, UserTurn
from graphs.errors import LLMUnavailable, TicketsUnavailable, TurnInProgress
from graphs.nodes import NOTHING_SAID
from graphs.ports import AgentPort
from graphs.roster import Roster, Specialist, Tool
from graphs.supervisor import SpecialistAgent, SupervisorAgent, build_supervisor
from graphs.tickets import SQLiteTickets
from tests.scripted_llm import ScriptedLLM, calls, says, spoken, take, transfers


def supervisor(llm: ScriptedLLM, tmp_path: Path, **slots: object) -> SupervisorAgent:
    return build_supervisor(llm=llm, open_ticket=SQLiteTickets(tmp_path / "tickets.db"), slots=slots)


def told(agent: AgentPort, kind: str = "content") -> list[Any]:
    return [(message.role, getattr(message, kind)) for message in agent.history]


class Recorder:
    """A tool that keeps its calls; can be told to wait, or to fail."""

    def __init__(self, *, gate: asyncio.Event | None = None, error: Exception | None = None) -> None:
        self.runs: list[tuple[Mapping[str, object], str]] = []
        self._gate = gate
        self._error = error

    async def run(self, arguments: Mapping[str, object], *, idempotency_key: str) -> Mapping[str, object]:
        if self._gate:
            await self._gate.wait()
        if self._error:
            raise self._error
        self.runs.append((arguments, idempotency_key))
        return {"summary": "It is noted."}

    def specialist(self, name: str = "clerk") -> Specialist:
        parameters = {
            "type": "object",
            "properties": {"text": {"type": "string"}},
            "required": ["text"],
        }
        note = Tool(name="note", description="Write it down.", parameters=parameters, run=self.run)
        return Specialist(
            name=name,
            title="Clerk",
            description="notes",
            instructions="Take notes.",
            tools=(note,),
            bridge="One moment.",
        )


async def test_the_first_specialist_of_the_roster_answers_a_new_caller(tmp_path: Path) -> None:
    llm = ScriptedLLM(says("Hello."))
    agent = supervisor(llm, tmp_path)
    assert await take(agent, "hi") == [TextDelta("Hello.", "front_desk")]
    assert agent.active == "front_desk"


async def test_a_turn_without_hand_over_or_tool_makes_exactly_one_model_call(tmp_path: Path) -> None:
    llm = ScriptedLLM(says("Hel", "lo."))
    await take(supervisor(llm, tmp_path), "hi")
    assert len(llm.requests) == 1


async def test_text_is_spoken_before_the_answer_is_complete(tmp_path: Path) -> None:
    rest = asyncio.Event()
    agent = supervisor(ScriptedLLM([*says("We are"), rest, *says(" open.")]), tmp_path)
    async with aclosing(agent.respond(UserTurn("turn_1", "hi"))) as events:
        assert await anext(events) == TextDelta("We are", "front_desk")
        assert not rest.is_set()
        rest.set()
        assert await anext(events) == TextDelta(" open.", "front_desk")


async def test_usage_is_reported(tmp_path: Path) -> None:
    agent = supervisor(ScriptedLLM([Token("Hi."), UsageReported(120, 3)]), tmp_path)
    assert UsageReported(120, 3) in await take(agent, "hi")


async def test_a_hand_over_is_bridged_before_the_target_is_known(tmp_path: Path) -> None:
    arguments = asyncio.Event()
    started, call = transfers("sales")
    agent = supervisor(ScriptedLLM([started, arguments, call], says("Sales here.")), tmp_path)
    async with aclosing(agent.respond(UserTurn("turn_1", "a price, please"))) as events:
        bridge = await anext(events)
        assert isinstance(bridge, TextDelta) and bridge.text.startswith("One moment")
        arguments.set()
        assert await anext(events) == Transferred("front_desk", "sales")
        assert await anext(events) == TextDelta("Sales here.", "sales")


async def test_a_bridge_is_left_out_when_the_model_says_something_itself(tmp_path: Path) -> None:
    agent = supervisor(ScriptedLLM([*says("I will ask."), *transfers("sales")], says("Hi.")), tmp_path)
    assert spoken(await take(agent, "a price")) == "I will ask. Hi."


async def test_whoever_took_over_answers_the_next_turn(tmp_path: Path) -> None:
    llm = ScriptedLLM(transfers("tech_support"), says("What is broken?"), says("I see."))
    agent = supervisor(llm, tmp_path)
    await take(agent, "it is broken")
    assert await take(agent, "the router", turn_id="turn_2") == [TextDelta("I see.", "tech_support")]
    assert len(llm.requests) == 3


async def test_the_new_specialist_reads_the_question_the_bridge_and_the_hand_over(tmp_path: Path) -> None:
    llm = ScriptedLLM(transfers("sales"), says("Hi."))
    await take(supervisor(llm, tmp_path), "a price")
    system, *rest = llm.requests[1].messages
    assert "sales" in system.content.splitlines()[0]
    assert [message.role for message in rest] == ["user", "assistant", "assistant", "tool"]
    assert rest[1].content.startswith("One moment")
    assert rest[2].tool_calls[0].id == rest[3].tool_call_id == "call_t"


async def test_there_are_at_most_two_hand_overs_in_a_turn(tmp_path: Path) -> None:
    llm = ScriptedLLM(transfers("sales"), transfers("tech_support", call_id="call_u"), says("Me then."))
    events = await take(supervisor(llm, tmp_path), "who helps me?")
    assert [event.target for event in events if isinstance(event, Transferred)] == ["sales", "tech_support"]
    assert "transfer_to" in llm.requests[1].tools
    assert "transfer_to" not in llm.requests[2].tools


async def test_an_unknown_specialist_is_an_error_the_model_can_mend(tmp_path: Path) -> None:
    llm = ScriptedLLM(transfers("astrology"), transfers("sales", call_id="call_u"), says("Hi."))
    agent = supervisor(llm, tmp_path)
    events = await take(agent, "a price")
    assert "sales" in json.loads(llm.requests[1].last.content)["error"]
    assert [event for event in events if isinstance(event, Transferred)] == [Transferred("front_desk", "sales")]
    assert agent.active == "sales"


async def test_an_unknown_tool_is_an_error_the_model_can_mend(tmp_path: Path) -> None:
    llm = ScriptedLLM(calls("launch_rocket"), says("I cannot do that."))
    assert spoken(await take(supervisor(llm, tmp_path), "launch")) == "I cannot do that."
    assert "launch_rocket" in json.loads(llm.requests[1].last.content)["error"]


@pytest.mark.parametrize("arguments", ["{not json", "[]", "{}", '{"text": 5}', '{"text": "a", "x": 1}'])
async def test_malformed_arguments_never_reach_the_tool(arguments: str) -> None:
    recorder = Recorder()
    llm = ScriptedLLM(calls("note", arguments), says("Sorry."))
    events = await take(SpecialistAgent(recorder.specialist(), llm=llm, slots={}), "note it")
    assert "error" in json.loads(llm.requests[1].last.content)
    assert recorder.runs == [] and not any(isinstance(event, ToolCalled) for event in events)


async def test_a_tool_runs_with_the_turn_and_call_as_its_idempotency_key() -> None:
    recorder = Recorder()
    llm = ScriptedLLM(calls("note", {"text": "milk"}, call_id="c7"), says("Done."))
    agent = SpecialistAgent(recorder.specialist(), llm=llm, slots={})
    events = await take(agent, "note milk", turn_id="turn_9")
    assert recorder.runs == [({"text": "milk"}, "turn_9:c7")]
    assert events == [ToolCalled("note", "c7"), TextDelta("Done.", "clerk")]
    assert json.loads(llm.requests[1].last.content) == {"summary": "It is noted."}


async def test_several_tool_calls_of_one_answer_all_run_in_order() -> None:
    recorder = Recorder()
    both = [*calls("note", {"text": "a"}, call_id="c1"), *calls("note", {"text": "b"}, call_id="c2")]
    agent = SpecialistAgent(recorder.specialist(), llm=ScriptedLLM(both, says("Done.")), slots={})
    await take(agent, "note a and b")
    assert [arguments["text"] for arguments, _ in recorder.runs] == ["a", "b"]
    assert [message.role for message in agent.history] == ["user", *["assistant", "tool"] * 2]


async def test_a_model_that_only_calls_tools_is_stopped_after_four_calls() -> None:
    recorder = Recorder()
    scripts = [calls("note", {"text": "x"}, call_id=f"c{number}") for number in range(5)]
    llm = ScriptedLLM(*scripts)
    events = await take(SpecialistAgent(recorder.specialist(), llm=llm, slots={}), "note")
    assert len(llm.requests) == 4 and llm.requests[3].tools == ()
    assert len(recorder.runs) == 3
    assert spoken(events) == NOTHING_SAID


async def test_a_caller_hears_something_even_when_the_model_says_nothing(tmp_path: Path) -> None:
    assert spoken(await take(supervisor(ScriptedLLM([]), tmp_path), "hello?")) == NOTHING_SAID


async def test_a_bridge_is_not_left_hanging_when_the_new_specialist_says_nothing(tmp_path: Path) -> None:
    agent = supervisor(ScriptedLLM(transfers("sales"), []), tmp_path)
    assert (await take(agent, "a price"))[-1] == TextDelta(NOTHING_SAID, "sales")


async def test_a_tool_that_fails_is_told_to_the_model_and_the_call_goes_on() -> None:
    recorder = Recorder(error=TicketsUnavailable())
    llm = ScriptedLLM(calls("note", {"text": "x"}), says("That did not work."))
    events = await take(SpecialistAgent(recorder.specialist(), llm=llm, slots={}), "note")
    assert spoken(events) == "That did not work."
    assert "later" in json.loads(llm.requests[1].last.content)["error"]


async def test_a_defect_in_a_tool_is_not_hidden() -> None:
    recorder = Recorder(error=ZeroDivisionError())
    agent = SpecialistAgent(recorder.specialist(), llm=ScriptedLLM(calls("note", {"text": "x"})), slots={})
    with pytest.raises(ZeroDivisionError):
        await take(agent, "note")


async def test_an_unreachable_model_is_an_error_of_the_turn_and_not_silence(tmp_path: Path) -> None:
    down = LLMUnavailable(cause=ConnectionError(), retryable=True)
    agent = supervisor(ScriptedLLM([down], says("Back again.")), tmp_path)
    with pytest.raises(LLMUnavailable):
        await take(agent, "hello?")
    assert spoken(await take(agent, "are you there?", turn_id="turn_2")) == "Back again."


async def test_a_reply_is_remembered_only_when_it_was_heard(tmp_path: Path) -> None:
    agent = supervisor(ScriptedLLM(says("We open at nine and close at six.")), tmp_path)
    await take(agent, "when are you open?")
    assert told(agent) == [("user", "when are you open?")]
    agent.commit_assistant("turn_1", "We open at nine", interrupted=True, item_id="item_1")
    assert agent.history[-1] == Message(
        id="item_1", role="assistant", content="We open at nine", interrupted=True, specialist="front_desk"
    )


async def test_the_model_reads_the_words_that_were_heard(tmp_path: Path) -> None:
    llm = ScriptedLLM(says("One two three."), says("Yes."))
    agent = supervisor(llm, tmp_path)
    await take(agent, "count")
    agent.commit_assistant("turn_1", "One two", interrupted=True, item_id="item_1")
    await take(agent, "go on", turn_id="turn_2")
    assert [message.content for message in llm.requests[1].messages[1:]] == ["count", "One two", "go on"]


async def test_a_reply_nobody_heard_leaves_no_trace(tmp_path: Path) -> None:
    agent = supervisor(ScriptedLLM(says("Hello.")), tmp_path)
    await take(agent, "hi")
    agent.commit_assistant("turn_1", "", interrupted=True, item_id="item_1")
    assert told(agent) == [("user", "hi")]


async def test_a_late_commit_stands_before_the_next_turn(tmp_path: Path) -> None:
    agent = supervisor(ScriptedLLM(says("One.")), tmp_path)
    await take(agent, "first")
    agent.commit_user(Message(id="turn_2", role="user", content="second"))
    agent.commit_assistant("turn_1", "One.", interrupted=False, item_id="item_1")
    assert [text for _, text in told(agent)] == ["first", "One.", "second"]


async def test_committing_twice_replaces_instead_of_doubling(tmp_path: Path) -> None:
    agent = supervisor(ScriptedLLM(says("One two.")), tmp_path)
    agent.commit_user(Message(id="turn_1", role="user", content="count"))
    await take(agent, "count")
    agent.commit_assistant("turn_1", "One two.", interrupted=False, item_id="item_1")
    agent.commit_assistant("turn_1", "One", interrupted=True, item_id="item_1")
    assert told(agent) == [("user", "count"), ("assistant", "One")]


async def test_a_greeting_without_a_turn_is_the_first_thing_remembered(tmp_path: Path) -> None:
    agent = supervisor(ScriptedLLM(says("Hi.")), tmp_path)
    agent.commit_assistant("greeting", "Welcome!", interrupted=False, item_id="item_0")
    await take(agent, "hello")
    assert told(agent) == [("assistant", "Welcome!"), ("user", "hello")]


async def test_closing_a_turn_keeps_the_users_words_and_closes_the_model_stream(tmp_path: Path) -> None:
    llm = ScriptedLLM([*says("We are"), asyncio.Event()], says("Yes?"))
    agent = supervisor(llm, tmp_path)
    async with aclosing(agent.respond(UserTurn("turn_1", "hi"))) as events:
        await anext(events)
    assert llm.closed == 1
    assert told(agent) == [("user", "hi")]
    assert spoken(await take(agent, "again", turn_id="turn_2")) == "Yes?"


async def test_a_turn_cancelled_after_a_hand_over_keeps_the_new_specialist(tmp_path: Path) -> None:
    sales_asked, never = asyncio.Event(), asyncio.Event()
    llm = ScriptedLLM(transfers("sales"), [sales_asked.set, never], says("Sales."))
    agent = supervisor(llm, tmp_path)
    turn = asyncio.create_task(take(agent, "a price"))
    await sales_asked.wait()
    turn.cancel()
    with suppress(asyncio.CancelledError):
        await turn
    assert agent.active == "sales"
    assert told(agent, "role") == [("user", "user"), ("assistant", "assistant"), ("tool", "tool")]
    assert await take(agent, "so?", turn_id="turn_2") == [TextDelta("Sales.", "sales")]


async def test_a_turn_cancelled_between_two_tools_keeps_exactly_the_finished_one() -> None:
    recorder, waiting = Recorder(), Recorder(gate=asyncio.Event())
    clerk = recorder.specialist()
    slow = Tool(name="slow", description="", parameters=clerk.tools[0].parameters, run=waiting.run)
    clerk = Specialist(name="clerk", title="Clerk", description="", instructions="", tools=(*clerk.tools, slow))
    both = [*calls("note", {"text": "a"}, call_id="c1"), *calls("slow", {"text": "b"}, call_id="c2")]
    agent = SpecialistAgent(clerk, llm=ScriptedLLM(both), slots={})
    async with aclosing(agent.respond(UserTurn("turn_1", "both"))) as events:
        async for event in events:
            if event == ToolCalled("slow", "c2"):
                break
    calls_made = [call.id for message in agent.history for call in message.tool_calls]
    results = [message.tool_call_id for message in agent.history if message.role == "tool"]
    assert calls_made == results == ["c1"]


async def test_two_turns_at_once_are_refused_and_the_first_one_goes_on(tmp_path: Path) -> None:
    rest = asyncio.Event()
    agent = supervisor(ScriptedLLM([*says("We are"), rest, *says(" open.")]), tmp_path)
    async with aclosing(agent.respond(UserTurn("turn_1", "hi"))) as events:
        await anext(events)
        with pytest.raises(TurnInProgress):
            await take(agent, "me too", turn_id="turn_2")
        rest.set()
        assert await anext(events) == TextDelta(" open.", "front_desk")
    assert told(agent) == [("user", "hi")]


async def test_the_callers_name_reaches_the_instructions(tmp_path: Path) -> None:
    llm = ScriptedLLM(says("Hello Ada."))
    await take(supervisor(llm, tmp_path, name="Ada", locale=None), "hi")
    assert "name: Ada" in llm.requests[0].system
    assert "locale" not in llm.requests[0].system


async def test_the_system_prompt_holds_role_style_and_knowledge(tmp_path: Path) -> None:
    llm = ScriptedLLM(says("Hi."))
    await take(supervisor(llm, tmp_path), "hi")
    system = llm.requests[0].system
    assert "front_desk" in system.splitlines()[0]
    assert "one to three short spoken sentences" in system
    assert "Northwind Broadband" in system and "Harbour Street" in system


async def test_an_earlier_conversation_goes_on_with_whoever_answered_last(tmp_path: Path) -> None:
    history = (
        Message(id="u", role="user", content="my router", specialist="front_desk"),
        Message(id="a", role="assistant", content="Restart it.", specialist="tech_support"),
    )
    llm = ScriptedLLM(says("Good."))
    tickets = SQLiteTickets(tmp_path / "tickets.db")
    agent = build_supervisor(llm=llm, open_ticket=tickets, slots={}, history=history)
    assert await take(agent, "done") == [TextDelta("Good.", "tech_support")]
    assert [message.content for message in llm.requests[0].messages[1:]] == ["my router", "Restart it.", "done"]


async def test_a_specialist_alone_answers_through_the_same_port(tmp_path: Path) -> None:
    llm = ScriptedLLM(says("Noted."))
    agent: AgentPort = SpecialistAgent(Recorder().specialist(), llm=llm, slots={})
    assert spoken(await take(agent, "hi")) == "Noted."
    assert llm.requests[0].tools == ("note",)


async def test_every_specialist_of_the_roster_is_reachable_through_the_port(tmp_path: Path) -> None:
    for name in ("sales", "tech_support"):
        agent: AgentPort = supervisor(ScriptedLLM(transfers(name), says("Here.")), tmp_path)
        assert (await take(agent, "hi"))[-1] == TextDelta("Here.", name)


async def test_sales_looks_the_price_up_in_the_catalogue(tmp_path: Path) -> None:
    llm = ScriptedLLM(transfers("sales"), calls("look_up_price", {"product": "premium plan"}), says("Forty nine."))
    await take(supervisor(llm, tmp_path), "how much is pro?")
    result = json.loads(llm.requests[2].last.content)
    assert result["price_dollars"] == 49
    assert "forty nine dollars a month" in result["summary"]


async def test_a_repeated_tool_call_opens_one_ticket(tmp_path: Path) -> None:
    opens = calls("open_ticket", {"summary": "red light"}, call_id="c1")
    llm = ScriptedLLM(transfers("tech_support"), opens, opens, says("Done."))
    await take(supervisor(llm, tmp_path), "a ticket please")
    first, second = (json.loads(llm.requests[number].last.content)["ticket_id"] for number in (2, 3))
    assert first == second


def test_a_roster_of_one_offers_no_hand_over() -> None:
    assert Roster([Recorder().specialist()]).transfer_schema("clerk") is None
