"""A worker with a call is told to stop beside a free one: when it has exited, and what its callers notice of it."""

import asyncio
import itertools
import random
import signal
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import StrEnum

import redis

from bench.ends import leave
from bench.hand_overs import hand_overs
from bench.marked_call import MarkedCall, WordCount, caller_token, marked_call
from bench.report import Figure, Report
from bench.service import AgentService, RequestRefused
from bench.verdicts import times, verdict
from local.caller import Caller
from local.parts import AGENT_SERVICE, LIVEKIT, PROVIDERS, REDIS, WORKER, StackOptions
from local.stack import Stack
from worker.fleet.redis_operations import connect

#: Seconds from SIGTERM, or from the first quiet moment after it, until the worker has exited.
MEDIAN = 4.0
WORST = 7.0
#: A join during a drain takes as long as others when its median is not above theirs by more seconds.
_AS_USUAL = 0.5
#: How many drains one call goes through before its caller hangs up and calls again.
_DRAINS_PER_CALL = 6
_DRAINED_WITHIN = 90.0
_HEARD_WITHIN = 15.0
#: Seconds after SIGTERM in which the other caller's join comes at the latest; a drain takes longer than that.
_JOINED_WITHIN = 1.0
_ENVIRONMENT = {"MUSTER_GREETING": "Hello.", "MUSTER_MAX_DURATION": "7200"}


class Moment(StrEnum):
    """What is heard in the moment of SIGTERM."""

    SILENCE = "silence"
    CALLER = "the caller speaks"
    AGENT = "the agent speaks"


@dataclass(frozen=True)
class Joined:
    """A second caller's join: seconds to its first audible frame, and the worker that serves it."""

    seconds: float
    worker: str


@dataclass(frozen=True)
class Drained:
    """One drain; moments in Unix seconds. `idle_at` is the first one without a sound and with nothing to answer."""

    moment: Moment
    worker: str
    asked_at: float
    idle_at: float
    passed_at: float | None
    exited_at: float
    code: int | None
    #: What the agent answered afterwards, and what it says when it remembers every turn.
    answered: str
    expected: str
    joined_before: Joined
    joined_meanwhile: Joined

    @property
    def seconds(self) -> float:
        """From SIGTERM or the first idle moment after it, whichever is later; 0 when it was gone before."""
        return max(0.0, self.exited_at - max(self.asked_at, self.idle_at))

    @property
    def goes_on(self) -> bool:
        """Whether the call went on with its history."""
        return self.answered.startswith(self.expected)


@dataclass
class Outcome:
    """Everything that was found; `dropped` tells why calls ended that should have gone on."""

    drains: list[Drained] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    words: list[WordCount] = field(default_factory=list)


def measure_drains(*, count: int, seed: int) -> Report:
    """`count` drains one after the other, on a stack of its own with two workers."""
    options = StackOptions(
        parts=frozenset({REDIS, LIVEKIT, PROVIDERS, AGENT_SERVICE, WORKER}),
        workers=2,
        slots=2,
        marked=True,
        preferred_ports=False,
        environment=_ENVIRONMENT,
    )
    with Stack(options=options) as stack, connect(stack.settings["REDIS_URL"]) as state:
        drains = Drains(stack, state, seed=seed)
        asyncio.run(drains.run(count))
    return _report(drains.outcome, seed=seed)


class Drains:
    """Drains the worker that has the call, again and again; what was found is in `outcome`."""

    def __init__(self, stack: Stack, state: "redis.Redis", *, seed: int) -> None:
        self.outcome = Outcome()
        self._stack = stack
        self._state = state
        self._client = AgentService(stack.urls[AGENT_SERVICE])
        self._random = random.Random(seed)
        self._moments = itertools.cycle(Moment)

    async def run(self, count: int) -> None:
        """So many drains, with a new call every few of them and after each that was dropped."""
        tried = 0
        while tried < count:
            async with marked_call(self._stack, client=self._client) as call:
                for _ in range(min(_DRAINS_PER_CALL, count - tried)):
                    tried += 1
                    if not await self._succeeds(call):
                        break
                await leave(self._client, call.session_id)
                self.outcome.words.append(await call.count_words())

    async def _succeeds(self, call: MarkedCall) -> bool:
        """Drain once; False when the call or the join beside it did not come through it."""
        failures: list[BaseException] = []
        try:
            self.outcome.drains.append(await self._drain(call, next(self._moments)))
        except* (ConnectionError, TimeoutError, RequestRefused) as group:
            failures += group.exceptions
        if failures:
            session = await asyncio.to_thread(self._client.session, call.session_id)
            words = "; ".join(map(str, failures))
            self.outcome.dropped.append(f"{words}; the session is {session.status} ({session.reason})")
        return not failures

    async def _drain(self, call: MarkedCall, moment: Moment) -> Drained:
        async with self._listener() as (listener, room):
            joined_before = await self._join(listener, room)
            worker = await self._worker_of(call.session_id)
            try:
                async with asyncio.TaskGroup() as group:
                    talking = await self._reach(call, moment, group)
                    asked_at = time.time()
                    exiting = group.create_task(self._stop(worker))
                    joining = group.create_task(
                        self._join(listener, room, after=self._random.uniform(0, _JOINED_WITHIN))
                    )
                    idle_at = await self._idle(call, talking, asked_at)
                exited_at = exiting.result()
                code = self._stack.exit_code(worker)
                expected, answered = await self._ask_again(call)
            finally:
                await asyncio.to_thread(self._start_again, worker)
        moves = await asyncio.to_thread(hand_overs, self._state, call.session_id)
        passed = [move.passed_at for move in moves if move.passed_at > asked_at]
        return Drained(
            moment=moment,
            worker=worker,
            asked_at=asked_at,
            idle_at=idle_at,
            passed_at=passed[0] if passed else None,
            exited_at=exited_at,
            code=code,
            answered=answered,
            expected=expected,
            joined_before=joined_before,
            joined_meanwhile=joining.result(),
        )

    async def _reach(self, call: MarkedCall, moment: Moment, group: asyncio.TaskGroup) -> asyncio.Task[float] | None:
        """Come to that moment; while the caller speaks, the task tells when their answer begins."""
        if moment is Moment.CALLER:
            asking = group.create_task(call.ask(6))
            await asyncio.sleep(self._random.uniform(0.2, 1.6))
            return asking
        if moment is Moment.AGENT:
            await call.ask(6)
            await asyncio.sleep(self._random.uniform(0, 1.0))
        return None

    async def _idle(self, call: MarkedCall, talking: asyncio.Task[float] | None, asked_at: float) -> float:
        """When nothing was to be heard or answered any more, or `asked_at` when that was so already."""
        if talking is not None:
            await talking
        elif not call.caller.heard.audible_between(asked_at - 0.3, asked_at):
            return asked_at
        return await call.quiet()

    async def _stop(self, worker: str) -> float:
        """Drain the worker; the moment it had exited."""
        try:
            async with asyncio.timeout(_DRAINED_WITHIN):
                return await asyncio.to_thread(self._ended, worker, signal.SIGTERM)
        except TimeoutError:
            return await asyncio.to_thread(self._ended, worker, signal.SIGKILL)

    def _ended(self, worker: str, number: signal.Signals) -> float:
        self._stack.kill(worker, number)
        return time.time()

    def _start_again(self, worker: str) -> None:
        if self._stack.exit_code(worker) is None:
            self._stack.kill(worker)
        self._stack.start(worker)

    async def _ask_again(self, call: MarkedCall) -> tuple[str, str]:
        """What a question is answered with by an agent that remembers every turn, and by this one."""
        await call.ask(3)
        await call.quiet()
        expected = f"Number {len(call.said)},"
        turns = [turn for turn in await call.turns() if turn.role == "assistant"]
        return expected, turns[-1].text or ""

    @asynccontextmanager
    async def _listener(self) -> AsyncIterator[tuple[Caller, str]]:
        """A second caller, who says nothing and is in their room already."""
        room = f"beside-{uuid.uuid4().hex[:10]}"
        token = caller_token(self._stack.settings, room, "beside")
        async with Caller(url=self._stack.urls[LIVEKIT], token=token) as listener:
            yield listener, room

    async def _join(self, listener: Caller, room: str, *, after: float = 0.0) -> Joined:
        await asyncio.sleep(after)
        asked_at = time.time()
        joined = await asyncio.to_thread(self._client.join, room=room, user_id="beside")
        heard_at = await listener.heard.first_audible_after(asked_at, within=_HEARD_WITHIN)
        worker = await self._worker_of(joined.session_id)
        await leave(self._client, joined.session_id)
        return Joined(heard_at - asked_at, worker)

    async def _worker_of(self, session_id: str) -> str:
        session = await asyncio.to_thread(self._client.session, session_id)
        return (session.worker or "").partition("@")[0]


def _report(outcome: Outcome, *, seed: int) -> Report:
    drains = outcome.drains
    figures = {
        "SIGTERM, or quiet after it, to exit": Figure([drain.seconds for drain in drains]),
        **{
            f"  SIGTERM while {moment}": Figure([drain.seconds for drain in drains if drain.moment is moment])
            for moment in Moment
        },
        "SIGTERM to exit": Figure([drain.exited_at - drain.asked_at for drain in drains]),
        "SIGTERM to the pass": Figure([each.passed_at - each.asked_at for each in drains if each.passed_at]),
        "join to first audible, no drain": Figure([drain.joined_before.seconds for drain in drains]),
        "join to first audible, during a drain": Figure([drain.joined_meanwhile.seconds for drain in drains]),
    }
    title = "SIGTERM to a worker with a call, a free worker beside it"
    notes = [f"{times(len(drains), 'drain')}, seed {seed}; a drain reads its queue for another 1.2 s at least."]
    return Report(title, figures, [*notes, *_verdicts(outcome, figures)])


def _verdicts(outcome: Outcome, figures: dict[str, Figure]) -> Iterator[str]:
    drains, count = outcome.drains, len(outcome.drains)
    dropped = outcome.dropped
    tried = count + len(dropped)
    yield verdict(
        not dropped, f"drains that cost the call or a join: {len(dropped)} of {tried} {dropped or ''}".rstrip()
    )
    if not drains:
        return
    clean = sum(drain.code == 0 for drain in drains)
    yield verdict(clean == count, f"exit code 0: {clean} of {count}")
    exits = figures["SIGTERM, or quiet after it, to exit"]
    yield verdict(exits.p50 <= MEDIAN, f"p50 {exits.p50:.1f} s of at most {MEDIAN:g}")
    yield verdict(exits.worst <= WORST, f"worst {exits.worst:.1f} s of at most {WORST:g}")
    yield _history(drains)
    yield _words(outcome.words)
    yield from _join_verdicts(drains, figures)


def _words(counts: Sequence[WordCount]) -> str:
    wrong = {what: sum(len(getattr(count, what)) for count in counts) for what in ("lost", "doubled", "foreign")}
    told = ", ".join(f"{what} {count}" for what, count in wrong.items())
    return verdict(not any(wrong.values()), f"of {sum(count.sent for count in counts)} words {told}")


def _history(drains: Sequence[Drained]) -> str:
    forgetful = [f"{drain.answered!r} instead of {drain.expected!r}" for drain in drains if not drain.goes_on]
    known = len(drains) - len(forgetful)
    return verdict(
        not forgetful,
        f"a question afterwards is answered with history: {known} of {len(drains)} {forgetful or ''}".rstrip(),
    )


def _join_verdicts(drains: Sequence[Drained], figures: dict[str, Figure]) -> Iterator[str]:
    elsewhere = sum(drain.joined_meanwhile.worker != drain.worker for drain in drains)
    yield verdict(elsewhere == len(drains), f"joins served by the other worker: {elsewhere} of {len(drains)}")
    usual, meanwhile = (figures[f"join to first audible, {when}"] for when in ("no drain", "during a drain"))
    yield verdict(
        meanwhile.p50 <= usual.p50 + _AS_USUAL,
        f"a join during a drain takes {1000 * (meanwhile.p50 - usual.p50):+.0f} ms (p50),"
        f" at most {1000 * _AS_USUAL:+.0f}",
    )
    yield f"The slowest join took {meanwhile.worst:.2f} s during a drain and {usual.worst:.2f} s without one."
