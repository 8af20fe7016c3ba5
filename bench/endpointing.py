"""When a turn is taken for over: utterances with pauses inside, heard by the recognition path of a call in real time.

Each utterance is heard twice, one time after the other: with LiveKit's own way to use a recogniser that takes whole
recordings, which begins when voice activity ends, and with Muster's defaults. Nobody answers: only the moment counts.
"""

import asyncio
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from typing import Any, Never

import numpy as np
from livekit import rtc
from livekit.agents import Agent, AgentSession, APIConnectOptions, NotGivenOr, StopResponse, llm, stt, utils
from livekit.agents.types import DEFAULT_API_CONNECT_OPTIONS, NOT_GIVEN
from livekit.agents.voice import io

from bench.report import Figure, Report
from bench.utterances import Utterance, utterances
from local.audio import SAMPLE_RATE, Samples
from local.caller import quiet_room
from local.caller_voice import CallerVoice
from local.parts import PROVIDERS, StackOptions
from local.stack import Stack
from local.transcripts import word_errors
from worker.call.pipeline import AUDIO_INPUT, open_pipeline
from worker.call.providers import open_providers
from worker.call.settings import CallSettings

#: What each way sets; the second is what a worker does by itself.
_WAYS: Mapping[str, Mapping[str, str]] = {
    "LiveKit's": {
        "MUSTER_EARLY_TRANSCRIPTS": "0",
        "MUSTER_DRAFTS": "0",
        "MUSTER_ENDPOINTING_MIN_DELAY": "0.3",
        "MUSTER_ENDPOINTING_MAX_DELAY": "0.8",
    },
    "Muster's": {},
}
#: Settings a call needs and nobody here uses.
_UNUSED = {
    "REDIS_URL": "redis://unused",
    "CACHE_URL": "redis://unused",
    "LIVEKIT_URL": "ws://unused",
    "LIVEKIT_API_KEY": "unused",
    "LIVEKIT_API_SECRET": "unused",
}

_FRAME_SAMPLES = SAMPLE_RATE * AUDIO_INPUT.frame_size_ms // 1000
#: Seconds of quiet before the first utterance, after a turn's end, and until a turn must be over.
_SETTLE = 1.0
_REST = 0.6
_OVER_WITHIN = 4.0


@dataclass(frozen=True)
class _Turn:
    """What was heard as one turn, and when it was over (the event loop's clock)."""

    text: str
    over_at: float


@dataclass
class _Heard:
    """What became of one utterance."""

    utterance: Utterance
    ended_at: float = 0.0
    turns: list[_Turn] = field(default_factory=list)
    requests: int = 0
    drafts: int = 0

    @property
    def cuts(self) -> int:
        """How many turns were over before the utterance was."""
        return sum(turn.over_at < self.ended_at for turn in self.turns)

    @property
    def late(self) -> int:
        """How many turns were made of words that came when the turn was over already."""
        return max(0, len(self.turns) - self.cuts - 1)

    @property
    def delay(self) -> float | None:
        """Seconds from the last audible sample to the end of the turn; None when that never came."""
        return next((turn.over_at - self.ended_at for turn in self.turns if turn.over_at >= self.ended_at), None)


class _Microphone(io.AudioInput):
    """Frames on a strict clock: a line when there is one, else a quiet room."""

    def __init__(self) -> None:
        super().__init__(label="bench")
        self._quiet = quiet_room(_FRAME_SAMPLES / SAMPLE_RATE)
        self._due = 0.0
        self._frames = deque[Samples]()
        self._said = asyncio.Event()

    async def say(self, samples: Samples) -> float:
        """Returns the moment at which the last sample was there."""
        self._said.clear()
        self._frames.extend(_cut(samples))
        await self._said.wait()
        return self._due

    async def __anext__(self) -> rtc.AudioFrame:
        loop = asyncio.get_running_loop()
        self._due = (self._due or loop.time()) + _FRAME_SAMPLES / SAMPLE_RATE
        await asyncio.sleep(self._due - loop.time())
        samples = self._frames.popleft() if self._frames else self._quiet
        if not self._frames:
            self._said.set()
        return rtc.AudioFrame(samples.tobytes(), SAMPLE_RATE, 1, len(samples))


def _cut(samples: Samples) -> Iterator[Samples]:
    """Whole frames: the room is quiet before the first sample, so that the last one ends its frame."""
    silence = quiet_room(-len(samples) % _FRAME_SAMPLES / SAMPLE_RATE)
    whole = np.concatenate([silence, samples])
    return iter(np.split(whole, len(whole) // _FRAME_SAMPLES))


class _CountedSTT(stt.STT[Any]):
    """Tells how many requests the recogniser gets."""

    def __init__(self, inner: stt.STT[Any]) -> None:
        super().__init__(capabilities=inner.capabilities)
        self._inner = inner
        self.requests = 0

    async def _recognize_impl(
        self,
        buffer: utils.AudioBuffer,
        *,
        language: NotGivenOr[str] = NOT_GIVEN,
        conn_options: APIConnectOptions,
    ) -> stt.SpeechEvent:
        self.requests += 1
        return await self._inner.recognize(buffer, language=language, conn_options=conn_options)


class _CountedLLM(llm.LLM[Any]):
    """Tells how many answers are drafted, and says nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.drafts = 0

    def chat(
        self,
        *,
        chat_ctx: llm.ChatContext,
        tools: list[llm.Tool] | None = None,
        conn_options: APIConnectOptions = DEFAULT_API_CONNECT_OPTIONS,
        **_: Any,
    ) -> llm.LLMStream:
        self.drafts += 1
        return _Nothing(self, chat_ctx=chat_ctx, tools=tools or [], conn_options=conn_options)


class _Nothing(llm.LLMStream):
    async def _run(self) -> None:
        """There is nothing to say."""


class _Listener(Agent):
    """Notes when a turn is over, and leaves it at that."""

    def __init__(self) -> None:
        super().__init__(instructions="")
        self.turns: list[_Turn] = []
        self.heard = asyncio.Event()

    async def on_user_turn_completed(self, turn_ctx: llm.ChatContext, new_message: llm.ChatMessage) -> Never:
        self.turns.append(_Turn(new_message.text_content or "", asyncio.get_running_loop().time()))
        self.heard.set()
        raise StopResponse


class _Ear:
    """One way to hear callers: the pipeline of a call without a room."""

    def __init__(self, settings: CallSettings) -> None:
        self._settings = settings
        self._microphone = _Microphone()
        self._listener = _Listener()
        self._model = _CountedLLM()

    async def __aenter__(self) -> "_Ear":
        self._providers = open_providers(self._settings)
        self._recogniser = _CountedSTT(self._providers.stt)
        counted = replace(self._providers, stt=self._recogniser)
        self._session: AgentSession[None] = open_pipeline(self._settings, counted, self._model)
        self._session.input.audio = self._microphone
        await self._session.start(self._listener, record=False)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.aclose()
        await self._providers.aclose()

    async def hear(self, utterance: Utterance) -> _Heard:
        """Speak it and wait until the turn is over."""
        requests, drafts = self._recogniser.requests, self._model.drafts
        self._listener.turns = []
        heard = _Heard(utterance, ended_at=await self._microphone.say(utterance.samples))
        heard.turns = self._listener.turns
        deadline = asyncio.get_running_loop().time() + _OVER_WITHIN
        while heard.delay is None and (left := deadline - asyncio.get_running_loop().time()) > 0:
            self._listener.heard.clear()
            try:
                async with asyncio.timeout(left):
                    await self._listener.heard.wait()
            except TimeoutError:
                break
        await asyncio.sleep(_REST)
        heard.requests, heard.drafts = self._recogniser.requests - requests, self._model.drafts - drafts
        return heard


def measure_endpointing(*, count: int) -> Report:
    """The first `count` utterances, each heard both ways."""
    options = StackOptions(parts=frozenset({PROVIDERS}), preferred_ports=False)
    with Stack(options=options) as stack:
        lines = utterances(CallerVoice(providers=stack.urls[PROVIDERS]))[:count]
        return _report(asyncio.run(_hear_all(lines, {**os.environ, **stack.settings, **_UNUSED})))


async def _hear_all(lines: Sequence[Utterance], environ: Mapping[str, str]) -> Mapping[str, list[_Heard]]:
    async with AsyncExitStack() as opened:
        await opened.enter_async_context(utils.http_context.open())
        ears = {
            name: await opened.enter_async_context(_Ear(CallSettings.from_env({**environ, **chosen})))
            for name, chosen in _WAYS.items()
        }
        await asyncio.sleep(_SETTLE)
        heard: dict[str, list[_Heard]] = {name: [] for name in ears}
        for line in lines:
            for name, ear in ears.items():
                heard[name].append(await ear.hear(line))
        return heard


def _report(heard: Mapping[str, list[_Heard]]) -> Report:
    figures = {
        f"{name}: end of speech to end of turn": Figure([one.delay for one in results if one.delay is not None])
        for name, results in heard.items()
    }
    notes = [line for name, results in heard.items() for line in _notes(name, results)]
    return Report("End of turn of utterances with pauses inside", figures, notes)


def _notes(name: str, results: Sequence[_Heard]) -> Iterator[str]:
    errors = [
        word_errors(said=one.utterance.text, recognised=" ".join(turn.text for turn in one.turns))
        for one in results
        if one.utterance.text is not None
    ]
    count = len(results)
    counts = (
        f"{sum(one.cuts > 0 for one in results)} of {count} utterances cut at a pause",
        f"{sum(one.late > 0 for one in results)} with words that came too late for their turn",
        f"{sum(one.delay is None for one in results)} without an end",
        f"{sum(each.errors for each in errors)} of {sum(len(each.said) for each in errors)} words wrong",
        f"{sum(one.requests for one in results) / count:.2f} recognitions an utterance",
        f"{sum(one.drafts for one in results) / count:.2f} drafts an utterance",
    )
    yield f"{name}: {', '.join(counts)}."
    for one in results:
        if one.cuts or one.late:
            yield f"  {'cut' if one.cuts else 'late'}: {' | '.join(turn.text for turn in one.turns)}"
