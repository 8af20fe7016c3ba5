"""The simulated caller's voice: lines spoken by the stand-in provider server, kept on disk between runs."""

import hashlib
import os
from pathlib import Path
from threading import get_ident

import httpx
import numpy as np

from local.audio import SAMPLE_RATE, Samples, read_wav, write_wav
from local.paths import cache_directory

VOICE = "caller"
MODEL = "tts-1"

#: Part of every file's name: raised when the stand-in's voice changes.
GENERATION = 1

#: Seconds.
RENDER_TIMEOUT = 30.0


class CallerVoice:
    """Renders lines at `SAMPLE_RATE`, mono; a line that was rendered once is read from
    `cache`, by default `caller` in the local stack's cache directory."""

    def __init__(self, *, providers: str, cache: Path | None = None) -> None:
        self._providers = providers.rstrip("/")
        self._cache = cache or cache_directory() / "caller"

    def render(self, text: str) -> Samples:
        """The line as sound. Raises `httpx.HTTPError` when the stand-in provider server fails."""
        path = self._cache / f"{self._key(text)}.wav"
        if path.exists():
            return read_wav(path)
        response = httpx.post(
            f"{self._providers}/v1/audio/speech",
            json={"model": MODEL, "input": text, "voice": VOICE, "response_format": "pcm"},
            timeout=RENDER_TIMEOUT,
        )
        response.raise_for_status()
        samples = np.frombuffer(response.content, np.int16)
        self._keep(path, samples)
        return samples

    @staticmethod
    def _key(text: str) -> str:
        return hashlib.sha256(f"{GENERATION}|{VOICE}|{SAMPLE_RATE}|{text}".encode()).hexdigest()[:32]

    def _keep(self, path: Path, samples: Samples) -> None:
        self._cache.mkdir(parents=True, exist_ok=True)
        # Two demos, or two callers of one, may render the same line at once; a rename is never seen half done.
        unfinished = path.with_suffix(f".{os.getpid()}-{get_ident()}")
        write_wav(unfinished, samples)
        unfinished.replace(path)
