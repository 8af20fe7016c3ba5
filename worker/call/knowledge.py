"""The search of the company's documents, as the settings want it."""

from pathlib import Path

from graphs.knowledge.search import FullTextSearch, HybridSearch
from graphs.ports import EmbedderPort
from worker.call.settings import OPENAI_URL, KnowledgeSettings

#: Of the budget: the rest is for searching by words alone when the question's vector does not come.
_VECTOR_SHARE = 0.6


def open_embedder(settings: KnowledgeSettings, *, timeout: float, retries: int) -> EmbedderPort | None:
    """The model of MUSTER_EMBEDDINGS_MODEL, each request bounded by `timeout` seconds; None without one."""
    if settings.embeddings_model is None:
        return None
    from openai import AsyncOpenAI

    from graphs.knowledge.embeddings import OpenAIEmbedder

    own = settings.embeddings_base_url
    key = settings.embeddings_api_key or ("" if own else settings.openai_api_key)
    client = AsyncOpenAI(
        # The SDK wants one; servers of one's own often do not.
        api_key=key or "not-needed",
        base_url=own or settings.openai_base_url or OPENAI_URL,
        timeout=timeout,
        max_retries=retries,
    )
    return OpenAIEmbedder(client, model=settings.embeddings_model)


def open_search(
    settings: KnowledgeSettings, path: Path, *, patience: float | None = None
) -> FullTextSearch | HybridSearch:
    """The search of the index `path`: hybrid when a model for embeddings is set, by words otherwise.

    A question's vector may take `patience` seconds, by default a part of the retrieval's budget.
    """
    patience = settings.retrieval_budget * _VECTOR_SHARE if patience is None else patience
    embedder = open_embedder(settings, timeout=max(patience, 5.0), retries=0)
    return FullTextSearch(path) if embedder is None else HybridSearch(path, embedder=embedder, patience=patience)
