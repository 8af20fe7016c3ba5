"""Vectors for tests: close when texts share words or what stands for the same thing."""

import re
import zlib
from collections.abc import Mapping, Sequence

LENGTH = 64


class BagOfWords:
    """An `EmbedderPort` that counts words; `same` maps a word to the one it means."""

    def __init__(self, *, model: str = "bag-of-words", same: Mapping[str, str] | None = None) -> None:
        self.model = model
        self.embedded: list[str] = []
        self._same = same or {}

    async def embed(self, texts: Sequence[str]) -> Sequence[Sequence[float]]:
        self.embedded += texts
        return [self._vector(text) for text in texts]

    async def aclose(self) -> None:
        """Nothing is open."""

    def _vector(self, text: str) -> Sequence[float]:
        counts = [0.001] * LENGTH
        for word in re.findall(r"\w{4,}", text.lower()):
            counts[zlib.crc32(self._same.get(word, word).encode()) % LENGTH] += 1
        return counts
