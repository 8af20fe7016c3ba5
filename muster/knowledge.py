"""`muster knowledge`: the documents that agents answer from."""

import asyncio
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from graphs.entities import Passage
    from graphs.knowledge.documents import Document
    from worker.call.settings import KnowledgeSettings

#: Where documents go when nothing else is said.
_DEFAULT_INDEX = "knowledge.db"
#: Seconds that one request for vectors may take, here, where nobody is on the phone.
_PATIENCE = 30.0

_index_option = click.option(
    "--index",
    type=click.Path(dir_okay=False, path_type=Path),
    default=_DEFAULT_INDEX,
    show_default=True,
    envvar="MUSTER_KNOWLEDGE_INDEX",
    show_envvar=True,
    help="The index file.",
)


@click.group()
def knowledge() -> None:
    """Documents that agents answer from, in one index file.

    With MUSTER_EMBEDDINGS_MODEL passages are found by meaning too, not by words alone.
    """


@knowledge.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="FILE...")
@click.option("--source", help="Another name for the document than its file's; for one FILE.")
@_index_option
def add(files: tuple[Path, ...], source: str | None, index: Path) -> None:
    """Put Markdown, text, HTML and PDF files into the index.

    A document of the same name is replaced. A file that cannot be read is named and left out, and the exit code is 1.
    """
    console = Console()
    if source is not None and len(files) > 1:
        raise click.UsageError("--source names one document: give one FILE.")
    twice = [name for name, count in Counter(file.name for file in files).items() if count > 1]
    if twice:
        raise click.UsageError(f"Two documents would have the name {twice[0]}: add one of them with --source NAME.")
    documents = _read(files, source=source, console=console)
    if documents:
        with _readable_errors(console):
            lines = asyncio.run(_store(documents, index=index, settings=_settings()))
        lines.append(f"Workers read it when MUSTER_KNOWLEDGE_INDEX={index.resolve()} is set.")
        for line in lines:
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    raise SystemExit(0 if len(documents) == len(files) else 1)


@knowledge.command("list")
@_index_option
def list_documents(index: Path) -> None:
    """Show the documents of the index."""
    from graphs.knowledge.index import contents, open_index

    console = Console()
    with _readable_errors(console), closing(open_index(index)) as connection:
        held = contents(connection)
    table = Table("document", "passages", "added", box=None)
    for document in held.documents:
        added = time.strftime("%Y-%m-%d %H:%M", time.localtime(document.added_at))
        table.add_row(escape(document.source), str(document.passages), added)
    console.print(table)
    total = sum(document.passages for document in held.documents)
    if held.model:
        console.print(f"{held.vectors} of {total} passages have vectors of {held.model}.", highlight=False)


@knowledge.command()
@click.argument("source")
@_index_option
def remove(source: str, index: Path) -> None:
    """Take the document SOURCE out of the index."""
    from graphs.errors import KnowledgeUnavailable
    from graphs.knowledge.index import edit_index

    console = Console()
    with _readable_errors(console):
        if not index.is_file():
            raise KnowledgeUnavailable(f"There is no knowledge index {index}.")
        with edit_index(index) as editor:
            removed = editor.remove(source)
    if not removed:
        _complain(console, f"There is no document {source} in {index}.")
        raise SystemExit(1)
    console.print(f"removed {source}", markup=False, highlight=False)


@knowledge.command()
@click.argument("text")
@click.option("-k", "count", type=click.IntRange(1, 20), default=5, show_default=True, help="Passages at most.")
@click.option("--in", "sources", multiple=True, metavar="SOURCE", help="Look into this document only; repeatable.")
@_index_option
def search(text: str, count: int, sources: tuple[str, ...], index: Path) -> None:
    """Show the passages that an agent would get for TEXT, best first, with their scores."""
    console = Console()
    with _readable_errors(console):
        passages = asyncio.run(_search(text, count=count, sources=sources, index=index))
    for passage in passages:
        console.print(f"[bold]{passage.score:.4g}[/bold] {escape(f'{passage.id}  {passage.title}')}", highlight=False)
        console.print(passage.text, markup=False, highlight=False)
        console.print()
    if not passages:
        console.print("Nothing fits.")


def _read(files: Sequence[Path], *, source: str | None, console: Console) -> list["Document"]:
    from graphs.errors import DocumentUnreadable
    from graphs.knowledge.reading import read_document

    documents = []
    for file in files:
        try:
            documents.append(read_document(file, source=source))
        except DocumentUnreadable as error:
            _complain(console, f"left out: {error}")
    return documents


async def _store(documents: Sequence["Document"], *, index: Path, settings: "KnowledgeSettings") -> list[str]:
    """Add the documents, all or none of them; what was done, line by line."""
    from graphs.knowledge.documents import chunks
    from graphs.knowledge.index import edit_index
    from worker.call.knowledge import open_embedder

    lines = []
    embedder = open_embedder(settings, timeout=_PATIENCE, retries=2)
    with edit_index(index) as editor:
        for document in documents:
            passages = list(chunks(document))
            verb = "replaced" if editor.put(document.source, passages) else "added"
            lines.append(f"{verb} {document.source} (passages: {len(passages)})")
        if embedder is not None:
            lines.append(f"vectors of {embedder.model}: {await editor.embed(embedder)} made")
            await embedder.aclose()
    return lines


async def _search(text: str, *, count: int, sources: Sequence[str], index: Path) -> Sequence["Passage"]:
    from worker.call.knowledge import open_search

    search = open_search(_settings(), index, patience=_PATIENCE)
    try:
        return await search.search(text, k=count, sources=sources)
    finally:
        await search.aclose()


def _settings() -> "KnowledgeSettings":
    from worker.call.settings import KnowledgeSettings

    return KnowledgeSettings.from_env()


@contextmanager
def _readable_errors(console: Console) -> Iterator[None]:
    from graphs.errors import GraphError
    from worker.fleet.errors import SettingsInvalid

    try:
        yield
    except (GraphError, SettingsInvalid) as error:
        _complain(console, str(error))
        raise SystemExit(1) from None


def _complain(console: Console, text: str) -> None:
    console.print(text, style="red", markup=False, highlight=False, soft_wrap=True)
