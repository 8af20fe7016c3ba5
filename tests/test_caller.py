"""The simulated caller, in a real room of a real LiveKit server, with recordings of people as voices."""

import asyncio
import os
import time
import uuid
import wave
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any, NoReturn

import numpy as np
import pytest
from livekit import api

from local.audio import FRAME_SAMPLES, SAMPLE_RATE, Samples, frames_of, peak, read_wav, trimmed, write_wav
from local.caller import BargeIn, Caller, Utterance
from local.errors import LiveKitMissing
from local.hearing import AUDIBLE_PEAK, Hearing, speech_in
from local.parts import LIVEKIT, StackOptions
from local.stack import Stack
from local.transcripts import word_errors
from muster.client import Session, Turn, TurnEvent, TurnTimings
from muster.conversation import Exchange
from muster.measures import CallResult, JoinLatency, critical_path

PROMPT = BargeIn(Utterance(13.0, 14.0), agent_silent_at=13.8)
LATE = BargeIn(Utterance(13.0, 14.0), agent_silent_at=15.1)


def missing(part: str) -> NoReturn:
    """Skips on a developer's machine; fails where everything has to be there."""
    if os.environ.get("CI"):
        pytest.fail(f"{part} is missing")
    pytest.skip(f"{part} is missing")


@pytest.fixture(scope="module")
def livekit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    options = StackOptions(parts=frozenset({LIVEKIT}), preferred_ports=False, home=tmp_path_factory.mktemp("livekit"))
    try:
        stack = Stack(options=options).__enter__()
    except LiveKitMissing:
        missing("livekit-server")
    yield stack
    stack.stop()


@pytest.fixture(scope="module")
def speech() -> Samples:
    """Eleven seconds of somebody reading: people stand in for both voices, so no synthesis is needed."""
    package = find_spec("moonshine_voice")
    if package is None or not package.submodule_search_locations:
        missing("moonshine-voice")
    return trimmed(read_wav(Path(package.submodule_search_locations[0]) / "assets" / "two_cities.wav"))


@asynccontextmanager
async def call(livekit: Stack, *, rejoin_within: float = 0.0) -> AsyncIterator[tuple[Caller, Caller]]:
    """A caller and, on the other side, a second one that plays the agent: it knows when it spoke."""
    url, settings, room = livekit.urls[LIVEKIT], livekit.settings, f"room-{uuid.uuid4().hex}"

    def token(identity: str) -> str:
        bare = api.AccessToken(settings["LIVEKIT_API_KEY"], settings["LIVEKIT_API_SECRET"]).with_identity(identity)
        return bare.with_grants(api.VideoGrants(room_join=True, room=room)).to_jwt()

    def joining(identity: str) -> Caller:
        return Caller(url=url, token=token(identity), rejoin_within=rejoin_within)

    async with joining("agent") as agent, joining("caller") as caller:
        await caller.heard.silent_since(time.time(), gap=0.3, within=5)
        yield caller, agent


async def test_the_latency_of_an_answer_is_measured_in_the_received_audio(livekit: Stack, speech: Samples) -> None:
    question, answer = speech[:SAMPLE_RATE], trimmed(speech[2 * SAMPLE_RATE :], threshold=1000)[:SAMPLE_RATE]
    excesses = []
    async with call(livekit) as (caller, agent):
        for _ in range(3):
            utterance = await caller.say(question)
            assert utterance.ended_at - utterance.started_at == pytest.approx(1.0, abs=0.2)
            await asyncio.sleep(0.3)
            reply = await agent.say(answer)
            heard_at = await caller.heard.first_audible_after(utterance.ended_at, within=5)
            excesses.append(heard_at - reply.started_at)
            await caller.heard.silent_since(time.time(), gap=0.9, within=5)
    assert min(excesses) > 0
    # On a busy machine the frames themselves are late, and the caller knows by how much.
    assert median(excesses) < 0.08 + caller.worst_delay + agent.worst_delay
    assert len(caller.heard.intervals) == 3


async def test_the_recording_holds_both_sides_at_their_time(livekit: Stack, speech: Samples, tmp_path: Path) -> None:
    async with call(livekit) as (caller, agent):
        said = await caller.say(speech[: 2 * SAMPLE_RATE])
        answered = await agent.say(speech[2 * SAMPLE_RATE : 4 * SAMPLE_RATE])
        await caller.heard.silent_since(answered.ended_at, gap=0.3, within=5)
        recording = caller.save_recording(tmp_path)
    with wave.open(str(recording.both), "rb") as file:
        both = np.frombuffer(file.readframes(file.getnframes()), np.int16).reshape(-1, 2)
    (left_start, left_end), (right_start, right_end) = (loud_seconds(both[:, side]) for side in (0, 1))
    # A busy machine hands frames over late; a recording out of step would be wrong by the length of a line.
    late = 0.5
    assert left_end - left_start == pytest.approx(said.ended_at - said.started_at, abs=late)
    assert right_end - right_start == pytest.approx(answered.ended_at - answered.started_at, abs=late)
    assert right_start - left_start == pytest.approx(answered.started_at - said.started_at, abs=late)
    sent, received = speech[2 * SAMPLE_RATE : 4 * SAMPLE_RATE], read_wav(recording.agent)
    assert similarity(sent, received) > 0.9


async def test_a_barge_in_tells_when_the_agent_fell_silent(livekit: Stack, speech: Samples) -> None:
    async with call(livekit) as (caller, agent):
        reply = asyncio.create_task(agent.say(speech[: 2 * SAMPLE_RATE]))
        barge_in = await caller.barge_in(speech[: SAMPLE_RATE // 2], after=1.0, within=5)
        spoken = await reply
    assert barge_in.utterance.started_at >= spoken.started_at + 1.0
    assert barge_in.agent_silent_at == pytest.approx(spoken.ended_at, abs=0.5)
    assert barge_in.silenced_after == barge_in.agent_silent_at - barge_in.utterance.started_at > 0


async def test_an_agent_that_says_nothing_is_waited_for_only_so_long(livekit: Stack) -> None:
    async with call(livekit) as (caller, _):
        with pytest.raises(TimeoutError):
            await caller.heard.first_audible_after(time.time(), within=0.3)
        with pytest.raises(TimeoutError):
            await caller.heard.speaking_for(1, within=0.3)


async def test_an_agent_that_is_gone_is_silent(livekit: Stack, speech: Samples) -> None:
    async with call(livekit) as (caller, agent):
        speaking = asyncio.create_task(agent.say(speech))
        await caller.heard.first_audible_after(0, within=5)
        waiting = asyncio.create_task(caller.heard.silent_since(time.time(), gap=60, within=5))
        await agent.hang_up()
        assert await waiting > 0
        with pytest.raises(ConnectionError):
            await speaking


async def test_whoever_waits_is_told_when_the_call_is_lost(livekit: Stack) -> None:
    async with call(livekit) as (caller, _):
        waiting = asyncio.create_task(caller.heard.first_audible_after(time.time(), within=30))
        await asyncio.sleep(0)
        await caller.hang_up()
        with pytest.raises(ConnectionError):
            await waiting


@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_whoever_lost_the_room_for_good_joins_again(livekit: Stack, speech: Samples) -> None:
    async with call(livekit, rejoin_within=60) as (caller, agent):
        await asyncio.to_thread(livekit.kill, LIVEKIT)
        # Longer than the SDK tries.
        await asyncio.sleep(26)
        await asyncio.to_thread(livekit.start, LIVEKIT)
        back_at = time.time()
        while not any(track.started_at > back_at for track in caller.tracks):
            assert time.time() < back_at + 20
            await asyncio.sleep(0.1)
        reply = await agent.say(speech[:SAMPLE_RATE])
        assert await caller.heard.first_audible_after(reply.started_at, within=5) < reply.ended_at + 1


def test_speech_with_short_pauses_is_one_interval() -> None:
    hearing = Hearing()
    for index, loud in enumerate([True] * 10 + [False] * 79 + [True] * 10 + [False] * 80 + [True] * 10):
        hearing.feed(np.full(FRAME_SAMPLES, 3000 if loud else 8, np.int16), at=100 + index / 100)
    starts = [interval.started_at for interval in hearing.intervals]
    assert starts == pytest.approx([100.0, 101.79])
    assert hearing.intervals[0].ended_at == pytest.approx(100.98)


def test_a_recording_is_cut_into_its_stretches_of_speech() -> None:
    tone, pause = np.full(SAMPLE_RATE // 2, 3000, np.int16), np.zeros(SAMPLE_RATE, np.int16)
    stretches = speech_in(np.concatenate([pause, tone, pause, tone, tone, pause]))
    assert [round(len(stretch) / SAMPLE_RATE, 1) for stretch in stretches] == [0.7, 1.2]


def test_a_stereo_file_at_another_rate_is_read_as_mono_speech(tmp_path: Path) -> None:
    tone = (8000 * np.sin(2 * np.pi * 440 * np.arange(48_000) / 48_000)).astype(np.int16)
    write_wav(tmp_path / "tone.wav", tone, tone, rate=48_000)
    samples = read_wav(tmp_path / "tone.wav")
    assert len(samples) == pytest.approx(SAMPLE_RATE, abs=50)
    assert peak(samples) == pytest.approx(8000, rel=0.05)


@pytest.mark.parametrize(
    ("said", "recognised"),
    [
        ("It's forty nine dollars a month.", "It is $49 a month"),
        ("Nine dollars and ninety cents", "$9.90"),
        ("Your ticket is T 4 8 1 5.", "your ticket is T-4815"),
        ("We're open from eight thirty to six", "we are open from 8:30 to 6."),
        ("two thousand five hundred megabits", "2,500 megabits"),
        ("You can't, and I won't", "you cannot and I will not"),
        ("Twenty four seven, the pro plan", "24/7. The pro-plan"),
        ("ten percent off in nineteen ninety-nine", "10% off in 1999"),
    ],
)
def test_spellings_of_the_same_words_are_no_errors(said: str, recognised: str) -> None:
    assert word_errors(said=said, recognised=recognised).errors == 0


def test_wrong_missing_and_added_words_are_counted() -> None:
    errors = word_errors(said="the router light is red", recognised="the rooter light red now")
    assert (errors.errors, errors.rate) == (3, 3 / 5)


def exchange(said: str, **differences: Any) -> Exchange:
    """A line that was answered a second after it ended."""
    timings = TurnTimings(speech_ended_at=11.05, endpointing=0.3, stt=0.2, graph_llm=0.1, tts=0.25, first_audio_at=11.9)
    turns = (
        Turn(cursor="1-0", role="user", text=said),
        Turn(cursor="2-0", role="event", event=differences.pop("event", None)),
        Turn(cursor="3-0", role="assistant", text="Yes.", timings=timings, **differences.pop("reply", {})),
    )
    good = Exchange(said, Utterance(10.0, 11.0), heard_at=12.0, turns=turns)
    return replace(good, **differences)


def demo_result(*more: Exchange, without: int | None = None, reason: str = "left") -> CallResult:
    """A demo in which everything worked; without one of its exchanges, or with more."""
    exchanges = (
        exchange("price", event=TurnEvent("transfer", "front_desk", "sales")),
        exchange("plans", interrupted_by=PROMPT, reply={"interrupted": True}),
        exchange("router", event=TurnEvent("transfer", "sales", "tech_support")),
        exchange("how much", event=TurnEvent("tool", name="look_up_price")),
        exchange("ticket", event=TurnEvent("tool", name="open_ticket")),
    )
    return CallResult(
        session=Session("s1", "r", "ended", reason=reason),
        join=JoinLatency(1.0, 1.1, 1.2, 1.3, 1.5, 1.6, caller_connected_at=1.3),
        greeting=None,
        exchanges=(*(one for index, one in enumerate(exchanges) if index != without), *more),
    )


def test_a_session_that_was_there_before_has_no_negative_join() -> None:
    parts = JoinLatency(5.0, 1.1, 1.2, 1.3, 6.5, 6.6, caller_connected_at=6.0).parts()
    assert parts["admitted"] is None
    assert parts["heard"] == pytest.approx(0.1)


def test_a_demo_in_which_everything_happened_worked() -> None:
    assert demo_result().failures(demo=True) == ()


@pytest.mark.parametrize(
    ("result", "complaint"),
    [
        (demo_result(without=0), "sales"),
        (demo_result(without=1), "never interrupted"),
        (demo_result(without=2), "tech_support"),
        (demo_result(without=3), "look_up_price"),
        (demo_result(without=4), "open_ticket"),
        (demo_result(reason="caller_lost"), "caller_lost"),
        (demo_result(exchange("x", heard_at=None)), "No answer"),
        (demo_result(exchange("x", interrupted_by=LATE, reply={"interrupted": True})), "talked on"),
        (demo_result(exchange("x", interrupted_by=PROMPT)), "not marked"),
    ],
)
def test_a_demo_says_what_did_not_work(result: CallResult, complaint: str) -> None:
    (failure,) = result.failures(demo=True)
    assert complaint in failure


def test_the_segments_of_an_answer_are_measured_and_compared_with_the_whole() -> None:
    path = critical_path(exchange("hello"))
    assert path is not None and path.adds_up
    assert path.transport == pytest.approx(0.05 + 0.1)
    assert (path.measured, path.difference) == pytest.approx((1.0, 0.0))
    late = critical_path(exchange("hello", heard_at=12.3))
    assert late is not None and late.transport == pytest.approx(0.45)


def test_an_answer_that_overlaps_the_question_has_no_latency() -> None:
    assert exchange("hello", overlapped=True).latency is None
    assert critical_path(exchange("hello", overlapped=True)) is None


def loud_seconds(samples: Samples) -> tuple[float, float]:
    """When the first and the last audible frame of a recording are."""
    loud = [index for index, frame in enumerate(frames_of(samples)) if peak(frame) > AUDIBLE_PEAK]
    return loud[0] / 100, loud[-1] / 100


def similarity(one: Samples, other: Samples) -> float:
    """How alike the loudness of two recordings runs, 0 to 1, at the offset where it is most alike."""
    first, second = (np.array([float(peak(frame)) for frame in frames_of(sound)]) for sound in (one, other))
    matches = np.correlate(np.pad(second, len(first)), first)
    energy = np.convolve(np.pad(second, len(first)) ** 2, np.ones(len(first)), "valid")
    return float((matches / np.sqrt(np.maximum(energy, 1) * (first**2).sum())).max())
