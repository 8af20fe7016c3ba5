"""A recogniser for tests of a call: it plays a script and keeps what it heard."""

import asyncio

import numpy as np
from livekit import rtc
from livekit.agents import APIConnectOptions, LanguageCode, NotGivenOr, stt, utils
from livekit.agents.types import NOT_GIVEN

from local.audio import Samples

Answer = str | Exception | tuple[asyncio.Event, str]


class ScriptedSTT(stt.STT[str]):
    """Answers each request with the next line of a script: words, an error, or words once an event is set."""

    def __init__(self, *script: Answer) -> None:
        super().__init__(capabilities=stt.STTCapabilities(streaming=False, interim_results=False))
        self._script = list(script)
        self.heard: list[Samples] = []
        self.asked = asyncio.Semaphore(0)

    async def _recognize_impl(
        self,
        buffer: utils.AudioBuffer,
        *,
        language: NotGivenOr[str] = NOT_GIVEN,
        conn_options: APIConnectOptions,
    ) -> stt.SpeechEvent:
        assert isinstance(buffer, rtc.AudioFrame)
        self.heard.append(np.frombuffer(buffer.data, np.int16))
        self.asked.release()
        answer = self._script.pop(0)
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, tuple):
            opened, answer = answer
            await opened.wait()
        words = stt.SpeechData(language=LanguageCode("en"), text=answer)
        return stt.SpeechEvent(stt.SpeechEventType.FINAL_TRANSCRIPT, alternatives=[words])
