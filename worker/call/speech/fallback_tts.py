"""The voice of the first provider that works; a speech that breaks off is continued by the next one."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from livekit.agents import APIConnectOptions, APIError, tts, utils
from livekit.agents.types import DEFAULT_API_CONNECT_OPTIONS, USERDATA_TIMED_TRANSCRIPT

from worker.call.ports import SAMPLE_RATE, TTSPort
from worker.call.speech.failover import PROBE_PAUSES, Failover
from worker.call.speech.script import Script

#: What a probe has spoken, unheard.
_PROBE = "Yes."


class FallbackTTS:
    """`TTSPort` over others, in the order of preference; `timeout` is seconds a probe may wait for audio."""

    name = "fallback"

    def __init__(self, ports: Sequence[TTSPort], *, timeout: float, pauses: Sequence[float] = PROBE_PAUSES) -> None:
        self._ports = tuple(ports)
        self._timeout = timeout
        self._pauses = pauses

    @property
    def voice(self) -> str:
        """The preferred one's."""
        return self._ports[0].voice

    def open(self) -> tts.TTS[Any]:
        """All of them opened as one."""
        return SwitchingTTS([port.open() for port in self._ports], timeout=self._timeout, pauses=self._pauses)


class SwitchingTTS(tts.TTS[Any]):
    """One TTS out of several, which belong to it.

    LiveKit's own fallback adapter drops the rest of a speech that breaks off; here the next voice goes on with the
    first word that was not heard.
    """

    def __init__(self, voices: Sequence[tts.TTS[Any]], *, timeout: float, pauses: Sequence[float]) -> None:
        if {(voice.sample_rate, voice.num_channels) for voice in voices} != {(SAMPLE_RATE, 1)}:
            raise ValueError(f"every voice must be mono of {SAMPLE_RATE} samples per second")
        aligned = all(voice.capabilities.aligned_transcript for voice in voices)
        super().__init__(
            capabilities=tts.TTSCapabilities(streaming=True, aligned_transcript=aligned),
            sample_rate=SAMPLE_RATE,
            num_channels=1,
        )
        self._probe_options = APIConnectOptions(max_retry=0, timeout=timeout)
        self.failover = Failover(voices, probe=self._probe, pauses=pauses)

    @property
    def model(self) -> str:
        """Of the provider that served last."""
        return self.failover.current.model

    @property
    def provider(self) -> str:
        """The one that served last."""
        return self.failover.current.provider

    def synthesize(
        self, text: str, *, conn_options: APIConnectOptions = DEFAULT_API_CONNECT_OPTIONS
    ) -> tts.ChunkedStream:
        """A whole text, spoken as a stream that ends at once."""
        return self._synthesize_with_stream(text, conn_options=replace(conn_options, max_retry=0))

    def stream(self, *, conn_options: APIConnectOptions = DEFAULT_API_CONNECT_OPTIONS) -> tts.SynthesizeStream:
        """One speech."""
        return _Speech(self, conn_options=replace(conn_options, max_retry=0))

    async def _probe(self, voice: tts.TTS[Any]) -> None:
        async with voice.stream(conn_options=self._probe_options) as stream:
            stream.push_text(_PROBE)
            stream.end_input()
            async for _ in stream:
                pass

    def prewarm(self) -> None:
        """Warm the provider that serves next."""
        self.failover.order[0].prewarm()

    async def aclose(self) -> None:
        """Close all of them."""
        await self.failover.aclose()


class _Speech(tts.SynthesizeStream):
    def __init__(self, tts: SwitchingTTS, *, conn_options: APIConnectOptions) -> None:
        super().__init__(tts=tts, conn_options=conn_options)
        self._failover = tts.failover

    async def _run(self, output_emitter: tts.AudioEmitter) -> None:
        output_emitter.initialize(
            request_id=utils.shortuuid(),
            sample_rate=SAMPLE_RATE,
            num_channels=1,
            mime_type="audio/pcm",
            stream=True,
        )
        output_emitter.start_segment(segment_id=utils.shortuuid())
        script = Script()
        reading = asyncio.create_task(self._read(script))
        try:
            await self._failover.serve(lambda voice: self._speak(voice, script, output_emitter))
        except APIError:
            # What was heard last is still on its way.
            output_emitter.end_input()
            await output_emitter.join()
            raise
        finally:
            await utils.aio.cancel_and_wait(reading)

    async def _read(self, script: Script) -> None:
        async for piece in self._input_ch:
            # A flush comes with the end only: LiveKit takes no text after one.
            if isinstance(piece, str):
                script.write(piece)
        script.end()

    async def _speak(self, voice: tts.TTS[Any], script: Script, output_emitter: tts.AudioEmitter) -> None:
        """Speak what is left of the script; words are passed on when they are heard."""
        script.hand_over()
        async with voice.stream(conn_options=self._conn_options) as stream:
            prompting = asyncio.create_task(script.prompt(stream))
            try:
                async for audio in stream:
                    self._note_start(stream)
                    words = audio.frame.userdata.get(USERDATA_TIMED_TRANSCRIPT, ())
                    output_emitter.push_timed_transcript(script.hear(audio.frame.duration, words))
                    output_emitter.push_frame(audio.frame)
                output_emitter.push_timed_transcript(script.finish())
            except APIError:
                output_emitter.push_timed_transcript(script.break_off())
                raise
            finally:
                self._note_start(stream)
                await utils.aio.cancel_and_wait(prompting)

    def _note_start(self, stream: tts.SynthesizeStream) -> None:
        # The caller waits from the first text that any voice was given, one that fails included.
        self._started_time = self._started_time or stream._started_time
