"""Recognition by the first provider that works; an utterance whose provider fails is heard by the next one."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from livekit import rtc
from livekit.agents import APIConnectOptions, NotGivenOr, stt, utils
from livekit.agents.types import DEFAULT_API_CONNECT_OPTIONS, NOT_GIVEN

from worker.call.ports import STTPort
from worker.call.speech.failover import PROBE_PAUSES, Failover

#: What a probe asks about: half a second of silence, nothing of the caller's.
_PROBE_RATE = 16_000
_PROBE = rtc.AudioFrame(bytes(_PROBE_RATE), _PROBE_RATE, 1, _PROBE_RATE // 2)


class FallbackSTT:
    """`STTPort` over others, in the order of preference; `timeout` is seconds a probe may take."""

    name = "fallback"

    def __init__(self, ports: Sequence[STTPort], *, timeout: float, pauses: Sequence[float] = PROBE_PAUSES) -> None:
        self._ports = tuple(ports)
        self._timeout = timeout
        self._pauses = pauses

    def open(self) -> stt.STT[Any]:
        """All of them opened as one."""
        return SwitchingSTT([port.open() for port in self._ports], timeout=self._timeout, pauses=self._pauses)


class SwitchingSTT(stt.STT[Any]):
    """One STT out of several, which belong to it.

    LiveKit's own fallback adapter streams into each provider, so that the utterance during which one fails is lost;
    here an utterance is kept until it is answered.
    """

    def __init__(self, ears: Sequence[stt.STT[Any]], *, timeout: float, pauses: Sequence[float]) -> None:
        super().__init__(capabilities=stt.STTCapabilities(streaming=False, interim_results=False))
        self._probe_options = APIConnectOptions(max_retry=0, timeout=timeout)
        self._failover = Failover(ears, probe=self._probe, pauses=pauses)

    @property
    def model(self) -> str:
        """Of the provider that served last."""
        return self._failover.current.model

    @property
    def provider(self) -> str:
        """The one that served last."""
        return self._failover.current.provider

    async def recognize(
        self,
        buffer: utils.AudioBuffer,
        *,
        language: NotGivenOr[str] = NOT_GIVEN,
        conn_options: APIConnectOptions = DEFAULT_API_CONNECT_OPTIONS,
    ) -> stt.SpeechEvent:
        """One event for the utterance; the metrics tell the whole wait, that for a provider that failed included."""
        return await super().recognize(buffer, language=language, conn_options=replace(conn_options, max_retry=0))

    async def _recognize_impl(
        self,
        buffer: utils.AudioBuffer,
        *,
        language: NotGivenOr[str] = NOT_GIVEN,
        conn_options: APIConnectOptions,
    ) -> stt.SpeechEvent:
        return await self._failover.serve(
            lambda ear: ear.recognize(buffer, language=language, conn_options=conn_options)
        )

    async def _probe(self, ear: stt.STT[Any]) -> None:
        await ear.recognize(_PROBE, conn_options=self._probe_options)

    def prewarm(self) -> None:
        """Warm the provider that serves next."""
        self._failover.order[0].prewarm()

    async def aclose(self) -> None:
        """Close all of them."""
        await self._failover.aclose()
