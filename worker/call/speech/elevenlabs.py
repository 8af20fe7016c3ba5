"""ElevenLabs' recognition and voice."""

from dataclasses import dataclass, field
from typing import Any

import aiohttp
from livekit.agents import APIConnectOptions, NotGivenOr, stt, tts, utils
from livekit.agents.types import DEFAULT_API_CONNECT_OPTIONS, NOT_GIVEN
from livekit.plugins import elevenlabs

from worker.call.clauses import ClauseTokenizer
from worker.call.speech.patience import bounded


@dataclass(frozen=True, kw_only=True)
class Account:
    """Whose requests they are and where they go; without `base_url` to ElevenLabs itself."""

    api_key: str = field(repr=False)
    base_url: str | None = None
    #: Stays open; without it the session of the surrounding `http_context`.
    http_session: aiohttp.ClientSession | None = None


class ElevenLabsSTT:
    """`STTPort` by `/speech-to-text`."""

    name = "elevenlabs"

    def __init__(self, account: Account, *, model: str, language: str | None = None) -> None:
        self._account = account
        self._model = model
        self._language = language or "en"

    def open(self) -> stt.STT[Any]:
        """Whole utterances, one request each."""
        return PromptSTT(
            api_key=self._account.api_key,
            base_url=self._account.base_url or NOT_GIVEN,
            model=self._model,
            language_code=self._language,
            # "(laughter)" is nothing that a caller said.
            tag_audio_events=False,
            http_session=self._account.http_session,
        )


class ElevenLabsTTS:
    """`TTSPort` by the socket `/text-to-speech/{voice}/multi-stream-input`."""

    name = "elevenlabs"

    def __init__(self, account: Account, *, model: str, voice: str, language: str | None = None) -> None:
        self._account = account
        self._model = model
        self._voice = voice
        self._language = language

    @property
    def voice(self) -> str:
        """Provider, model, voice and language."""
        return "/".join((self.name, self._model, self._voice, self._language or ""))

    def open(self) -> tts.TTS[Any]:
        """A first clause and then sentences as they are complete, one socket for all of them; each word is timed."""
        return elevenlabs.TTS(
            api_key=self._account.api_key,
            base_url=self._account.base_url or NOT_GIVEN,
            model=self._model,
            voice_id=self._voice,
            language=self._language or NOT_GIVEN,
            # Raw samples need no decoder, and each sentence comes with the times of its characters.
            encoding="pcm_24000",
            word_tokenizer=ClauseTokenizer(),
            # The words as they were written: what was spoken is looked up in the text.
            preferred_alignment="original",
            http_session=self._account.http_session,
        )


class PromptSTT(elevenlabs.STT):
    """The plugin with a bound on the whole request."""

    async def _recognize_impl(
        self,
        buffer: utils.AudioBuffer,
        *,
        language: NotGivenOr[str] = NOT_GIVEN,
        conn_options: APIConnectOptions = DEFAULT_API_CONNECT_OPTIONS,
    ) -> stt.SpeechEvent:
        async with bounded(conn_options.timeout):
            return await super()._recognize_impl(buffer, language=language, conn_options=conn_options)
