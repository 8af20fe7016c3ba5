"""Documents, and the passages they are cut into."""

import re
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

#: Characters: about a hundred words, what a listener bears in one answer and more.
LONGEST_PASSAGE = 700

_SENTENCE_END = re.compile(r"(?<=[.!?…])\s+")


@dataclass(frozen=True, slots=True)
class Section:
    """Paragraphs under one heading; `title` is the path of headings to it, "Plans > Premium plan"."""

    title: str
    paragraphs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Document:
    """A file's text; `source` is the name that citations give it, and adding the same name again replaces it."""

    source: str
    title: str
    sections: tuple[Section, ...]


@dataclass(frozen=True, slots=True)
class Chunk:
    """One passage of a document; `title` is the path of headings to it."""

    title: str
    text: str


def chunks(document: Document) -> Iterator[Chunk]:
    """Neighbouring paragraphs of a section, as many as fit; only a longer one is cut, between its sentences."""
    for section in document.sections:
        parts = chain.from_iterable(map(_fitting, section.paragraphs))
        yield from (Chunk(section.title, text) for text in _packed(parts, joint="\n"))


def _fitting(paragraph: str) -> Iterator[str]:
    if len(paragraph) <= LONGEST_PASSAGE:
        yield paragraph
        return
    sentences = _SENTENCE_END.split(paragraph)
    yield from _packed(chain.from_iterable(textwrap.wrap(one, LONGEST_PASSAGE) for one in sentences), joint=" ")


def _packed(parts: Iterable[str], *, joint: str) -> Iterator[str]:
    """The parts in their order, joined as long as the result is not too long."""
    held = ""
    for part in parts:
        if held and len(held) + len(joint) + len(part) > LONGEST_PASSAGE:
            yield held
            held = part
        else:
            held = f"{held}{joint}{part}" if held else part
    if held:
        yield held
