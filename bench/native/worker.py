"""A worker of LiveKit Agents' own with one simple agent: `python -m livekit.agents start bench/native/worker.py`.

Providers, models, voice activity detection and the ends of turns are those of a call of Muster.
"""

import os

from livekit.agents import Agent, AgentServer, AgentSession, JobContext, TurnHandlingOptions, inference
from livekit.agents.types import NOT_GIVEN
from livekit.plugins import elevenlabs, openai

from bench.native.names import AGENT_NAME, PID
from worker.call.settings import OPENAI_URL, CallSettings

_HOST = "127.0.0.1"

#: Calls that fill a worker.
_SLOTS = 10


def _load(worker: AgentServer) -> float:
    """By calls and not by the machine's load, which is LiveKit's, the caller's and the providers' too: a server that
    sees it as high finds no worker for a dispatch, which would make the framework look worse than it is."""
    return len(worker.active_jobs) / _SLOTS


#: LiveKit's command finds it here.
server = AgentServer(load_fnc=_load, host=_HOST, port=0)


@server.rtc_session(agent_name=AGENT_NAME)
async def answer(context: JobContext) -> None:
    """Join the room, greet and converse until the caller has left."""
    settings = CallSettings.from_env()
    session = _open_pipeline(settings)
    # Muster's workers read it from their own tables; here nothing else tells whose process a participant is.
    await context.connect()
    await context.room.local_participant.set_attributes({PID: str(os.getpid())})
    await session.start(Agent(instructions="You answer callers' questions."), room=context.room, record=False)
    await session.say(settings.greeting)


def _open_pipeline(settings: CallSettings) -> AgentSession[None]:
    openai_url = settings.openai_base_url or OPENAI_URL
    key = settings.openai_api_key
    return AgentSession(
        stt=openai.STT(model=settings.stt_model, language=settings.language or "en", base_url=openai_url, api_key=key),
        llm=openai.LLM(model=settings.llm_model, base_url=openai_url, api_key=key),
        tts=elevenlabs.TTS(
            model=settings.tts_model,
            voice_id=settings.voice_id,
            api_key=settings.eleven_api_key,
            base_url=settings.eleven_base_url or NOT_GIVEN,
            encoding="pcm_24000",
        ),
        vad=inference.VAD(),
        turn_handling=TurnHandlingOptions(
            turn_detection=inference.TurnDetector(version="v1-mini"),
            endpointing={
                "min_delay": settings.endpointing_min_delay,
                "max_delay": settings.endpointing_max_delay,
            },
            interruption={"mode": "vad", "min_duration": settings.interruption_min_duration},
        ),
    )
