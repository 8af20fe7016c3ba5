"""Speech to text: the tiny English Moonshine model."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from local.providers.audio import Recording, resample

#: Samples per second.
MODEL_RATE = 16_000
FRAME_SECONDS = 0.02
#: What is kept around speech: a word cut at its first loud frame is misheard.
MARGIN_SECONDS = 0.15
#: A frame is speech when its loudness (of 1) is above this and above this share of the loudest frame's.
SILENCE = 0.004
LOUDEST_SHARE = 0.06


@dataclass(frozen=True, slots=True)
class Transcript:
    """What was said between `start` and `end` (seconds) of a recording of `seconds`."""

    text: str
    start: float
    end: float
    seconds: float


class Recogniser:
    """Transcribes one recording at a time; calls must come from one thread."""

    def __init__(self) -> None:
        # Not every machine has it, and those serve the rest without it.
        import moonshine_voice
        from moonshine_voice.moonshine_api import ModelArch
        from moonshine_voice.transcriber import Transcriber

        folder = Path(moonshine_voice.__file__).parent / "assets" / "tiny-en"
        # The callers' audio is already cut into utterances: cutting it again costs time and, on the
        # noise around an utterance, makes up words.
        options = {"vad_threshold": "0", "return_audio_data": "false"}
        self._transcriber = Transcriber(folder, ModelArch.TINY, options=options)

    def transcribe(self, recording: Recording) -> Transcript:
        samples = resample(recording.samples, recording.rate, MODEL_RATE)
        start, end = spoken_span(samples, MODEL_RATE)
        text = self._recognise(samples[start:end]) if end > start else ""
        return Transcript(text, start / MODEL_RATE, end / MODEL_RATE, recording.seconds)

    def _recognise(self, samples: NDArray[np.float32]) -> str:
        transcript = self._transcriber.transcribe_without_streaming(samples.tolist(), MODEL_RATE)
        return " ".join(line.text.strip() for line in transcript.lines)


def spoken_span(samples: NDArray[np.float32], rate: int) -> tuple[int, int]:
    """First and last sample of what is louder than the background; equal when nothing is.

    The model hears a word in pure silence, and its time grows with the audio's length.
    """
    frame = round(FRAME_SECONDS * rate)
    frames = samples[: len(samples) // frame * frame].reshape(-1, frame)
    if not len(frames):
        return 0, 0
    loudness = np.sqrt(np.mean(np.square(frames), axis=1))
    loud = np.flatnonzero(loudness > max(SILENCE, LOUDEST_SHARE * float(loudness.max())))
    if not len(loud):
        return 0, 0
    margin = round(MARGIN_SECONDS * rate)
    return max(0, int(loud[0]) * frame - margin), min(len(samples), (int(loud[-1]) + 1) * frame + margin)
