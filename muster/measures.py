"""The numbers of a call: how the join and every answer spent their time, and whether the call worked."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from local.transcripts import WordErrors, word_errors
from muster.client import Session
from muster.conversation import Exchange, Greeting

#: A speaker who was interrupted is silent within this many seconds.
BARGE_IN_BOUND = 2.0

#: How far the segments' sum may be from the measured latency: the larger of a share and of seconds.
SUM_SHARE, SUM_SECONDS = 0.10, 0.050

#: A microphone that is later than this, in seconds, makes latencies longer than the agent does.
MICROPHONE_BOUND = 0.1

#: Whom the demo's caller must be handed to, and what they must use.
TRANSFERS = ("sales", "tech_support")
TOOLS = ("look_up_price", "open_ticket")


@dataclass(frozen=True, slots=True)
class JoinLatency:
    """The milestones of a join, unix seconds: the caller's own at both ends, the session's in between."""

    requested_at: float
    admitted_at: float | None
    claimed_at: float | None
    connected_at: float | None
    first_audio_at: float | None
    heard_at: float | None
    caller_connected_at: float

    def parts(self) -> dict[str, float | None]:
        """Seconds from each milestone to the next, and in total; None where one is unknown.

        The agent greets once the caller is there, so "first audio" includes waiting for the caller. A session
        that was there before the request passed milestones that are not part of this join.
        """
        moments = {
            "admitted": self.admitted_at,
            "claimed": self.claimed_at,
            "connected": self.connected_at,
            "first audio": self.first_audio_at,
            "heard": self.heard_at,
        }
        before = (self.requested_at, *moments.values())
        parts = {name: _between(start, end) for (name, end), start in zip(moments.items(), before, strict=False)}
        return {**parts, "total": _between(self.requested_at, self.heard_at)}


@dataclass(frozen=True, slots=True)
class CriticalPath:
    """Where the time of one answer went, seconds; each segment measured by itself, none the remainder.

    `transport` is both directions of the network: the end of the caller's speech until the agent heard
    it, and the agent's first audible frame until the caller heard it. The clocks of caller and agent are
    compared, so it holds where both run on one machine.
    """

    endpointing: float
    stt: float
    graph_llm: float
    tts: float
    transport: float
    measured: float

    @property
    def segments(self) -> tuple[float, ...]:
        """In the order of a turn."""
        return (self.endpointing, self.stt, self.graph_llm, self.tts, self.transport)

    @property
    def total(self) -> float:
        return sum(self.segments)

    @property
    def difference(self) -> float:
        """What was measured from outside, less what the segments add up to."""
        return self.measured - self.total

    @property
    def adds_up(self) -> bool:
        return abs(self.difference) <= max(SUM_SHARE * self.measured, SUM_SECONDS)


def critical_path(exchange: Exchange) -> CriticalPath | None:
    """None for an exchange without an answer, a latency or the agent's own timings."""
    timings, measured = exchange.timings, exchange.latency
    if timings is None or measured is None or exchange.heard_at is None:
        return None
    there = timings.speech_ended_at - exchange.utterance.ended_at
    back = exchange.heard_at - timings.first_audio_at
    return CriticalPath(
        endpointing=timings.endpointing,
        stt=timings.stt,
        graph_llm=timings.graph_llm,
        tts=timings.tts,
        transport=there + back,
        measured=measured,
    )


@dataclass(frozen=True, slots=True)
class CallResult:
    """A call that is over: what was said, how long it took, how it ended."""

    session: Session
    join: JoinLatency
    greeting: Greeting | None
    exchanges: tuple[Exchange, ...]
    #: How late the caller's microphone was at worst, seconds.
    microphone_delay: float = 0.0
    recording_errors: WordErrors | None = None

    @property
    def latencies(self) -> tuple[float, ...]:
        return tuple(exchange.latency for exchange in self.exchanges if exchange.latency is not None)

    def failures(self, *, demo: bool) -> tuple[str, ...]:
        """What did not work, one sentence each; empty for a good call.

        Of any call: every line was answered, and every interruption honoured. Of the demo also: both
        hand-overs happened, both tools were used, the agent was interrupted once, and the session ended
        because it was left.
        """
        failures = [f"No answer to: {one.said}" for one in self.exchanges if not one.answered]
        for exchange in self.exchanges:
            failures += _interruption_failures(exchange)
        return tuple(failures + self._demo_failures()) if demo else tuple(failures)

    def warnings(self) -> tuple[str, ...]:
        """What a listener should know, though the conversation went on."""
        warnings = []
        for one in self.exchanges:
            if one.overlapped:
                warnings.append(f"The agent spoke before the caller had finished: {one.said}")
            path = critical_path(one)
            if path is not None and not path.adds_up:
                off = f"{1000 * path.difference:+.0f} ms"
                warnings.append(f"The segments are {off} off the measured latency: {one.said}")
        if self.microphone_delay > MICROPHONE_BOUND:
            late = f"{1000 * self.microphone_delay:.0f} ms"
            warnings.append(f"This machine was busy: the caller's microphone was {late} late.")
        return tuple(warnings)

    def to_json(self, *, failures: Sequence[str]) -> dict[str, Any]:
        """Every number of the call, for machines; seconds, and unix seconds where a name ends in `_at`."""
        return {
            "session_id": self.session.session_id,
            "room": self.session.room,
            "status": self.session.status,
            "reason": self.session.reason,
            "failures": list(failures),
            "warnings": list(self.warnings()),
            "join": {"milestones": asdict(self.join), "parts": self.join.parts()},
            "greeting": asdict(self.greeting) if self.greeting else None,
            "turn_latency": _spread(self.latencies),
            "turns": [_exchange_json(exchange) for exchange in self.exchanges],
            "microphone_delay": self.microphone_delay,
            "recording": _word_errors_json(self.recording_errors),
        }

    def _demo_failures(self) -> list[str]:
        events = [event for one in self.exchanges for event in one.events]
        reached = {event.target for event in events if event.kind == "transfer"}
        used = {event.name for event in events if event.kind == "tool"}
        failures = [f"No hand-over to {target}." for target in TRANSFERS if target not in reached]
        failures += [f"The tool {tool} was not used." for tool in TOOLS if tool not in used]
        if not any(one.interrupted_by for one in self.exchanges):
            failures.append("The agent was never interrupted: it spoke too briefly, or did not stop.")
        if (self.session.status, self.session.reason) != ("ended", "left"):
            failures.append(f"The session is {self.session.status}, reason {self.session.reason}, not left.")
        return failures


def _interruption_failures(exchange: Exchange) -> list[str]:
    barge_in = exchange.interrupted_by
    if barge_in is None:
        return []
    failures = []
    if barge_in.silenced_after > BARGE_IN_BOUND:
        failures.append(f"The agent talked on for {barge_in.silenced_after:.2f} s after the interruption.")
    if not exchange.interrupted:
        failures.append("The interrupted answer is not marked as interrupted.")
    return failures


def _exchange_json(exchange: Exchange) -> dict[str, Any]:
    path, barge_in = critical_path(exchange), exchange.interrupted_by
    return {
        "said": exchange.said,
        "recognised": exchange.recognised,
        "recognition": _word_errors_json(word_errors(said=exchange.said, recognised=exchange.recognised)),
        "reply": exchange.reply,
        "specialist": exchange.specialist,
        "events": [asdict(event) for event in exchange.events],
        "citations": [asdict(citation) for citation in exchange.citations],
        "started_at": exchange.utterance.started_at,
        "ended_at": exchange.utterance.ended_at,
        "heard_at": exchange.heard_at,
        "latency": exchange.latency,
        "overlapped": exchange.overlapped,
        "interrupted": exchange.interrupted,
        "silenced_after": barge_in.silenced_after if barge_in else None,
        "timings": asdict(exchange.timings) if exchange.timings else None,
        "critical_path": path and {**asdict(path), "total": path.total, "difference": path.difference},
    }


def _word_errors_json(errors: WordErrors | None) -> Mapping[str, Any] | None:
    if errors is None:
        return None
    return {"words": len(errors.said), "errors": errors.errors, "rate": round(errors.rate, 4)}


def _spread(latencies: Sequence[float]) -> dict[str, float | int] | None:
    if not latencies:
        return None
    return {"n": len(latencies), "p50": median(latencies), "max": max(latencies)}


def _between(start: float | None, end: float | None) -> float | None:
    return None if start is None or end is None or end < start else end - start
