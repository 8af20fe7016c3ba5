"""What measurements of faults share: a stack that hears marked words, who runs a call in it, and what became of it."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import psutil

from bench.marked_call import MarkedCall, WordCount, count_words
from bench.service import ServiceError, Session, Turn
from bench.verdicts import verdict
from local.marks import UTTERANCES, marks_in
from local.parts import AGENT_SERVICE, LIVEKIT, PROVIDERS, REDIS, WORKER, StackOptions
from local.stack import Stack
from worker.fleet.app import create_producer

Answer = TypeVar("Answer")

#: Short phrases: what is measured is when they begin.
_ENVIRONMENT = {"MUSTER_GREETING": "Hello.", "MUSTER_RESUMPTION": "Sorry, I lost you."}
#: Seconds of silence after which nothing more is going to be said.
SETTLED = 2.0
_SETTLED_WITHIN = 30.0
#: Seconds until a worker tells what it runs, and until a session is in the state that is waited for.
_TOLD_WITHIN = 10.0
_POLL = 0.02


def faulty_stack(*, workers: int = 2, slots: int = 2, links: bool = False) -> Stack:
    """A stack of its own, whose parts can be killed."""
    return Stack(
        options=StackOptions(
            parts=frozenset({REDIS, LIVEKIT, PROVIDERS, AGENT_SERVICE, WORKER}),
            workers=workers,
            slots=slots,
            marked=True,
            links=links,
            preferred_ports=False,
            environment=_ENVIRONMENT,
        )
    )


async def session_of(call: MarkedCall) -> Session:
    """The call's session as the fleet knows it."""
    return await asyncio.to_thread(call.client.session, call.session_id)


async def ended(call: MarkedCall, *, within: float = _TOLD_WITHIN) -> Session:
    """The call's session once it is over, or as it is when the time is."""
    deadline = time.monotonic() + within
    while True:
        session = await session_of(call)
        if session.over or time.monotonic() > deadline:
            return session
        await asyncio.sleep(_POLL * 10)


def worker_of(session: Session) -> str:
    """The part of the stack that runs a session."""
    return (session.worker or "").partition("@")[0]


def process_of(stack: Stack, session: Session, *, workers: int) -> int:
    """The process that runs a session, as its worker tells; raises `TimeoutError`."""
    task = session.session_id if session.epoch == 1 else f"{session.session_id}.{session.epoch}"
    app = create_producer(stack.settings["REDIS_URL"])
    deadline = time.monotonic() + _TOLD_WITHIN
    while time.monotonic() < deadline:
        # With a limit nobody waits for a worker more than there are.
        answers = app.control.inspect(timeout=2, limit=workers).active() or {}
        for each in (each for active in answers.values() for each in active if each["id"] == task):
            return int(each["worker_pid"])
    raise TimeoutError(f"no worker tells that it runs {task}")


def tree_of(pid: int) -> list[psutil.Process]:
    """A process and all below it."""
    first = psutil.Process(pid)
    return [first, *first.children(recursive=True)]


async def audible_after(call: MarkedCall, moment: float, *, besides: str, within: float) -> float:
    """When an agent other than `besides` is first audible after that moment; raises `TimeoutError`."""
    deadline = time.time() + within
    while time.time() < deadline:
        starts = [
            interval.started_at
            for track in call.caller.tracks
            if track.identity != besides
            for interval in track.heard.intervals
            if interval.started_at > moment
        ]
        if starts:
            return min(starts)
        await asyncio.sleep(_POLL)
    raise TimeoutError(f"no other agent was audible within {within:g} s")


async def settle(call: MarkedCall) -> None:
    """Wait until nobody has anything to say any more."""
    await call.caller.heard.silent_since(time.time(), gap=SETTLED, within=_SETTLED_WITHIN)


async def answers_again(call: MarkedCall, *, count: int = 3, attempts: int = 1) -> bool:
    """Whether the agent answers a question of `count` words."""
    for _ in range(attempts):
        try:
            await call.ask(count)
            await call.quiet()
            return True
        except TimeoutError:
            continue
    return False


def hold(calls: Iterable[Callable[[], Coroutine[Any, Any, Answer]]]) -> tuple[list[Answer], list[str]]:
    """Hold one call after the other; what each found, and why the others could not be held to their end."""
    found, broken = [], []
    for index, call in enumerate(calls):
        try:
            found.append(asyncio.run(call()))
        except (TimeoutError, ConnectionError, ServiceError) as error:
            broken.append(f"call {index} broke off: {type(error).__name__}: {error}")
    return found, broken


def broken_off(broken: Sequence[str]) -> list[str]:
    """Notes on calls that could not be held to their end."""
    return [verdict(not broken, f"calls that broke off: {len(broken)}"), *broken]


@dataclass(frozen=True)
class Outcome:
    """What became of one call's words and answers."""

    words: WordCount
    #: Seconds in which two agents were audible.
    overlap: float
    #: Utterances by number: how often an agent began to answer them.
    answered: Counter[int]
    #: The caller's turns as they were stored.
    stored: Sequence[str] = ()

    @classmethod
    async def of(cls, call: MarkedCall, *, and_turns: Iterable[Turn] = ()) -> "Outcome":
        """Of a call as it is, after its last turn was stored, with turns that were stored before elsewhere."""
        turns = [*and_turns, *await call.turns()]
        counted = Counter(answer.number for answer in call.answers())
        answered = Counter({said.number: counted[said.number] for said in call.said})
        stored = [turn.text or "" for turn in turns if turn.role == "user"]
        return cls(count_words(call.said, turns), call.overlap(), answered, stored)

    def doubled(self, *, cut: Iterable[int] = ()) -> list[int]:
        """Utterances answered more than once; of those whose answer was `cut` off, more than once again."""
        allowed = Counter(dict.fromkeys(self.answered, 1))
        allowed.update(cut)
        return [number for number, times in self.answered.items() if times > allowed[number]]

    @property
    def unanswered(self) -> list[int]:
        """Utterances that no agent answered."""
        return [number for number, times in self.answered.items() if not times]

    @property
    def left_unanswered(self) -> list[int]:
        """Those of them of which words were stored, so that an agent knew of them."""
        known = {mark.utterance for text in self.stored for mark in marks_in(text)}
        return [number for number in self.unanswered if number % UTTERANCES in known]


def answer_verdict(outcomes: Sequence[Outcome]) -> str:
    """Whether every utterance that an agent knew of was answered; one that none knew of is a lost one."""
    left = [f"call {index}: {number}" for index, each in enumerate(outcomes) for number in each.left_unanswered]
    return verdict(not left, f"stored utterances that no agent answered: {len(left)} {left or ''}".rstrip())


def foreign_verdict(outcomes: Sequence[Outcome]) -> str:
    """Whether nothing was stored that nobody had said."""
    foreign = sum(len(each.words.foreign) for each in outcomes)
    return verdict(not foreign, f"words stored that were not said: {foreign}")


def word_totals(outcomes: Sequence[Outcome]) -> str:
    """How many words were said, and what became of them."""
    counts = [outcome.words for outcome in outcomes]
    lost, doubled, foreign, cut = (
        sum(len(getattr(count, what)) for count in counts) for what in ("lost", "doubled", "foreign", "cut")
    )
    return (
        f"{sum(count.sent for count in counts)} words said, {lost} lost, {doubled} doubled, {foreign} foreign,"
        f" {cut} cut in two by a late frame of the caller's own"
    )


def wrong_words(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """A note on every call whose words were not stored once each."""
    for index, outcome in enumerate(outcomes):
        words = outcome.words
        if not words.is_exact:
            kinds = {"lost": words.lost, "doubled": words.doubled, "foreign": words.foreign}
            told = "; ".join(f"{kind} {' '.join(map(str, marks))}" for kind, marks in kinds.items() if marks)
            yield f"  call {index}: {told}; stored: {' | '.join(outcome.stored)}"
