"""The text of one speech as it is written, and how much of it was heard."""

import asyncio
import re
from collections.abc import Sequence
from itertools import takewhile
from typing import TypeVar

from livekit.agents import NotGivenOr, tts, utils
from livekit.agents.types import NOT_GIVEN
from livekit.agents.voice.io import TimedString

Unknown = TypeVar("Unknown", float, None)

#: With the space after it, as voices tell words.
_WORD = re.compile(r"\s*\S+\s*")
#: Seconds of audio beyond the last word that was timed which are speech and no pause.
_SPEECH = 0.05
#: Seconds that no single word takes.
_LONG = 1.0


class Script:
    """Written by one side and spoken by one voice after another.

    Times that come from a voice are seconds since its own first audio, those that go out since the first audio of all.
    """

    def __init__(self) -> None:
        self._text = ""
        self._is_complete = False
        self._written = asyncio.Event()
        #: Characters and seconds that were heard, the characters given to this voice, and when it began.
        self._position = 0
        self._seconds = 0.0
        self._given = 0
        self._begin = 0.0
        #: The end of the last word heard from this voice, and the words it told ahead of their audio.
        self._told_until: float | None = 0.0
        self._coming: list[TimedString] = []

    def write(self, text: str) -> None:
        """More text."""
        self._text += text
        self._written.set()

    def end(self) -> None:
        """No more text."""
        self._is_complete = True
        self._written.set()

    def hand_over(self) -> None:
        """Another voice begins."""
        self._begin, self._given = self._seconds, self._position
        self._told_until, self._coming = 0.0, []

    async def prompt(self, stream: tts.SynthesizeStream) -> None:
        """Give the voice what was not heard yet, and all that is written later."""
        while True:
            self._written.clear()
            if self._given < len(self._text):
                stream.push_text(self._text[self._given :])
                self._given = len(self._text)
            elif self._is_complete:
                stream.end_input()
                return
            else:
                await self._written.wait()

    def hear(self, seconds: float, words: Sequence[TimedString]) -> list[TimedString]:
        """Audio is heard, and the voice tells these words; those that have begun by then."""
        self._seconds += seconds
        self._coming += words
        heard = self._seconds - self._begin
        begun = list(takewhile(lambda word: _seconds(word.start_time, 0.0) < heard, self._coming))
        self._coming = self._coming[len(begun) :]
        return [self._pass(word) for word in begun]

    def finish(self) -> list[TimedString]:
        """The voice has spoken all; the words it told last."""
        words, self._coming = self._coming, []
        return [self._pass(word) for word in words]

    def break_off(self) -> list[TimedString]:
        """The voice fails; the words that were heard and that it did not tell yet."""
        if self._coming or self._told_until is None:
            return []
        untold = self._seconds - self._begin - self._told_until
        if untold < _SPEECH:
            return []
        # A voice tells a word when the next one begins. More than one untold: it does not tell its words at all.
        end = self._given
        if untold < _LONG and (word := _WORD.match(self._text, self._position, self._given)):
            end = word.end()
        text, self._position = self._text[self._position : end], end
        return [TimedString(text, start_time=self._begin + self._told_until, end_time=self._seconds)] if text else []

    def _pass(self, word: TimedString) -> TimedString:
        self._told_until = _seconds(word.end_time, None)
        # Without spaces: a voice may tell others than it was given.
        self._position = self._after(len("".join(word.split())))
        return _moved(word, self._begin)

    def _after(self, characters: int) -> int:
        """The position after so many more characters that are no spaces, and after the spaces that follow."""
        position = self._position
        while position < len(self._text) and (characters or self._text[position].isspace()):
            characters -= not self._text[position].isspace()
            position += 1
        return position


def _moved(word: TimedString, seconds: float) -> TimedString:
    end = _seconds(word.end_time, None)
    return TimedString(
        word,
        start_time=_seconds(word.start_time, 0.0) + seconds,
        end_time=NOT_GIVEN if end is None else end + seconds,
    )


def _seconds(time: NotGivenOr[float], default: Unknown) -> float | Unknown:
    return time if utils.is_given(time) else default
