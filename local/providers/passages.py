"""Finding the passage of a knowledge folder that answers a question, misheard words included."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher, get_close_matches
from math import log

import numpy as np
from numpy.typing import NDArray

from local.providers.synonyms import plainly

Embed = Callable[[Sequence[str]], NDArray[np.float32]]

#: A section answers a question from this score on: weighted cosines, plus a bonus for shared rare words.
FITS = 0.31
#: How much of the cosine is the heading's, the whole section's and the closest sentence's.
HEADING_WEIGHT, WHOLE_WEIGHT, SENTENCE_WEIGHT = 0.2, 0.4, 0.4
KEYWORD_WEIGHT = 0.1
#: Of what is asked after something was told first, how much the asking sentence counts by itself.
ASKING_WEIGHT = 0.4
MAX_ANSWER_SENTENCES = 5
MAX_ANSWER_WORDS = 40
#: Two words of a speech recogniser count as the same from this likeness on.
ALIKE = 0.8
#: Texts whose vectors are kept.
MOST_REMEMBERED = 2000
#: Telling words of a sentence that can be understood by itself.
SHORTEST_ASKING = 2
#: Shorter words are too easily alike.
SHORTEST_FUZZY = 4


def vocabulary(text: str) -> frozenset[str]:
    return frozenset(text.split())


FILLERS = vocabulary(
    """a about again ah all also am an and any anything are as ask asked asking at be because been but by can could did
    do does dont else er for from get give going gonna got had has hasnt have havent he her here hey him his hm
    hmm how i id if ill im in into is it its ive just kind know let like lot may maybe me more much my need now
    of off oh on one or our out question really right said say she should so some tell than that thats the their
    them then there theres these they theyre thing things this to today too uh um up us very want wanted was we
    well were weve what whats when where which who will with wondering would you your youre youve"""
)


def tokens(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.casefold().replace("'", "").replace("\u2019", "").replace("_", " "))


def words(text: str) -> frozenset[str]:
    return frozenset(tokens(text))


def content(text: str) -> frozenset[str]:
    """The words that carry meaning; fillers, single letters and stray syllables do not."""
    return frozenset(word for word in tokens(text) if word not in FILLERS and len(word) > 1)


def stems(text: str) -> frozenset[str]:
    """The words that carry meaning without their endings: "unplugged" is "unplug"."""
    cut = (re.sub(r"(?<=\w{3})(ing|ion|ed|es|s|e)$", "", word) for word in content(text))
    return frozenset(re.sub(r"([bdgmnpt])\1$", r"\1", word) for word in cut)


def likeness(one: str, other: str) -> float:
    return SequenceMatcher(None, one, other, autojunk=False).ratio()


def alike(heard: str, known: str) -> bool:
    if min(len(heard), len(known)) < SHORTEST_FUZZY:
        return heard == known
    return likeness(heard, known) >= ALIKE


@dataclass(frozen=True, slots=True)
class Section:
    """A heading of a desk's file with its sentences; without sentences it only leads to the desk."""

    desk: str
    heading: str
    sentences: tuple[str, ...] = ()

    def speak(self) -> str:
        """Its beginning, short enough to listen to."""
        said: list[str] = []
        for sentence in self.sentences[:MAX_ANSWER_SENTENCES]:
            if said and len(" ".join((*said, sentence)).split()) > MAX_ANSWER_WORDS:
                break
            said.append(sentence)
        return " ".join(said)

    def along_with(self, more: Sequence[str]) -> "Section | None":
        """The section with more sentences after its own; None when they would not all be spoken."""
        longer = (*self.sentences, *(sentence for sentence in more if sentence not in self.sentences))
        fits = len(longer) <= MAX_ANSWER_SENTENCES and len(" ".join(longer).split()) <= MAX_ANSWER_WORDS
        return Section(self.desk, self.heading, longer) if fits else None


@dataclass(frozen=True, slots=True)
class Match:
    """How well a section answers a question."""

    section: Section
    score: float


class Index:
    """Sections, found by meaning and by shared words."""

    def __init__(self, sections: Iterable[Section], embed: Embed) -> None:
        self._sections = tuple(sections)
        self._embed = embed
        texts = [" ".join((section.heading, *section.sentences)) for section in self._sections]
        self._headings = [stems(section.heading) for section in self._sections]
        self._texts = [stems(text) for text in texts]
        self._plain = stems(plainly(" ".join(texts)))
        self._known = sorted(content(" ".join(texts)))
        spread = Counter(word for known in self._texts for word in known)
        self._rarity = {word: log(1 + len(self._sections) / count) for word, count in spread.items()}
        # A section without sentences is its heading.
        pairs = [(i, sentence) for i, s in enumerate(self._sections) for sentence in s.sentences or (s.heading,)]
        self._owners = np.array([i for i, _ in pairs], dtype=np.intp)
        self._heading_vectors = embed([section.heading for section in self._sections])
        self._whole_vectors = embed(texts)
        self._sentence_vectors = embed([sentence for _, sentence in pairs])

    @property
    def sections(self) -> Sequence[Section]:
        return self._sections

    def knows(self, word: str) -> bool:
        """Whether the stem occurs anywhere in the sections."""
        return word in self._rarity or word in self._plain

    def search(self, question: str, *, mends: bool = True) -> list[Match]:
        """Every section with its score, best first; `mends` the question's spelling when nothing fits."""
        matches = self._rank(question)
        if mends and matches[0].score < FITS and (mended := self._mend(question)) != question:
            return self._rank(mended)
        return matches

    def _rank(self, question: str) -> list[Match]:
        scores = self._scores(plainly(question))
        matches = [Match(section, float(score)) for section, score in zip(self._sections, scores, strict=True)]
        return sorted(matches, key=lambda match: -match.score)

    def _scores(self, question: str) -> NDArray[np.float32]:
        asking = asking_sentence(question)
        if asking == question:
            return self._score(question)
        return (1 - ASKING_WEIGHT) * self._score(question) + ASKING_WEIGHT * self._score(asking)

    def _score(self, text: str) -> NDArray[np.float32]:
        vector = self._embed([text])[0]
        asked = stems(text)
        shared = [
            (self._shared(asked, heading) + self._shared(asked, known)) / 2
            for heading, known in zip(self._headings, self._texts, strict=True)
        ]
        sentences = self._best_of_each(self._sentence_vectors @ vector)
        meaning = SENTENCE_WEIGHT * sentences + WHOLE_WEIGHT * (self._whole_vectors @ vector)
        meaning += HEADING_WEIGHT * (self._heading_vectors @ vector)
        return np.asarray(meaning + KEYWORD_WEIGHT * np.array(shared, np.float32), np.float32)

    def _best_of_each(self, closeness: NDArray[np.float32]) -> NDArray[np.float32]:
        """The highest of each section's values."""
        best = np.full(len(self._sections), -1, np.float32)
        np.maximum.at(best, self._owners, closeness)
        return best

    def _shared(self, asked: frozenset[str], known: frozenset[str]) -> float:
        """The part of the words, by rarity, that is known; 0 to 1. Words nobody knows do not count."""
        total = sum(self._rarity.get(word, 0.0) for word in asked)
        return sum(self._rarity.get(word, 0.0) for word in asked & known) / total if total else 0.0

    def _mend(self, question: str) -> str:
        """The question with unknown words replaced by known ones that sound alike."""
        mended = []
        for word in tokens(question):
            unknown = word in content(word) and len(word) >= SHORTEST_FUZZY
            mended += (get_close_matches(word, self._known, 1, ALIKE) if unknown else []) or [word]
        return " ".join(mended)


def remembering(embed: Embed) -> Embed:
    """The same vectors, made once for each text that comes again."""
    known: dict[str, NDArray[np.float32]] = {}

    def remembered(texts: Sequence[str]) -> NDArray[np.float32]:
        if len(known) > MOST_REMEMBERED:
            known.clear()
        if missing := [text for text in dict.fromkeys(texts) if text not in known]:
            known.update(zip(missing, embed(missing), strict=True))
        return np.stack([known[text] for text in texts])

    return remembered


def split_sentences(text: str) -> tuple[str, ...]:
    return tuple(filter(None, re.split(r"(?<=[.?!])\s+", " ".join(text.split()))))


def asking_sentence(text: str) -> str:
    """Of several sentences the last question, or what was said last; the text when that says too little."""
    sentences = split_sentences(text)
    questions = [sentence for sentence in sentences if sentence.endswith("?")]
    asking = (questions or sentences or (text,))[-1]
    return asking if len(content(asking)) >= SHORTEST_ASKING else text


def read_sections(desk: str, page: str) -> Iterable[Section]:
    """The sections of a desk's Markdown."""
    for block in re.split(r"^## ", page, flags=re.MULTILINE)[1:]:
        heading, _, text = block.partition("\n")
        yield Section(desk, heading.strip(), split_sentences(text))
