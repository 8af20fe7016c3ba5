"""Documents: Markdown, text, HTML and PDF files become passages under their headings, or are refused with a reason."""

from io import BytesIO
from pathlib import Path

import pytest
from pypdf import PdfWriter
from pypdf.generic import DecodedStreamObject, DictionaryObject, NameObject

from graphs.errors import DocumentUnreadable
from graphs.knowledge.documents import LONGEST_PASSAGE, Document, Section, chunks
from graphs.knowledge.reading import LARGEST_FILE, read_document

MARKDOWN = """---
title: for a machine
---
# Plans

We have two.

## Premium plan
It costs *forty nine* dollars
a month.

- fast
- quiet

```
# not a heading
```

| speed | price |
|-------|-------|
| 500   | 49    |

# Contact
Call us.
"""

HTML = """<html><head><title>Handbook</title><style>p {color: red}</style></head>
<body><nav>Home | Contact</nav>
<h1>Moving <em>house</em></h1><p>Moving is free.<br>Tell us before.</p><script>alert("no")</script>
<div>Some loose words<ul><li>boxes</li><li>vans</li></ul>and an end</div>
<table><tr><td>city</td><td>yes</td></tr></table><footer>imprint</footer></body></html>"""


def pdf(*pages: str, password: str | None = None, title: str | None = None) -> bytes:
    """A PDF with a line of text for each line of a page."""
    writer = PdfWriter()
    font = DictionaryObject(
        {
            NameObject("/Type"): NameObject("/Font"),
            NameObject("/Subtype"): NameObject("/Type1"),
            NameObject("/BaseFont"): NameObject("/Helvetica"),
        }
    )
    for text in pages:
        page = writer.add_blank_page(width=600, height=800)
        lines = "".join(f"({line}) Tj 0 -14 Td " for line in text.splitlines())
        stream = DecodedStreamObject()
        stream.set_data(f"BT /F1 12 Tf 50 700 Td {lines}ET".encode())
        page[NameObject("/Contents")] = writer._add_object(stream)
        fonts = DictionaryObject({NameObject("/F1"): writer._add_object(font)})
        page[NameObject("/Resources")] = DictionaryObject({NameObject("/Font"): fonts})
    if title:
        writer.add_metadata({"/Title": title})
    if password:
        writer.encrypt(password, algorithm="RC4-128")
    content = BytesIO()
    writer.write(content)
    return content.getvalue()


def read(tmp_path: Path, name: str, content: str | bytes) -> Document:
    file = tmp_path / name
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_document(file)


def test_markdown_keeps_its_headings_lists_and_tables(tmp_path: Path) -> None:
    document = read(tmp_path, "plans.md", MARKDOWN)
    assert (document.source, document.title) == ("plans.md", "Plans")
    assert document.sections == (
        Section("Plans", ("We have two.",)),
        Section(
            "Plans > Premium plan",
            ("It costs forty nine dollars a month.", "fast", "quiet", "# not a heading", "speed price", "500 49"),
        ),
        Section("Contact", ("Call us.",)),
    )


def test_html_is_read_without_what_is_not_text(tmp_path: Path) -> None:
    document = read(tmp_path, "moving.html", HTML)
    assert document.title == "Handbook"
    assert document.sections == (
        Section(
            "Moving house",
            (
                "Moving is free. Tell us before.",
                "Some loose words",
                "boxes",
                "vans",
                "and an end",
                "city yes",
            ),
        ),
    )


def test_html_without_headings_has_its_title_and_its_own_encoding(tmp_path: Path) -> None:
    page = '<meta charset="iso-8859-1"><title>Caf\xe9</title><p>Tea \xe0 la carte'.encode("latin-1")
    assert read(tmp_path, "menu.htm", page).sections == (Section("Café", ("Tea à la carte",)),)


def test_text_is_read_by_paragraphs(tmp_path: Path) -> None:
    document = read(tmp_path, "faq.txt", "\ufeffFirst line,\r\nsame paragraph.\r\n\r\n\r\nSecond.\r\n")
    assert document.sections == (Section("faq", ("First line, same paragraph.", "Second.")),)


def test_a_pdf_is_read_page_by_page(tmp_path: Path) -> None:
    document = read(tmp_path, "guide.pdf", pdf("The router needs pow-\ner.", "Press the button.", title="Guide"))
    assert document.sections == (
        Section("Guide, page 1", ("The router needs power.",)),
        Section("Guide, page 2", ("Press the button.",)),
    )


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("secret.pdf", pdf("Words.", password="open sesame"), "encrypted"),
        ("scan.pdf", pdf(""), "holds no text: if its pages are pictures"),
        ("broken.pdf", b"%PDF-1.7\nand then nothing", "not a readable PDF"),
        ("fake.pdf", b"just words", "not a readable PDF"),
        ("empty.md", b"", "holds no text"),
        ("heading.md", b"# Only a heading\n", "holds no text"),
        ("binary.txt", b"\x7fELF\0\0\1", "not text"),
        ("binary.html", b"<p>\0\1\2", "not text"),
        ("latin.md", "Grüße".encode("latin-1"), "not UTF-8"),
        ("sheet.xlsx", b"PK", "does not end in one of .md"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_with_its_reason(
    tmp_path: Path, name: str, content: bytes, reason: str
) -> None:
    with pytest.raises(DocumentUnreadable, match=reason) as refused:
        read(tmp_path, name, content)
    assert name in str(refused.value)


def test_a_file_that_is_too_large_is_refused_unread(tmp_path: Path) -> None:
    huge = tmp_path / "huge.txt"
    with huge.open("wb") as file:
        file.truncate(LARGEST_FILE + 1)
    with pytest.raises(DocumentUnreadable, match=r"huge\.txt is larger than 20 MiB"):
        read_document(huge)


@pytest.mark.parametrize("name", ["missing.md", "folder.md"])
def test_what_is_no_file_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.md").mkdir()
    with pytest.raises(DocumentUnreadable, match=f"{name} cannot be opened"):
        read_document(tmp_path / name)


def test_paragraphs_are_joined_as_long_as_they_fit_and_keep_their_heading() -> None:
    paragraphs = tuple(f"Paragraph {number}. {'word ' * 50}".strip() for number in range(6))
    cut = list(chunks(Document("a.md", "A", (Section("A", paragraphs), Section("A > B", ("Short.",))))))
    assert "\n".join(chunk.text for chunk in cut if chunk.title == "A") == "\n".join(paragraphs)
    assert [chunk.text for chunk in cut if chunk.title == "A > B"] == ["Short."]
    assert all(len(chunk.text) <= LONGEST_PASSAGE for chunk in cut)
    assert all(chunk.text.startswith("Paragraph") for chunk in cut[:-1])


def test_a_long_paragraph_is_cut_between_sentences_and_a_long_sentence_between_words() -> None:
    sentences = [f"Sentence {number} says {'very ' * 20}little." for number in range(30)]
    endless = "word " * 400
    cut = list(chunks(Document("a.md", "A", (Section("A", (" ".join(sentences), endless)),))))
    assert all(len(chunk.text) <= LONGEST_PASSAGE for chunk in cut)
    assert " ".join(chunk.text for chunk in cut).split() == [*" ".join(sentences).split(), *endless.split()]
    assert all(chunk.text.endswith("little.") for chunk in cut if "Sentence" in chunk.text)
