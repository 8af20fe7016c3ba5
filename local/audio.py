"""Sixteen-bit sound: WAV files, resampling, trimming, and a timeline that places frames by the wall clock."""

import wave
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from livekit import rtc
from numpy.typing import NDArray

Samples = NDArray[np.int16]

SAMPLE_RATE = 24_000
FRAME_SECONDS = 0.01
FRAME_SAMPLES = SAMPLE_RATE // 100

#: Where speech begins and ends: a sample of a recorded or rendered line above this is part of it.
TRIM_THRESHOLD = 200


def peak(samples: Samples) -> int:
    """The largest distance from silence, 0 to 32768."""
    # abs(-32768) does not fit into int16.
    return max(int(samples.max()), -int(samples.min())) if samples.size else 0


def trimmed(samples: Samples, *, threshold: int = TRIM_THRESHOLD) -> Samples:
    """The part from the first to the last sample louder than `threshold`; empty when there is none."""
    loud = np.flatnonzero(np.abs(samples.astype(np.int32)) > threshold)
    return samples[loud[0] : loud[-1] + 1] if loud.size else samples[:0]


def frames_of(samples: Samples) -> Iterator[Samples]:
    """Ten-millisecond frames at `SAMPLE_RATE`; the last one is padded with silence at its end."""
    for start in range(0, len(samples), FRAME_SAMPLES):
        frame = samples[start : start + FRAME_SAMPLES]
        yield np.pad(frame, (0, FRAME_SAMPLES - len(frame)))


def resampled(samples: Samples, *, source_rate: int, target_rate: int = SAMPLE_RATE) -> Samples:
    """Mono samples at another rate."""
    if source_rate == target_rate or not samples.size:
        return samples
    resampler = rtc.AudioResampler(source_rate, target_rate)
    pieces = [*resampler.push(bytearray(samples.tobytes())), *resampler.flush()]
    return np.concatenate([np.frombuffer(piece.data, np.int16) for piece in pieces])


def read_wav(path: Path, *, rate: int = SAMPLE_RATE) -> Samples:
    """A 16-bit WAV file as mono samples at `rate`; several channels are averaged.

    Raises `ValueError` when the samples are not 16 bits wide, `wave.Error` when it is no WAV file.
    """
    with wave.open(str(path), "rb") as file:
        if file.getsampwidth() != np.dtype(np.int16).itemsize:
            raise ValueError(f"{path.name} holds {8 * file.getsampwidth()}-bit samples; 16-bit are needed")
        interleaved = np.frombuffer(file.readframes(file.getnframes()), np.int16)
        mono = interleaved.reshape(-1, file.getnchannels()).mean(axis=1).round().astype(np.int16)
        return resampled(mono, source_rate=file.getframerate(), target_rate=rate)


def write_wav(target: Path | BinaryIO, *channels: Samples, rate: int = SAMPLE_RATE) -> None:
    """Writes the channels interleaved; shorter ones end in silence."""
    longest = max(len(channel) for channel in channels)
    columns = [np.pad(channel, (0, longest - len(channel))) for channel in channels]
    with wave.open(str(target) if isinstance(target, Path) else target, "wb") as file:
        file.setnchannels(len(channels))
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.stack(columns, axis=1).tobytes())


class Timeline:
    """Frames of one or more sources laid out by the moment each was sent or received.

    Frames of a source follow each other without a seam as long as they come within `slack` seconds of
    their due time, so that the jitter of an event loop does not chop words; a longer gap becomes silence.
    Sources that overlap are added.
    """

    def __init__(self, *, started_at: float, slack: float = 0.1) -> None:
        self._started_at = started_at
        self._slack = round(slack * SAMPLE_RATE)
        self._samples = np.zeros(60 * SAMPLE_RATE, np.int16)
        self._end = 0
        self._cursors: dict[str, int] = {}

    @property
    def samples(self) -> Samples:
        return self._samples[: self._end]

    def place(self, source: str, *, at: float, frame: Samples) -> None:
        """Puts `frame`, which ended at the wall-clock time `at`, behind the source's previous one."""
        due = max(0, round((at - self._started_at) * SAMPLE_RATE) - len(frame))
        start = self._cursors.get(source, due)
        if due - start > self._slack:
            start = due
        end = start + len(frame)
        if end > len(self._samples):
            self._samples = np.pad(self._samples, (0, max(len(self._samples), end - len(self._samples))))
        mixed = self._samples[start:end].astype(np.int32) + frame
        self._samples[start:end] = np.clip(mixed, -32768, 32767)
        self._cursors[source] = end
        self._end = max(self._end, end)
