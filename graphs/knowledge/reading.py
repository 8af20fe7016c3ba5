"""Reads Markdown, text, HTML and PDF files as documents."""

import re
from collections.abc import Callable, Iterator, Mapping
from io import BytesIO
from itertools import groupby
from pathlib import Path

from bs4 import BeautifulSoup, Tag
from markdown_it import MarkdownIt
from pypdf import PdfReader
from pypdf.errors import PyPdfError

from graphs.errors import DocumentUnreadable
from graphs.knowledge.documents import Document, Section

#: Bytes.
LARGEST_FILE = 20 * 1024 * 1024

_HEADINGS = ("h1", "h2", "h3", "h4", "h5", "h6")
_BLOCKS = (
    *_HEADINGS, "p", "li", "dt", "dd", "tr", "pre", "blockquote", "caption", "figcaption",
    "div", "section", "article", "main", "header", "aside", "details", "summary", "address", "body",
)  # fmt: skip
#: What a page holds for browsers and for finding one's way, not for readers.
_NOT_TEXT = ("title", "script", "style", "template", "noscript", "svg", "nav", "footer", "form", "iframe")
_FRONT_MATTER = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)
_BLANK_LINES = re.compile(r"\n\s*\n")
_HYPHENATED = re.compile(r"(?<=\w)-\n(?=[a-z])")


def read_document(path: Path, *, source: str | None = None) -> Document:
    """Read a file by its ending; without `source` the document has the file's name. Raises DocumentUnreadable."""
    read = _READERS.get(path.suffix.lower())
    if read is None:
        raise DocumentUnreadable(f"{path.name} does not end in one of {', '.join(_READERS)}.")
    try:
        size = path.stat().st_size
        content = path.read_bytes() if size <= LARGEST_FILE else b""
    except OSError as error:
        raise DocumentUnreadable(f"{path.name} cannot be opened: {error.strerror}.") from error
    if size > LARGEST_FILE:
        raise DocumentUnreadable(f"{path.name} is larger than {LARGEST_FILE // 2**20} MiB: split it.")
    document = read(content, source or path.name, path.stem)
    if not document.sections:
        raise DocumentUnreadable(f"{path.name} holds no text{_NO_TEXT_REASON.get(path.suffix.lower(), '')}.")
    return document


def _read_text(content: bytes, source: str, stem: str) -> Document:
    paragraphs = filter(None, map(_one_line, _BLANK_LINES.split(_decoded(content, source))))
    return Document(source, stem, _sections([(stem, text) for text in paragraphs]))


def _read_markdown(content: bytes, source: str, stem: str) -> Document:
    # Read as the page it becomes: headings, lists and tables are then told from code by a Markdown parser.
    text = _FRONT_MATTER.sub("", _decoded(content, source).replace("\r\n", "\n"))
    return _read_page(BeautifulSoup(MarkdownIt("commonmark").enable("table").render(text), "html.parser"), source, stem)


def _read_html(content: bytes, source: str, stem: str) -> Document:
    if b"\0" in content and not content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DocumentUnreadable(f"{source} is not text.")
    return _read_page(BeautifulSoup(content, "html.parser"), source, stem)


def _read_page(page: BeautifulSoup, source: str, stem: str) -> Document:
    name = _one_line(page.title.get_text()) if page.title else ""
    for tag in page.find_all([*_NOT_TEXT, "head"]):
        tag.decompose()
    for tag in page.find_all(["br", "td", "th"]):
        tag.insert_after(" ")
    path: dict[int, str] = {}
    told: list[tuple[str, str]] = []
    for block, text in _blocks(page):
        if block is not None and block.name in _HEADINGS:
            level = _HEADINGS.index(block.name)
            path = {higher: heading for higher, heading in path.items() if higher < level} | {level: text}
            name = name or text
        else:
            told.append((" > ".join(path.values()) or name or stem, text))
    return Document(source, name or stem, _sections(told))


def _blocks(page: BeautifulSoup) -> Iterator[tuple[Tag | None, str]]:
    """The texts of a page, each with the innermost block that holds it; table cells belong to their row."""
    runs = groupby(((string.find_parent(_BLOCKS), string) for string in page.strings), key=lambda pair: id(pair[0]))
    for _, run in runs:
        pairs = list(run)
        if text := _one_line("".join(string for _, string in pairs)):
            yield pairs[0][0], text


def _read_pdf(content: bytes, source: str, stem: str) -> Document:
    try:
        reader = PdfReader(BytesIO(content))
        if reader.is_encrypted and not reader.decrypt(""):
            raise DocumentUnreadable(f"{source} is encrypted: save it without a password.")
        title = _one_line((reader.metadata and reader.metadata.title) or "") or stem
        pages = [page.extract_text() for page in reader.pages]
    except (PyPdfError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        # pypdf reports a part of what can be broken in a file by its own exceptions.
        raise DocumentUnreadable(f"{source} is not a readable PDF ({type(error).__name__}).") from error
    told = [
        (f"{title}, page {number}", text)
        for number, page in enumerate(pages, start=1)
        for text in filter(None, map(_one_line, _BLANK_LINES.split(_HYPHENATED.sub("", page))))
    ]
    return Document(source, title, _sections(told))


def _sections(told: list[tuple[str, str]]) -> tuple[Section, ...]:
    """Paragraphs that follow each other under the same title, together."""
    groups = groupby(told, key=lambda pair: pair[0])
    return tuple(Section(title, tuple(text for _, text in pairs)) for title, pairs in groups)


def _decoded(content: bytes, source: str) -> str:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DocumentUnreadable(f"{source} is not UTF-8 text.") from error
    if "\0" in text:
        raise DocumentUnreadable(f"{source} is not text.")
    return text


def _one_line(text: str) -> str:
    return " ".join(text.split())


_READERS: Mapping[str, Callable[[bytes, str, str], Document]] = {
    ".md": _read_markdown,
    ".markdown": _read_markdown,
    ".txt": _read_text,
    ".html": _read_html,
    ".htm": _read_html,
    ".pdf": _read_pdf,
}
_NO_TEXT_REASON = {".pdf": ": if its pages are pictures, they need text recognition first"}
