"""Early recognition on recorded speech: real voice activity detection, and a recogniser that plays a script."""

import asyncio
import time
from collections.abc import Sequence

import pytest
from livekit import rtc
from livekit.agents import APIConnectionError, APIConnectOptions, APIError, inference, stt

from local.audio import SAMPLE_RATE, Samples, frames_of
from tests.recorded_speech import SHORT, line, recorded_pieces
from tests.scripted_stt import ScriptedSTT
from worker.call.baton import Recognition
from worker.call.early_stt import EarlySTT

ONCE = APIConnectOptions(max_retry=0, timeout=5)

START, PREFLIGHT = stt.SpeechEventType.START_OF_SPEECH, stt.SpeechEventType.PREFLIGHT_TRANSCRIPT
END, FINAL = stt.SpeechEventType.END_OF_SPEECH, stt.SpeechEventType.FINAL_TRANSCRIPT

pieces = pytest.fixture(scope="module")(recorded_pieces)


async def events_of(
    samples: Samples, recogniser: ScriptedSTT, *, early: int = 3, recognition: Recognition | None = None
) -> list[tuple[object, str]]:
    """Kind and words of each event, as fast as voice activity detection goes."""
    early_stt = EarlySTT(recogniser, vad=inference.VAD(), early=early, recognition=recognition)
    events: list[tuple[object, str]] = []
    async with asyncio.timeout(30), early_stt.stream(conn_options=ONCE) as stream:
        for samples_of_frame in frames_of(samples):
            stream.push_frame(rtc.AudioFrame(samples_of_frame.tobytes(), SAMPLE_RATE, 1, len(samples_of_frame)))
        stream.end_input()
        async for event in stream:
            events.append((event.type, event.alternatives[0].text if event.alternatives else ""))
    await early_stt.aclose()
    return events


def holds(recording: Samples, speech: Samples) -> bool:
    """Whether every sample of the speech is there, in a row."""
    return speech.tobytes() in recording.tobytes()


async def test_the_words_at_a_short_silence_are_the_final_ones_when_the_caller_stays_silent(
    pieces: Sequence[Samples],
) -> None:
    recogniser = ScriptedSTT("It was the worst of times.")
    events = await events_of(line(0.5, pieces[0], 1.0), recogniser)
    words = "It was the worst of times."
    assert events == [(START, ""), (PREFLIGHT, words), (END, ""), (FINAL, words)]
    assert len(recogniser.heard) == 1
    assert holds(recogniser.heard[0], pieces[0])


async def test_the_final_words_are_of_the_whole_utterance_when_the_caller_goes_on(pieces: Sequence[Samples]) -> None:
    recogniser = ScriptedSTT("One", "One two.")
    utterance = line(pieces[0], SHORT, pieces[1])
    events = await events_of(line(0.5, utterance, 1.0), recogniser)
    assert events == [(START, ""), (PREFLIGHT, "One"), (PREFLIGHT, "One two."), (END, ""), (FINAL, "One two.")]
    assert not holds(recogniser.heard[0], pieces[1])
    assert holds(recogniser.heard[1], utterance)


async def test_a_request_that_is_still_open_when_the_caller_goes_on_is_dropped(pieces: Sequence[Samples]) -> None:
    recogniser = ScriptedSTT((asyncio.Event(), "never"), "One two.")
    events = await events_of(line(0.5, pieces[0], SHORT, pieces[1], 1.0), recogniser)
    assert [text for kind, text in events if kind in (PREFLIGHT, FINAL)] == ["One two."] * 2


async def test_words_that_come_after_the_end_of_the_utterance_are_told_once(pieces: Sequence[Samples]) -> None:
    answered = asyncio.Event()
    recogniser = ScriptedSTT((answered, "One."))
    listening = asyncio.create_task(events_of(line(0.5, pieces[0], 1.0), recogniser))
    await asyncio.sleep(1)
    answered.set()
    assert await listening == [(START, ""), (END, ""), (FINAL, "One.")]
    assert len(recogniser.heard) == 1


async def test_words_are_due_from_the_end_of_the_utterance_until_they_have_come(pieces: Sequence[Samples]) -> None:
    answered, recognition = asyncio.Event(), Recognition(time.time)
    recogniser = ScriptedSTT((answered, ""))
    listening = asyncio.create_task(events_of(line(0.5, pieces[0], 1.0), recogniser, recognition=recognition))
    await asyncio.sleep(1)
    assert recognition.is_due
    answered.set()
    await listening
    assert not recognition.is_due


async def test_words_that_cannot_be_had_are_not_due(pieces: Sequence[Samples]) -> None:
    recognition = Recognition(time.time)
    recogniser = ScriptedSTT(APIConnectionError("broken"), APIConnectionError("broken"))
    with pytest.raises(APIError):
        await events_of(line(0.5, pieces[0], 1.0), recogniser, recognition=recognition)
    assert recognition.told_at and not recognition.is_due


async def test_an_utterance_makes_no_more_early_requests_than_allowed(pieces: Sequence[Samples]) -> None:
    recogniser = ScriptedSTT("One", "One two three.")
    utterance = line(pieces[0], SHORT, pieces[1], SHORT, pieces[2])
    events = await events_of(line(0.5, utterance, 1.0), recogniser, early=1)
    assert events == [(START, ""), (PREFLIGHT, "One"), (END, ""), (FINAL, "One two three.")]
    assert holds(recogniser.heard[-1], utterance)


async def test_a_long_pause_ends_an_utterance_and_the_next_one_is_recognised_by_itself(
    pieces: Sequence[Samples],
) -> None:
    recogniser = ScriptedSTT("One.", "Two.")
    events = await events_of(line(0.5, pieces[0], 0.7, pieces[1], 1.0), recogniser)
    assert [text for kind, text in events if kind is FINAL] == ["One.", "Two."]
    assert not holds(recogniser.heard[1], pieces[0])


async def test_an_early_recognition_that_fails_is_tried_again_at_the_end(pieces: Sequence[Samples]) -> None:
    recogniser = ScriptedSTT(APIConnectionError("broken"), "One.")
    events = await events_of(line(0.5, pieces[0], 1.0), recogniser)
    assert events == [(START, ""), (END, ""), (FINAL, "One.")]
    assert holds(recogniser.heard[1], pieces[0])


async def test_an_utterance_whose_words_cannot_be_had_is_an_error(pieces: Sequence[Samples]) -> None:
    with pytest.raises(APIError):
        await events_of(line(0.5, pieces[0], 1.0), ScriptedSTT(APIConnectionError("one"), APIConnectionError("two")))


async def test_the_next_utterance_waits_for_the_words_of_the_one_before(pieces: Sequence[Samples]) -> None:
    answered = asyncio.Event()
    recogniser = ScriptedSTT((answered, "One."), "Two.")
    listening = asyncio.create_task(events_of(line(0.5, pieces[0], 0.7, pieces[1], 1.0), recogniser))
    async with asyncio.timeout(20):
        for _ in range(2):
            await recogniser.asked.acquire()
    await asyncio.sleep(0.1)
    answered.set()
    events = await listening
    assert [text for kind, text in events if kind is FINAL] == ["One.", "Two."]


async def test_words_that_are_nothing_are_not_told(pieces: Sequence[Samples]) -> None:
    assert await events_of(line(0.5, pieces[0], 1.0), ScriptedSTT("")) == [(START, ""), (END, "")]


async def test_requests_are_reported_as_the_recogniser_reports_them(pieces: Sequence[Samples]) -> None:
    recogniser, reports = ScriptedSTT("One.", "One."), list[object]()
    recogniser.on("metrics_collected", reports.append)
    await events_of(line(0.5, pieces[0], 1.0), recogniser)
    assert len(reports) == 1
