"""The models behind the providers, each on a thread of its own so that the event loop never waits for one."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from local.providers.audio import Recording
from local.providers.embeddings import SentenceEmbedder
from local.providers.errors import NotOnThisMachine
from local.providers.recognition import Transcript
from local.providers.responder import Answer
from local.providers.voice import Piece
from local.stand_ins import RECOGNITION, VOICE

Result = TypeVar("Result")


class Recognises(Protocol):
    def transcribe(self, recording: Recording) -> Transcript: ...


class Speaks(Protocol):
    def synthesize(self, text: str, *, rate: int, speaker: str, speed: float, eager: bool) -> Iterator[Piece]: ...


class Responds(Protocol):
    def answer(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> Answer: ...


class Models:
    """Asynchronous access to the recogniser, the voice, the embedder and the responder.

    A recogniser or a voice that this machine cannot have is None; asking for it raises `NotOnThisMachine`.
    """

    def __init__(
        self, *, recogniser: Recognises | None, voice: Speaks | None, embedder: SentenceEmbedder, responder: Responds
    ) -> None:
        self._recogniser = recogniser
        self._voice = voice
        self._embedder = embedder
        self._responder = responder
        self._hearing = ThreadPoolExecutor(1, "hearing")
        self._speaking = ThreadPoolExecutor(1, "speaking")
        self._thinking = ThreadPoolExecutor(1, "thinking")

    async def transcribe(self, recording: Recording) -> Transcript:
        if self._recogniser is None:
            raise NotOnThisMachine(RECOGNITION.absence)
        return await run_on(self._hearing, self._recogniser.transcribe, recording)

    def speak(
        self, text: str, *, rate: int, speaker: str, speed: float = 1.0, eager: bool = True
    ) -> AsyncIterator[Piece]:
        """Pieces as they are ready. Texts spoken at once take turns; leaving the loop stops this one."""
        # Said before an answer has begun: one that streams cannot take its status back.
        if self._voice is None:
            raise NotOnThisMachine(VOICE.absence)
        return self._taking_turns(self._voice.synthesize(text, rate=rate, speaker=speaker, speed=speed, eager=eager))

    async def _taking_turns(self, pieces: Iterator[Piece]) -> AsyncIterator[Piece]:
        while (piece := await run_on(self._speaking, next, pieces, None)) is not None:
            yield piece

    async def embed(self, texts: Sequence[str]) -> tuple[NDArray[np.float32], int]:
        """The texts' vectors and how many tokens they took."""

        def work() -> tuple[NDArray[np.float32], int]:
            return self._embedder.embed(texts), self._embedder.count_tokens(texts)

        return await run_on(self._thinking, work)

    async def answer(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> Answer:
        return await run_on(self._thinking, self._responder.answer, messages, tools)

    def close(self) -> None:
        for pool in (self._hearing, self._speaking, self._thinking):
            pool.shutdown(wait=False, cancel_futures=True)


async def run_on(pool: ThreadPoolExecutor, function: Callable[..., Result], *arguments: Any) -> Result:
    return await asyncio.get_running_loop().run_in_executor(pool, function, *arguments)
