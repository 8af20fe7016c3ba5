"""The pipeline as Pipecat's users build it: user aggregator, the agent, a voice, assistant aggregator."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from pipecat.frames.frames import (
    EagerEndOfTurnCancelFrame,
    EagerTranscriptionFrame,
    InterruptionFrame,
    LLMContextAssistantTurnFrame,
    ProposedUserStartedSpeakingFrame,
    ProposedUserStoppedSpeakingFrame,
    TranscriptionFrame,
    TTSSpeakFrame,
    TTSTextFrame,
)
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import LLMContextAggregatorPair, LLMUserAggregatorParams
from pipecat.turns.user_turn_strategies import EagerUserTurnStrategies, ExternalUserTurnStrategies

from graphs.supervisor import SupervisorAgent
from muster.pipecat import AgentLLMService
from tests.pipecat_service.pipeline import Listener, Running, Voice, eventually, running
from tests.pipecat_service.team import agent_with, remembered
from tests.scripted_llm import ScriptedLLM, calls, says


@dataclass
class Conversation:
    """A running pipeline with its parts; `spoken` is what the voice has said, before the assistant aggregator."""

    pipeline: Running
    agent: SupervisorAgent
    context: LLMContext
    voice: Voice
    spoken: Listener

    async def begin_to_speak(self) -> None:
        await self.pipeline.send(ProposedUserStartedSpeakingFrame())

    async def stop_speaking(self, text: str) -> None:
        """The end of the user's turn as a recogniser with turn detection tells it."""
        await self.pipeline.send(
            TranscriptionFrame(text, user_id="user", timestamp="", finalized=True), ProposedUserStoppedSpeakingFrame()
        )

    async def foresee(self, text: str) -> None:
        """The recogniser thinks that the turn is about to end."""
        await self.pipeline.send(EagerTranscriptionFrame(text, user_id="user", timestamp=""))

    async def answered(self, number: int = 1) -> None:
        """Wait until so many answers are in the context, and known to the agent."""
        await self.pipeline.reported.count(LLMContextAssistantTurnFrame, number)


@asynccontextmanager
async def conversation(
    llm: ScriptedLLM, *, eager: bool = False, active: str | None = None
) -> AsyncIterator[Conversation]:
    agent, context, voice, spoken = agent_with(llm, active=active), LLMContext(), Voice(), Listener()
    strategies = EagerUserTurnStrategies() if eager else ExternalUserTurnStrategies()
    params = LLMUserAggregatorParams(user_turn_strategies=strategies, user_turn_stop_timeout=0.3)
    user, assistant = LLMContextAggregatorPair(context, user_params=params)
    async with running(user, AgentLLMService(agent), voice, spoken, assistant) as pipeline:
        yield Conversation(pipeline, agent, context, voice, spoken)


async def test_a_spoken_conversation_is_in_the_context_and_in_the_agents_memory() -> None:
    llm = ScriptedLLM(says("Hello ", "Sam."), says("You are ", "Sam."))
    async with conversation(llm) as call:
        call.voice.speak(2)
        await call.begin_to_speak()
        await call.stop_speaking("I am Sam.")
        await call.answered(1)
        await call.begin_to_speak()
        await call.stop_speaking("Who am I?")
        await call.answered(2)
        expected = ["user: I am Sam.", "assistant: Hello Sam.", "user: Who am I?", "assistant: You are Sam."]
        assert [f"{each['role']}: {each['content']}" for each in call.context.messages] == expected
        assert remembered(call.agent) == expected


async def test_text_of_a_client_is_answered_without_a_voice() -> None:
    agent, context = agent_with(ScriptedLLM(says("One."), says("Two."))), LLMContext()
    user, assistant = LLMContextAggregatorPair(context)
    async with running(user, AgentLLMService(agent), assistant) as pipeline:
        await pipeline.say("First?")
        await pipeline.reported.count(LLMContextAssistantTurnFrame)
        await pipeline.say("Second?")
        await pipeline.reported.count(LLMContextAssistantTurnFrame, 2)
        expected = ["user: First?", "assistant: One.", "user: Second?", "assistant: Two."]
        assert [f"{each['role']}: {each['content']}" for each in context.messages] == expected
        assert remembered(agent) == expected


async def test_an_answer_that_is_still_being_spoken_counts_as_heard_for_the_next_question() -> None:
    llm = ScriptedLLM(says("Hello."), says("One."), says("Two."))
    async with conversation(llm) as call:
        call.voice.speak()
        await call.begin_to_speak()
        await call.stop_speaking("Hello?")
        await call.answered(1)
        await call.pipeline.say("First?")
        await eventually(lambda: llm.closed == 2)
        await call.pipeline.say("Second?")
        await eventually(lambda: llm.closed == 3)
        assert [message.content for message in llm.requests[2].messages[3:]] == ["First?", "One.", "Second?"]
        call.voice.speak(2)
        await call.answered(3)
        assert remembered(call.agent)[2:] == ["user: First?", "assistant: One.", "user: Second?", "assistant: Two."]


async def test_of_an_interrupted_answer_the_agent_remembers_what_was_spoken() -> None:
    llm = ScriptedLLM(says("The first sentence. ", "The second sentence. ", "The third."), says("Yes?"))
    async with conversation(llm) as call:
        call.voice.speak(2)
        await call.begin_to_speak()
        await call.stop_speaking("Tell me.")
        await call.spoken.count(TTSTextFrame, 2)
        await call.begin_to_speak()
        await call.answered(1)
        assert remembered(call.agent)[-1] == "assistant…: The first sentence. The second sentence."
        call.voice.speak(2)
        await call.stop_speaking("Wait.")
        await call.answered(2)
        assert remembered(call.agent)[2:] == ["user: Wait.", "assistant: Yes?"]
    assert [message.content for message in llm.requests[1].messages[1:]] == [
        "Tell me.",
        "The first sentence. The second sentence.",
        "Wait.",
    ]


async def test_an_answer_that_is_interrupted_while_the_model_still_writes_ends_there() -> None:
    never = asyncio.Event()
    llm = ScriptedLLM([*says("The first sentence. ", "And "), never], says("Yes?"))
    async with conversation(llm) as call:
        call.voice.speak(1)
        await call.begin_to_speak()
        await call.stop_speaking("Tell me.")
        await call.spoken.count(TTSTextFrame)
        await call.begin_to_speak()
        await call.answered(1)
        assert llm.closed == 1
        assert remembered(call.agent) == ["user: Tell me.", "assistant…: The first sentence."]


async def test_an_answer_of_which_nothing_was_spoken_is_not_remembered() -> None:
    llm = ScriptedLLM(says("Nobody hears this."), says("Yes?"))
    async with conversation(llm) as call:
        await call.begin_to_speak()
        await call.stop_speaking("Tell me.")
        await eventually(lambda: llm.closed == 1)
        await call.begin_to_speak()
        await call.pipeline.heard.count(InterruptionFrame, 2)
        call.voice.speak(2)
        await call.stop_speaking("Wait.")
        await call.answered(1)
        assert remembered(call.agent) == ["user: Tell me.", "user: Wait.", "assistant: Yes?"]


async def test_a_greeting_of_the_application_is_remembered() -> None:
    llm = ScriptedLLM(says("Fine."))
    async with conversation(llm) as call:
        call.voice.speak(2)
        await call.pipeline.send(TTSSpeakFrame("Hello, this is Northwind."))
        await call.answered(1)
        await call.begin_to_speak()
        await call.stop_speaking("How are you?")
        await call.answered(2)
    assert [message.content for message in llm.requests[0].messages[1:]] == [
        "Hello, this is Northwind.",
        "How are you?",
    ]


async def test_noise_that_interrupts_is_asked_about_without_becoming_the_users_words() -> None:
    llm = ScriptedLLM(says("The first sentence. ", "The second."), says("Sorry, what was that?"))
    async with conversation(llm) as call:
        call.voice.speak(1)
        await call.begin_to_speak()
        await call.stop_speaking("Tell me.")
        await call.spoken.count(TTSTextFrame)
        await call.begin_to_speak()
        await call.answered(1)
        call.voice.speak(2)
        # A turn in which nothing was recognised: Pipecat prompts the model to ask.
        await call.pipeline.send(ProposedUserStoppedSpeakingFrame())
        await call.answered(2)
        assert "not recognized" in llm.requests[1].last.content
        assert remembered(call.agent) == [
            "user: Tell me.",
            "assistant…: The first sentence.",
            "assistant: Sorry, what was that?",
        ]


async def test_an_answer_to_a_foreseen_end_is_given_when_the_turn_has_ended() -> None:
    llm = ScriptedLLM([*calls("order"), *says("One moment. ")], says("It is ordered."))
    async with conversation(llm, eager=True, active="sales") as call:
        await call.begin_to_speak()
        await call.foresee("order it")
        await eventually(lambda: llm.closed == 1)
        assert remembered(call.agent) == []
        call.voice.speak(3)
        await call.stop_speaking("Order it!")
        await call.answered(1)
        assert remembered(call.agent) == ["user: Order it!", "assistant: One moment. It is ordered."]
    assert len(llm.requests) == 2


async def test_a_foreseen_end_that_was_none_leaves_no_trace() -> None:
    never = asyncio.Event()
    llm = ScriptedLLM([*says("Bananas are"), never], says("Apples it is."))
    async with conversation(llm, eager=True) as call:
        call.voice.speak(2)
        await call.begin_to_speak()
        await call.foresee("bananas")
        await eventually(lambda: len(llm.requests) == 1)
        await call.pipeline.send(EagerEndOfTurnCancelFrame())
        await call.pipeline.heard.count(EagerEndOfTurnCancelFrame)
        assert llm.closed == 1
        await call.pipeline.send(TTSSpeakFrame("I am listening."))
        await call.answered(1)
        await call.stop_speaking("Bananas, no, apples.")
        await call.answered(2)
        assert remembered(call.agent) == [
            "assistant: I am listening.",
            "user: Bananas, no, apples.",
            "assistant: Apples it is.",
        ]
