"""`AgentLLMService` in a pipeline of real Pipecat: text in, streamed frames out, in order."""

import asyncio
from pathlib import Path

import httpx2
import pytest
from aiohttp.test_utils import TestServer
from openai import APIConnectionError, AsyncOpenAI, AuthenticationError
from pipecat.frames.frames import (
    Frame,
    InterruptionFrame,
    LLMContextFrame,
    LLMContextUserTurnFrame,
    LLMFullResponseEndFrame,
    LLMFullResponseStartFrame,
    LLMServiceMetadataFrame,
    LLMTextFrame,
    MetricsFrame,
    UserStoppedSpeakingFrame,
)
from pipecat.metrics.metrics import LLMUsageMetricsData, TTFBMetricsData
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.tests.utils import run_test
from pipecat.utils.errors import ErrorCategory

from graphs.entities import ToolCalled, Transferred, UsageReported
from graphs.errors import LLMUnavailable
from graphs.knowledge.catalogue import DEMO
from graphs.llm.openai import OpenAILLM
from graphs.roster import Roster, Specialist
from graphs.supervisor import SupervisorAgent, build_supervisor
from graphs.tickets import SQLiteTickets
from local.providers.embeddings import SentenceEmbedder
from local.providers.responder import Responder
from local.providers.server import create_app
from muster.pipecat import AgentEventFrame, AgentLLMService
from tests.pipecat_service.pipeline import eventually, running
from tests.pipecat_service.team import agent_with, remembered
from tests.scripted_llm import ScriptedLLM, calls, says, transfers

REFUSED = APIConnectionError(request=httpx2.Request("POST", "http://model.invalid"))


def asks(text: str, *, role: str = "user") -> LLMContextFrame:
    return LLMContextFrame(LLMContext([{"role": role, "content": text}]))


async def test_text_goes_in_and_streamed_frames_come_out() -> None:
    llm = ScriptedLLM(says("It costs ", "forty ", "dollars."))
    agent = agent_with(llm)
    down, _ = await run_test(
        AgentLLMService(agent),
        frames_to_send=[asks("How much is it?")],
        expected_down_frames=[
            LLMServiceMetadataFrame,
            LLMFullResponseStartFrame,
            *[LLMTextFrame] * 3,
            LLMFullResponseEndFrame,
        ],
        expected_up_frames=[LLMServiceMetadataFrame],
    )
    assert [frame.text for frame in down if isinstance(frame, LLMTextFrame)] == ["It costs ", "forty ", "dollars."]
    assert remembered(agent) == ["user: How much is it?", "assistant: It costs forty dollars."]
    assert llm.requests[0].last.content == "How much is it?"


async def test_each_token_is_pushed_when_it_comes() -> None:
    gate = asyncio.Event()
    llm = ScriptedLLM([*says("One"), gate, *says(" two.")])
    async with running(AgentLLMService(agent_with(llm))) as pipeline:
        await pipeline.send(asks("Count!"))
        await pipeline.heard.count(LLMTextFrame)
        assert pipeline.heard.text == "One"
        gate.set()
        await pipeline.heard.count(LLMFullResponseEndFrame)
        assert pipeline.heard.text == "One two."


async def test_two_turns_keep_memory_although_each_context_holds_only_its_own_words() -> None:
    llm = ScriptedLLM(says("Hello Sam."), says("You are Sam."))
    async with running(AgentLLMService(agent_with(llm))) as pipeline:
        await pipeline.send(asks("I am Sam."), asks("Who am I?"))
        await pipeline.heard.count(LLMFullResponseEndFrame, 2)
    assert [message.content for message in llm.requests[1].messages[1:]] == ["I am Sam.", "Hello Sam.", "Who am I?"]


async def test_a_message_that_is_answered_again_is_one_turn() -> None:
    llm = ScriptedLLM([LLMUnavailable(cause=REFUSED, retryable=True)], says("Yes."))
    agent = agent_with(llm)
    question = asks("Are you there?")
    async with running(AgentLLMService(agent)) as pipeline:
        await pipeline.send(question)
        await pipeline.heard.count(LLMFullResponseEndFrame)
        await pipeline.send(LLMContextFrame(question.context))
        await pipeline.heard.count(LLMFullResponseEndFrame, 2)
    assert remembered(agent) == ["user: Are you there?", "assistant: Yes."]


async def test_the_same_words_said_again_are_another_turn() -> None:
    llm = ScriptedLLM(says("Sure?"), says("Done."))
    agent = agent_with(llm)
    async with running(AgentLLMService(agent)) as pipeline:
        await pipeline.send(asks("Yes."), asks("Yes."))
        await pipeline.heard.count(LLMFullResponseEndFrame, 2)
    assert remembered(agent) == ["user: Yes.", "assistant: Sure?", "user: Yes.", "assistant: Done."]


async def test_an_interruption_closes_the_answer_and_nothing_comes_after_it() -> None:
    never = asyncio.Event()
    llm = ScriptedLLM([*says("The first half, "), never, *says("the second half.")], says("Sorry."))
    agent = agent_with(llm)
    async with running(AgentLLMService(agent)) as pipeline:
        await pipeline.send(asks("Tell me."))
        await pipeline.heard.count(LLMTextFrame)
        await pipeline.send(InterruptionFrame())
        await pipeline.heard.count(InterruptionFrame)
        assert llm.closed == 1
        never.set()
        await pipeline.send(asks("Stop."))
        await pipeline.heard.until(lambda: pipeline.heard.text.endswith("Sorry."))
        assert pipeline.heard.text == "The first half, Sorry."
    assert remembered(agent) == ["user: Tell me.", "assistant…: The first half,", "user: Stop.", "assistant: Sorry."]


async def test_the_words_of_a_foreseen_turn_are_corrected_once() -> None:
    llm = ScriptedLLM(says("Forty."), says("Bye."))
    agent = agent_with(llm)
    foreseen = LLMContextFrame(LLMContext([{"role": "user", "content": "how much is it"}]), speculation=True)
    async with running(AgentLLMService(agent)) as pipeline:
        await pipeline.send(foreseen)
        await eventually(lambda: llm.closed == 1)
        assert pipeline.heard.text == ""
        await pipeline.send(UserStoppedSpeakingFrame())
        await pipeline.heard.count(LLMFullResponseEndFrame)
        await pipeline.send(LLMContextUserTurnFrame("How much is it?", timestamp=""))
        await pipeline.send(LLMContextUserTurnFrame("Bye.", timestamp=""), asks("Bye."))
        await pipeline.heard.count(LLMFullResponseEndFrame, 2)
    assert remembered(agent)[:3] == ["user: How much is it?", "assistant: Forty.", "user: Bye."]


async def test_a_hand_over_and_a_tool_call_are_seen_between_the_words() -> None:
    llm = ScriptedLLM(transfers("sales"), [*calls("look_up"), UsageReported(30, 3)], says("Forty."))
    agent = agent_with(llm)
    async with running(AgentLLMService(agent)) as pipeline:
        await pipeline.send(asks("How much is it?"))
        await pipeline.heard.count(LLMFullResponseEndFrame)
        told = [_told(frame) for frame in pipeline.heard.of(LLMTextFrame, AgentEventFrame)]
    assert told == ["One moment. ", Transferred("front_desk", "sales"), ToolCalled("look_up", "call_1"), "Forty."]
    assert agent.active == "sales"
    assert [request.system.split(" ")[4] for request in llm.requests] == ["front_desk", "sales", "sales"]


async def test_a_model_that_fails_is_an_error_frame_and_the_pipeline_lives_on() -> None:
    failure = LLMUnavailable(cause=REFUSED, retryable=True)
    llm = ScriptedLLM([*says("Well, "), failure], says("Here I am."))
    agent = agent_with(llm)
    async with running(AgentLLMService(agent)) as pipeline:
        await pipeline.send(asks("Hello?"))
        await pipeline.heard.count(LLMFullResponseEndFrame)
        (error,) = pipeline.errors
        assert error.exception is failure
        await pipeline.send(asks("And now?"))
        await pipeline.heard.count(LLMFullResponseEndFrame, 2)
    assert remembered(agent)[1:] == ["assistant…: Well,", "user: And now?", "assistant: Here I am."]


async def test_a_refused_key_is_classified_as_pipecat_does_it() -> None:
    response = httpx2.Response(401, request=REFUSED.request)
    failure = LLMUnavailable(cause=AuthenticationError("no", response=response, body=None), retryable=False)
    async with running(AgentLLMService(agent_with(ScriptedLLM([failure])))) as pipeline:
        await pipeline.send(asks("Hello?"))
        await pipeline.heard.count(LLMFullResponseEndFrame)
        (error,) = pipeline.errors
        assert error.category is ErrorCategory.AUTHENTICATION


async def test_the_company_s_team_answers_with_the_real_client_of_the_model(tmp_path: Path) -> None:
    embedder = SentenceEmbedder()
    responder = Responder(knowledge=DEMO, embed=embedder.embed)
    app = create_app(recogniser=None, voice=None, embedder=embedder, responder=responder)
    async with TestServer(app) as server, AsyncOpenAI(api_key="any", base_url=str(server.make_url("/v1"))) as client:
        llm = OpenAILLM(client, model="small")
        agent = build_supervisor(llm=llm, open_ticket=SQLiteTickets(tmp_path / "tickets.db"), slots={})
        async with running(AgentLLMService(agent)) as pipeline:
            await pipeline.send(asks("How much is the premium plan?"))
            await pipeline.heard.count(LLMFullResponseEndFrame)
            events = [frame.event for frame in pipeline.heard.of(AgentEventFrame)]
    assert events[0] == Transferred("front_desk", "sales")
    assert [event.name for event in events if isinstance(event, ToolCalled)] == ["look_up_price"]
    assert "forty nine dollars" in pipeline.heard.text
    assert remembered(agent)[-1] == f"assistant: {pipeline.heard.text}"


async def test_a_prompt_of_the_application_is_answered_and_not_remembered() -> None:
    llm = ScriptedLLM(says("Welcome!"))
    agent = agent_with(llm)
    await run_test(AgentLLMService(agent), frames_to_send=[asks("Greet the user.", role="developer")])
    assert llm.requests[0].last.content == "Greet the user."
    assert remembered(agent) == ["assistant: Welcome!"]


@pytest.mark.parametrize(
    "context", [[], [{"role": "assistant", "content": "Bye."}], [{"role": "user", "content": " "}]]
)
async def test_a_context_without_words_to_answer_starts_nothing(context: list[dict[str, str]]) -> None:
    llm = ScriptedLLM()
    await run_test(
        AgentLLMService(agent_with(llm)),
        frames_to_send=[LLMContextFrame(LLMContext(context))],
        expected_down_frames=[LLMServiceMetadataFrame],
    )
    assert llm.requests == []


async def test_metrics_count_what_every_model_call_consumed() -> None:
    llm = ScriptedLLM(
        [*transfers("sales"), UsageReported(prompt_tokens=100, completion_tokens=5)],
        [*says("Forty."), UsageReported(prompt_tokens=120, completion_tokens=2)],
    )
    async with running(AgentLLMService(agent_with(llm), model="small"), metrics=True) as pipeline:
        await pipeline.send(asks("How much is it?"))
        await pipeline.heard.count(LLMFullResponseEndFrame)
        data = [each for frame in pipeline.heard.of(MetricsFrame) for each in frame.data]
    usage = [each.value for each in data if isinstance(each, LLMUsageMetricsData)]
    assert [(each.prompt_tokens, each.completion_tokens, each.total_tokens) for each in usage] == [
        (100, 5, 105),
        (120, 2, 122),
    ]
    # At the start Pipecat reports a zero for every processor.
    (first_byte,) = [each for each in data if isinstance(each, TTFBMetricsData) and each.value and each.model]
    assert first_byte.model == "small"


async def test_a_pipeline_that_is_cancelled_closes_the_answer() -> None:
    never = asyncio.Event()
    llm = ScriptedLLM([*says("The first half, "), never])
    agent = SupervisorAgent(Roster([Specialist("only", "Only", "all", "Help.")]), llm=llm, slots={})
    async with running(AgentLLMService(agent)) as pipeline:
        await pipeline.send(asks("Tell me."))
        await pipeline.heard.count(LLMTextFrame)
        await pipeline.cancel()
    assert llm.closed == 1
    assert remembered(agent) == ["user: Tell me.", "assistant…: The first half,"]


def _told(frame: Frame) -> object:
    return frame.event if isinstance(frame, AgentEventFrame) else frame.text
