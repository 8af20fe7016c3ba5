"""Drafts in LiveKit's own pipeline: preemptive generation on, our LLM and agent, and the turn stream behind them."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import pytest
from livekit.agents import AgentSession, ConversationItemAddedEvent, TurnHandlingOptions, llm
from livekit.agents.voice.audio_recognition import (
    _EndOfTurnInfo,
    _EndOfTurnMetrics,
    _PreemptiveGenerationInfo,
)

from graphs.roster import Roster, Specialist, Tool
from graphs.supervisor import SupervisorAgent
from tests.fleet_sessions import new_session
from tests.open_fleet import claim, client_of
from tests.scripted_llm import ScriptedLLM, Step, calls, says, transfers
from worker.call.agent_llm import AgentLLM
from worker.call.baton import Baton
from worker.call.open_turn import OpenTurn
from worker.call.timings import TurnClock
from worker.call.voice_agent import VoiceAgent
from worker.conversation.transcript import Transcript, exchange_turn
from worker.fleet import record_moves, records
from worker.fleet.redis_operations import connect_async, run, run_async
from worker.fleet.session import Session

LOOK = {"type": "object", "properties": {}, "additionalProperties": False}

BY_HAND = TurnHandlingOptions(turn_detection="manual", preemptive_generation={"enabled": True})


@dataclass
class Conversation:
    """A running LiveKit session of text and what it has done."""

    voice: AgentSession[None]
    model: ScriptedLLM
    charged: list[str]
    agent: SupervisorAgent
    session: Session
    client: Any
    transcript: Transcript
    answered: asyncio.Event
    voice_agent: VoiceAgent
    open_turn: OpenTurn

    @property
    def _activity(self) -> Any:
        return self.voice._activity

    def hear_draft(self, text: str) -> None:
        """Recognition thinks that these are the caller's words, and that they may go on."""
        info = _PreemptiveGenerationInfo(new_transcript=text, transcript_confidence=1.0, started_speaking_at=None)
        self._activity.on_preemptive_generation(info)

    async def hear(self, text: str) -> None:
        """The caller's turn is over; returns when the answer to it has been given."""
        self.answered.clear()
        metrics = _EndOfTurnMetrics(
            started_speaking_at=None, stopped_speaking_at=None, transcription_delay=None, end_of_turn_delay=None
        )
        info = _EndOfTurnInfo(skip_reply=False, new_transcript=text, transcript_confidence=1.0, metrics=metrics)
        turn = asyncio.create_task(self._activity._user_turn_completed_task(None, info))
        self._activity._user_turn_completed_atask = turn
        await turn
        async with asyncio.timeout(10):
            await self.answered.wait()

    async def turns(self) -> list[tuple[str, str]]:
        """Role and words, or what happened, of each stored turn."""
        assert await self.transcript.flush(timeout=5)
        stored = await run_async(self.client, records.turns_after(self.session.session_id, "0-0"))
        return [
            (turn["role"], turn["text"] or turn["event"].get("name") or turn["event"].get("to")) for _, turn in stored
        ]


@asynccontextmanager
async def conversation(
    redis_url: str, *scripts: Sequence[Step], baton: Baton | None = None
) -> AsyncIterator[Conversation]:
    queued = new_session()
    with client_of(redis_url) as blocking:
        run(blocking, record_moves.create(queued, lifetime=60))
    session = claim(redis_url, queued.session_id)
    model, charged = ScriptedLLM(*scripts), list[str]()

    async def charge(arguments: Mapping[str, object], *, idempotency_key: str) -> Mapping[str, object]:
        charged.append(idempotency_key)
        return {"summary": "Charged."}

    tool = Tool(name="charge", description="Charge the card.", parameters=LOOK, run=charge)
    desk, sales = (
        Specialist(name=name, title=name, description=name, instructions=name, tools=(tool,))
        for name in ("desk", "sales")
    )
    async with connect_async(redis_url) as client:
        transcript = Transcript(session, client=client, lifetime=60, on_lost=pytest.fail)
        writing = asyncio.create_task(transcript.write())
        agent = SupervisorAgent(
            Roster([desk, sales]),
            llm=model,
            slots={},
            on_exchange=lambda exchange: transcript.add(exchange_turn(exchange)),
        )
        open_turn = OpenTurn(session, client=client)
        voice_agent = VoiceAgent(agent, transcript=transcript, clock=TurnClock(), baton=baton, open_turn=open_turn)
        agent_llm = AgentLLM(agent, observe=voice_agent.observe, warm=_warm, baton=baton)
        voice: AgentSession[None] = AgentSession(llm=agent_llm, vad=None, turn_handling=BY_HAND)
        answered = asyncio.Event()

        def item_added(event: ConversationItemAddedEvent) -> None:
            voice_agent.item_added(event)
            if isinstance(event.item, llm.ChatMessage) and event.item.role == "assistant":
                answered.set()

        voice.on("conversation_item_added", item_added)
        await voice.start(voice_agent)
        try:
            yield Conversation(
                voice, model, charged, agent, session, client, transcript, answered, voice_agent, open_turn
            )
        finally:
            await voice.aclose()
            writing.cancel()
            with suppress(asyncio.CancelledError):
                await writing


async def _warm() -> None:
    pass


async def test_an_adopted_draft_is_the_answer_and_the_words_are_stored_once(redis_url: str) -> None:
    async with conversation(redis_url, says("We open at nine.")) as talk:
        talk.hear_draft("When do you open")
        await asyncio.sleep(0.1)
        await talk.hear("When do you open?")
        assert len(talk.model.requests) == 1
        assert await talk.turns() == [("user", "When do you open?"), ("assistant", "We open at nine.")]
        assert [message.content for message in talk.agent.history] == ["When do you open?", "We open at nine."]


async def test_a_draft_adopted_before_its_first_word_stores_the_words_once(redis_url: str) -> None:
    gate = asyncio.Event()
    async with conversation(redis_url, [gate, *says("We open at nine.")]) as talk:
        talk.hear_draft("When do you open")
        await asyncio.sleep(0.05)
        asyncio.get_running_loop().call_later(0.1, gate.set)
        await talk.hear("When do you open?")
        assert await talk.turns() == [("user", "When do you open?"), ("assistant", "We open at nine.")]


async def test_discarded_drafts_leave_no_trace_in_the_turn_stream(redis_url: str) -> None:
    scripts = [transfers("sales"), says("Sales here."), transfers("sales"), says("Plans!"), says("Nine.")]
    async with conversation(redis_url, *scripts) as talk:
        for words in ("I want", "I want to know"):
            talk.hear_draft(words)
            await asyncio.sleep(0.1)
        await talk.hear("I want to know when you open.")
        assert await talk.turns() == [("user", "I want to know when you open."), ("assistant", "Nine.")]
        assert talk.agent.active == "desk"


async def test_a_tool_with_side_effects_runs_once_and_only_for_the_adopted_draft(redis_url: str) -> None:
    scripts = [calls("charge"), calls("charge"), says("It is charged.")]
    async with conversation(redis_url, *scripts) as talk:
        talk.hear_draft("Charge my")
        await asyncio.sleep(0.1)
        talk.hear_draft("Charge my card")
        await asyncio.sleep(0.1)
        assert talk.charged == []
        await talk.hear("Charge my card.")
        assert len(talk.charged) == 1
        assert await talk.turns() == [("user", "Charge my card."), ("event", "charge"), ("assistant", "It is charged.")]


async def test_a_hand_over_of_an_adopted_draft_is_stored_behind_the_words(redis_url: str) -> None:
    async with conversation(redis_url, transfers("sales"), says("Sales here.")) as talk:
        talk.hear_draft("A price please")
        await asyncio.sleep(0.1)
        await talk.hear("A price, please.")
        assert await talk.turns() == [("user", "A price, please."), ("event", "sales"), ("assistant", "Sales here.")]
        assert talk.agent.active == "sales"


async def test_without_a_draft_the_words_and_the_answer_are_stored_once(redis_url: str) -> None:
    async with conversation(redis_url, says("Hello."), says("Nine.")) as talk:
        await talk.hear("Hi.")
        await talk.hear("When do you open?")
        assert await talk.turns() == [
            ("user", "Hi."),
            ("assistant", "Hello."),
            ("user", "When do you open?"),
            ("assistant", "Nine."),
        ]


async def test_a_draft_that_could_not_begin_before_it_was_adopted_answers_the_caller_s_words(redis_url: str) -> None:
    async with conversation(redis_url, calls("charge"), says("It is charged.")) as talk:
        assert isinstance(talk.voice.llm, AgentLLM)
        async with talk.voice.llm.turn_lock:
            talk.hear_draft("Charge my card")
            hearing = asyncio.create_task(talk.hear("Charge my card."))
            await asyncio.sleep(0.2)
        await hearing
        assert len(talk.charged) == 1
        assert [message.content for message in talk.model.requests[0].messages[1:]] == ["Charge my card."]
        assert await talk.turns() == [("user", "Charge my card."), ("event", "charge"), ("assistant", "It is charged.")]
