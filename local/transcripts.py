"""Comparing what was recognised with what was said: word errors after spelling is evened out."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import httpx

from local.audio import Samples, read_wav, write_wav
from local.hearing import speech_in

#: Seconds one sentence may take.
RECOGNITION_TIMEOUT = 60.0

#: A pause of these seconds separates two sentences; recognisers do better on one at a time.
SENTENCE_GAP = 0.35

_UNITS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen"
)
_DECADES = "twenty thirty forty fifty sixty seventy eighty ninety"
_SMALL = {word: number for number, word in enumerate(_UNITS.split())}
_TENS = {word: 10 * number for number, word in enumerate(_DECADES.split(), start=2)}
_SCALES = {"hundred": 100, "thousand": 1000, "million": 1_000_000}

_CONTRACTIONS = (
    (r"\bwon't\b", "will not"),
    (r"\b(can't|cannot)\b", "can not"),
    (r"\blet's\b", "let us"),
    (r"n't\b", " not"),
    (r"'re\b", " are"),
    (r"'ll\b", " will"),
    (r"'ve\b", " have"),
    (r"'m\b", " am"),
    (r"'d\b", " would"),
    (r"\b(it|that|there|here|what|who|where|how|he|she)'s\b", r"\1 is"),
    # Any other 's is a possessive, which sounds like a plural.
    (r"'", ""),
)

_SPELLINGS = (
    (r"\$(\d[\d,]*)\.(\d\d)\b", r"\1 dollars and \2 cents"),
    (r"\$(\d[\d,]*)", r"\1 dollars"),
    (r"%", " percent"),
    (r"&", " and "),
    (r"(?<=\d),(?=\d{3}\b)", ""),
    (r"\b(\d+)\.(\d+)\b", r"\1 point \2"),
    (r"\b(\d+)(st|nd|rd|th)\b", r"\1"),
    (r"\b([ap])\.\s?m\b\.?", r"\1m"),
    (r"\bok\b", "okay"),
)


@dataclass(frozen=True, slots=True)
class WordErrors:
    """How far what was recognised is from what was said; both as compared, after normalisation."""

    said: tuple[str, ...]
    recognised: tuple[str, ...]
    errors: int

    @property
    def rate(self) -> float:
        """Wrong, missing and added words for each word said; 0 when nothing was said and heard."""
        return self.errors / max(1, len(self.said))


def words_of(text: str) -> tuple[str, ...]:
    """The words of a text, spelled one way.

    Case and punctuation go, contractions are written out, and every number, in words or in figures,
    becomes its figures one by one: "forty nine", "49" and "four nine" are the words 4 and 9.
    """
    text = text.lower().replace("’", "'")
    for pattern, replacement in (*_CONTRACTIONS, *_SPELLINGS):
        text = re.sub(pattern, replacement, text)
    return tuple(_with_figures(re.findall(r"[a-z]+|\d+", text)))


def word_errors(*, said: str, recognised: str) -> WordErrors:
    """Counts the fewest changes that turn one text's words into the other's."""
    reference, hypothesis = words_of(said), words_of(recognised)
    return WordErrors(reference, hypothesis, _edit_distance(reference, hypothesis))


def recording_word_error(recording: Path, replies: Sequence[str], *, providers: str) -> WordErrors:
    """Recognises a recording of the agent again and compares it with the replies it should hold.

    `recording` is a mono WAV file, `providers` the address of a server with OpenAI's transcription route.
    Raises `httpx.HTTPError` when that server fails.
    """
    with httpx.Client(base_url=providers, timeout=RECOGNITION_TIMEOUT) as client:
        pieces = [_recognise(client, piece) for piece in speech_in(read_wav(recording), gap=SENTENCE_GAP)]
    return word_errors(said=" ".join(replies), recognised=" ".join(pieces))


def _recognise(client: httpx.Client, samples: Samples) -> str:
    sound = BytesIO()
    write_wav(sound, samples)
    response = client.post(
        "/v1/audio/transcriptions",
        data={"model": "whisper-1", "language": "en", "response_format": "json"},
        files={"file": ("speech.wav", sound.getvalue(), "audio/wav")},
    )
    response.raise_for_status()
    return str(response.json()["text"])


def _with_figures(words: Iterable[str]) -> Iterator[str]:
    """Replaces each number by its figures."""
    number = _NumberWords()
    for word in words:
        if number.takes(word):
            continue
        yield from number.figures()
        if word.isdigit():
            yield from word
        elif word in _SMALL or word in _TENS:
            number.takes(word)
        else:
            yield word
    yield from number.figures()


class _NumberWords:
    """A number being read word by word: "one", "hundred", "twenty", "five"."""

    def __init__(self) -> None:
        self._total = 0
        self._group: int | None = None
        self._room = 0

    def takes(self, word: str) -> bool:
        """Whether `word` continues the number; "five" continues "twenty" but not "four"."""
        if word in _SCALES:
            return self._group is not None and self._multiply(_SCALES[word])
        value = _SMALL.get(word, _TENS.get(word))
        if value is None or (self._group is not None and not 0 < value < self._room):
            return False
        self._group = (self._group or 0) + value
        self._room = 10 if word in _TENS else 0
        return True

    def figures(self) -> str:
        """The figures read so far, after which a new number begins."""
        text = "" if self._group is None else str(self._total + self._group)
        self._total, self._group, self._room = 0, None, 0
        return text

    def _multiply(self, scale: int) -> bool:
        group = self._group or 0
        if scale == _SCALES["hundred"]:
            self._group, self._room = group * scale, scale
        else:
            self._total, self._group, self._room = self._total + group * scale, 0, scale
        return True


def _edit_distance(reference: Sequence[str], hypothesis: Sequence[str]) -> int:
    row = list(range(len(hypothesis) + 1))
    for index, expected in enumerate(reference, start=1):
        diagonal, row[0] = row[0], index
        for column, word in enumerate(hypothesis, start=1):
            changed = diagonal + (word != expected)
            diagonal, row[column] = row[column], min(changed, row[column] + 1, row[column - 1] + 1)
    return row[-1]
