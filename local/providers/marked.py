"""Models that hear and speak marked words (see `local/marks.py`): cheap, exact, and the same on every machine."""

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from local.marks import WORD_SECONDS, Mark, find_marks, mark_speech, marks_in, tones_of
from local.providers.audio import Recording, read_pcm, to_pcm
from local.providers.recognition import Transcript, spoken_span
from local.providers.responder import Answer
from local.providers.voice import Piece, Voice, split_text

#: Seconds a word takes that bears no mark, and its pitch in Hertz.
_PLAIN_SECONDS = 0.25
_PITCH = 440
_LOUDNESS = 0.2
_CALLER = "caller"
#: What the caller's marked words are laid upon, and the rate it is rendered at.
_SPEECH = (
    "I would like to know when my order is going to arrive and whether you can change the delivery address "
    "to my new home near the river please"
)
_SPEECH_RATE = 24_000


class MarkRecogniser:
    """Transcribes the marks of a recording, and nothing else that is said in it."""

    def transcribe(self, recording: Recording) -> Transcript:
        start, end = spoken_span(recording.samples, recording.rate)
        found = find_marks(recording.samples, rate=recording.rate)
        text = " ".join(str(each.mark) for each in found)
        return Transcript(text, start / recording.rate, end / recording.rate, recording.seconds)


class MarkVoice:
    """Speaks tones that bear the marks of the text; the caller's voice is speech below them.

    `open_voice` opens the model that the caller's speech comes from, at its first use.
    """

    def __init__(self, open_voice: Callable[[], Voice]) -> None:
        self._open_voice = open_voice

    def synthesize(
        self, text: str, *, rate: int, speaker: str, speed: float = 1.0, eager: bool = True
    ) -> Iterator[Piece]:
        """Pieces as `Voice.synthesize` makes them; `speed` is without effect."""
        marks = marks_in(text)
        if speaker == _CALLER and marks:
            yield _piece(text, mark_speech(self._speech, marks, rate=rate), rate)
        else:
            for part in split_text(text, eager=eager):
                yield _piece(part, _spoken(part, rate), rate)

    @cached_property
    def _speech(self) -> NDArray[np.float32]:
        pieces = self._open_voice().synthesize(_SPEECH, rate=_SPEECH_RATE, speaker=_CALLER)
        return read_pcm(b"".join(piece.pcm for piece in pieces), rate=_SPEECH_RATE).samples


class Echo:
    """Answers the caller's last words with them, behind the number of the caller's turns that it was shown."""

    def answer(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> Answer:
        said = [str(message["content"]) for message in messages if message["role"] == "user"]
        return Answer(f"Number {len(said)}, {said[-1]}." if said else "Nothing was said.")


def _piece(text: str, samples: NDArray[np.float32], rate: int) -> Piece:
    seconds = len(samples) / rate
    starts = tuple(seconds * index / len(text) for index in range(len(text)))
    return Piece(text=text, pcm=to_pcm(samples), rate=rate, starts=starts)


def _spoken(text: str, rate: int) -> NDArray[np.float32]:
    return np.concatenate([_word(word, rate) for word in text.split()])


def _word(word: str, rate: int) -> NDArray[np.float32]:
    marks: tuple[Mark, ...] = marks_in(word)
    count = round((WORD_SECONDS if marks else _PLAIN_SECONDS) * rate)
    tone = (_LOUDNESS * np.sin(2 * np.pi * _PITCH * np.arange(count) / rate)).astype(np.float32)
    for mark in marks[:1]:
        tones = tones_of(mark, rate=rate)
        start = (count - len(tones)) // 2
        tone[start : start + len(tones)] += tones
    return tone
