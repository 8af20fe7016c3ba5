"""Recognition and voice of a call: one contract for each adapter and the fallback, and a provider that fails."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
import redis.asyncio
from livekit import rtc
from livekit.agents import APIConnectionError, APIConnectOptions, APIError, metrics, stt, tts, utils
from livekit.agents.types import DEFAULT_API_CONNECT_OPTIONS, USERDATA_TIMED_TRANSCRIPT, TimedString
from openai import AsyncOpenAI

from graphs.configuration import AgentConfiguration
from tests.provider_server import ProviderServer, assert_heard, words
from worker.call.errors import SpeechNotRendered
from worker.call.phrases import Phrases
from worker.call.ports import SAMPLE_RATE, STTPort, TTSPort
from worker.call.settings import CallSettings
from worker.call.speech.elevenlabs import Account, ElevenLabsSTT, ElevenLabsTTS
from worker.call.speech.fallback_stt import FallbackSTT
from worker.call.speech.fallback_tts import FallbackTTS
from worker.call.speech.openai import OpenAISTT, OpenAITTS
from worker.fleet.errors import SettingsInvalid

SAID = "Please tell me about the free trial, and how much does it cost?"
FIRST = "Our free trial is open to everybody. "
SECOND = "It comes with a router, and you can cancel it whenever you want. "
#: A sentence is complete when the next one has begun.
BEGUN = SECOND[:20]
#: Seconds; a busy machine's stand-in needs some of them.
PATIENT, IMPATIENT = 20.0, 1.0
#: Long enough for an answer and short enough to wait for.
BOUND = 4.0
PROVIDERS = ("openai", "elevenlabs")
PORTS = (*PROVIDERS, "fallback")
#: Seconds before each probe.
SOON = (0.2,)
NEVER = (3600.0,)


@pytest.fixture
async def client(providers: ProviderServer) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{providers.url}/v1", api_key="any", max_retries=0) as client:
        yield client


@pytest.fixture
async def session() -> AsyncIterator[None]:
    """What the adapters' documented surroundings are."""
    async with utils.http_context.open():
        yield


@dataclass(frozen=True)
class Ports:
    """The adapters, pointed at the stand-in."""

    client: AsyncOpenAI
    account: Account

    def hearing(self, *names: str, pauses: Sequence[float] = SOON) -> STTPort:
        ports: dict[str, STTPort] = {
            "openai": OpenAISTT(self.client, model="gpt-4o-mini-transcribe"),
            "elevenlabs": ElevenLabsSTT(self.account, model="scribe_v2"),
        }
        if names == ("fallback",):
            names = PROVIDERS
        elif len(names) == 1:
            return ports[names[0]]
        return FallbackSTT([ports[name] for name in names], timeout=PATIENT, pauses=pauses)

    def speaking(self, *names: str, pauses: Sequence[float] = SOON) -> TTSPort:
        ports: dict[str, TTSPort] = {
            "openai": OpenAITTS(self.client, model="gpt-4o-mini-tts", voice="ash"),
            "elevenlabs": ElevenLabsTTS(self.account, model="eleven_turbo_v2_5", voice="agent"),
        }
        if names == ("fallback",):
            names = PROVIDERS[::-1]
        elif len(names) == 1:
            return ports[names[0]]
        return FallbackTTS([ports[name] for name in names], timeout=PATIENT, pauses=pauses)


@pytest.fixture
def ports(client: AsyncOpenAI, providers: ProviderServer, session: None) -> Ports:
    return Ports(client, Account(api_key="any", base_url=f"{providers.url}/v1"))


@pytest.fixture
async def utterance(client: AsyncOpenAI) -> rtc.AudioFrame:
    speech = await client.audio.speech.create(model="any", voice="caller", response_format="pcm", input=SAID)
    return rtc.AudioFrame(speech.content, SAMPLE_RATE, 1, len(speech.content) // 2)


def options(timeout: float = PATIENT) -> APIConnectOptions:
    return APIConnectOptions(max_retry=0, timeout=timeout)


@dataclass
class Heard:
    """What came out of a voice."""

    frames: list[rtc.AudioFrame] = field(default_factory=list)
    spoken: list[TimedString] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(self.spoken)

    @property
    def seconds(self) -> float:
        return sum(frame.duration for frame in self.frames)

    @property
    def starts(self) -> list[float]:
        return [word.start_time for word in self.spoken if utils.is_given(word.start_time)]

    def add(self, audio: tts.SynthesizedAudio) -> None:
        self.frames.append(audio.frame)
        self.spoken += audio.frame.userdata.get(USERDATA_TIMED_TRANSCRIPT, ())


async def say(voice: tts.TTS[Any], text: str = FIRST, *, timeout: float = PATIENT) -> Heard:
    heard = Heard()
    async with voice.stream(conn_options=options(timeout)) as speech:
        speech.push_text(text)
        speech.end_input()
        async for audio in speech:
            heard.add(audio)
    return heard


def served(providers: ProviderServer, kind: str, since: int = 0) -> list[str]:
    """Who was asked for this and answered, in order."""
    return [entry["provider"] for entry in providers.requests(kind)[since:] if entry["outcome"] == "done"]


async def until_served_by(providers: ProviderServer, kind: str, provider: str, since: int) -> None:
    """Wait for a probe that is answered."""
    deadline = time.monotonic() + 10
    while provider not in served(providers, kind, since):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
    await asyncio.sleep(0.1)


class TestEverySTTPort:
    """The contract of `STTPort`."""

    @pytest.fixture(params=PORTS)
    def port(self, request: pytest.FixtureRequest, ports: Ports) -> STTPort:
        return ports.hearing(request.param)

    @pytest.fixture
    async def ear(self, port: STTPort) -> AsyncIterator[stt.STT[Any]]:
        ear = port.open()
        yield ear
        await ear.aclose()

    async def test_hears_an_utterance_and_tells_how_long_it_took(
        self, ear: stt.STT[Any], utterance: rtc.AudioFrame
    ) -> None:
        told: list[metrics.STTMetrics] = []
        ear.on("metrics_collected", told.append)
        began = time.monotonic()
        event = await ear.recognize(utterance, conn_options=options())
        took = time.monotonic() - began
        assert_heard(event.alternatives[0].text, SAID)
        [told_once] = told
        assert 0 < told_once.duration <= took
        assert told_once.audio_duration == pytest.approx(utterance.duration)

    async def test_hears_no_words_in_silence_of_any_sample_rate(self, ear: stt.STT[Any]) -> None:
        for rate in (16_000, 48_000):
            event = await ear.recognize(rtc.AudioFrame(bytes(2 * rate), rate, 1, rate), conn_options=options())
            assert [said.text for said in event.alternatives if said.text] == []

    async def test_fails_with_an_api_error_and_works_again(
        self, ear: stt.STT[Any], utterance: rtc.AudioFrame, providers: ProviderServer
    ) -> None:
        async with providers.fault(stt="fail"):
            with pytest.raises(APIError):
                await ear.recognize(utterance, conn_options=options())
        assert (await ear.recognize(utterance, conn_options=options())).alternatives[0].text

    async def test_waits_no_longer_than_it_may(
        self, ear: stt.STT[Any], utterance: rtc.AudioFrame, providers: ProviderServer
    ) -> None:
        async with providers.fault(stt="hang"):
            with pytest.raises(APIError):
                async with asyncio.timeout(4 * IMPATIENT):
                    await ear.recognize(utterance, conn_options=options(IMPATIENT))

    async def test_leaves_open_what_it_was_given(
        self, port: STTPort, utterance: rtc.AudioFrame, client: AsyncOpenAI
    ) -> None:
        await port.open().aclose()
        again = port.open()
        assert (await again.recognize(utterance, conn_options=options())).alternatives[0].text
        await again.aclose()
        assert (await client.models.list()).data


class TestEveryTTSPort:
    """The contract of `TTSPort`."""

    @pytest.fixture(params=PORTS)
    def port(self, request: pytest.FixtureRequest, ports: Ports) -> TTSPort:
        return ports.speaking(request.param)

    @pytest.fixture
    async def voice(self, port: TTSPort) -> AsyncIterator[tts.TTS[Any]]:
        voice = port.open()
        yield voice
        await voice.aclose()

    async def test_speaks_a_text_and_times_its_words(self, voice: tts.TTS[Any], ports: Ports) -> None:
        told: list[metrics.TTSMetrics] = []
        voice.on("metrics_collected", told.append)
        heard = await say(voice, FIRST + SECOND)
        assert voice.capabilities.streaming
        assert voice.capabilities.aligned_transcript
        assert {(frame.sample_rate, frame.num_channels) for frame in heard.frames} == {(SAMPLE_RATE, 1)}
        assert words(heard.text) == words(FIRST + SECOND)
        assert heard.starts == sorted(heard.starts)
        assert 0 <= heard.starts[0] < heard.starts[-1] < heard.seconds
        assert told
        ear = ports.hearing("openai").open()
        assert_heard((await ear.recognize(heard.frames, conn_options=options())).alternatives[0].text, FIRST + SECOND)

    async def test_speaks_while_the_text_is_still_being_written(self, voice: tts.TTS[Any]) -> None:
        heard = Heard()
        async with voice.stream(conn_options=options()) as speech:
            speech.push_text(FIRST + BEGUN)
            heard.add(await anext(aiter(speech)))
            speech.push_text(SECOND[len(BEGUN) :])
            speech.end_input()
            async for audio in speech:
                heard.add(audio)
        assert words(heard.text) == words(FIRST + SECOND)

    async def test_is_interrupted_and_speaks_again(self, voice: tts.TTS[Any]) -> None:
        async with voice.stream(conn_options=options()) as speech:
            speech.push_text(FIRST + SECOND)
            await anext(aiter(speech))
        assert words((await say(voice, "Of course.")).text) == ["of", "course"]

    async def test_fails_with_an_api_error_and_works_again(
        self, voice: tts.TTS[Any], providers: ProviderServer
    ) -> None:
        async with providers.fault(tts="fail"):
            with pytest.raises(APIError):
                await say(voice)
        assert words((await say(voice)).text) == words(FIRST)

    async def test_waits_no_longer_than_it_may(self, voice: tts.TTS[Any], providers: ProviderServer) -> None:
        async with providers.fault(tts="hang"):
            with pytest.raises(APIError):
                async with asyncio.timeout(6 * IMPATIENT):
                    await say(voice, timeout=IMPATIENT)

    async def test_leaves_open_what_it_was_given(self, port: TTSPort, client: AsyncOpenAI) -> None:
        await port.open().aclose()
        again = port.open()
        assert (await say(again)).frames
        await again.aclose()
        assert (await client.models.list()).data

    async def test_the_voice_of_a_phrase_depends_on_the_provider(self, port: TTSPort, ports: Ports) -> None:
        own = {ports.speaking(name).voice for name in PROVIDERS}
        assert len(own) == len(PROVIDERS)
        assert port.voice in own


@pytest.mark.parametrize("order", [PROVIDERS, PROVIDERS[::-1]], ids=lambda order: order[0])
async def test_an_utterance_whose_provider_fails_is_heard_by_the_next_one(
    providers: ProviderServer, ports: Ports, utterance: rtc.AudioFrame, order: tuple[str, str]
) -> None:
    first, second = order
    ear = ports.hearing(*order).open()
    told: list[metrics.STTMetrics] = []
    failed: list[stt.STTError] = []
    ear.on("metrics_collected", told.append)
    ear.on("error", failed.append)
    since = len(providers.requests("stt"))
    async with providers.fault(**{f"{first}_stt": "fail"}):
        for _ in range(2):
            event = await ear.recognize(utterance, conn_options=options())
            assert_heard(event.alternatives[0].text, SAID)
        assert served(providers, "stt", since) == [second, second]
        probes = len(providers.requests("stt"))
        await asyncio.sleep(3 * SOON[0])
    await until_served_by(providers, "stt", first, probes)
    since = len(providers.requests("stt"))
    await ear.recognize(utterance, conn_options=options())
    await ear.aclose()
    assert served(providers, "stt", since) == [first]
    # A probe is nobody's utterance.
    assert len(told) == 3
    assert failed == []


async def test_a_provider_that_hangs_delays_one_utterance(
    providers: ProviderServer, ports: Ports, utterance: rtc.AudioFrame
) -> None:
    ear = ports.hearing("openai", "elevenlabs", pauses=NEVER).open()
    told: list[metrics.STTMetrics] = []
    ear.on("metrics_collected", told.append)
    async with providers.fault(openai_stt="hang"):
        for _ in range(2):
            event = await ear.recognize(utterance, conn_options=options(BOUND))
            assert event.alternatives[0].text
    await ear.aclose()
    slow, quick = (each.duration for each in told)
    assert quick < BOUND <= slow


async def test_a_provider_that_failed_is_asked_when_no_other_answers(
    providers: ProviderServer, ports: Ports, utterance: rtc.AudioFrame
) -> None:
    ear = ports.hearing("openai", "elevenlabs", pauses=NEVER).open()
    async with providers.fault(openai_stt="fail"):
        await ear.recognize(utterance, conn_options=options())
    async with providers.fault(elevenlabs_stt="fail"):
        assert (await ear.recognize(utterance, conn_options=options())).alternatives[0].text
    await ear.aclose()


async def test_the_only_provider_is_asked_twice(
    providers: ProviderServer, client: AsyncOpenAI, utterance: rtc.AudioFrame, session: None
) -> None:
    ear = FallbackSTT([OpenAISTT(client, model="any")], timeout=PATIENT, pauses=SOON).open()
    since = len(providers.requests("stt"))
    async with providers.fault(stt="fail"):
        with pytest.raises(APIError):
            await ear.recognize(utterance, conn_options=options())
        await asyncio.sleep(3 * SOON[0])
    await ear.aclose()
    assert [entry["outcome"] for entry in providers.requests("stt")[since:]] == ["failed", "failed"]


@pytest.mark.parametrize("order", [PROVIDERS, PROVIDERS[::-1]], ids=lambda order: order[0])
async def test_a_speech_whose_voice_fails_is_spoken_by_the_next_one(
    providers: ProviderServer, ports: Ports, order: tuple[str, str]
) -> None:
    first, second = order
    voice = ports.speaking(*order).open()
    failed: list[tts.TTSError] = []
    voice.on("error", failed.append)
    since = len(providers.requests("tts"))
    async with providers.fault(**{f"{first}_tts": "fail"}):
        for _ in range(2):
            heard = await say(voice)
            assert words(heard.text) == words(FIRST)
        assert set(served(providers, "tts", since)) == {second}
        probes = len(providers.requests("tts"))
    await until_served_by(providers, "tts", first, probes)
    since = len(providers.requests("tts"))
    assert words((await say(voice)).text) == words(FIRST)
    await voice.aclose()
    assert set(served(providers, "tts", since)) == {first}
    assert failed == []


@pytest.mark.parametrize("order", [PROVIDERS, PROVIDERS[::-1]], ids=lambda order: order[0])
@pytest.mark.parametrize("mode", ["fail", "hang"])
async def test_a_speech_that_breaks_off_is_continued_with_the_first_word_that_was_not_heard(
    providers: ProviderServer, ports: Ports, order: tuple[str, str], mode: str
) -> None:
    voice = ports.speaking(*order, pauses=NEVER).open()
    heard = Heard()
    async with voice.stream(conn_options=options(BOUND)) as speech:
        speech.push_text(FIRST + BEGUN)
        heard.add(await anext(aiter(speech)))
        async with providers.fault(**{f"{order[0]}_tts": mode}):
            speech.push_text(SECOND[len(BEGUN) :])
            speech.end_input()
            async for audio in speech:
                heard.add(audio)
    await voice.aclose()
    assert words(heard.text) == words(FIRST + SECOND)
    assert heard.starts == sorted(heard.starts)
    assert all(later - earlier < 6 for earlier, later in pairwise(heard.starts))
    assert heard.starts[-1] < heard.seconds
    ear = ports.hearing("openai").open()
    assert_heard((await ear.recognize(heard.frames, conn_options=options())).alternatives[0].text, FIRST + SECOND)


async def test_a_speech_that_no_voice_can_end_fails_and_its_beginning_is_not_repeated(
    providers: ProviderServer, ports: Ports
) -> None:
    voice = ports.speaking("elevenlabs", "openai", pauses=NEVER).open()
    heard = Heard()
    async with voice.stream(conn_options=options()) as speech:
        speech.push_text(FIRST + BEGUN)
        heard.add(await anext(aiter(speech)))
        async with providers.fault(tts="fail"):
            speech.push_text(SECOND[len(BEGUN) :])
            speech.end_input()
            with pytest.raises(APIError):
                async for audio in speech:
                    heard.add(audio)
    await voice.aclose()
    assert words(heard.text) == words(FIRST)


async def test_a_speech_without_words_asks_for_no_audio(providers: ProviderServer, ports: Ports) -> None:
    voice = ports.speaking("elevenlabs", "openai").open()
    since = len(providers.requests("tts"))
    async with voice.stream(conn_options=options()) as speech:
        speech.end_input()
        assert [audio async for audio in speech] == []
    await voice.aclose()
    assert providers.requests("tts")[since:] == []


async def test_voices_of_different_rates_are_refused(ports: Ports) -> None:
    class Narrow(OpenAITTS):
        def open(self) -> tts.TTS[Any]:
            voice = super().open()
            voice._sample_rate = 8_000
            return voice

    narrow = Narrow(ports.client, model="any", voice="any")
    with pytest.raises(ValueError, match="24000"):
        FallbackTTS([ports.speaking("elevenlabs"), narrow], timeout=PATIENT).open()


async def test_a_phrase_is_rendered_by_the_first_voice_that_works_and_soon_by_the_preferred_one_again(
    providers: ProviderServer, ports: Ports, redis_url: str
) -> None:
    voices = [ports.speaking(name) for name in ("elevenlabs", "openai")]
    async with redis.asyncio.Redis.from_url(redis_url) as cache:
        phrases = Phrases(voices, cache=cache, timeout=PATIENT)

        async def kept() -> list[int]:
            return [await cache.ttl(key) async for key in cache.scan_iter("muster:{speech}:*")]

        since = len(providers.requests("tts"))
        async with providers.fault(elevenlabs_tts="fail"):
            audio = await phrases.load("Hello, this is a phrase.")
            assert await phrases.load("Hello, this is a phrase.") == audio
        assert served(providers, "tts", since) == ["openai"]
        [seconds] = await kept()
        assert 0 < seconds <= 300
        await cache.flushdb()
        assert await phrases.load("Hello, this is a phrase.")
        assert served(providers, "tts", since) == ["openai", "elevenlabs"]
        [seconds] = await kept()
        assert seconds > 24 * 3600
        async with providers.fault(tts="fail"):
            with pytest.raises(SpeechNotRendered):
                await phrases.load("Nobody says this.")


class Scripted(tts.TTS[Any]):
    """Takes a whole text, tells these words, is heard for so long, and then breaks off if it is to."""

    name = voice = "scripted"

    def __init__(self, *words: TimedString, seconds: float, breaks: bool = True) -> None:
        capabilities = tts.TTSCapabilities(streaming=True, aligned_transcript=True)
        super().__init__(capabilities=capabilities, sample_rate=SAMPLE_RATE, num_channels=1)
        self.words = list(words)
        self.seconds = seconds
        self.breaks = breaks
        self.given = ""

    def open(self) -> tts.TTS[Any]:
        return self

    def synthesize(self, text: str, **options: Any) -> tts.ChunkedStream:
        return self._synthesize_with_stream(text, **options)

    def stream(self, *, conn_options: APIConnectOptions = DEFAULT_API_CONNECT_OPTIONS) -> tts.SynthesizeStream:
        return ScriptedStream(self, conn_options=conn_options)


class ScriptedStream(tts.SynthesizeStream):
    def __init__(self, tts: Scripted, *, conn_options: APIConnectOptions) -> None:
        super().__init__(tts=tts, conn_options=conn_options)
        self._part = tts

    async def _run(self, output_emitter: tts.AudioEmitter) -> None:
        output_emitter.initialize(
            request_id="1", sample_rate=SAMPLE_RATE, num_channels=1, mime_type="audio/pcm", stream=True
        )
        output_emitter.start_segment(segment_id="1")
        self._mark_started()
        self._part.given = "".join([piece async for piece in self._input_ch if isinstance(piece, str)])
        output_emitter.push_timed_transcript(self._part.words)
        output_emitter.push(bytes(2 * round(self._part.seconds * SAMPLE_RATE)))
        output_emitter.end_input()
        await output_emitter.join()
        if self._part.breaks:
            raise APIConnectionError()


ONE, TWO, THREE = (
    TimedString(f"{word} ", start_time=at / 2, end_time=at / 2 + 0.5) for at, word in enumerate(["one", "two", "three"])
)


@pytest.mark.parametrize(
    ("first", "passed_on", "left"),
    [
        pytest.param(Scripted(ONE, TWO, THREE, seconds=0.6), "one two ", "three four", id="told-ahead-of-the-audio"),
        pytest.param(Scripted(ONE, TWO, seconds=1.4), "one two three ", "four", id="heard-before-it-was-told"),
        pytest.param(Scripted(ONE, TWO, seconds=1.01), "one two ", "three four", id="a-pause-is-no-word"),
        pytest.param(Scripted(seconds=3.0), "one two three four", "", id="nothing-told"),
        pytest.param(
            Scripted(TimedString("one two ", start_time=0.0), seconds=0.2), "one two ", "three four", id="whole"
        ),
        pytest.param(Scripted(ONE, seconds=0.0), "", "one two three four", id="nothing-heard"),
    ],
)
async def test_the_next_voice_is_given_what_was_not_heard(first: Scripted, passed_on: str, left: str) -> None:
    second = Scripted(TimedString("the rest", start_time=0.1), seconds=0.5, breaks=False)
    voice = FallbackTTS([first, second], timeout=PATIENT, pauses=NEVER).open()
    heard = await say(voice, "one two three four")
    await voice.aclose()
    assert first.given == "one two three four"
    assert second.given.strip() == left
    assert heard.text == passed_on + "the rest"
    assert heard.starts[-1] == pytest.approx(first.seconds + 0.1)
    assert heard.seconds == pytest.approx(first.seconds + second.seconds)


def settings(**environ: str) -> CallSettings:
    needed = {"REDIS_URL": "redis://", "LIVEKIT_URL": "ws://127.0.0.1:1", "LIVEKIT_API_KEY": "key"}
    return CallSettings.from_env(needed | {"LIVEKIT_API_SECRET": "secret", "OPENAI_API_KEY": "key"} | environ)


def test_what_each_provider_does_follows_from_the_keys() -> None:
    both = settings(ELEVEN_API_KEY="key")
    assert (both.stt_order, both.tts_order) == (("openai", "elevenlabs"), ("elevenlabs", "openai"))
    alone = settings(MUSTER_TTS="openai")
    assert (alone.stt_order, alone.tts_order) == (("openai",), ("openai",))
    named = settings(MUSTER_STT="elevenlabs, openai", MUSTER_TTS="openai,elevenlabs", ELEVEN_API_KEY="key")
    assert (named.stt_order, named.tts_order) == (("elevenlabs", "openai"), ("openai", "elevenlabs"))


def test_a_session_s_voice_is_one_of_the_provider_that_speaks_first() -> None:
    configuration = AgentConfiguration(voice="nova")
    alone = settings(MUSTER_TTS="openai").with_configuration(configuration)
    both = settings(ELEVEN_API_KEY="key").with_configuration(configuration)
    assert alone.openai_voice == "nova" != alone.voice_id
    assert (both.openai_voice, both.voice_id) == ("ash", "nova")


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"MUSTER_TTS": "elevenlabs"},
        {"MUSTER_STT": "openai"},
        {"MUSTER_STT": "openai,elevenlabs", "MUSTER_TTS": "openai"},
    ],
)
def test_elevenlabs_key_is_required_where_elevenlabs_serves(environ: dict[str, str]) -> None:
    with pytest.raises(SettingsInvalid, match="ELEVEN_API_KEY"):
        settings(**environ)


def test_a_missing_key_of_elevenlabs_is_named_with_all_else() -> None:
    with pytest.raises(SettingsInvalid) as refusal:
        CallSettings.from_env({"MUSTER_STT": "nobody"})
    for name in ("ELEVEN_API_KEY", "OPENAI_API_KEY", "LIVEKIT_URL", "REDIS_URL", "MUSTER_STT"):
        assert name in str(refusal.value)


@pytest.mark.parametrize("order", ["openai,openai", "nobody", ",", "openai,"])
def test_an_order_of_unknown_or_repeated_providers_is_refused(order: str) -> None:
    with pytest.raises(SettingsInvalid, match="MUSTER_TTS"):
        settings(MUSTER_TTS=order, ELEVEN_API_KEY="key")
