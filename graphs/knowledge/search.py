"""Searches of the knowledge index: by words, and by words and meaning."""

import asyncio
import json
import logging
import os
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import apsw

from graphs.entities import Passage
from graphs.errors import EmbeddingsUnavailable, KnowledgeUnavailable
from graphs.knowledge.index import embedding_model, open_index, packed
from graphs.ports import EmbedderPort

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")
#: Score of each found passage by its row number.
Scores = Mapping[int, float]

#: A match in a heading tells more than one in the text.
_TITLE_WEIGHT = 3.0
#: Of the best score: what shares less with the question shares it by chance.
_WORTH_OFFERING = 0.25
#: Cosine: below it texts have nothing to do with each other, whatever the model.
_RELATED = 0.3
#: Passages of each search that are fused, and the constant of reciprocal rank fusion.
_CANDIDATES = 20
_FUSION = 60
#: Of a question: more words make the search slow and not better.
_MOST_WORDS = 32


def _vocabulary(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: Words that tell nothing about what is asked; without any other word there is nothing to look up.
_FILLERS = _vocabulary(
    """a about all also am an and any are aren as at be been but by bye can could couldn did didn do does doesn don
    done for from get give go good goodbye got had has have he hello her hi him his how i if in into is isn it its
    just know let like ll may me mean more much my need no not now of off oh ok okay on one or our out over please
    re right said say see she should so some sorry sure tell than thank thanks that the their them then there these
    they this those to too uh um up us ve very want was we well were what when where which who whom why will with
    won would yeah yes you your"""
)

_BY_WORDS = """
SELECT rowid, -bm25(passages, ?1, 1.0) AS score FROM passages
WHERE passages MATCH ?2 AND (?3 = '[]' OR source IN (SELECT value FROM json_each(?3)))
ORDER BY score DESC LIMIT ?4
"""
_BY_MEANING = "SELECT rowid, 1 - distance FROM vectors WHERE vector MATCH ?1 AND k = ?3"
_OF_SOURCES = " AND rowid IN (SELECT rowid FROM passages WHERE source IN (SELECT value FROM json_each(?2)))"


class FullTextSearch:
    """Passages that share words with the question, by BM25; a `RAGPort`."""

    def __init__(self, path: Path) -> None:
        self._reader = _Reader(path)

    async def warm(self) -> None:
        """Open the index before the first question; a missing one is only reported."""
        try:
            await self._reader.ask(embedding_model)
        except KnowledgeUnavailable as error:
            logger.warning("no knowledge: %s", error)

    async def search(self, query: str, *, k: int, sources: Sequence[str] = ()) -> Sequence[Passage]:
        words = telling_words(query)
        if not words:
            return ()
        return await self._reader.ask(lambda index: _passages(index, _by_words(index, words, k, sources), k))

    async def aclose(self) -> None:
        await self._reader.aclose()


class HybridSearch:
    """Passages that share words or meaning with the question, by reciprocal rank fusion; a `RAGPort`.

    The question's vector may take `patience` seconds; without it, or without vectors of its model in the index, the
    words decide alone.
    """

    def __init__(self, path: Path, *, embedder: EmbedderPort, patience: float = 0.1) -> None:
        self._reader = _Reader(path)
        self._embedder = embedder
        self._patience = patience

    async def warm(self) -> None:
        """Open the index and the way to the embeddings endpoint; what fails is only reported."""
        try:
            if await self._reader.ask(embedding_model) != self._embedder.model:
                logger.warning("the knowledge index has no vectors of %s", self._embedder.model)
            await self._embedder.embed(["knowledge"])
        except (KnowledgeUnavailable, EmbeddingsUnavailable) as error:
            logger.warning("no knowledge, or only by words: %s", error)

    async def search(self, query: str, *, k: int, sources: Sequence[str] = ()) -> Sequence[Passage]:
        words = telling_words(query)
        if not words:
            return ()
        vector = await self._vector(query)

        def look(index: apsw.Connection) -> Sequence[Passage]:
            by_words = _by_words(index, words, _CANDIDATES, sources)
            if not vector or embedding_model(index) != self._embedder.model:
                return _passages(index, by_words, k)
            # In this order meaning wins where both have a favourite of their own.
            return _passages(index, fused([_by_meaning(index, vector, _CANDIDATES, sources), by_words]), k)

        return await self._reader.ask(look)

    async def aclose(self) -> None:
        await self._embedder.aclose()
        await self._reader.aclose()

    async def _vector(self, query: str) -> bytes | None:
        try:
            async with asyncio.timeout(self._patience):
                return packed((await self._embedder.embed([query]))[0])
        except TimeoutError:
            logger.warning("the embeddings endpoint was too slow, searching by words alone")
        except EmbeddingsUnavailable:
            logger.warning("the embeddings endpoint failed, searching by words alone")
        return None


class _Reader:
    """The index file on a thread of its own: SQLite never stops the event loop, and a cancelled question ends.

    A file that has taken the index's place is read from the next question on.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(1, "knowledge")
        self._index: apsw.Connection | None = None
        self._identity: tuple[int, int, int] | None = None

    async def ask(self, question: Callable[[apsw.Connection], Answer]) -> Answer:
        """What `question` finds. Raises KnowledgeUnavailable."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._answer, question)
        except asyncio.CancelledError:
            if self._index is not None:
                self._index.interrupt()
            raise
        except apsw.Error as error:
            raise KnowledgeUnavailable(f"The knowledge index {self._path} cannot be searched: {error}") from error

    async def aclose(self) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, self._close)
        self._thread.shutdown(wait=False)

    def _answer(self, question: Callable[[apsw.Connection], Answer]) -> Answer:
        return question(self._opened())

    def _opened(self) -> apsw.Connection:
        identity = None
        with suppress(OSError):
            status = os.stat(self._path)
            identity = (status.st_dev, status.st_ino, status.st_mtime_ns)
        if self._index is None or identity not in (self._identity, None):
            self._close()
            self._index, self._identity = open_index(self._path), identity
        return self._index

    def _close(self) -> None:
        if self._index is not None:
            self._index.close()
            self._index = None


def telling_words(query: str) -> Sequence[str]:
    """The words of a question that tell what it is about, each once."""
    words = dict.fromkeys(re.findall(r"\w+", query.casefold()))
    return [word for word in words if word not in _FILLERS and (len(word) > 1 or word.isdigit())][:_MOST_WORDS]


def fused(rankings: Sequence[Scores]) -> Scores:
    """Reciprocal rank fusion: a passage counts by its place in each ranking, as their scores do not compare."""
    scores: dict[int, float] = defaultdict(float)
    for ranking in rankings:
        for place, row in enumerate(sorted(ranking, key=lambda row: -ranking[row]), start=1):
            scores[row] += 1 / (_FUSION + place)
    return scores


def _by_words(index: apsw.Connection, words: Sequence[str], limit: int, sources: Sequence[str]) -> Scores:
    question = " OR ".join(f'"{word}"' for word in words)
    rows = index.execute(_BY_WORDS, (_TITLE_WEIGHT, question, json.dumps(list(sources)), limit))
    scores: dict[int, float] = dict(rows)
    best = max(scores.values(), default=0.0)
    return {row: score for row, score in scores.items() if score >= _WORTH_OFFERING * best}


def _by_meaning(index: apsw.Connection, vector: bytes, limit: int, sources: Sequence[str]) -> Scores:
    statement = _BY_MEANING + (_OF_SOURCES if sources else "")
    rows = index.execute(statement, (vector, json.dumps(list(sources)), limit))
    return {row: closeness for row, closeness in rows if closeness >= _RELATED}


def _passages(index: apsw.Connection, scores: Scores, k: int) -> Sequence[Passage]:
    found = []
    for row in sorted(scores, key=lambda row: -scores[row])[:k]:
        columns = index.execute("SELECT source, number, title, text FROM passages WHERE rowid = ?", (row,)).get
        source, number, title, text = map(str, columns)
        found.append(Passage(f"{source}#{number}", source, title, text, scores[row]))
    return found
