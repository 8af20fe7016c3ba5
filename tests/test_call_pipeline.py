"""The pipeline of a call without a room: recorded speech in real time, a scripted recogniser, a scripted model."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
from livekit import rtc
from livekit.agents import Agent, AgentSession, ConversationItemAddedEvent, llm
from livekit.agents.voice import io
from livekit.plugins import elevenlabs
from openai import AsyncOpenAI

from graphs.roster import Roster, Specialist
from graphs.supervisor import SupervisorAgent
from local.audio import FRAME_SAMPLES, FRAME_SECONDS, SAMPLE_RATE, Samples, frames_of
from tests.recorded_speech import SHORT, line, recorded_pieces
from tests.scripted_llm import ScriptedLLM, says
from tests.scripted_stt import ScriptedSTT
from tests.test_call_knowledge import CALL
from worker.call.agent_llm import AgentLLM
from worker.call.baton import Recognition
from worker.call.pipeline import open_pipeline
from worker.call.providers import Providers
from worker.call.settings import CallSettings

#: Long enough for the pauses of these tests on a busy machine.
PATIENT = {"MUSTER_TURN_DETECTION": "vad", "MUSTER_ENDPOINTING_MIN_DELAY": "1.2"}


pieces = pytest.fixture(scope="module")(recorded_pieces)


class Recording(io.AudioInput):
    """Plays speech in real time, and then a quiet room."""

    def __init__(self, samples: Samples) -> None:
        super().__init__(label="recording")
        self._frames = frames_of(samples)
        self._due = 0.0

    async def __anext__(self) -> rtc.AudioFrame:
        loop = asyncio.get_running_loop()
        self._due = (self._due or loop.time()) + FRAME_SECONDS
        await asyncio.sleep(self._due - loop.time())
        samples = next(self._frames, None)
        data = bytes(2 * FRAME_SAMPLES) if samples is None else samples.tobytes()
        return rtc.AudioFrame(data, SAMPLE_RATE, 1, FRAME_SAMPLES)


@dataclass
class Call:
    """What was asked of the model, and what was said in the end."""

    model: ScriptedLLM
    said: list[tuple[str, str]]
    answered: asyncio.Event
    recognition: Recognition


@asynccontextmanager
async def call(samples: Samples, recogniser: ScriptedSTT, *answers: str) -> AsyncIterator[Call]:
    model = ScriptedLLM(*(says(answer) for answer in answers))
    desk = Specialist(name="desk", title="Desk", description="desk", instructions="desk")
    agent = SupervisorAgent(Roster([desk]), llm=model, slots={})
    providers = Providers(
        stt=recogniser, tts=elevenlabs.TTS(api_key="unused"), openai=AsyncOpenAI(api_key="unused"), voices=()
    )
    settings = CallSettings.from_env(CALL | PATIENT)
    recognition = Recognition(time.time)
    agent_llm = AgentLLM(agent, observe=_ignore, warm=_warm)
    session: AgentSession[None] = open_pipeline(settings, providers, agent_llm, recognition=recognition)
    ongoing = Call(model, [], asyncio.Event(), recognition)

    def item_added(event: ConversationItemAddedEvent) -> None:
        if isinstance(event.item, llm.ChatMessage):
            ongoing.said.append((event.item.role, event.item.text_content or ""))
            if event.item.role == "assistant":
                ongoing.answered.set()

    session.on("conversation_item_added", item_added)
    session.input.audio = Recording(samples)
    await session.start(Agent(instructions=""), record=False)
    try:
        async with asyncio.timeout(30):
            yield ongoing
    finally:
        await session.aclose()
        await providers.aclose()


def _ignore(*_: object) -> None:
    pass


async def _warm() -> None:
    pass


async def test_an_answer_drafted_at_the_short_silence_is_the_answer_of_the_turn(pieces: Sequence[Samples]) -> None:
    recogniser = ScriptedSTT("When do you open?")
    async with call(line(0.5, pieces[0], 2.5), recogniser, "We open at nine.") as ongoing:
        await ongoing.answered.wait()
    assert ongoing.said == [("user", "When do you open?"), ("assistant", "We open at nine.")]
    assert len(ongoing.model.requests) == len(recogniser.heard) == 1


async def test_a_pause_inside_a_turn_neither_loses_nor_doubles_words(pieces: Sequence[Samples]) -> None:
    recogniser = ScriptedSTT("When", "When do you", "open?")
    speech = line(0.5, pieces[0], SHORT, pieces[1], 0.6, pieces[2], 2.5)
    async with call(speech, recogniser, "What?", "When?", "We open at nine.") as ongoing:
        await ongoing.answered.wait()
    assert ongoing.said == [("user", "When do you open?"), ("assistant", "We open at nine.")]
    assert [request.last.content for request in ongoing.model.requests] == ["When", "When do you", "When do you open?"]


async def test_words_that_come_late_are_heard_once(pieces: Sequence[Samples]) -> None:
    answered = asyncio.Event()
    recogniser = ScriptedSTT((answered, "When do you open?"))
    async with call(line(0.5, pieces[0], 4.0), recogniser, "We open at nine.") as ongoing:
        await recogniser.asked.acquire()
        await asyncio.sleep(1.5)
        assert ongoing.recognition.is_due
        answered.set()
        await ongoing.answered.wait()
        await asyncio.sleep(0.5)
        assert not ongoing.recognition.is_due
    assert ongoing.said == [("user", "When do you open?"), ("assistant", "We open at nine.")]
    assert len(ongoing.model.requests) == 1
