"""OpenAI's recognition and voice, each request bounded: a caller does not wait 30 s for a word."""

import asyncio
from typing import Any

from livekit.agents import APIConnectOptions, APITimeoutError, NotGivenOr, stt, tts, utils
from livekit.agents.types import DEFAULT_API_CONNECT_OPTIONS, NOT_GIVEN
from livekit.plugins import openai
from livekit.plugins.openai.tts import ChunkedStream
from openai import AsyncOpenAI

from worker.call.speech.patience import bounded


class OpenAISTT:
    """`STTPort` by `/audio/transcriptions`."""

    name = "openai"

    def __init__(self, client: AsyncOpenAI, *, model: str, language: str | None = None) -> None:
        self._client = client
        self._model = model
        self._language = language or "en"

    def open(self) -> stt.STT[Any]:
        """Whole utterances, one request each."""
        return PromptSTT(client=self._client, model=self._model, language=self._language)


class OpenAITTS:
    """`TTSPort` by `/audio/speech`, a sentence a request."""

    name = "openai"

    def __init__(self, client: AsyncOpenAI, *, model: str, voice: str) -> None:
        self._client = client
        self._model = model
        self._voice = voice

    @property
    def voice(self) -> str:
        """Provider, model and voice."""
        return f"{self.name}/{self._model}/{self._voice}"

    def open(self) -> tts.TTS[Any]:
        """Sentences as they are complete; each is timed as a whole, so that the rest of one that breaks off is lost."""
        # Raw samples need no decoder.
        return _Sentences(PromptTTS(client=self._client, model=self._model, voice=self._voice, response_format="pcm"))


class PromptSTT(openai.STT):
    """The plugin with a bound on the whole request."""

    async def _recognize_impl(
        self,
        buffer: utils.AudioBuffer,
        *,
        language: NotGivenOr[str | list[str]] = NOT_GIVEN,
        conn_options: APIConnectOptions,
    ) -> stt.SpeechEvent:
        async with bounded(conn_options.timeout):
            return await super()._recognize_impl(buffer, language=language, conn_options=conn_options)


class PromptTTS(openai.TTS):
    """The plugin with a bound on the wait for audio."""

    def synthesize(
        self, text: str, *, conn_options: APIConnectOptions = DEFAULT_API_CONNECT_OPTIONS
    ) -> tts.ChunkedStream:
        """One request that fails when its audio stays away."""
        return _PromptSpeech(tts=self, input_text=text, conn_options=conn_options)


class _PromptSpeech(ChunkedStream):
    async def _run(self, output_emitter: tts.AudioEmitter) -> None:
        request = asyncio.create_task(super()._run(output_emitter))
        try:
            while True:
                before = output_emitter.pushed_duration()
                await asyncio.wait({request}, timeout=self._conn_options.timeout)
                if request.done():
                    return request.result()
                if output_emitter.pushed_duration() == before:
                    raise APITimeoutError()
        finally:
            await utils.aio.cancel_and_wait(request)


class _Sentences(tts.StreamAdapter):
    """LiveKit's adapter for a voice that takes whole texts; it closes the voice that it was made for."""

    def __init__(self, voice: tts.TTS[Any]) -> None:
        super().__init__(tts=voice)

    async def aclose(self) -> None:
        """Close the adapter and the voice."""
        await super().aclose()
        await self._wrapped_tts.aclose()
