"""Uncompressed audio: WAV in and out, and another sample rate."""

import io
import wave
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from local.providers.errors import UnsupportedFormat

#: Silence that keeps a resampled sound's end out of its start.
PADDING_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class Recording:
    """Mono audio: `samples` are float32 in [-1, 1], `rate` is samples per second."""

    samples: NDArray[np.float32]
    rate: int

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.rate


def read_wav(content: bytes) -> Recording:
    """16-bit WAV of any rate; several channels are mixed into one. Raises UnsupportedFormat."""
    try:
        with wave.open(io.BytesIO(content)) as file:
            channels, width, rate = file.getnchannels(), file.getsampwidth(), file.getframerate()
            frames = file.readframes(file.getnframes())
    except (wave.Error, EOFError) as error:
        raise UnsupportedFormat(f"The audio must be a WAV file: {error}") from error
    if width != np.dtype(np.int16).itemsize:
        raise UnsupportedFormat(f"The WAV file must have 16 bits per sample, not {8 * width}.")
    return read_pcm(frames, rate=rate, channels=channels)


def read_pcm(frames: bytes, *, rate: int, channels: int = 1) -> Recording:
    """Little-endian 16-bit samples without a header."""
    whole = len(frames) - len(frames) % (2 * channels)
    samples = np.frombuffer(frames[:whole], dtype="<i2").astype(np.float32) / 32768
    return Recording(samples.reshape(-1, channels).mean(axis=1, dtype=np.float32), rate)


def write_wav(pcm: bytes, *, rate: int) -> bytes:
    content = io.BytesIO()
    with wave.open(content, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(pcm)
    return content.getvalue()


def to_pcm(samples: NDArray[np.floating]) -> bytes:
    """Float samples in [-1, 1] as little-endian 16-bit PCM."""
    pcm: bytes = (np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes()
    return pcm


def resample(samples: NDArray[np.float32], source: float, target: float) -> NDArray[np.float32]:
    """The same sound at `target` samples per second, band-limited."""
    if source == target or not len(samples):
        return samples
    # The transform takes the sound for a loop.
    padded = np.pad(samples, round(PADDING_SECONDS * source))
    wanted = round(len(padded) * target / source)
    spectrum = np.fft.rfft(padded)[: wanted // 2 + 1]
    resampled = np.fft.irfft(spectrum, wanted) * (wanted / len(padded))
    start = round(PADDING_SECONDS * target)
    return resampled[start : start + round(len(samples) * target / source)].astype(np.float32)
