"""Fixed phrases (greeting, apologies) as audio: rendered ahead by the first voice that works and cached in Redis.

Key space (cache):
    muster:{speech}:<digest of text, voice and format>  STRING  PCM16 mono, expires 30 days after its last use, and
                                                                5 minutes after it was rendered by a substitute

`python -m worker.call.phrases` renders what is missing; a worker runs it when it starts.
"""

import asyncio
import hashlib
import logging
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import redis.asyncio
from livekit import rtc
from livekit.agents import APIConnectOptions, APIError, utils
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from worker.call.errors import SpeechNotRendered
from worker.call.ports import SAMPLE_RATE, TTSPort
from worker.call.providers import open_providers
from worker.call.settings import CallSettings

logger = logging.getLogger(__name__)

_FORMAT = f"pcm_{SAMPLE_RATE}"
_KEPT = 30 * 24 * 3600
#: Short, so that the preferred voice is heard again soon after it has recovered.
_KEPT_OF_A_SUBSTITUTE = 300
_FRAME = SAMPLE_RATE // 50
#: Seconds between two attempts to render ahead, and seconds until it is given up.
_RETRY = 0.5
_PATIENCE = 60.0


class Phrases:
    """Gets phrases from the cache, and renders those it lacks; `voices` has the preferred one first.

    `timeout` is how many seconds a voice is waited for.
    """

    def __init__(self, voices: Sequence[TTSPort], *, cache: redis.asyncio.Redis, timeout: float) -> None:
        self._preferred, *self._substitutes = voices
        self._cache = cache
        self._options = APIConnectOptions(max_retry=0, timeout=timeout)

    async def load(self, text: str) -> bytes:
        """The text's audio; raises `SpeechNotRendered` when it is neither cached nor renderable."""
        cached = await self._cached(text)
        if cached:
            return cached
        for voice in (self._preferred, *self._substitutes):
            try:
                audio = await self._render(text, voice)
            except APIError as error:
                logger.warning(
                    "a phrase was not rendered", extra={"provider": voice.name, "error": type(error).__name__}
                )
                continue
            await self._keep(text, voice, audio)
            return audio
        raise SpeechNotRendered()

    async def _cached(self, text: str) -> bytes | None:
        try:
            audio: Any = await self._cache.getex(_key(text, self._preferred), ex=_KEPT)
            for voice in self._substitutes:
                audio = audio or await self._cache.get(_key(text, voice))
        except RedisError:
            logger.warning("phrase cache not reachable, rendering instead")
            return None
        return bytes(audio) if audio else None

    async def _keep(self, text: str, voice: TTSPort, audio: bytes) -> None:
        try:
            kept = _KEPT if voice is self._preferred else _KEPT_OF_A_SUBSTITUTE
            await self._cache.set(_key(text, voice), audio, ex=kept)
        except RedisError:
            logger.warning("phrase rendered but not cached")

    async def _render(self, text: str, voice: TTSPort) -> bytes:
        speaker = voice.open()
        try:
            async with speaker.stream(conn_options=self._options) as stream:
                stream.push_text(text)
                stream.end_input()
                return b"".join([audio.frame.data.tobytes() async for audio in stream])
        finally:
            await speaker.aclose()


def _key(text: str, voice: TTSPort) -> str:
    return "muster:{speech}:" + hashlib.sha256("\0".join((text, voice.voice, _FORMAT)).encode()).hexdigest()


async def frames(audio: bytes) -> AsyncIterator[rtc.AudioFrame]:
    """PCM16 mono audio in frames of 20 ms."""
    step = _FRAME * 2
    for start in range(0, len(audio) - len(audio) % 2, step):
        piece = audio[start : start + step]
        yield rtc.AudioFrame(piece, SAMPLE_RATE, 1, len(piece) // 2)


def open_cache(settings: CallSettings) -> "redis.asyncio.Redis":
    """The client of the cache; it answers bytes."""
    return redis.asyncio.Redis.from_url(
        settings.cache_url,
        retry=Retry(NoBackoff(), 0),
        socket_timeout=2,
        socket_connect_timeout=2,
    )


async def render_ahead(settings: CallSettings) -> None:
    """Render and cache every fixed phrase; a provider that is not there yet is waited for.

    Raises `SpeechNotRendered` when it does not come within `_PATIENCE` seconds.
    """
    deadline = time.monotonic() + _PATIENCE
    async with utils.http_context.open(), open_cache(settings) as cache:
        providers = open_providers(settings)
        phrases = Phrases(providers.voices, cache=cache, timeout=settings.provider_timeout)
        try:
            for text in settings.phrases:
                await _load_patiently(phrases, text, until=deadline)
        finally:
            await providers.aclose()


async def _load_patiently(phrases: Phrases, text: str, *, until: float) -> None:
    while True:
        try:
            await phrases.load(text)
            return
        except SpeechNotRendered:
            if time.monotonic() > until:
                raise
        await asyncio.sleep(_RETRY)


if __name__ == "__main__":
    asyncio.run(render_ahead(CallSettings.from_env()))
