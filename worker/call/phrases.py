"""Fixed phrases (greeting, apologies) as audio: rendered ahead with the ElevenLabs SDK and cached in Redis.

Key space (cache):
    muster:{speech}:<digest of text, voice, model and format>  STRING  PCM16 mono, expires 30 days after its last use

`python -m worker.call.phrases` renders what is missing; a worker runs it when it starts.
"""

import asyncio
import hashlib
import importlib
import logging
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any

import httpx
import redis.asyncio
from livekit import rtc
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from worker.call.errors import SpeechNotRendered
from worker.call.settings import CallSettings

logger = logging.getLogger(__name__)

SAMPLE_RATE = 24_000
_FORMAT = f"pcm_{SAMPLE_RATE}"
_KEPT = 30 * 24 * 3600
_FRAME = SAMPLE_RATE // 50
#: Seconds between two attempts to render ahead, and seconds until it is given up.
_RETRY = 0.5
_PATIENCE = 60.0


class Phrases:
    """Gets phrases from the cache, and renders those it lacks; a client given as `http` stays open."""

    def __init__(
        self, settings: CallSettings, *, cache: redis.asyncio.Redis, http: httpx.AsyncClient | None = None
    ) -> None:
        self._settings = settings
        self._cache = cache
        self._http = http

    async def load(self, text: str) -> bytes:
        """The text's audio; raises `SpeechNotRendered` when it is neither cached nor renderable."""
        key = self._key(text)
        try:
            cached: Any = await self._cache.getex(key, ex=_KEPT)
        except RedisError:
            logger.warning("phrase cache not reachable, rendering instead")
            cached = None
        if cached:
            return bytes(cached)
        audio = await self._render(text)
        try:
            await self._cache.set(key, audio, ex=_KEPT)
        except RedisError:
            logger.warning("phrase rendered but not cached")
        return audio

    def _key(self, text: str) -> str:
        parts = (text, self._settings.voice_id, self._settings.tts_model, _FORMAT)
        return "muster:{speech}:" + hashlib.sha256("\0".join(parts).encode()).hexdigest()

    async def _render(self, text: str) -> bytes:
        # Half a second of imports that a call with a warm cache does not pay, and that would stop an event loop.
        await asyncio.to_thread(importlib.import_module, "elevenlabs.client")
        from elevenlabs.client import AsyncElevenLabs
        from elevenlabs.core.api_error import ApiError

        base_url = self._settings.eleven_base_url
        async with self._open_http() as http:
            client = AsyncElevenLabs(
                api_key=self._settings.eleven_api_key,
                # The SDK adds the version to its paths itself.
                base_url=base_url.removesuffix("/v1") if base_url else None,
                httpx_client=http,
            )
            try:
                chunks = client.text_to_speech.convert(
                    self._settings.voice_id,
                    text=text,
                    model_id=self._settings.tts_model,
                    output_format=_FORMAT,
                )
                audio = b"".join([chunk async for chunk in chunks])
            except (ApiError, httpx.HTTPError) as error:
                raise SpeechNotRendered() from error
        if not audio:
            raise SpeechNotRendered()
        return audio

    def _open_http(self) -> AbstractAsyncContextManager[httpx.AsyncClient]:
        return nullcontext(self._http) if self._http else httpx.AsyncClient(timeout=self._settings.provider_timeout)


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
    async with open_cache(settings) as cache:
        phrases = Phrases(settings, cache=cache)
        for text in settings.phrases:
            while True:
                try:
                    await phrases.load(text)
                    break
                except SpeechNotRendered:
                    if time.monotonic() > deadline:
                        raise
                    await asyncio.sleep(_RETRY)


if __name__ == "__main__":
    asyncio.run(render_ahead(CallSettings.from_env()))
