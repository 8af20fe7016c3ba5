"""A running Pipecat pipeline around the processors under test, and a voice whose speech the test lets go."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar

from pipecat.frames.frames import (
    EndFrame,
    ErrorFrame,
    Frame,
    LLMMessagesAppendFrame,
    LLMTextFrame,
    StartFrame,
    TTSAudioRawFrame,
)
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.services.settings import TTSSettings
from pipecat.services.tts_service import TTSService
from pipecat.workers.runner import WorkerRunner

PATIENCE = 5.0
F = TypeVar("F")


async def eventually(happened: Callable[[], bool]) -> None:
    """Wait for what no frame tells."""
    async with asyncio.timeout(PATIENCE):
        while not happened():  # noqa: ASYNC110 - the model and the agent have no event to wait for
            await asyncio.sleep(0.01)


class Listener(FrameProcessor):
    """Passes everything on and keeps it, in order."""

    def __init__(self, *, upstream: bool = False) -> None:
        super().__init__()
        self.frames: list[Frame] = []
        self._direction = FrameDirection.UPSTREAM if upstream else FrameDirection.DOWNSTREAM
        self._arrived = asyncio.Condition()

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        if direction == self._direction:
            async with self._arrived:
                self.frames.append(frame)
                self._arrived.notify_all()
        await self.push_frame(frame, direction)

    def of(self, *kinds: type[F]) -> list[F]:
        return [frame for frame in self.frames if isinstance(frame, kinds)]

    @property
    def text(self) -> str:
        return "".join(frame.text for frame in self.frames if isinstance(frame, LLMTextFrame))

    async def until(self, happened: Callable[[], bool]) -> None:
        """Wait until a frame makes it true."""
        async with asyncio.timeout(PATIENCE), self._arrived:
            await self._arrived.wait_for(happened)

    async def count(self, kind: type[Frame], number: int = 1) -> None:
        """Wait until this many frames of a kind have passed."""
        await self.until(lambda: len(self.of(kind)) >= number)


class Voice(TTSService):
    """Speaks each sentence once it is allowed to; Pipecat's own base class tells what was spoken."""

    def __init__(self) -> None:
        settings = TTSSettings(model="none", voice="none", language=None)
        super().__init__(settings=settings, sample_rate=16000, push_start_frame=True, push_stop_frames=True)
        self._allowed = asyncio.Semaphore(0)

    def speak(self, sentences: int = 1) -> None:
        for _ in range(sentences):
            self._allowed.release()

    async def run_tts(self, text: str, context_id: str) -> AsyncGenerator[Frame | None, None]:
        await self._allowed.acquire()
        yield TTSAudioRawFrame(b"\0\0" * 160, sample_rate=16000, num_channels=1, context_id=context_id)


class Running:
    """A started pipeline: `heard` is what leaves it at its end, `reported` what comes back to its begin."""

    def __init__(self, worker: PipelineWorker, heard: Listener, reported: Listener) -> None:
        self._worker = worker
        self.heard = heard
        self.reported = reported

    async def send(self, *frames: Frame) -> None:
        for frame in frames:
            await self._worker.queue_frame(frame)

    async def say(self, text: str) -> None:
        """What a text client of Pipecat sends for its user."""
        message = {"role": "user", "content": text}
        await self.send(LLMMessagesAppendFrame(messages=[message], run_llm=True))

    async def cancel(self) -> None:
        """End it at once, as when the client has gone."""
        await self._worker.cancel()

    @property
    def errors(self) -> Sequence[ErrorFrame]:
        return self.reported.of(ErrorFrame)


@asynccontextmanager
async def running(*processors: FrameProcessor, metrics: bool = False) -> AsyncIterator[Running]:
    """Starts a pipeline and ends it in order."""
    heard, reported = Listener(), Listener(upstream=True)
    worker = PipelineWorker(
        Pipeline([reported, *processors, heard]),
        enable_rtvi=False,
        cancel_on_idle_timeout=False,
        params=PipelineParams(enable_metrics=metrics, enable_usage_metrics=metrics),
    )
    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(worker)
    task = asyncio.create_task(runner.run())
    try:
        await heard.count(StartFrame)
        yield Running(worker, heard, reported)
        await worker.queue_frame(EndFrame())
        async with asyncio.timeout(PATIENCE):
            await task
    finally:
        task.cancel()
        await asyncio.wait([task])
