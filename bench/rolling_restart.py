"""A rolling restart of the whole fleet while callers talk: what they lose, who speaks at once, how long they wait."""

import asyncio
import itertools
import random
import signal
import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from enum import StrEnum

import redis

from bench.ends import leave
from bench.hand_overs import HandOver, hand_overs
from bench.marked_call import MarkedCall, Said, WordCount, marked_call, overlap
from bench.report import Figure, Report
from bench.verdicts import times, verdict
from local.caller import HeardTrack
from local.parts import AGENT_SERVICE, LIVEKIT, PROVIDERS, REDIS, WORKER, StackOptions
from local.stack import Stack
from worker.fleet.records import read
from worker.fleet.redis_operations import connect, run
from worker.fleet.session import agent_of

WORKERS = 3
SLOTS = 3
#: Two agents may be audible at the same time for so many seconds in a whole call.
OVERLAP = 0.030
#: As many callers as talk in the usual fleet; with more of them the machine is the limit, and only calls are judged.
USUAL_CALLERS = 3
#: What a lost word cannot show.
_EAR = (
    "A gap in hearing shows as a lost word. One of 0.1 s fits between the tones of two words, one of 0.3 s may leave "
    "enough of both, and one while the caller is silent costs none."
)
#: Rounds after which callers hang up and call again, so that neither recordings nor histories grow without end.
_ROUNDS_PER_CALL = 4
#: Seconds at most before each SIGTERM, so that it comes in any moment of a conversation.
_PAUSE = 3.0
#: Seconds a worker may drain before it is killed.
_DRAINED_WITHIN = 90.0
_ENVIRONMENT = {"MUSTER_GREETING": "Hello.", "MUSTER_MAX_DURATION": "7200"}


class Nearness(StrEnum):
    """Where the session was handed over, as an answer sees it."""

    NONE = "no hand-over"
    BEFORE = "hand-over right before the turn"
    INSIDE = "hand-over in the turn"


@dataclass(frozen=True)
class Reply:
    """Seconds from the end of an utterance to the first sound of its answer."""

    seconds: float
    nearness: Nearness


@dataclass(frozen=True)
class Change:
    """One agent after another at the caller's ear: handed over, or recovered after a loss.

    `silence` are the seconds between their sounds without those in which the caller spoke.
    """

    is_handed_over: bool
    silence: float


@dataclass(frozen=True)
class Restart:
    """How a worker ended that was told to, after so many seconds."""

    worker: str
    seconds: float
    code: int | None


@dataclass(frozen=True)
class CallOutcome:
    """One call: how it ended before its caller hung up (None: it went on), and what became of its words."""

    dropped: str | None
    recovered: bool
    words: WordCount
    hand_overs: Sequence[HandOver]
    #: Seconds in which two agents were audible: any two of the call, and each with the one after it.
    overlap: float
    overlaps: Sequence[float]
    changes: Sequence[Change]
    replies: Sequence[Reply]
    unanswered: Sequence[int]
    answered_twice: Sequence[int]
    worst_delay: float


@dataclass
class Outcome:
    """Everything that was found."""

    calls: list[CallOutcome] = field(default_factory=list)
    restarts: list[Restart] = field(default_factory=list)


def measure_rolling_restart(*, rounds: int, callers: int, seed: int) -> Report:
    """`rounds` restarts of each of the workers, one after the other, on a stack of its own."""
    options = StackOptions(
        parts=frozenset({REDIS, LIVEKIT, PROVIDERS, AGENT_SERVICE, WORKER}),
        workers=WORKERS,
        slots=SLOTS,
        marked=True,
        preferred_ports=False,
        environment=_ENVIRONMENT,
    )
    with Stack(options=options) as stack, connect(stack.settings["REDIS_URL"]) as state:
        rolling = RollingRestart(stack, state, seed=seed)
        asyncio.run(rolling.run(rounds=rounds, callers=callers))
    return _report(rolling.outcome, rounds=rounds, callers=callers, seed=seed)


class RollingRestart:
    """Restarts the workers of a stack, and keeps what that did to the calls in `outcome`."""

    def __init__(self, stack: Stack, state: "redis.Redis", *, seed: int) -> None:
        self.outcome = Outcome()
        self._stack = stack
        self._state = state
        self._random = random.Random(seed)

    async def run(self, *, rounds: int, callers: int) -> None:
        """All rounds, with new calls every few of them."""
        for first in range(0, rounds, _ROUNDS_PER_CALL):
            await self._run_with_calls(min(_ROUNDS_PER_CALL, rounds - first), callers)

    async def _run_with_calls(self, rounds: int, callers: int) -> None:
        async with AsyncExitStack() as stack:
            calls = [
                await stack.enter_async_context(marked_call(self._stack, identity=f"caller-{number}"))
                for number in range(callers)
            ]
            over = asyncio.Event()
            async with asyncio.TaskGroup() as group:
                talks = [group.create_task(_talk(call, over)) for call in calls]
                for _ in range(rounds):
                    await self._round()
                over.set()
            for call, talk in zip(calls, talks, strict=True):
                self.outcome.calls.append(await self._examine(call, talk.result()))

    async def _round(self) -> None:
        for number in self._random.sample(range(1, WORKERS + 1), WORKERS):
            await asyncio.sleep(self._random.uniform(0, _PAUSE))
            await self._restart(f"{WORKER}-{number}")

    async def _restart(self, worker: str) -> None:
        asked_at = time.monotonic()
        try:
            async with asyncio.timeout(_DRAINED_WITHIN):
                await asyncio.to_thread(self._stack.kill, worker, signal.SIGTERM)
        except TimeoutError:
            await asyncio.to_thread(self._stack.kill, worker)
        restart = Restart(worker, time.monotonic() - asked_at, self._stack.exit_code(worker))
        self.outcome.restarts.append(restart)
        await asyncio.to_thread(self._stack.start, worker)

    async def _examine(self, call: MarkedCall, failure: str | None) -> CallOutcome:
        record = await asyncio.to_thread(run, self._state, read(call.session_id))
        assert record is not None
        if failure is None and record.is_over:
            failure = f"{record.state} ({record.reason})"
        await leave(call.client, call.session_id)
        moves = await asyncio.to_thread(hand_overs, self._state, call.session_id)
        answered = Counter(answer.number for answer in call.answers())
        return CallOutcome(
            dropped=failure,
            recovered=record.recovering_at is not None,
            words=await call.count_words(),
            hand_overs=moves,
            overlap=call.overlap(),
            overlaps=overlaps(call),
            changes=list(changes(call.caller.tracks, call.said, {move.epoch for move in moves})),
            replies=list(_replies_of(call, moves)),
            unanswered=[said.number for said in call.said if not answered[said.number]],
            answered_twice=[number for number, count in answered.items() if count > 1],
            worst_delay=call.caller.worst_delay,
        )


async def _talk(call: MarkedCall, over: asyncio.Event) -> str | None:
    """Why the caller could not go on, if so."""
    try:
        await call.converse(over)
    except ConnectionError as error:
        return str(error)
    return None


def overlaps(call: MarkedCall) -> list[float]:
    """Seconds in which two agents were audible, for each agent and the one after it."""
    return [overlap(pair) for pair in itertools.pairwise(call.caller.tracks)]


def changes(tracks: Sequence[HeardTrack], said: Sequence[Said], passed: Collection[int]) -> Iterator[Change]:
    """Each time that another agent was heard; `passed` are the epochs to which the session was handed over."""
    for (_, _, last), (epoch, first, _) in itertools.pairwise(_voices(tracks)):
        spoken = sum(max(0.0, min(first, each.ended_at) - max(last, each.started_at)) for each in said)
        yield Change(epoch in passed, max(0.0, first - last - spoken))


def _voices(tracks: Sequence[HeardTrack]) -> list[tuple[int, float, float]]:
    """The epoch of each agent that was heard, in order, with the moments of its first and its last sound."""
    sounds: dict[int, list[float]] = {}
    for track in tracks:
        if (agent := agent_of(track.identity)) is not None:
            moments = sounds.setdefault(agent[1], [])
            moments.extend(at for each in track.heard.intervals for at in (each.started_at, each.ended_at))
    return [(epoch, min(moments), max(moments)) for epoch, moments in sorted(sounds.items()) if moments]


def _replies_of(call: MarkedCall, moves: Sequence[HandOver]) -> Iterator[Reply]:
    starts = [interval.started_at for interval in call.caller.heard.intervals]
    return replies(call.said, starts, [move.passed_at for move in moves], begun_at=call.joined_at)


def replies(
    said: Sequence[Said], starts: Sequence[float], passes: Sequence[float], *, begun_at: float
) -> Iterator[Reply]:
    """How long each answer took, and whether the session was passed on since the answer before it.

    `starts` are the moments in which the agent began to be audible, `passes` those in which it was another one.
    """
    for each, following in itertools.zip_longest(said, said[1:]):
        until = following.started_at if following else float("inf")
        at = next((start for start in starts if each.ended_at < start < until), None)
        if at is None:
            continue
        since = [passed for passed in passes if begun_at < passed <= at]
        inside = any(passed >= each.started_at for passed in since)
        nearness = Nearness.INSIDE if inside else Nearness.BEFORE if since else Nearness.NONE
        yield Reply(at - each.ended_at, nearness)
        begun_at = at


def _report(outcome: Outcome, *, rounds: int, callers: int, seed: int) -> Report:
    calls = outcome.calls
    moves = [move for call in calls for move in call.hand_overs]
    figures = _figures(outcome)
    title = f"Rolling restart of {WORKERS} workers with {SLOTS} slots each, {times(callers, 'talking caller')}"
    notes = [f"{times(rounds, 'round')}, seed {seed}; {len(calls)} calls, {len(moves)} hand-overs."]
    return Report(title, figures, [*notes, *_verdicts(outcome, callers=callers), *_of_calls(calls), *_added(figures)])


def _figures(outcome: Outcome) -> dict[str, Figure]:
    calls = outcome.calls
    answers = [reply for call in calls for reply in call.replies]
    moves = [move for call in calls for move in call.hand_overs]
    others = [change for call in calls for change in call.changes]
    return {
        **{
            f"reply, {nearness}": Figure([reply.seconds for reply in answers if reply.nearness is nearness])
            for nearness in Nearness
        },
        "SIGTERM to a worker's exit": Figure([restart.seconds for restart in outcome.restarts]),
        "both agents hear before the pass": Figure([move.both_heard for move in moves]),
        "silence around a hand-over": Figure([each.silence for each in others if each.is_handed_over]),
        "silence around a recovery": Figure([each.silence for each in others if not each.is_handed_over]),
        "two agents audible at a hand-over": Figure([seconds for call in calls for seconds in call.overlaps]),
    }


def _verdicts(outcome: Outcome, *, callers: int) -> Iterator[str]:
    calls = outcome.calls
    dropped = [call.dropped for call in calls if call.dropped]
    yield verdict(not dropped, f"calls dropped: {len(dropped)} of {len(calls)} {dropped or ''}".rstrip())
    codes = Counter(restart.code for restart in outcome.restarts)
    yield verdict(set(codes) <= {0}, f"exit codes of workers: {dict(codes)}")
    moves = [move for call in calls for move in call.hand_overs]
    yield verdict(bool(moves), f"hand-overs: {len(moves)}, without any the rest says nothing")
    early = sum(not move.is_in_order for move in moves)
    yield verdict(not early, f"passes to a successor that had not said that it hears, a condition of the pass: {early}")
    found = [
        *_word_verdicts([call.words for call in calls]),
        *_call_verdicts(calls),
        _at_most("two agents audible in a call, at worst", [call.overlap for call in calls], OVERLAP),
    ]
    # With more callers the machine is the limit: the same is told and not judged.
    yield from found if callers <= USUAL_CALLERS else (line.partition(": ")[2] for line in found)


def _word_verdicts(counts: Sequence[WordCount]) -> Iterator[str]:
    sent = sum(count.sent for count in counts)
    for what in ("lost", "doubled", "foreign"):
        marks = [str(mark) for count in counts for mark in getattr(count, what)]
        listed = f" ({' '.join(marks)})" if marks else ""
        yield verdict(not marks, f"words {what}: {len(marks)} of {sent}{listed}")


def _call_verdicts(calls: Sequence[CallOutcome]) -> Iterator[str]:
    recovered = sum(call.recovered for call in calls)
    yield verdict(not recovered, f"calls that were recovered instead of handed over: {recovered} of {len(calls)}")
    unanswered = sum(len(call.unanswered) for call in calls)
    yield verdict(not unanswered, f"utterances without an audible answer: {unanswered}")
    twice = sum(len(call.answered_twice) for call in calls)
    yield verdict(not twice, f"utterances answered twice: {twice}")


def _at_most(what: str, values: Sequence[float], most: float) -> str:
    worst = max(values, default=0.0)
    return verdict(worst <= most, f"{what}: {1000 * worst:.0f} ms of at most {1000 * most:.0f}")


def _of_calls(calls: Sequence[CallOutcome]) -> Iterator[str]:
    yield _EAR
    late = 1000 * max((call.worst_delay for call in calls), default=0.0)
    yield f"A caller's frame was sent {late:.0f} ms late at worst; far above 50 the machine is too busy for timings."
    cut = sum(len(call.words.cut) for call in calls)
    yield f"Words that such a gap has cut in two, so that they were recognised twice: {cut}."


def _added(figures: dict[str, Figure]) -> Iterator[str]:
    """What a hand-over adds to the time of an answer."""
    usual = figures[f"reply, {Nearness.NONE}"]
    for nearness in (Nearness.BEFORE, Nearness.INSIDE):
        figure = figures[f"reply, {nearness}"]
        if usual.values and figure.values:
            yield f"{nearness.capitalize()} adds {1000 * (figure.p50 - usual.p50):+.0f} ms to an answer (p50)."
