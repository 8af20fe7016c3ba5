"""Marked words: speech in which every word carries two tones of its own, so that a lost or doubled one is seen.

A mark is written `u<utterance>w<word>`. The tones lie above the speech, which is cut off below them; both survive Opus.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

#: Numbers above these begin again at 0: utterances that far apart are told apart by their time.
UTTERANCES = 32
WORDS = 8
#: Seconds a marked word takes, seconds of it that bear the tones, and where in it they begin.
WORD_SECONDS = 0.30
_TONE_SECONDS = 0.20
_TONE_OFFSET = 0.05
#: Hertz. The first pair of tones tells an utterance's number below 16, the second its rest and the word.
_FIRST = tuple(4600 + 100 * step for step in range(16))
_SECOND = tuple(6400 + 100 * step for step in range(16))
#: Speech is cut off above this.
_SPEECH_BELOW = 3600
_TONE_LOUDNESS = 0.04
_SPEECH_LOUDNESS = 0.5
_FADE_SECONDS = 0.01
#: A window is this long and the next one begins this much later; a word is heard in at least so many in a row.
_WINDOW_SECONDS = 0.05
_STEP_SECONDS = 0.02
_LEAST_WINDOWS = 3
#: How far a tone stands out: of the loudness it was made with, and against the other tones of its set.
_LEAST_LOUDNESS = 0.1
_LEAST_RATIO = 4.0
_MARK = re.compile(r"\bu(\d+)w(\d+)\b")


@dataclass(frozen=True, slots=True, order=True)
class Mark:
    """One marked word: its utterance's number below `UTTERANCES` and its place in it below `WORDS`."""

    utterance: int
    word: int

    def __str__(self) -> str:
        return f"u{self.utterance}w{self.word}"


@dataclass(frozen=True, slots=True)
class HeardMark:
    """A mark found in a recording; `at` is its middle, in seconds from the recording's beginning."""

    mark: Mark
    at: float


def marks_of(utterance: int, count: int) -> tuple[Mark, ...]:
    """The marks of an utterance of `count` words; any utterance's number may be given."""
    if not 0 < count <= WORDS:
        raise ValueError(f"an utterance has 1 to {WORDS} words")
    return tuple(Mark(utterance % UTTERANCES, word) for word in range(count))


def marks_in(text: str) -> tuple[Mark, ...]:
    """The marks that a text names, in order."""
    return tuple(Mark(int(utterance), int(word)) for utterance, word in _MARK.findall(text))


def full_scale(samples: NDArray[np.int16]) -> NDArray[np.float32]:
    """The same sound in [-1, 1]."""
    return np.asarray(samples / np.float32(32768), np.float32)


def mark_speech(speech: NDArray[np.float32], marks: Sequence[Mark], *, rate: int) -> NDArray[np.float32]:
    """One word per mark on top of `speech` (at `rate`, full scale 1), which is repeated as long as it must."""
    word = round(WORD_SECONDS * rate)
    marked = _below(np.resize(speech, word * len(marks)), rate) * _SPEECH_LOUDNESS
    for number, mark in enumerate(marks):
        start = number * word + round(_TONE_OFFSET * rate)
        tones = tones_of(mark, rate=rate)
        marked[start : start + len(tones)] += tones
    return np.asarray(np.clip(marked, -1, 1), np.float32)


def tones_of(mark: Mark, *, rate: int) -> NDArray[np.float32]:
    """The two tones of a mark, faded in and out."""
    seconds = np.arange(round(_TONE_SECONDS * rate)) / rate
    edge = np.minimum(seconds, seconds[::-1]) / _FADE_SECONDS
    first, second = _frequencies(mark)
    both = np.sin(2 * np.pi * first * seconds) + np.sin(2 * np.pi * second * seconds)
    return np.asarray(_TONE_LOUDNESS * np.minimum(1, edge) * both, np.float32)


def find_marks(samples: NDArray[np.float32], *, rate: int) -> list[HeardMark]:
    """Every marked word of a recording (full scale 1), in the order in which they were said."""
    found: list[HeardMark] = []
    for mark, times in _runs(samples, rate):
        if mark is not None and len(times) >= _LEAST_WINDOWS:
            heard = HeardMark(mark, times[len(times) // 2] + _WINDOW_SECONDS / 2)
            if not (found and _is_same_word(found[-1], heard)):
                found.append(heard)
    return found


def _is_same_word(earlier: HeardMark, later: HeardMark) -> bool:
    """Whether it is one word that a disturbance has broken in two: said twice, its middles were further apart."""
    return earlier.mark == later.mark and later.at - earlier.at < WORD_SECONDS - _STEP_SECONDS


def _runs(samples: NDArray[np.float32], rate: int) -> Iterator[tuple[Mark | None, list[float]]]:
    """Windows in a row that hear the same."""
    current: Mark | None = None
    times: list[float] = []
    for at, mark in _windows(samples, rate):
        if mark != current:
            yield current, times
            current, times = mark, []
        times.append(at)
    yield current, times


def _windows(samples: NDArray[np.float32], rate: int) -> Iterator[tuple[float, Mark | None]]:
    size, step = round(_WINDOW_SECONDS * rate), round(_STEP_SECONDS * rate)
    shape = np.hanning(size).astype(np.float32)
    for start in range(0, len(samples) - size + 1, step):
        # The amplitude of a tone, as it was made, whatever the window does to it.
        spectrum = np.asarray(np.abs(np.fft.rfft(samples[start : start + size] * shape)) * 4 / size, np.float32)
        first = _loudest(spectrum, _FIRST, rate, size)
        second = _loudest(spectrum, _SECOND, rate, size)
        heard = None if first is None or second is None else _mark(first, second)
        yield start / rate, heard


def _loudest(spectrum: NDArray[np.float32], frequencies: Sequence[int], rate: int, size: int) -> int | None:
    bins = np.rint(np.array(frequencies) * size / rate).astype(int)
    # Half the spacing on both sides: a resampler may have moved it by a bin.
    loudness = np.maximum(spectrum[bins], np.maximum(spectrum[bins - 1], spectrum[bins + 1]))
    best = int(loudness.argmax())
    others = float(np.median(loudness)) + 1e-6
    if loudness[best] < _LEAST_LOUDNESS * _TONE_LOUDNESS or loudness[best] < _LEAST_RATIO * others:
        return None
    return best


def _frequencies(mark: Mark) -> tuple[int, int]:
    rest, first = divmod(mark.utterance, len(_FIRST))
    return _FIRST[first], _SECOND[rest * WORDS + mark.word]


def _mark(first: int, second: int) -> Mark:
    rest, word = divmod(second, WORDS)
    return Mark(rest * len(_FIRST) + first, word)


def _below(speech: NDArray[np.float32], rate: int) -> NDArray[np.float32]:
    """The speech without what would be taken for a tone, at full scale."""
    spectrum = np.fft.rfft(speech)
    spectrum[np.fft.rfftfreq(len(speech), 1 / rate) > _SPEECH_BELOW] = 0
    low = np.fft.irfft(spectrum, len(speech))
    return np.asarray(low / max(float(np.abs(low).max()), 1e-6), np.float32)
