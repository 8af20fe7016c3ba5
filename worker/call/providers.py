"""The speech and language providers of a call: the genuine clients, pointed wherever the settings say."""

from dataclasses import dataclass
from typing import Any

import aiohttp
from livekit.agents import APIConnectOptions, stt, tts
from livekit.agents.voice.agent_session import SessionConnectOptions
from openai import AsyncOpenAI, DefaultAsyncHttpxClient

from worker.call.ports import STTPort, TTSPort
from worker.call.settings import ELEVENLABS, OPENAI, OPENAI_URL, CallSettings
from worker.call.speech.elevenlabs import Account, ElevenLabsSTT, ElevenLabsTTS
from worker.call.speech.fallback_stt import FallbackSTT
from worker.call.speech.fallback_tts import FallbackTTS
from worker.call.speech.openai import OpenAISTT, OpenAITTS


@dataclass(frozen=True)
class Providers:
    """Everything a call talks to besides LiveKit and Redis."""

    stt: stt.STT[Any]
    tts: tts.TTS[Any]
    #: For the conversation's model.
    openai: AsyncOpenAI
    #: For the fixed phrases, the preferred one first.
    voices: tuple[TTSPort, ...]

    async def aclose(self) -> None:
        """Close what they opened."""
        await self.stt.aclose()
        await self.tts.aclose()
        await self.openai.close()


def open_providers(
    settings: CallSettings,
    *,
    openai_http: DefaultAsyncHttpxClient | None = None,
    http_session: aiohttp.ClientSession | None = None,
) -> Providers:
    """Build the clients; call it inside `livekit.agents.utils.http_context.open()` unless `http_session` is given."""
    client = AsyncOpenAI(
        api_key=settings.openai_api_key,
        base_url=settings.openai_base_url or OPENAI_URL,
        max_retries=0,
        timeout=settings.provider_timeout,
        http_client=openai_http,
    )
    account = Account(api_key=settings.eleven_api_key, base_url=settings.eleven_base_url, http_session=http_session)
    voices = _voices(settings, client, account)
    return Providers(
        stt=FallbackSTT(_ears(settings, client, account), timeout=settings.provider_timeout).open(),
        tts=FallbackTTS(voices, timeout=settings.provider_timeout).open(),
        openai=client,
        voices=voices,
    )


def _ears(settings: CallSettings, client: AsyncOpenAI, account: Account) -> tuple[STTPort, ...]:
    ears: dict[str, STTPort] = {
        OPENAI: OpenAISTT(client, model=settings.stt_model, language=settings.language),
        ELEVENLABS: ElevenLabsSTT(account, model=settings.eleven_stt_model, language=settings.language),
    }
    return tuple(ears[name] for name in settings.stt_order)


def _voices(settings: CallSettings, client: AsyncOpenAI, account: Account) -> tuple[TTSPort, ...]:
    voices: dict[str, TTSPort] = {
        OPENAI: OpenAITTS(client, model=settings.openai_tts_model, voice=settings.openai_voice),
        ELEVENLABS: ElevenLabsTTS(
            account, model=settings.tts_model, voice=settings.voice_id, language=settings.language
        ),
    }
    return tuple(voices[name] for name in settings.tts_order)


def connect_options(settings: CallSettings) -> SessionConnectOptions:
    """The model gets one quick retry, as speech does from its fallback: longer than that is silence to the caller.

    The call counts failed turns itself (see `lifecycle.py`), so the session never closes by its own count.
    """
    once = APIConnectOptions(max_retry=0, timeout=settings.provider_timeout)
    once_more = APIConnectOptions(max_retry=1, retry_interval=0.2, timeout=settings.provider_timeout)
    return SessionConnectOptions(
        stt_conn_options=once,
        llm_conn_options=once_more,
        tts_conn_options=once,
        max_unrecoverable_errors=1000,
    )
