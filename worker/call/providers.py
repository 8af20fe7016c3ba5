"""The speech and language providers of a call: the genuine clients, pointed wherever the settings say."""

import asyncio
from dataclasses import dataclass
from typing import Any

import aiohttp
from livekit.agents import APIConnectOptions, APITimeoutError, NotGivenOr, stt, tts, utils
from livekit.agents.types import NOT_GIVEN
from livekit.agents.voice.agent_session import SessionConnectOptions
from livekit.plugins import elevenlabs, openai
from openai import AsyncOpenAI, DefaultAsyncHttpxClient

from worker.call.settings import OPENAI_URL, CallSettings


class PromptSTT(openai.STT):
    """OpenAI's recognition with a bound on each request: a caller does not wait 30 s for a word."""

    async def _recognize_impl(
        self,
        buffer: utils.AudioBuffer,
        *,
        language: NotGivenOr[str | list[str]] = NOT_GIVEN,
        conn_options: APIConnectOptions,
    ) -> stt.SpeechEvent:
        try:
            async with asyncio.timeout(conn_options.timeout):
                return await super()._recognize_impl(buffer, language=language, conn_options=conn_options)
        except TimeoutError:
            raise APITimeoutError() from None


@dataclass(frozen=True)
class Providers:
    """Everything a call talks to besides LiveKit and Redis."""

    stt: stt.STT[Any]
    tts: tts.TTS[Any]
    #: For the conversation's model.
    openai: AsyncOpenAI

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
    return Providers(
        stt=PromptSTT(client=client, model=settings.stt_model, language=settings.language or "en"),
        tts=elevenlabs.TTS(
            api_key=settings.eleven_api_key,
            base_url=settings.eleven_base_url or NOT_GIVEN,
            model=settings.tts_model,
            voice_id=settings.voice_id,
            language=settings.language or NOT_GIVEN,
            # Raw samples need no decoder, and each sentence comes with the times of its characters.
            encoding="pcm_24000",
            http_session=http_session,
        ),
        openai=client,
    )


def connect_options(settings: CallSettings) -> SessionConnectOptions:
    """One quick retry for each provider: longer than that is silence to the caller.

    The call counts failed turns itself (see `lifecycle.py`), so the session never closes by its own count.
    """
    once_more = APIConnectOptions(max_retry=1, retry_interval=0.2, timeout=settings.provider_timeout)
    return SessionConnectOptions(
        stt_conn_options=once_more,
        llm_conn_options=once_more,
        tts_conn_options=once_more,
        max_unrecoverable_errors=1000,
    )
