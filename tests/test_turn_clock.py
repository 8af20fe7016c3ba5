"""The segments of a turn, also where an answer is drafted while the caller is waited for."""

import time

import numpy as np
import pytest
from livekit import rtc
from livekit.agents import llm, metrics
from livekit.agents.types import USERDATA_TTS_STARTED_TIME

from worker.call.timings import TurnClock, TurnTimings

RATE = 16_000
#: Samples of a frame of 20 ms.
FRAME = 320
#: LiveKit stamps one moment by the monotonic clock, which goes on while a test runs.
CLOSE = 0.05


class Hands:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.at = 1000.0

    def now(self) -> float:
        return self.at

    def wait(self, seconds: float) -> None:
        self.at += seconds


@pytest.fixture
def hands() -> Hands:
    return Hands()


@pytest.fixture
def clock(hands: Hands) -> TurnClock:
    return TurnClock(now=hands.now)


def frame(loud_from: int | None = 0, *, seconds_ago: float | None = None) -> rtc.AudioFrame:
    """Loud from this sample on; its words went to the voice so long ago."""
    samples = np.zeros(FRAME, np.int16)
    if loud_from is not None:
        samples[loud_from:] = 9000
    made = rtc.AudioFrame(samples.tobytes(), RATE, 1, FRAME)
    if seconds_ago is not None:
        made.userdata[USERDATA_TTS_STARTED_TIME] = time.perf_counter() - seconds_ago
    return made


def recognition(seconds: float) -> metrics.STTMetrics:
    return metrics.STTMetrics(
        label="", request_id="", timestamp=time.time(), duration=seconds, audio_duration=1.0, streamed=False
    )


def heard_turn(clock: TurnClock, hands: Hands, *, recognised_in: float) -> None:
    """The caller speaks, falls silent, and is recognised."""
    clock.heard(frame())
    clock.speech_ended()
    hands.wait(0.3)
    hands.wait(recognised_in)
    clock.recognised(recognition(recognised_in))


def report(*, to_first_words: float, to_first_chunk: float) -> llm.MetricsReport:
    return {"llm_node_ttfs": to_first_words, "tts_node_ttfb": to_first_chunk}


def whole(timings: TurnTimings) -> float:
    return timings.first_audio_at - timings.speech_ended_at


def parts(timings: TurnTimings) -> float:
    return timings.endpointing + timings.stt + timings.graph_llm + timings.tts


def test_an_answer_that_begins_after_the_turn_counts_in_full(clock: TurnClock, hands: Hands) -> None:
    heard_turn(clock, hands, recognised_in=0.05)
    hands.wait(0.1)
    clock.turn_completed()
    hands.wait(0.08)
    voice = clock.voice_started()
    hands.wait(0.06)
    voice.spoken(frame(loud_from=None, seconds_ago=0.06))
    voice.spoken(frame(loud_from=FRAME // 2))
    clock.playback_started(hands.now())
    timings = clock.answered(report(to_first_words=0.08, to_first_chunk=0.06))
    assert timings is not None
    assert (timings.endpointing, timings.stt) == pytest.approx((0.4, 0.05), abs=0.001)
    assert timings.graph_llm == pytest.approx(0.08, abs=CLOSE)
    assert timings.tts == pytest.approx(0.06 + 0.03), "the silence before the voice counts too"
    assert parts(timings) == pytest.approx(whole(timings), abs=CLOSE)


def test_of_a_draft_only_what_is_left_at_the_end_of_the_turn_counts(clock: TurnClock, hands: Hands) -> None:
    heard_turn(clock, hands, recognised_in=0.05)
    hands.wait(0.1)
    clock.turn_completed()
    hands.wait(0.08)
    voice = clock.voice_started()
    hands.wait(0.06)
    voice.spoken(frame(seconds_ago=0.06))
    clock.playback_started(hands.now())
    timings = clock.answered(report(to_first_words=0.18, to_first_chunk=0.06))
    assert timings is not None
    assert timings.graph_llm == pytest.approx(0.08, abs=CLOSE), "not the 100 ms in which the caller might have gone on"
    assert timings.tts == pytest.approx(0.06)
    assert parts(timings) == pytest.approx(whole(timings), abs=CLOSE)


def test_an_answer_whose_voice_is_there_at_the_end_of_the_turn_costs_nothing_more(
    clock: TurnClock, hands: Hands
) -> None:
    heard_turn(clock, hands, recognised_in=0.05)
    voice = clock.voice_started()
    hands.wait(0.05)
    voice.spoken(frame(loud_from=FRAME // 2, seconds_ago=0.05))
    hands.wait(0.1)
    clock.turn_completed()
    clock.playback_started(hands.now())
    timings = clock.answered(report(to_first_words=0.02, to_first_chunk=0.05))
    assert timings is not None
    assert (timings.graph_llm, timings.tts) == pytest.approx((0, 0.01))
    assert parts(timings) == pytest.approx(whole(timings), abs=CLOSE)


def test_only_the_voice_that_is_played_is_counted(clock: TurnClock, hands: Hands) -> None:
    heard_turn(clock, hands, recognised_in=0.05)
    discarded, voice = clock.voice_started(), clock.voice_started()
    discarded.spoken(frame(loud_from=None, seconds_ago=5))
    voice.spoken(frame(seconds_ago=0))
    clock.turn_completed()
    clock.playback_started(hands.now())
    clock.voice_started().spoken(frame(loud_from=None, seconds_ago=0))
    timings = clock.answered(report(to_first_words=0.01, to_first_chunk=0))
    assert timings is not None
    assert timings.tts == pytest.approx(0)
    assert parts(timings) == pytest.approx(whole(timings), abs=CLOSE)


def test_the_recognition_that_counts_is_the_one_of_the_final_words(clock: TurnClock, hands: Hands) -> None:
    clock.recognised(recognition(0.9))
    heard_turn(clock, hands, recognised_in=0.05)
    clock.turn_completed()
    clock.voice_started().spoken(frame(seconds_ago=0))
    clock.playback_started(hands.now())
    timings = clock.answered(report(to_first_words=0.0, to_first_chunk=0.0))
    assert timings is not None and timings.stt == pytest.approx(0.05)


def test_words_that_answer_no_speech_have_no_timings(clock: TurnClock, hands: Hands) -> None:
    clock.voice_started().spoken(frame(seconds_ago=0))
    clock.playback_started(hands.now())
    assert clock.answered(report(to_first_words=0.1, to_first_chunk=0.1)) is None
