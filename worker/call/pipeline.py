"""How LiveKit's pipeline is put together for a call: hearing, turns, drafts, and the voice."""

from typing import Any

from livekit.agents import AgentSession, TurnHandlingOptions, inference, llm, stt, vad
from livekit.agents.voice import room_io

from worker.call.early_stt import EarlySTT, Listener, Recognition
from worker.call.providers import Providers, connect_options
from worker.call.settings import CallSettings

#: Frames this short reach voice activity detection 15 ms earlier on average than LiveKit's usual 50 ms.
AUDIO_INPUT = room_io.AudioInputOptions(frame_size_ms=20)


def open_pipeline(
    settings: CallSettings,
    providers: Providers,
    agent_llm: llm.LLM[Any],
    *,
    listener: Listener | None = None,
    recognition: Recognition | None = None,
) -> AgentSession[None]:
    """A pipeline that is not started; whoever made the providers closes them."""
    activity = inference.VAD()
    return AgentSession(
        stt=_listening(providers.stt, activity, settings, listener, recognition),
        llm=agent_llm,
        tts=providers.tts,
        vad=activity,
        turn_handling=_turn_handling(settings),
        use_tts_aligned_transcript=True,
        conn_options=connect_options(settings),
        # Callers bring their own echo cancellation; deaf first seconds would swallow a barge-in.
        aec_warmup_duration=None,
        # Waiting for the words of a caller who has left only holds the slot.
        session_close_transcript_timeout=0.2,
        user_away_timeout=None,
    )


def _listening(
    recogniser: stt.STT[Any],
    activity: vad.VAD,
    settings: CallSettings,
    listener: Listener | None,
    recognition: Recognition | None,
) -> stt.STT[Any]:
    is_followed = settings.early_transcripts or listener is not None
    if not is_followed or not recogniser.capabilities.offline_recognize:
        return recogniser
    early = settings.early_transcripts
    return EarlySTT(recogniser, vad=activity, early=early, listener=listener, recognition=recognition)


def _turn_handling(settings: CallSettings) -> TurnHandlingOptions:
    model = inference.TurnDetector(version="v1-mini")
    return TurnHandlingOptions(
        turn_detection=model if settings.turn_detection == "model" else "vad",
        # The model's own limit keeps a caller whose sentence sounds unfinished waiting for 2.5 s.
        endpointing={
            "min_delay": settings.endpointing_min_delay,
            "max_delay": settings.endpointing_max_delay,
        },
        interruption={"mode": "vad", "min_duration": settings.interruption_min_duration},
        # The answer is drafted while the caller may still go on; see `AgentPort.respond`.
        preemptive_generation={
            "enabled": settings.drafts > 0,
            "max_retries": settings.drafts,
            "preemptive_tts": settings.preemptive_voice,
        },
    )
