"""Any OpenAI-compatible embeddings endpoint as an `EmbedderPort`."""

from collections.abc import Sequence

from openai import AsyncOpenAI, OpenAIError

from graphs.errors import EmbeddingsUnavailable

#: Texts in one request; providers bound it, and a smaller one bounds what a failure repeats.
_BATCH = 64


class OpenAIEmbedder:
    """Vectors of one model; the client is closed with it, and its retries and timeout are the client's."""

    def __init__(self, client: AsyncOpenAI, *, model: str) -> None:
        self._client = client
        self._model = model

    @property
    def model(self) -> str:
        return self._model

    async def embed(self, texts: Sequence[str]) -> Sequence[Sequence[float]]:
        vectors: list[Sequence[float]] = []
        try:
            for start in range(0, len(texts), _BATCH):
                batch = list(texts[start : start + _BATCH])
                answer = await self._client.embeddings.create(model=self._model, input=batch)
                vectors += [entry.embedding for entry in sorted(answer.data, key=lambda entry: entry.index)]
        except (OpenAIError, ValueError, TypeError, AttributeError) as error:
            # The SDK stumbles in these ways over an answer that has not the shape of one.
            raise EmbeddingsUnavailable(f"The embeddings endpoint failed: {error}") from error
        if len(vectors) != len(texts) or len({len(vector) for vector in vectors}) > 1:
            raise EmbeddingsUnavailable("The embeddings endpoint answered with vectors that do not fit the texts.")
        return vectors

    async def aclose(self) -> None:
        await self._client.close()
