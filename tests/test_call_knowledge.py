"""The search of a call: what the settings choose, and which key goes where."""

from pathlib import Path

import pytest

from graphs.errors import EmbeddingsUnavailable
from graphs.knowledge.search import FullTextSearch, HybridSearch
from tests.recording_server import RecordingServer
from worker.call.knowledge import open_embedder, open_search
from worker.call.settings import CallSettings, KnowledgeSettings

CALL = {
    "REDIS_URL": "redis://127.0.0.1:1/0",
    "LIVEKIT_URL": "ws://127.0.0.1:1",
    "LIVEKIT_API_KEY": "key",
    "LIVEKIT_API_SECRET": "secret",
    "OPENAI_API_KEY": "key of openai",
    "ELEVEN_API_KEY": "key of elevenlabs",
}


async def key_sent(**settings: str) -> str:
    """The key that reaches the embeddings endpoint; {server} in a setting is where it is."""
    async with RecordingServer() as server:
        environ = {name: value.format(server=f"http://127.0.0.1:{server.port}/v1") for name, value in settings.items()}
        embedder = open_embedder(KnowledgeSettings.from_env(environ), timeout=5, retries=0)
        assert embedder is not None
        # The server keeps the request and knows no embeddings.
        with pytest.raises(EmbeddingsUnavailable):
            await embedder.embed(["words"])
        await embedder.aclose()
    (request,) = server.requests
    assert request.url.path == "/v1/embeddings"
    return request.headers["authorization"].removeprefix("Bearer ")


async def test_the_chat_model_s_server_gets_the_chat_model_s_key() -> None:
    settings = {"MUSTER_EMBEDDINGS_MODEL": "any", "OPENAI_BASE_URL": "{server}", "OPENAI_API_KEY": "ours"}
    assert await key_sent(**settings) == "ours"


async def test_another_server_gets_its_own_key_or_none_and_never_openai_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "ours")
    settings = {
        "MUSTER_EMBEDDINGS_MODEL": "any",
        "MUSTER_EMBEDDINGS_BASE_URL": "{server}",
        "OPENAI_BASE_URL": "http://127.0.0.1:1/v1",
        "OPENAI_API_KEY": "ours",
    }
    assert await key_sent(**settings) == "not-needed"
    assert await key_sent(**settings, MUSTER_EMBEDDINGS_API_KEY="theirs") == "theirs"


async def test_the_search_is_hybrid_only_with_a_model_for_embeddings(tmp_path: Path) -> None:
    words = open_search(KnowledgeSettings.from_env({}), tmp_path / "knowledge.db")
    hybrid = open_search(KnowledgeSettings.from_env({"MUSTER_EMBEDDINGS_MODEL": "any"}), tmp_path / "knowledge.db")
    assert isinstance(words, FullTextSearch)
    assert isinstance(hybrid, HybridSearch)
    await words.aclose()
    await hybrid.aclose()


def test_a_call_looks_nothing_up_unless_it_is_told_to_and_never_prints_the_key() -> None:
    settings = CallSettings.from_env(CALL | {"MUSTER_EMBEDDINGS_API_KEY": "theirs"})
    assert (settings.knowledge_index, settings.retrieval_budget) == (None, 0.15)
    assert "theirs" not in repr(settings) and "key of" not in repr(settings)
