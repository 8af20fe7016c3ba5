"""Looks a turn up in the company's documents, for no longer than a caller may wait for it."""

import asyncio
import logging
from collections.abc import Sequence

from langgraph.runtime import Runtime

from graphs.entities import Passage, PassagesMissed, PassagesOffered
from graphs.errors import KnowledgeUnavailable
from graphs.ports import RAGPort
from graphs.roster import Specialist
from graphs.state import State, Turn, Update

logger = logging.getLogger(__name__)

#: Passages for one answer: it is short, and each costs the model time to read.
MOST_PASSAGES = 3


class Retrieval:
    """Searches with the user's words before a specialist's model call.

    After `budget` seconds the turn goes on without passages; a search never fails a turn.
    """

    def __init__(self, rag: RAGPort, *, budget: float = 0.15) -> None:
        self._rag = rag
        self._budget = budget

    async def look_up(self, specialist: Specialist, state: State, runtime: Runtime[Turn]) -> Update:
        """The passages for this turn; nothing new when the same sources were searched for it before."""
        sources = list(specialist.sources)
        if state["searched"] == sources:
            return {}
        found: Sequence[Passage] = ()
        try:
            async with asyncio.timeout(self._budget):
                found = await self._rag.search(runtime.context.words, k=MOST_PASSAGES, sources=sources)
        except TimeoutError:
            logger.warning("no passages in time", extra={"turn_id": runtime.context.turn_id})
            runtime.stream_writer(PassagesMissed("too_slow"))
        except KnowledgeUnavailable as error:
            logger.warning("no passages: %s", error, extra={"turn_id": runtime.context.turn_id})
            runtime.stream_writer(PassagesMissed("unavailable"))
        if found:
            runtime.stream_writer(PassagesOffered(tuple(found)))
        return {"passages": [passage.record() for passage in found], "searched": sources}
