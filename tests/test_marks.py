"""Marked words are found again, each once; speech without marks holds none; a link does what it is told."""

import asyncio
import contextlib
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from bench.marked_call import Said, count_words
from bench.service import Turn
from local.audio import SAMPLE_RATE
from local.link import Link
from local.marks import UTTERANCES, WORD_SECONDS, WORDS, Mark, find_marks, full_scale, mark_speech, marks_in, marks_of
from local.paths import ROOT
from local.ports import HOST, PortPicker
from tests.recorded_speech import recorded_pieces

RATE = SAMPLE_RATE


@pytest.fixture(scope="module")
def speech() -> NDArray[np.float32]:
    """Somebody reading, without marks."""
    return full_scale(np.concatenate(recorded_pieces()))


@pytest.mark.parametrize("utterance", range(0, UTTERANCES, 5))
def test_each_word_is_heard_once_in_order(speech: NDArray[np.float32], utterance: int) -> None:
    marks = marks_of(utterance, WORDS)
    sound = mark_speech(speech, marks, rate=RATE)
    assert [heard.mark for heard in find_marks(sound, rate=RATE)] == list(marks)


def test_a_word_that_was_cut_out_is_missed_and_no_other(speech: NDArray[np.float32]) -> None:
    marks = marks_of(3, 5)
    sound = mark_speech(speech, marks, rate=RATE)
    word = len(sound) // 5
    sound[2 * word : 3 * word] = 0
    assert [heard.mark.word for heard in find_marks(sound, rate=RATE)] == [0, 1, 3, 4]


def test_a_word_that_a_disturbance_broke_in_two_is_heard_once_and_one_said_twice_is_heard_twice(
    speech: NDArray[np.float32],
) -> None:
    marks = marks_of(3, 2)
    sound = mark_speech(speech, marks, rate=RATE)
    middle = round(1.5 * WORD_SECONDS * RATE)
    sound[middle - RATE // 28 : middle + RATE // 28] = 0
    assert [heard.mark for heard in find_marks(sound, rate=RATE)] == list(marks)
    twice = mark_speech(speech, [marks[0], marks[1], marks[1]], rate=RATE)
    assert [heard.mark.word for heard in find_marks(twice, rate=RATE)] == [0, 1, 1]


def test_speech_without_marks_holds_none(speech: NDArray[np.float32]) -> None:
    assert find_marks(speech, rate=RATE) == []


def test_lost_doubled_and_foreign_words_are_told_apart() -> None:
    said = [Said(number, marks_of(number, 2), 100.0 + 10 * number, 102.0 + 10 * number) for number in range(34)]
    texts = {number: " ".join(map(str, each.marks)) for number, each in enumerate(said)}
    texts[3] = "u3w0"
    texts[5] += " u5w1"
    texts[7] += " u9w4"
    turns = [Turn(str(number), "user", text=text, at=103.0 + 10 * number) for number, text in texts.items()]
    count = count_words(said, turns)
    assert (count.sent, count.lost, count.doubled, count.foreign) == (68, (Mark(3, 1),), (Mark(5, 1),), (Mark(9, 4),))
    assert not count.is_exact
    assert marks_in("Number 4, u3w0 u31w7.") == (Mark(3, 0), Mark(31, 7))


def test_a_word_that_the_caller_has_spoken_with_a_gap_is_not_doubled_by_being_recognised_as_two() -> None:
    turns = [Turn("1", "user", text="u0w0 u0w1 u0w1", at=103.0)]
    for gaps in ((), (0.1,), (0.4,)):
        count = count_words([Said(0, marks_of(0, 2), 100.0, 102.0, gaps)], turns)
        # A gap in another word of the utterance excuses nothing.
        assert (count.doubled, count.cut) == (((), (Mark(0, 1),)) if gaps == (0.4,) else ((Mark(0, 1),), ()))
    # Words that come again are no gap's.
    again = [Turn("1", "user", text="u0w0 u0w1 u0w0 u0w1", at=103.0)]
    assert count_words([Said(0, marks_of(0, 2), 100.0, 102.0, (0.4,))], again).doubled == marks_of(0, 2)


async def test_a_link_passes_stalls_and_cuts(tmp_path: Path) -> None:
    ports = [PortPicker().pick() for _ in range(2)]
    server = await asyncio.start_server(_echo, HOST, ports[1])
    control = tmp_path / "link"
    command = [sys.executable, "-m", "local.link", str(ports[0]), f"{HOST}:{ports[1]}", str(control)]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, cwd=ROOT)
    assert process.stdout is not None
    assert await asyncio.wait_for(process.stdout.readline(), 10) == b"ready\n"
    link = Link(control)
    reader, writer = await asyncio.open_connection(HOST, ports[0])
    try:
        assert await _says(reader, writer)
        await asyncio.to_thread(link.stall)
        assert not await _says(reader, writer)
        await asyncio.to_thread(link.mend)
        assert await reader.readexactly(3) == b"hi\n"
        await asyncio.to_thread(link.deafen)
        assert not await _says(reader, writer)
        await asyncio.to_thread(link.mend)
        assert await _says(reader, writer)
        await asyncio.to_thread(link.cut)
        with pytest.raises(ConnectionError):
            writer.write(b"hi\n")
            await writer.drain()
            await reader.readexactly(3)
    finally:
        writer.transport.abort()
        process.terminate()
        await process.wait()
        server.close()
        await server.wait_closed()
        # The echo's side of what was reset is torn down in the next turn of the loop.
        await asyncio.sleep(0.05)


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while line := await reader.readline():
            writer.write(line)
            await writer.drain()
    writer.transport.abort()


async def _says(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    """Whether a line comes back."""
    writer.write(b"hi\n")
    await writer.drain()
    try:
        return await asyncio.wait_for(reader.readexactly(3), 0.5) == b"hi\n"
    except TimeoutError:
        return False
