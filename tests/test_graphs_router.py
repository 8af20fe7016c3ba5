"""Who answers: what both routers promise, and how a verdict comes before a specialist's first word or too late."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, suppress

import pytest

from graphs.entities import (
    Exchange,
    LLMEvent,
    Message,
    TextDelta,
    Token,
    ToolCallStarted,
    ToolSchema,
    Transferred,
    UsageReported,
    UserTurn,
)
from graphs.errors import LLMUnavailable
from graphs.nodes import NOTHING_SAID, ROUTER_PATIENCE
from graphs.ports import LLMPort
from graphs.roster import Roster, Specialist
from graphs.router import LAST_MESSAGES, AgentRouterPort, SpeculativeRouter, StickyRouter
from graphs.supervisor import SupervisorAgent
from tests.scripted_llm import ScriptedLLM, Step, calls, says, spoken, take, transfers

BRIDGE = "One moment."
QUESTION = (Message(id="u", role="user", content="How much is it?"),)


def down() -> LLMUnavailable:
    return LLMUnavailable(cause=ConnectionError(), retryable=True)


def roster(*names: str) -> Roster:
    return Roster(
        Specialist(name=name, title=name.title(), description=f"all about {name}", instructions=name, bridge=BRIDGE)
        for name in names
    )


TEAM = roster("desk", "sales", "support")


def unreported(usage: UsageReported) -> None:
    raise AssertionError(f"no model was to be asked, and it consumed {usage}")


Verdict = Sequence[Step]
Make = Callable[[Verdict], AgentRouterPort]


def sticky(_: Verdict) -> AgentRouterPort:
    return StickyRouter()


def speculative(verdict: Verdict) -> AgentRouterPort:
    return SpeculativeRouter(ScriptedLLM(verdict))


@pytest.fixture(params=[sticky, speculative], ids=["sticky", "speculative"])
def make(request: pytest.FixtureRequest) -> Make:
    """Each implementation of the port: the tests that take it are the port's contract."""
    made: Make = request.param
    return made


@pytest.mark.parametrize(("active", "begins"), [(None, "desk"), ("sales", "sales"), ("gone", "desk")])
def test_whoever_answered_last_begins_or_else_the_first_of_the_roster(make: Make, active: str, begins: str) -> None:
    assert make(transfers("support")).begin(active, TEAM) == begins


VERDICTS = {
    "stays": says("stay"),
    "itself": transfers("desk"),
    "a stranger": transfers("astrology"),
    "no JSON": calls("transfer_to", "{"),
    "another tool": calls("launch_rocket"),
    "nothing": [],
    "fails": [down()],
    "fails late": [ToolCallStarted("c", "transfer_to"), down()],
}


@pytest.mark.parametrize("verdict", VERDICTS.values(), ids=VERDICTS.keys())
async def test_without_a_colleague_by_name_the_active_specialist_goes_on(make: Make, verdict: Verdict) -> None:
    assert await make(verdict).reconsider("desk", TEAM, QUESTION, report=unreported) is None


async def test_whoever_is_named_is_a_colleague_on_the_roster(make: Make) -> None:
    assert await make(transfers("sales")).reconsider("desk", TEAM, QUESTION, report=unreported) in (None, "sales")


async def test_nobody_is_asked_about_a_roster_of_one(make: Make) -> None:
    router = make([AssertionError("nobody else is there")])
    assert await router.reconsider("desk", roster("desk"), QUESTION, report=unreported) is None


async def test_a_router_can_be_given_up_at_any_time(make: Make) -> None:
    asking = asyncio.create_task(make([asyncio.Event()]).reconsider("desk", TEAM, QUESTION, report=unreported))
    await asyncio.sleep(0)
    asking.cancel()
    with suppress(asyncio.CancelledError):
        assert await asking is None


async def test_the_small_model_reads_the_last_words_and_no_tools_or_handbooks() -> None:
    llm = ScriptedLLM(transfers("sales"))
    words = [Message(id=str(number), role="user", content=f"word {number}") for number in range(40)]
    tool = Message(id="t", role="tool", content="{}", tool_call_id="c")
    named = await SpeculativeRouter(llm).reconsider("desk", TEAM, [*words, tool], report=unreported)
    assert named == "sales"
    system, *rest = llm.requests[0].messages
    assert "desk" in system.content.splitlines()[0]
    assert [message.content for message in rest] == [f"word {number}" for number in range(40 - LAST_MESSAGES, 40)]
    assert llm.requests[0].tools == ("transfer_to",)
    assert llm.schemas[0].parameters["properties"]["specialist"]["enum"] == ["sales", "support"]


async def test_a_model_that_thinks_aloud_may_still_name_somebody() -> None:
    llm = ScriptedLLM([*says("Sales", " knows."), *transfers("sales")])
    assert await SpeculativeRouter(llm).reconsider("desk", TEAM, QUESTION, report=unreported) == "sales"


async def test_what_a_verdict_consumed_is_reported() -> None:
    used: list[UsageReported] = []
    llm = ScriptedLLM([*transfers("sales"), UsageReported(80, 9)])
    await SpeculativeRouter(llm).reconsider("desk", TEAM, QUESTION, report=used.append)
    assert used == [UsageReported(80, 9)]


class Team:
    """Three specialists, the model that speaks for them, and the router's own."""

    def __init__(self, *scripts: Sequence[Step], verdicts: Sequence[Verdict]) -> None:
        self.llm = ScriptedLLM(*scripts)
        self.router = ScriptedLLM(*verdicts)
        self.stored: list[Exchange] = []
        self.agent = SupervisorAgent(
            TEAM, llm=self.llm, slots={}, router=SpeculativeRouter(self.router), on_exchange=self.stored.append
        )

    @property
    def transfers(self) -> list[tuple[str, str, str]]:
        return [(one.turn_id, one.specialist, one.receiver) for one in self.stored]


async def test_somebody_named_before_the_first_word_takes_the_caller_over() -> None:
    team = Team([asyncio.Event()], says("Sales here."), verdicts=[transfers("sales")])
    events = await take(team.agent, "how much?")
    assert events == [
        TextDelta(f"{BRIDGE} ", "desk"),
        Transferred("desk", "sales"),
        TextDelta("Sales here.", "sales"),
    ]
    assert team.llm.closed == 2
    assert team.transfers == [("turn_1", "desk", "sales")]
    assert team.agent.active == "sales"
    assert [message.role for message in team.agent.history] == ["user", "assistant", "tool"]


async def test_the_new_specialist_reads_the_hand_over_as_if_a_colleague_had_made_it() -> None:
    team = Team([asyncio.Event()], says("Sales here."), verdicts=[transfers("sales")])
    await take(team.agent, "how much?")
    system, *rest = team.llm.requests[1].messages
    assert "sales" in system.content.splitlines()[0]
    assert [message.role for message in rest] == ["user", "assistant", "assistant", "tool"]
    assert rest[1].content == BRIDGE
    assert rest[2].tool_calls[0].id == rest[3].tool_call_id
    assert json.loads(rest[3].content) == {"transferred_to": "sales"}


async def test_a_first_word_waits_for_the_verdict() -> None:
    verdict = asyncio.Event()
    team = Team(says("I am not sure."), says("Sales here."), verdicts=[[verdict, *transfers("sales")]])
    answering = asyncio.create_task(take(team.agent, "how much?"))
    await asyncio.sleep(0.02)
    verdict.set()
    assert spoken(await answering) == f"{BRIDGE} Sales here."


async def test_a_verdict_to_stay_lets_the_specialist_speak() -> None:
    verdict = asyncio.Event()
    team = Team(says("We open", " at nine."), verdicts=[[verdict, *says(" St", "ay"), asyncio.Event()]])
    answering = asyncio.create_task(take(team.agent, "when?"))
    await asyncio.sleep(0.02)
    verdict.set()
    assert spoken(await answering) == "We open at nine."
    assert (len(team.llm.requests), len(team.router.requests)) == (1, 1)


async def test_a_first_word_does_not_wait_for_a_slow_router() -> None:
    late = asyncio.Event()
    team = Team([*says("We open"), late, *says(" at nine.")], verdicts=[[late, *transfers("sales")]])
    began = time.monotonic()
    async with aclosing(team.agent.respond(UserTurn("turn_1", "when?"))) as events:
        assert await anext(events) == TextDelta("We open", "desk")
        assert time.monotonic() - began >= ROUTER_PATIENCE * 0.9
        late.set()
        assert [event async for event in events] == [TextDelta(" at nine.", "desk")]
    assert team.transfers == [] and team.agent.active == "desk"
    assert team.router.closed == 1


async def test_a_verdict_later_than_that_still_counts_while_nothing_is_said() -> None:
    late = asyncio.Event()
    team = Team([asyncio.Event()], says("Sales here."), verdicts=[[late, *transfers("sales")]])
    answering = asyncio.create_task(take(team.agent, "how much?"))
    await asyncio.sleep(ROUTER_PATIENCE + 0.05)
    late.set()
    assert spoken(await answering) == f"{BRIDGE} Sales here."


async def test_a_specialist_who_hands_over_does_not_wait_for_a_verdict() -> None:
    arguments, verdict = asyncio.Event(), asyncio.Event()
    started, call = transfers("support")
    team = Team([started, arguments, call], says("Support."), verdicts=[[verdict, *transfers("sales")]])
    async with aclosing(team.agent.respond(UserTurn("turn_1", "broken"))) as events:
        assert await anext(events) == TextDelta(f"{BRIDGE} ", "desk")
        verdict.set()
        await asyncio.sleep(0)
        arguments.set()
        assert await anext(events) == Transferred("desk", "support")
        assert await anext(events) == TextDelta("Support.", "support")


async def test_a_router_that_fails_is_not_noticed_by_the_caller() -> None:
    team = Team(says("We open at nine."), verdicts=[[down()]])
    assert spoken(await take(team.agent, "when?")) == "We open at nine."


async def test_a_defect_of_a_router_is_not_hidden() -> None:
    team = Team(says("We open at nine."), verdicts=[[ZeroDivisionError()]])
    with pytest.raises(ZeroDivisionError):
        await take(team.agent, "when?")


async def test_a_specialist_who_says_nothing_waits_for_the_verdict() -> None:
    verdict = asyncio.Event()
    team = Team([UsageReported(5, 0)], says("Sales here."), verdicts=[[verdict, *transfers("sales")]])
    answering = asyncio.create_task(take(team.agent, "how much?"))
    await asyncio.sleep(0.02)
    verdict.set()
    assert spoken(await answering) == f"{BRIDGE} Sales here."
    quiet = Team([Token("")], verdicts=[says("stay")])
    assert spoken(await take(quiet.agent, "hello?")) == NOTHING_SAID


async def test_a_model_that_fails_is_an_error_of_the_turn_whatever_the_router_does() -> None:
    team = Team([down()], says("Yes?"), verdicts=[[asyncio.Event()], says("stay")])
    with pytest.raises(LLMUnavailable):
        await take(team.agent, "hello?")
    assert team.router.closed == 1
    assert spoken(await take(team.agent, "hello?", turn_id="turn_2")) == "Yes?"


async def test_a_turn_is_reconsidered_once() -> None:
    team = Team([asyncio.Event()], says("Sales here."), verdicts=[transfers("sales")])
    await take(team.agent, "how much?")
    assert len(team.router.requests) == 1


async def test_a_verdict_counts_as_a_hand_over_of_the_turn() -> None:
    second = transfers("support", call_id="call_2")
    team = Team([asyncio.Event()], second, says("Me then."), verdicts=[transfers("sales")])
    events = await take(team.agent, "who helps me?")
    assert [event.target for event in events if isinstance(event, Transferred)] == ["sales", "support"]
    assert "transfer_to" not in team.llm.requests[2].tools


async def test_a_turn_that_handed_over_and_failed_is_not_reconsidered_when_it_is_asked_again() -> None:
    team = Team([asyncio.Event()], [down()], says("Sales here."), verdicts=[transfers("sales"), transfers("desk")])
    team.agent.commit_user(Message(id="turn_1", role="user", content="how much?"))
    with pytest.raises(LLMUnavailable):
        await take(team.agent, "how much?")
    assert await take(team.agent, "how much?") == [TextDelta("Sales here.", "sales")]
    assert len(team.router.requests) == 1
    assert team.transfers == [("turn_1", "desk", "sales")]


async def test_a_verdict_on_a_draft_leaves_no_trace_until_it_is_confirmed() -> None:
    team = Team([asyncio.Event()], says("Sales here."), verdicts=[transfers("sales")])
    async with aclosing(team.agent.respond(UserTurn("draft", "how much"), draft=True)) as events:
        assert spoken([event async for event in events]) == f"{BRIDGE} Sales here."
    assert (team.agent.active, team.agent.history, team.transfers) == ("desk", (), [])
    team.agent.commit_user(Message(id="turn", role="user", content="How much?"))
    team.agent.confirm("draft", turn_id="turn")
    assert (team.agent.active, team.transfers) == ("sales", [("turn", "desk", "sales")])


async def test_a_turn_that_is_cut_off_before_the_first_word_closes_both_models() -> None:
    team = Team([asyncio.Event()], says("Yes?"), verdicts=[[asyncio.Event()], says("stay")])
    answering = asyncio.create_task(take(team.agent, "how much?"))
    await asyncio.sleep(0.02)
    answering.cancel()
    with suppress(asyncio.CancelledError):
        await answering
    assert (team.llm.closed, team.router.closed) == (1, 1)
    assert spoken(await take(team.agent, "hello?", turn_id="turn_2")) == "Yes?"


@pytest.mark.parametrize("steps", range(0, 80, 2))
async def test_a_turn_cancelled_at_any_step_closes_what_it_opened(steps: int) -> None:
    team = Team([asyncio.Event()], says("Sales here."), verdicts=[transfers("sales"), says("stay")])
    answering = asyncio.create_task(take(team.agent, "how much?"))
    for _ in range(steps):
        await asyncio.sleep(0)
    answering.cancel()
    await asyncio.gather(answering, return_exceptions=True)
    assert team.llm.closed == len(team.llm.requests)
    assert team.router.closed == len(team.router.requests)
    assert team.agent.active == ("sales" if team.stored else "desk")
    team.llm.goes_on_with(says("Yes?"))
    team.router.goes_on_with(says("stay"))
    assert spoken(await take(team.agent, "hello?", turn_id="turn_2")) == "Yes?"


class Leisurely:
    """A model whose connection takes a moment to close."""

    def __init__(self, llm: LLMPort) -> None:
        self._llm = llm
        self.open = 0

    async def __call__(
        self, messages: Sequence[Message], tools: Sequence[ToolSchema]
    ) -> AsyncGenerator[LLMEvent, None]:
        self.open += 1
        try:
            async with aclosing(self._llm(messages, tools)) as events:
                async for event in events:
                    yield event
        finally:
            await asyncio.sleep(0.01)
            self.open -= 1


async def test_a_call_that_is_given_up_has_ended_before_the_next_specialist_is_asked() -> None:
    opened: list[int] = []
    llm = Leisurely(ScriptedLLM([asyncio.Event()], [lambda: opened.append(llm.open), *says("Sales here.")]))
    agent = SupervisorAgent(TEAM, llm=llm, slots={}, router=SpeculativeRouter(ScriptedLLM(transfers("sales"))))
    assert spoken(await take(agent, "how much?")) == f"{BRIDGE} Sales here."
    assert (opened, llm.open) == ([1], 0)
