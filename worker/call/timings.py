"""Where a turn's time goes: each segment of the critical path, measured by itself in the worker."""

import time
from dataclasses import asdict, dataclass

import numpy as np
from livekit import rtc
from livekit.agents import llm, metrics

#: Samples louder than this (of 32,768) count as speech, far above a line's noise and far below a voice.
AUDIBLE = 400


@dataclass(frozen=True, kw_only=True)
class TurnTimings:
    """One answered turn; durations in seconds, moments in Unix seconds.

    From the caller's last audible sample as it arrived here to the agent's first audible sample as it left:
    waiting for the caller to go on (`endpointing`), recognition (`stt`), the graph and its model up to the first
    sentence (`graph_llm`), and the voice up to its first audible sample (`tts`).
    """

    speech_ended_at: float
    endpointing: float
    stt: float
    graph_llm: float
    tts: float
    first_audio_at: float

    def to_json(self) -> dict[str, float]:
        """Rounded to tenths of a millisecond."""
        return {name: round(value, 4) for name, value in asdict(self).items()}


@dataclass(frozen=True)
class _Recognition:
    started_at: float
    ended_at: float


@dataclass(frozen=True)
class _Question:
    """What is known when the caller's turn is over; later speech does not change it."""

    speech_ended_at: float
    endpointing: float
    stt: float


def first_audible(frame: rtc.AudioFrame) -> float | None:
    """Seconds from the frame's start to its first audible sample."""
    return _offset(frame, first=True)


def last_audible(frame: rtc.AudioFrame) -> float | None:
    """Seconds from the frame's start to its last audible sample."""
    return _offset(frame, first=False)


def _offset(frame: rtc.AudioFrame, *, first: bool) -> float | None:
    samples = np.frombuffer(frame.data, dtype=np.int16)
    loud = np.flatnonzero(np.abs(samples.astype(np.int32)) > AUDIBLE)
    if not len(loud):
        return None
    return float(loud[0 if first else -1]) / frame.num_channels / frame.sample_rate


class TurnClock:
    """Collects the moments of the turn that is going on."""

    def __init__(self) -> None:
        self._last_loud: float | None = None
        self._speech_ended_at: float | None = None
        self._recognition: _Recognition | None = None
        self._question: _Question | None = None
        self._lead_in: float | None = None
        self._silence = 0.0
        self._playback_started_at: float | None = None

    def heard(self, frame: rtc.AudioFrame) -> None:
        """A frame of the caller's arrived."""
        offset = last_audible(frame)
        if offset is not None:
            self._last_loud = time.time() - frame.duration + offset

    def speech_ended(self) -> None:
        """Voice activity detection says that the caller stopped."""
        self._speech_ended_at = self._last_loud

    def recognised(self, report: metrics.STTMetrics) -> None:
        """A recognition request was answered."""
        now = time.time()
        self._recognition = _Recognition(started_at=now - report.duration, ended_at=now)

    def turn_completed(self) -> None:
        """The caller's turn is over; the reply begins."""
        recognition, speech_ended_at = self._recognition, self._speech_ended_at
        self._playback_started_at = None
        self._question = None
        if recognition is not None and speech_ended_at is not None:
            silence = recognition.started_at - speech_ended_at
            self._question = _Question(
                speech_ended_at=speech_ended_at,
                endpointing=silence + (time.time() - recognition.ended_at),
                stt=recognition.ended_at - recognition.started_at,
            )

    def voice_started(self) -> None:
        """A new piece of speech is about to be synthesised."""
        self._lead_in, self._silence = None, 0.0

    def spoken(self, frame: rtc.AudioFrame) -> None:
        """A frame of the agent's voice was synthesised."""
        if self._lead_in is None:
            offset = first_audible(frame)
            if offset is None:
                self._silence += frame.duration
            else:
                self._lead_in = self._silence + offset

    def playback_started(self, at: float) -> None:
        """The first frame of a piece of speech went to the room."""
        if self._playback_started_at is None:
            self._playback_started_at = at

    def answered(self, report: llm.MetricsReport) -> TurnTimings | None:
        """The timings of the reply that was just spoken; None when it answered no speech or a part is unknown."""
        question, self._question = self._question, None
        started_at = self._playback_started_at
        first_sentence, first_chunk = report.get("llm_node_ttfs"), report.get("tts_node_ttfb")
        if question is None or started_at is None or first_sentence is None or first_chunk is None:
            return None
        lead_in = self._lead_in or 0.0
        return TurnTimings(
            speech_ended_at=question.speech_ended_at,
            endpointing=question.endpointing,
            stt=question.stt,
            graph_llm=first_sentence,
            tts=first_chunk + lead_in,
            first_audio_at=started_at + lead_in,
        )
