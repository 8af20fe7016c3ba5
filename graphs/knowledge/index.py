"""The knowledge index: one SQLite file with the passages of documents, their words and, if wanted, their vectors.

It is never changed in place: a change is made to a copy that then takes the file's name. Calls go on reading what
they have open, readers need no right to write, and a change that fails leaves everything as it was.
"""

import fcntl
import os
import shutil
import struct
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import apsw
import sqlite_vec

from graphs.errors import KnowledgeUnavailable
from graphs.knowledge.documents import Chunk
from graphs.ports import EmbedderPort

#: Stands in the file's header ("Mstr"), so that another program's database is not taken for an index.
_APPLICATION = 0x4D737472
_VERSION = 1
_SCHEMA = f"""
PRAGMA application_id = {_APPLICATION};
PRAGMA user_version = {_VERSION};
CREATE TABLE documents (source TEXT PRIMARY KEY, passages INTEGER NOT NULL, added_at REAL NOT NULL);
CREATE TABLE embeddings (model TEXT NOT NULL);
CREATE VIRTUAL TABLE passages USING fts5 (
  title, text, source UNINDEXED, number UNINDEXED, tokenize = 'porter unicode61 remove_diacritics 2'
);
"""


@dataclass(frozen=True, slots=True)
class IndexedDocument:
    """A document of the index; `added_at` in Unix seconds."""

    source: str
    passages: int
    added_at: float


@dataclass(frozen=True, slots=True)
class Contents:
    """What an index holds; `vectors` of its passages have one, made by `model`."""

    documents: tuple[IndexedDocument, ...]
    model: str | None
    vectors: int


def open_index(path: Path) -> apsw.Connection:
    """A connection that only reads. Raises KnowledgeUnavailable."""
    if not path.is_file():
        raise KnowledgeUnavailable(f"There is no knowledge index {path}.")
    # Immutable spares locks and side files, so that it may lie where nobody may write.
    address = f"{path.resolve().as_uri()}?mode=ro&immutable=1"
    try:
        connection = apsw.Connection(address, flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI)
        return _prepared(connection, path)
    except apsw.Error as error:
        raise KnowledgeUnavailable(f"The knowledge index {path} cannot be read: {error}") from error


def contents(connection: apsw.Connection) -> Contents:
    """What the index holds."""
    rows = connection.execute("SELECT source, passages, added_at FROM documents ORDER BY source")
    documents = tuple(IndexedDocument(*row) for row in rows)
    model = embedding_model(connection)
    vectors = connection.execute("SELECT count(*) FROM vectors").get if model else 0
    return Contents(documents, model, int(vectors))


def embedding_model(connection: apsw.Connection) -> str | None:
    """The model that made the index's vectors; None when it has none."""
    model = connection.execute("SELECT model FROM embeddings").get
    return None if model is None else str(model)


def packed(vector: Sequence[float]) -> bytes:
    """A vector as sqlite-vec stores it."""
    return struct.pack(f"{len(vector)}f", *vector)


class IndexEditor:
    """Changes to an index; see `edit_index`."""

    def __init__(self, connection: apsw.Connection) -> None:
        self._connection = connection

    def put(self, source: str, chunks: Sequence[Chunk]) -> bool:
        """Store a document's passages instead of those it had; True when it had some."""
        replaced = self.remove(source)
        self._connection.execute("INSERT INTO documents VALUES (?, ?, ?)", (source, len(chunks), time.time()))
        self._connection.executemany(
            "INSERT INTO passages (title, text, source, number) VALUES (?, ?, ?, ?)",
            ((chunk.title, chunk.text, source, number) for number, chunk in enumerate(chunks, start=1)),
        )
        return replaced

    def remove(self, source: str) -> bool:
        """Take a document out; False when there is none of that name."""
        if embedding_model(self._connection):
            self._connection.execute(
                "DELETE FROM vectors WHERE rowid IN (SELECT rowid FROM passages WHERE source = ?)", (source,)
            )
        self._connection.execute("DELETE FROM passages WHERE source = ?", (source,))
        self._connection.execute("DELETE FROM documents WHERE source = ?", (source,))
        return self._connection.changes() > 0

    async def embed(self, embedder: EmbedderPort) -> int:
        """Give a vector to every passage that has none of this model; how many got one.

        Another model's vectors are thrown away. Raises EmbeddingsUnavailable.
        """
        if embedding_model(self._connection) not in (embedder.model, None):
            self._connection.execute("DROP TABLE vectors; DELETE FROM embeddings")
        missing = " WHERE rowid NOT IN (SELECT rowid FROM vectors)" if embedding_model(self._connection) else ""
        rows = self._connection.execute(f"SELECT rowid, title, text FROM passages{missing}").fetchall()
        if not rows:
            return 0
        vectors = await embedder.embed([f"{title}\n{text}" for _, title, text in rows])
        if embedding_model(self._connection) is None:
            self._connection.execute("INSERT INTO embeddings VALUES (?)", (embedder.model,))
            self._connection.execute(
                f"CREATE VIRTUAL TABLE vectors USING vec0 (vector float[{len(vectors[0])}] distance_metric=cosine)"
            )
        self._connection.executemany(
            "INSERT INTO vectors (rowid, vector) VALUES (?, ?)",
            ((row[0], packed(vector)) for row, vector in zip(rows, vectors, strict=True)),
        )
        return len(rows)


@contextmanager
def edit_index(path: Path) -> Iterator[IndexEditor]:
    """An editor of a copy, which replaces the index, or becomes it, when the block ends without an error.

    Editors of one folder wait for each other. Raises KnowledgeUnavailable when the index is not one, or cannot be
    written.
    """
    try:
        with _alone_in(path.parent), _scratch_file(path) as scratch:
            is_new = not path.exists()
            if not is_new:
                shutil.copyfile(path, scratch)
            with closing(apsw.Connection(str(scratch))) as connection:
                if is_new:
                    connection.execute(_SCHEMA)
                with _prepared(connection, path):
                    yield IndexEditor(connection)
            scratch.chmod(0o644)
            os.replace(scratch, path)
    except (OSError, apsw.Error) as error:
        raise KnowledgeUnavailable(f"The knowledge index {path} cannot be changed: {error}") from error


def _prepared(connection: apsw.Connection, path: Path) -> apsw.Connection:
    if connection.execute("PRAGMA application_id").get != _APPLICATION:
        raise KnowledgeUnavailable(f"{path} is not a knowledge index.")
    if connection.execute("PRAGMA user_version").get != _VERSION:
        raise KnowledgeUnavailable(f"The knowledge index {path} is of another version of Muster: build it again.")
    connection.enable_load_extension(True)
    connection.load_extension(sqlite_vec.loadable_path())
    connection.enable_load_extension(False)
    return connection


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _scratch_file(path: Path) -> Iterator[Path]:
    """An empty file beside `path`; gone afterwards unless it was renamed."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(descriptor)
    try:
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)
