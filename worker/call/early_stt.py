"""Recognition that begins at the caller's first short silence, so that the words are there when the turn is over."""

import asyncio
import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from livekit import rtc
from livekit.agents import APIConnectOptions, APIError, NotGivenOr, stt, utils, vad
from livekit.agents.types import DEFAULT_API_CONNECT_OPTIONS, NOT_GIVEN

logger = logging.getLogger(__name__)

#: Seconds of silence that VAD must have counted: a consonant's closure is shorter, most pauses inside a sentence too.
_SHORT_SILENCE = 0.06
#: Seconds of an utterance from which on only its end is recognised: the answer to a speech is not drafted either.
_LONGEST = 30.0

# The recognition itself was tried again already.
_NO_RETRY = APIConnectOptions(max_retry=0)


class Listener(Protocol):
    """Who is told how an utterance sounds while it lasts."""

    def sounds(self, frames: Iterable[rtc.AudioFrame]) -> None:
        """The caller speaks, and this is the next of it."""
        ...

    def was_wordless(self) -> None:
        """What sounded like speech, and is over, was none."""
        ...


class Recognition(Protocol):
    """Who is told whether words are still to come."""

    def asked(self) -> None:
        """An utterance is over, and its words are asked for."""
        ...

    def told(self) -> None:
        """They have come, or never will."""
        ...


class EarlySTT(stt.STT[Any]):
    """A streaming recogniser around any that takes a whole recording, cut into utterances by `vad`.

    At a short silence the utterance so far is recognised and sent as a preflight transcript. When the caller stays
    silent the same result is the final transcript, which so is always of the whole utterance; when the caller goes on
    it is dropped. An utterance makes one request, and one more for each short silence inside it, up to `early`.
    """

    def __init__(
        self,
        inner: stt.STT[Any],
        *,
        vad: vad.VAD,
        early: int,
        listener: Listener | None = None,
        recognition: Recognition | None = None,
    ) -> None:
        super().__init__(capabilities=stt.STTCapabilities(streaming=True, interim_results=False))
        self.inner = inner
        self.vad = vad
        self.early = early
        self.listener = listener
        self.recognition = recognition
        inner.on("metrics_collected", self._tell_metrics)

    @property
    def model(self) -> str:
        """The recogniser's own."""
        return self.inner.model

    @property
    def provider(self) -> str:
        """The recogniser's own."""
        return self.inner.provider

    def prewarm(self) -> None:
        """Prepare the recogniser."""
        self.inner.prewarm()

    def stream(
        self,
        *,
        language: NotGivenOr[str] = NOT_GIVEN,
        conn_options: APIConnectOptions = DEFAULT_API_CONNECT_OPTIONS,
    ) -> stt.RecognizeStream:
        """Events of one caller's audio; `conn_options` are those of each recognition."""
        return _EarlyStream(self, language=language, request_options=conn_options)

    async def aclose(self) -> None:
        """Leave the recogniser, which belongs to whoever made it."""
        self.inner.off("metrics_collected", self._tell_metrics)

    async def _recognize_impl(
        self,
        buffer: utils.AudioBuffer,
        *,
        language: NotGivenOr[str] = NOT_GIVEN,
        conn_options: APIConnectOptions,
    ) -> stt.SpeechEvent:
        return await self.inner.recognize(buffer, language=language, conn_options=conn_options)

    def _tell_metrics(self, *reports: object) -> None:
        self.emit("metrics_collected", *reports)


@dataclass
class _Recognition:
    """A request for the words of an utterance; `is_open` as long as it is not known whether they are all."""

    task: asyncio.Task[stt.SpeechEvent]
    is_open: bool = True
    #: Unix seconds.
    speech_ended_at: float | None = None

    @property
    def failed(self) -> bool:
        return self.task.done() and (self.task.cancelled() or self.task.exception() is not None)


class _EarlyStream(stt.RecognizeStream):
    """Follows VAD; its results leave in the order in which they were asked for."""

    def __init__(self, early_stt: EarlySTT, *, language: NotGivenOr[str], request_options: APIConnectOptions) -> None:
        super().__init__(stt=early_stt, conn_options=_NO_RETRY)
        self._early_stt = early_stt
        self._language = language
        self._request_options = request_options

    async def _metrics_monitor_task(self, event_aiter: Any) -> None:
        # The recogniser reports its own requests.
        async for _ in event_aiter:
            pass

    async def _run(self) -> None:
        activity = self._early_stt.vad.stream()
        self._results = utils.aio.Chan[tuple[stt.SpeechEventType, _Recognition]]()
        self._requests = set[asyncio.Task[stt.SpeechEvent]]()
        self._utterance: list[rtc.AudioFrame] = []
        self._early: _Recognition | None = None
        self._early_left = 0
        self._due = 0
        self._is_speaking = False
        tasks = [
            asyncio.create_task(work, name=f"early-stt-{name}")
            for name, work in {
                "listen": self._listen(activity),
                "follow": self._follow(activity),
                "deliver": self._deliver(),
            }.items()
        ]
        try:
            await asyncio.gather(*tasks)
        finally:
            while self._due:
                self._told()
            await utils.aio.cancel_and_wait(*tasks, *self._requests)
            await activity.aclose()

    async def _listen(self, activity: vad.VADStream) -> None:
        async for frame in self._input_ch:
            if isinstance(frame, rtc.AudioFrame):
                activity.push_frame(frame)
            else:
                activity.flush()
        activity.end_input()

    async def _follow(self, activity: vad.VADStream) -> None:
        async for event in activity:
            if event.type is vad.VADEventType.START_OF_SPEECH:
                self._begin(event)
            elif event.type is vad.VADEventType.INFERENCE_DONE and event.speaking:
                self._go_on(event)
            elif event.type is vad.VADEventType.END_OF_SPEECH:
                self._end(event)
        self._results.close()

    def _begin(self, event: vad.VADEvent) -> None:
        self._utterance, self._early_left = list(event.frames), self._early_stt.early
        self._is_speaking = True
        self._tell(event.frames)
        self._event_ch.send_nowait(stt.SpeechEvent(stt.SpeechEventType.START_OF_SPEECH))

    def _tell(self, frames: Iterable[rtc.AudioFrame]) -> None:
        if self._early_stt.listener is not None:
            self._early_stt.listener.sounds(frames)

    def _go_on(self, event: vad.VADEvent) -> None:
        self._tell(event.frames)
        if event.speech_duration > _LONGEST:
            self._utterance, self._early_left = [], 0
        else:
            self._utterance.extend(event.frames)
        if event.raw_accumulated_silence == 0:
            self._drop_early()
        elif self._early is None and self._early_left and event.raw_accumulated_silence >= _SHORT_SILENCE:
            self._early_left -= 1
            self._early = self._request(self._utterance)
            self._results.send_nowait((stt.SpeechEventType.PREFLIGHT_TRANSCRIPT, self._early))

    def _end(self, event: vad.VADEvent) -> None:
        self._is_speaking = False
        ended_at = time.time() - event.silence_duration - event.inference_duration
        self._event_ch.send_nowait(stt.SpeechEvent(stt.SpeechEventType.END_OF_SPEECH, speech_end_time=ended_at))
        recognition, self._early = self._early, None
        if recognition is None or recognition.failed:
            recognition = self._request(event.frames)
        recognition.is_open, recognition.speech_ended_at = False, ended_at
        self._results.send_nowait((stt.SpeechEventType.FINAL_TRANSCRIPT, recognition))
        self._asked()

    def _asked(self) -> None:
        self._due += 1
        if self._early_stt.recognition is not None:
            self._early_stt.recognition.asked()

    def _told(self) -> None:
        self._due -= 1
        if self._early_stt.recognition is not None:
            self._early_stt.recognition.told()

    def _drop_early(self) -> None:
        if self._early is not None:
            self._early.is_open = False
            self._early.task.cancel()
            self._early = None

    def _request(self, frames: Iterable[rtc.AudioFrame]) -> _Recognition:
        request = self._early_stt.inner.recognize(
            utils.merge_frames(list(frames)), language=self._language, conn_options=self._request_options
        )
        task = asyncio.create_task(request, name="early-stt-request")
        self._requests.add(task)
        task.add_done_callback(self._requests.discard)
        return _Recognition(task)

    async def _deliver(self) -> None:
        """Raises `APIError` when the words of a whole utterance cannot be had."""
        async for kind, recognition in self._results:
            await asyncio.wait({recognition.task})
            if kind is stt.SpeechEventType.FINAL_TRANSCRIPT:
                self._send(kind, recognition)
                self._told()
            # Words that came when the utterance was over are told once, as its final ones.
            elif recognition.is_open:
                try:
                    self._send(kind, recognition)
                except APIError:
                    logger.info("an early recognition failed; the end of the utterance tries again")

    def _send(self, kind: stt.SpeechEventType, recognition: _Recognition) -> None:
        words = recognition.task.result().alternatives[:1]
        if words and words[0].text:
            ended_at = recognition.speech_ended_at
            self._event_ch.send_nowait(stt.SpeechEvent(kind, alternatives=words, speech_end_time=ended_at))
        elif kind is stt.SpeechEventType.FINAL_TRANSCRIPT and not self._is_speaking and self._early_stt.listener:
            self._early_stt.listener.was_wordless()
