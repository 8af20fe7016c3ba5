"""Where a turn's time goes: each segment of the critical path, measured by itself in the worker."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
from livekit import rtc
from livekit.agents import llm, metrics
from livekit.agents.types import USERDATA_TTS_STARTED_TIME

#: Samples louder than this (of 32,768) count as speech, far above a line's noise and far below a voice.
AUDIBLE = 400


@dataclass(frozen=True, kw_only=True)
class TurnTimings:
    """One answered turn; durations in seconds, moments in Unix seconds.

    From the caller's last audible sample as it arrived here to the agent's first audible sample as it left:
    recognition (`stt`), waiting for the caller to go on as long as nothing is recognised (`endpointing`), the graph and
    its model up to the first words for the voice (`graph_llm`), and the voice up to its first audible sample (`tts`).
    An answer may be drafted, and its voice too, while the caller is waited for: of both only what is left at the end of
    the turn counts, since nobody waited for the rest.
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
    #: When the caller's turn was over.
    completed_at: float


class VoiceClock:
    """Listens to one piece of speech while it is synthesised."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        #: When its first words went to the voice, Unix seconds.
        self.started_at: float | None = None
        self._lead_in: float | None = None
        self._silence = 0.0

    @property
    def lead_in(self) -> float:
        """Seconds from its first sample to its first audible one."""
        return self._lead_in or 0.0

    def spoken(self, frame: rtc.AudioFrame) -> None:
        """A frame was synthesised."""
        stamp = frame.userdata.get(USERDATA_TTS_STARTED_TIME)
        if self.started_at is None and stamp is not None:
            self.started_at = self._now() - (time.perf_counter() - stamp)
        if self._lead_in is None:
            offset = first_audible(frame)
            if offset is None:
                self._silence += frame.duration
            else:
                self._lead_in = self._silence + offset


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
    """Collects the moments of the turn that is going on; `now` tells Unix seconds."""

    def __init__(self, *, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._last_loud: float | None = None
        self._speech_ended_at: float | None = None
        self._recognition: _Recognition | None = None
        self._question: _Question | None = None
        self._voice = VoiceClock(self._now)
        self._played = self._voice
        self._playback_started_at: float | None = None

    def heard(self, frame: rtc.AudioFrame) -> None:
        """A frame of the caller's arrived."""
        offset = last_audible(frame)
        if offset is not None:
            self._last_loud = self._now() - frame.duration + offset

    def speech_ended(self) -> None:
        """Voice activity detection says that the caller stopped."""
        self._speech_ended_at = self._last_loud

    def recognised(self, report: metrics.STTMetrics) -> None:
        """A recognition request was answered."""
        now = self._now()
        self._recognition = _Recognition(started_at=now - report.duration, ended_at=now)

    def turn_completed(self) -> None:
        """The caller's turn is over; the reply begins, unless it was drafted before."""
        recognition, speech_ended_at = self._recognition, self._speech_ended_at
        self._playback_started_at = None
        self._question = None
        if recognition is not None and speech_ended_at is not None:
            now = self._now()
            silence = recognition.started_at - speech_ended_at
            self._question = _Question(
                speech_ended_at=speech_ended_at,
                endpointing=silence + (now - recognition.ended_at),
                stt=recognition.ended_at - recognition.started_at,
                completed_at=now,
            )

    def voice_started(self) -> VoiceClock:
        """A piece of speech is about to be synthesised, perhaps of a draft that nobody will hear."""
        self._voice = VoiceClock(self._now)
        return self._voice

    def playback_started(self, at: float) -> None:
        """The first frame of a piece of speech went to the room: the newest one."""
        if self._playback_started_at is None:
            self._playback_started_at, self._played = at, self._voice

    def answered(self, report: llm.MetricsReport) -> TurnTimings | None:
        """The timings of the reply that was just spoken; None when it answered no speech or a part is unknown."""
        question, self._question = self._question, None
        played_at, began_at = self._playback_started_at, self._played.started_at
        to_first_words, to_first_chunk = report.get("llm_node_ttfs"), report.get("tts_node_ttfb")
        if question is None or played_at is None or began_at is None:
            return None
        if to_first_words is None or to_first_chunk is None:
            return None
        lead_in = self._played.lead_in
        return TurnTimings(
            speech_ended_at=question.speech_ended_at,
            endpointing=question.endpointing,
            stt=question.stt,
            graph_llm=_left(began_at - to_first_words, to_first_words, since=question.completed_at),
            tts=_left(began_at, to_first_chunk, since=question.completed_at) + lead_in,
            first_audio_at=played_at + lead_in,
        )


def _left(started_at: float, duration: float, *, since: float) -> float:
    """How much of something that took `duration` seconds was still to come at the moment `since`."""
    return max(0.0, duration - max(0.0, since - started_at))
