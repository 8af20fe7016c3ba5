"""Words of a person who reads aloud, and the silence between them."""

import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from local.audio import SAMPLE_RATE, Samples, read_wav, trimmed
from local.caller import quiet_room

#: Seconds from where to where the reader of "two_cities.wav" speaks without a pause.
_PIECES = ((3.00, 4.30), (12.00, 12.70), (16.00, 16.60))
#: Seconds of a silence that does not end an utterance.
SHORT = 0.16


def recorded_pieces() -> Sequence[Samples]:
    """Pieces without a pause inside; skips the test without the recording, on CI it fails."""
    package = find_spec("moonshine_voice")
    if package is None or package.origin is None:
        if os.environ.get("CI"):
            pytest.fail("moonshine_voice is not installed")
        pytest.skip("moonshine_voice is not installed")
    recording = read_wav(Path(package.origin).parent / "assets" / "two_cities.wav")
    return [trimmed(recording[round(start * SAMPLE_RATE) : round(end * SAMPLE_RATE)]) for start, end in _PIECES]


def line(*parts: Samples | float) -> Samples:
    """Pieces of speech and seconds of a quiet room."""
    return np.concatenate([quiet_room(part) if isinstance(part, float) else part for part in parts])
