"""Thirty utterances with pauses inside, as callers make them: spoken by the stand-in's voice, and recorded ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from local.audio import SAMPLE_RATE, Samples, read_wav, trimmed
from local.caller import quiet_room
from local.caller_voice import CallerVoice
from local.stand_ins import RECOGNITION

#: Pieces of a caller's utterance, and the seconds of silence between them.
_SPOKEN: Sequence[tuple[str | float, ...]] = (
    ("Hello, my name is Ada,", 0.3, "and I have a question about my bill."),
    ("I would like to know,", 0.5, "how much the premium plan costs."),
    ("My router keeps dropping the connection,", 0.4, "mostly in the evening."),
    ("I forgot my password,", 0.7, "and now I cannot log in."),
    ("Well,", 0.6, "I think I need some help with my order."),
    ("Can you tell me,", 0.25, "what your opening hours are?"),
    ("If I cancel today,", 0.8, "do I get my money back?"),
    ("The first one was fine.", 0.35, "The second one never arrived."),
    ("I tried to turn it off and on,", 0.45, "but the light is still red."),
    ("We have two offices,", 0.55, "one in Berlin,", 0.3, "and one in Hamburg."),
    ("So,", 0.9, "what happens when the trial is over?"),
    ("Please open a ticket,", 0.65, "and call me back tomorrow."),
    ("I am looking for a plan,", 0.35, "with more than one line,", 0.5, "for my whole family."),
    ("It worked last week.", 0.6, "Since Monday it does not."),
    ("Do you offer discounts,", 0.2, "for students or for teachers?"),
    ("Actually,", 0.4, "I wanted to ask about something else."),
    ("My number is four nine,", 0.5, "seven two,", 0.45, "eight one."),
    ("I do not know,", 0.75, "whether the cable is broken."),
    ("When I click on the button,", 0.85, "nothing happens at all."),
    ("Yes,", 0.3, "that would be very kind of you."),
)

#: Seconds from where to where people who read aloud are cut out of the recordings of the stand-in's recogniser.
_RECORDED: Sequence[tuple[str, float, float]] = (
    ("two_cities.wav", 1.10, 6.25),
    ("two_cities.wav", 6.60, 10.35),
    ("two_cities.wav", 10.70, 14.85),
    ("two_cities.wav", 15.05, 18.80),
    ("two_cities.wav", 18.90, 24.10),
    ("two_cities.wav", 24.55, 28.30),
    ("two_cities.wav", 29.00, 32.30),
    ("two_cities.wav", 36.90, 41.70),
    ("beckett.wav", 0.00, 5.60),
    ("beckett.wav", 6.60, 9.96),
)


@dataclass(frozen=True)
class Utterance:
    """From its first to its last audible sample; `text` is None where nobody wrote it down."""

    name: str
    samples: Samples
    text: str | None


def utterances(voice: CallerVoice) -> list[Utterance]:
    """All thirty; what was spoken once is read from the caller's cache."""
    return [_spoken(voice, parts) for parts in _SPOKEN] + [_recorded(*span) for span in _RECORDED]


def _spoken(voice: CallerVoice, parts: tuple[str | float, ...]) -> Utterance:
    sound = [trimmed(voice.render(part)) if isinstance(part, str) else quiet_room(part) for part in parts]
    words = " ".join(part for part in parts if isinstance(part, str))
    return Utterance(words, np.concatenate(sound), words)


def _recorded(file: str, start: float, end: float) -> Utterance:
    RECOGNITION.require()
    package = find_spec(RECOGNITION.module)
    assert package is not None and package.origin is not None
    samples = read_wav(Path(package.origin).parent / "assets" / file)
    cut = trimmed(samples[round(start * SAMPLE_RATE) : round(end * SAMPLE_RATE)])
    return Utterance(f"{file} {start:g} s to {end:g} s", cut, None)
