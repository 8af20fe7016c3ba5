"""What every `AgentPort` promises to those who talk to it: the voice pipeline, the chat, the console."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import aclosing
from typing import Any

import pytest

from graphs.entities import Message, TextDelta, ToolCalled, UsageReported, UserTurn
from graphs.errors import LLMUnavailable, TurnInProgress
from graphs.ports import AgentPort
from graphs.responses import collect
from graphs.roster import Roster, Specialist, Tool
from graphs.router import SpeculativeRouter
from graphs.supervisor import SpecialistAgent, SupervisorAgent
from tests.scripted_llm import ScriptedLLM, calls, says, spoken, take

NOTHING: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}


async def charge(arguments: object, *, idempotency_key: str) -> dict[str, object]:
    return {"summary": f"Charged under {idempotency_key}."}


DESK = Specialist(
    name="desk",
    title="Desk",
    description="everything",
    instructions="Be kind.",
    tools=(Tool(name="charge", description="Charge the card.", parameters=NOTHING, run=charge),),
)
SALES = Specialist(name="sales", title="Sales", description="prices", instructions="Sell.")

Make = Callable[[ScriptedLLM, Sequence[Message]], AgentPort]


def team(llm: ScriptedLLM, history: Sequence[Message]) -> AgentPort:
    return SupervisorAgent(Roster([DESK, SALES]), llm=llm, slots={}, history=history)


def routed_team(llm: ScriptedLLM, history: Sequence[Message]) -> AgentPort:
    router = SpeculativeRouter(ScriptedLLM(*[says("stay")] * 10))
    return SupervisorAgent(Roster([DESK, SALES]), llm=llm, slots={}, history=history, router=router)


def alone(llm: ScriptedLLM, history: Sequence[Message]) -> AgentPort:
    return SpecialistAgent(DESK, llm=llm, slots={}, history=history)


@pytest.fixture(params=[team, routed_team, alone], ids=["team", "routed team", "specialist"])
def make(request: pytest.FixtureRequest) -> Make:
    made: Make = request.param
    return made


def words(agent: AgentPort) -> list[tuple[str, str]]:
    return [(message.id, message.content) for message in agent.history]


async def draft(agent: AgentPort, turn_id: str, text: str) -> str:
    async with aclosing(agent.respond(UserTurn(turn_id, text), draft=True)) as events:
        return (await collect(events)).text


def commit(agent: AgentPort, turn_id: str, text: str) -> None:
    agent.commit_user(Message(id=turn_id, role="user", content=text))


async def test_a_turn_is_answered_in_pieces_and_the_user_s_words_are_remembered(make: Make) -> None:
    agent = make(ScriptedLLM([*says("We open", " at nine."), UsageReported(9, 4)]), ())
    assert await take(agent, "when?") == [
        TextDelta("We open", "desk"),
        TextDelta(" at nine.", "desk"),
        UsageReported(9, 4),
    ]
    assert words(agent) == [("turn_1", "when?")]
    assert agent.active == "desk"


async def test_words_that_are_committed_already_are_not_doubled(make: Make) -> None:
    agent = make(ScriptedLLM(says("Hi.")), ())
    commit(agent, "turn_1", "Hello!")
    await take(agent, "hello")
    assert words(agent) == [("turn_1", "Hello!")]


async def test_what_was_heard_of_a_reply_is_remembered_once(make: Make) -> None:
    llm = ScriptedLLM(says("One two three."), says("Four."))
    agent = make(llm, ())
    await take(agent, "count")
    agent.commit_assistant("turn_1", "One two three.", interrupted=False, item_id="reply")
    agent.commit_assistant("turn_1", "One two", interrupted=True, item_id="reply")
    await take(agent, "go on", turn_id="turn_2")
    assert words(agent) == [("turn_1", "count"), ("reply", "One two"), ("turn_2", "go on")]
    assert [message.content for message in llm.requests[1].messages[1:]] == ["count", "One two", "go on"]


async def test_a_conversation_goes_on_from_its_history(make: Make) -> None:
    llm = ScriptedLLM(says("Yes."))
    agent = make(llm, (Message(id="u", role="user", content="hi"), Message(id="a", role="assistant", content="Hello.")))
    await take(agent, "still there?")
    assert [message.content for message in llm.requests[0].messages[1:]] == ["hi", "Hello.", "still there?"]


async def test_a_draft_leaves_no_trace_until_it_is_confirmed(make: Make) -> None:
    agent = make(ScriptedLLM(calls("charge"), says("Charged."), says("Hello.")), ())
    answering = asyncio.create_task(draft(agent, "draft", "charge me"))
    await asyncio.sleep(0.02)
    assert words(agent) == [] and not answering.done()
    commit(agent, "turn", "Charge me.")
    agent.confirm("unknown", turn_id="turn")
    await asyncio.sleep(0.02)
    assert not answering.done()
    agent.confirm("draft", turn_id="turn")
    assert await answering == "Charged."
    assert [message.role for message in agent.history] == ["user", "assistant", "tool"]


async def test_a_discarded_draft_leaves_no_trace(make: Make) -> None:
    agent = make(ScriptedLLM(calls("charge"), says("Which one?")), ())
    async with asyncio.timeout(5), aclosing(agent.respond(UserTurn("draft", "charge"), draft=True)) as events:
        waiting = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0.02)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    commit(agent, "turn", "charge the other card")
    assert await draft(agent, "turn", "charge the other card") == "Which one?"
    assert words(agent) == [("turn", "charge the other card")]


async def test_a_tool_of_a_committed_turn_runs_under_its_own_key(make: Make) -> None:
    agent = make(ScriptedLLM(calls("charge", call_id="c7"), says("Done.")), ())
    assert ToolCalled("charge", "c7") in await take(agent, "charge me", turn_id="turn_9")
    assert "turn_9:c7" in agent.history[-1].content


async def test_a_second_turn_is_refused_while_one_is_answered(make: Make) -> None:
    rest = asyncio.Event()
    agent = make(ScriptedLLM([*says("We"), rest, *says(" are.")], says("Yes?")), ())
    async with aclosing(agent.respond(UserTurn("turn_1", "hi"))) as events:
        await anext(events)
        with pytest.raises(TurnInProgress):
            await take(agent, "me too", turn_id="turn_2")
        rest.set()
        assert [event async for event in events] == [TextDelta(" are.", "desk")]
    assert spoken(await take(agent, "hello?", turn_id="turn_3")) == "Yes?"


async def test_closing_an_answer_ends_the_turn_and_its_model_call(make: Make) -> None:
    llm = ScriptedLLM([*says("We"), asyncio.Event()], says("Yes?"))
    agent = make(llm, ())
    async with aclosing(agent.respond(UserTurn("turn_1", "hi"))) as events:
        await anext(events)
    assert llm.closed == 1
    assert words(agent) == [("turn_1", "hi")]
    assert spoken(await take(agent, "again", turn_id="turn_2")) == "Yes?"


async def test_a_model_that_does_not_answer_is_an_error_of_one_turn(make: Make) -> None:
    agent = make(ScriptedLLM([LLMUnavailable(cause=OSError(), retryable=True)], says("Back.")), ())
    with pytest.raises(LLMUnavailable):
        await take(agent, "hello?")
    assert spoken(await take(agent, "hello?")) == "Back."
    assert words(agent) == [("turn_1", "hello?")]
