"""A storm of joins while processes are killed: who is in a room at once, what becomes of each session, what is left.

In waves of some rooms each: joins from many threads, concurrent and repeated, and in the middle of them kills. A live
session is left again, so that all rooms get an agent. All the time somebody looks who is in the rooms and what the
records say.
"""

import asyncio
import itertools
import random
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import httpx
import redis
from livekit import api, rtc

from bench.fleet_processes import ENDED_WITHIN, FleetProcesses, Killed
from bench.marked_call import caller_token
from bench.report import Figure, Report
from bench.verdicts import verdict
from local.parts import AGENT_SERVICE, LIVEKIT, PROVIDERS, REDIS, WORKER, StackOptions
from local.stack import Stack
from worker.fleet import admission, records, workers
from worker.fleet.publishing import RECOVERY_QUEUE, SESSIONS_QUEUE
from worker.fleet.redis_operations import connect, run, run_many
from worker.fleet.session import Session, State
from worker.fleet.times import OUTLIVED

WORKERS = 2
SLOTS = 2
_THREADS = 12
_ROOMS_PER_WAVE = 6
#: How many sessions are looked at; more than a storm makes.
_SESSIONS = 1000
#: Seconds a join may take, between two looks, a session stays live, a wave and the clearing up after all may take.
_ANSWERED_WITHIN = 10.0
_LOOK = 0.25
_LIVE_FOR = 0.5
_WAVE_WITHIN = 90.0
_CLEARED_WITHIN = 30.0
#: Seconds from the beginning of a wave in which its joins and its kills come, and how many kills.
_STORM = 4.0
_KILLS_PER_WAVE = (2, 3)
#: Seconds in which an agent of a killed process may be seen beside another one. Its successor takes it out when it
#: joins; for longer it does not try, because by then the older one would be dead by its switch.
_BESIDE = OUTLIVED
#: Of all joins, how many are followed by a leave at once.
_LEFT_AT_ONCE = 0.03
_ENVIRONMENT = {
    "MUSTER_GREETING": "Hello.",
    "MUSTER_RESUMPTION": "Hello again.",
    # Two processes of the agent service behind one port.
    "WEB_CONCURRENCY": "2",
}


#: The status of an answer to a join that made a session.
_CREATED = 202


@dataclass(frozen=True)
class Request:
    """One join; those with the same key are one and the same for its sender."""

    room: str
    key: str | None


@dataclass(frozen=True)
class Answer:
    """What a join was answered with, after so many seconds; without a status nobody answered."""

    request: Request
    seconds: float
    status: int | None
    code: str
    session_id: str | None = None

    @property
    def kind(self) -> str:
        """Status and code, as they are counted."""
        return f"{self.status} {self.code}".strip() if self.status else "no answer"


@dataclass
class Beside:
    """An agent of a killed process in the room beside another agent: since when and until when (Unix seconds)."""

    killed_at: float
    since: float
    until: float


@dataclass
class Sightings:
    """What was wrong when somebody looked."""

    looks: int = 0
    #: Two agents in a room, none of them of a process that had been killed.
    doubled_agents: list[str] = field(default_factory=list)
    #: Two sessions of a room that were not over.
    doubled_sessions: list[str] = field(default_factory=list)
    #: By the identities of the ghost of a killed process and of the living agent beside it.
    ghosts: dict[tuple[str, str], Beside] = field(default_factory=dict)
    most_live: int = 0


@dataclass
class Outcome:
    """Everything that was found."""

    answers: list[Answer] = field(default_factory=list)
    kills: list[Killed] = field(default_factory=list)
    sessions: dict[str, Session] = field(default_factory=dict)
    #: Sessions that were neither live nor over when a wave's time was.
    stuck: list[str] = field(default_factory=list)
    was_live: set[str] = field(default_factory=set)
    left_behind: Mapping[str, Any] = field(default_factory=dict)


def measure_join_storm(*, count: int, rooms: int, seed: int) -> Report:
    """`count` joins for `rooms` rooms, on a stack of its own."""
    options = StackOptions(
        parts=frozenset({REDIS, LIVEKIT, PROVIDERS, AGENT_SERVICE, WORKER}),
        workers=WORKERS,
        slots=SLOTS,
        marked=True,
        preferred_ports=False,
        environment=_ENVIRONMENT,
    )
    with Stack(options=options) as stack, connect(stack.settings["REDIS_URL"]) as state:
        storm = JoinStorm(stack, state, seed=seed)
        asyncio.run(storm.run(count=count, rooms=rooms))
    return _report(storm.outcome, storm.sightings, rooms=rooms, seed=seed)


class JoinStorm:
    """Sends the joins, kills, and keeps what was found in `outcome` and `sightings`."""

    def __init__(self, stack: Stack, state: "redis.Redis", *, seed: int) -> None:
        self.outcome = Outcome()
        self.sightings = Sightings()
        self._stack = stack
        self._state = state
        self._random = random.Random(seed)
        self._processes = FleetProcesses(stack, random.Random(seed), workers=WORKERS)
        self._kills = self._processes.kinds_of_kill()
        self._threads = ThreadPoolExecutor(_THREADS)
        self._callers: dict[str, rtc.Room] = {}
        self._tenant = stack.settings.get("MUSTER_TENANT", "default")

    async def run(self, *, count: int, rooms: int) -> None:
        """The whole storm, wave after wave."""
        per_room = _shared_out(count, rooms)
        names = [f"storm-{number}" for number in range(rooms)]
        url = self._stack.urls[AGENT_SERVICE]
        limits = httpx.Limits(max_connections=_THREADS)
        with self._threads, httpx.Client(base_url=url, timeout=_ANSWERED_WITHIN, limits=limits) as self._http:
            async with self._livekit() as self._server:
                for first in range(0, rooms, _ROOMS_PER_WAVE):
                    wave = dict(zip(names[first : first + _ROOMS_PER_WAVE], per_room[first:], strict=False))
                    await self._wave(wave)
                self.outcome.left_behind = await self._what_is_left()
                self.outcome.sessions = {each.session_id: each for each in await self._sessions()}

    async def _wave(self, joins: Mapping[str, int]) -> None:
        """That many joins for each of these rooms, some kills, and everything until their sessions are over."""
        wave = requests(joins, self._random)
        watching = asyncio.create_task(self._watch(list(joins)))
        try:
            async with asyncio.TaskGroup() as group:
                killing = group.create_task(self._kill_some())
                sending = [group.create_task(self._send(request)) for request in wave]
                group.create_task(self._leave_what_is_live(list(joins), [killing, *sending]))
        finally:
            watching.cancel()
            with suppress(asyncio.CancelledError):
                await watching
            await asyncio.gather(*(self._callers.pop(room).disconnect() for room in list(self._callers)))

    async def _send(self, request: Request) -> None:
        leaves = self._random.random() < _LEFT_AT_ONCE
        # One half at once, the other while sessions begin and end and something is killed.
        await asyncio.sleep(max(0.0, self._random.uniform(-_STORM, _STORM)))
        loop = asyncio.get_running_loop()
        answer = await loop.run_in_executor(self._threads, self._join, request)
        self.outcome.answers.append(answer)
        if answer.session_id is not None:
            await self._call_in(request.room)
            if leaves:
                await loop.run_in_executor(self._threads, self._leave, answer.session_id)

    def _join(self, request: Request) -> Answer:
        headers = {"Idempotency-Key": request.key} if request.key else {}
        started_at = time.monotonic()
        try:
            answer = self._http.post("/join", json={"room": request.room, "user_id": "caller"}, headers=headers)
        except httpx.TransportError as error:
            return Answer(request, time.monotonic() - started_at, None, type(error).__name__)
        body = answer.json()
        session_id = body["session_id"] if answer.is_success else None
        code = "" if answer.is_success else body["code"]
        return Answer(request, time.monotonic() - started_at, answer.status_code, code, session_id)

    def _leave(self, session_id: str) -> None:
        """A leave that nobody answers is sent again with the next look."""
        try:
            self._http.post("/leave", json={"session_id": session_id})
        except httpx.TransportError:
            return

    async def _call_in(self, room: str) -> None:
        """A caller who says nothing: without one a session waits, and is not live."""
        if room not in self._callers:
            self._callers[room] = rtc.Room()
            token = caller_token(self._stack.settings, room)
            await self._callers[room].connect(self._stack.urls[LIVEKIT], token)

    async def _kill_some(self) -> None:
        kinds = itertools.islice(self._kills, self._random.choice(_KILLS_PER_WAVE))
        # Those that wait come last, or the joins would be over before the others.
        kills = sorted(kinds, key=self._processes.is_slow)
        for kill in kills:
            await asyncio.sleep(self._random.uniform(0, _STORM / len(kills)))
            self.outcome.kills.append(await asyncio.to_thread(kill))

    async def _leave_what_is_live(self, rooms: Sequence[str], busy: Sequence["asyncio.Task[None]"]) -> None:
        """Leave each session that has been live for a moment, until nothing is sent any more and all are over."""
        deadline = time.monotonic() + _WAVE_WITHIN
        loop = asyncio.get_running_loop()
        while time.monotonic() < deadline:
            sessions = await self._sessions()
            active = [each for each in sessions if each.room in rooms and not each.is_over]
            for session in active:
                if session.state is State.LIVE:
                    self.outcome.was_live.add(session.session_id)
                    if time.time() - (session.recovered_at or session.first_audio_at or 0.0) > _LIVE_FOR:
                        await loop.run_in_executor(self._threads, self._leave, session.session_id)
            if all(task.done() for task in busy):
                waiting = self._not_served(rooms, sessions)
                if not active and not waiting:
                    return
                await asyncio.gather(*(self._send(Request(room, None)) for room in waiting))
            await asyncio.sleep(_LOOK)
        self.outcome.stuck += [f"{each.session_id} {each.state}" for each in active if each.state is not State.LIVE]

    def _not_served(self, rooms: Sequence[str], sessions: Sequence[Session]) -> list[str]:
        """The rooms in which no session was live: all joins were refused, or all sessions left before they were."""
        served = {each.room for each in sessions if each.session_id in self.outcome.was_live}
        return [room for room in rooms if room not in served]

    async def _sessions(self) -> list[Session]:
        """All there are, the newest first, so that of two that were active at once none has been read too early."""
        return await asyncio.to_thread(self._read_sessions)

    def _read_sessions(self) -> list[Session]:
        known = run(self._state, admission.recent(self._tenant, count=_SESSIONS))
        return [each for each in run_many(self._state, [records.read(session_id) for session_id in known]) if each]

    async def _watch(self, rooms: Sequence[str]) -> None:
        while True:
            sessions = [each for each in await self._sessions() if each.room in rooms and not each.is_over]
            self._look_at_records(sessions)
            for room, agents in zip(rooms, await asyncio.gather(*map(self._agents_in, rooms)), strict=True):
                self._look_at_agents(room, agents, self._processes.being_killed)
            self.sightings.looks += 1
            await asyncio.sleep(_LOOK)

    def _look_at_records(self, active: Sequence[Session]) -> None:
        for room, count in Counter(session.room for session in active).items():
            if count > 1:
                states = [f"{each.session_id} {each.state}" for each in active if each.room == room]
                self.sightings.doubled_sessions.append(f"{room}: {', '.join(states)}")
        live = sum(session.state is State.LIVE for session in active)
        self.sightings.most_live = max(self.sightings.most_live, live)

    def _look_at_agents(self, room: str, agents: Sequence[str], being_killed: Mapping[str, float]) -> None:
        if len(agents) < 2:
            return
        killed = {identity: at for each in self.outcome.kills for identity, at in each.agents.items()}
        killed |= being_killed
        living = [identity for identity in agents if identity not in killed]
        if len(living) > 1:
            self.sightings.doubled_agents.append(f"{room}: {', '.join(living)}")
        now = time.time()
        for ghost, other in itertools.product(set(agents).intersection(killed), living):
            beside = self.sightings.ghosts.setdefault((ghost, other), Beside(killed[ghost], since=now, until=now))
            beside.until = now

    async def _agents_in(self, room: str) -> list[str]:
        try:
            answer = await self._server.room.list_participants(api.ListParticipantsRequest(room=room))
        except api.TwirpError as error:
            if error.code == api.TwirpErrorCode.NOT_FOUND:
                return []
            raise
        return [each.identity for each in answer.participants if each.identity.startswith("agent-")]

    async def _what_is_left(self) -> Mapping[str, Any]:
        """Slots, holds, rooms, agents and messages that are still there when they have had time to go."""
        deadline = time.monotonic() + _CLEARED_WITHIN
        while True:
            left = await self._left()
            if not any(left.values()) or time.monotonic() > deadline:
                return left
            await asyncio.sleep(_LOOK)

    async def _left(self) -> Mapping[str, Any]:
        rooms = (await self._server.room.list_rooms(api.ListRoomsRequest())).rooms
        agents = [identity for room in rooms for identity in await self._agents_in(room.name)]
        return await asyncio.to_thread(self._left_in_redis) | {"agents": agents}

    def _left_in_redis(self) -> dict[str, Any]:
        fleet = run(self._state, workers.fleet())
        return {
            "busy slots": sum(worker.busy for worker in fleet.workers),
            "missing workers": WORKERS - len(fleet.open_workers),
            "holds": [*run(self._state, admission.holders(self._tenant))],
            "room locks": list(self._state.scan_iter(f"muster:{{t:{self._tenant}}}:room:*")),
            "messages": sum(self._state.llen(queue) for queue in (SESSIONS_QUEUE, RECOVERY_QUEUE)),
        }

    def _livekit(self) -> api.LiveKitAPI:
        settings = self._stack.settings
        return api.LiveKitAPI(settings["LIVEKIT_URL"], settings["LIVEKIT_API_KEY"], settings["LIVEKIT_API_SECRET"])


def _shared_out(count: int, rooms: int) -> list[int]:
    """So many joins for each room, as evenly as it goes."""
    return [count // rooms + (number < count % rooms) for number in range(rooms)]


def requests(joins: Mapping[str, int], choice: random.Random) -> list[Request]:
    """So many for each room: without a key, with one of its own, with a repeated one, and with one of another room."""
    made = []
    for room, count in joins.items():
        stranger = choice.choice([other for other in joins if other != room] or [room])
        for number in range(count):
            own = choice.choice([None, f"{room}-shared", f"{room}-shared-too", f"{room}-{number}"])
            made.append(Request(room, f"{stranger}-shared" if number == count - 1 else own))
    choice.shuffle(made)
    return made


def _report(outcome: Outcome, sightings: Sightings, *, rooms: int, seed: int) -> Report:
    kinds = Counter(answer.kind for answer in outcome.answers)
    sessions = outcome.sessions.values()
    begun = [each for each in sessions if each.admitted_at and each.first_audio_at]
    figures = {
        **{
            f"join answered {kind}": Figure([each.seconds for each in outcome.answers if each.kind == kind])
            for kind in sorted(kinds)
        },
        "admitted to live": Figure([(each.first_audio_at or 0.0) - (each.admitted_at or 0.0) for each in begun]),
        "kill to the last sight of a ghost beside another agent": Figure(
            [each.until - each.killed_at for each in sightings.ghosts.values()]
        ),
        "first to last sight of a ghost beside another agent": Figure(
            [each.until - each.since for each in sightings.ghosts.values()]
        ),
    }
    kills = Counter(kill.kind for kill in outcome.kills)
    notes = [
        f"{len(outcome.answers)} joins for {rooms} rooms from {_THREADS} threads, seed {seed}.",
        f"Answers: {', '.join(f'{kind}: {count}' for kind, count in sorted(kinds.items()))}.",
        f"Kills: {', '.join(f'{kind}: {count}' for kind, count in sorted(kills.items()))}.",
        f"Sessions: {len(sessions)}; seen live: {len(outcome.was_live)}, at most {sightings.most_live} at once.",
        f"Ends: {', '.join(_ends(list(sessions)))}.",
        *_verdicts(outcome, sightings),
    ]
    return Report("A storm of joins, with kills", figures, notes)


def _ends(sessions: Sequence[Session]) -> list[str]:
    ends = Counter(f"{each.state} {each.reason or ''}".strip() for each in sessions)
    return [f"{end}: {count}" for end, count in sorted(ends.items())]


def _verdicts(outcome: Outcome, sightings: Sightings) -> Iterator[str]:
    looks, sessions = sightings.looks, outcome.sessions
    agents = [*dict.fromkeys(sightings.doubled_agents)]
    yield verdict(
        looks > 0 and not agents,
        f"two living agents in a room, in {looks} looks: {len(agents)} {agents or ''}".rstrip(),
    )
    yield from _ghost_verdicts(outcome, sightings)
    doubled = [*dict.fromkeys(sightings.doubled_sessions)]
    yield verdict(not doubled, f"two sessions of a room that are not over: {len(doubled)} {doubled or ''}".rstrip())
    told = {answer.session_id for answer in outcome.answers if answer.session_id}
    endless = [*outcome.stuck, *(key for key, each in sessions.items() if not (each.is_over and each.reason))]
    yield verdict(not endless, f"sessions neither live nor over with a reason: {len(endless)} {endless or ''}".rstrip())
    lost = told - set(sessions)
    yield verdict(not lost, f"sessions that were promised and have no record: {len(lost)} of {len(told)}")
    left = {what: value for what, value in outcome.left_behind.items() if value}
    yield verdict(not left, f"left behind: {left or 'nothing'}")
    served = {each.room for key, each in sessions.items() if key in outcome.was_live}
    yield _repeated(outcome.answers)
    rooms = {answer.request.room for answer in outcome.answers}
    yield verdict(served >= rooms, f"rooms that had a live agent: {len(served & rooms)} of {len(rooms)}")


def _ghost_verdicts(outcome: Outcome, sightings: Sightings) -> Iterator[str]:
    stayed = [
        f"{ghost} beside {other} for {each.until - each.since:.1f} s"
        for (ghost, other), each in sightings.ghosts.items()
        if each.until - each.since > _BESIDE
    ]
    yield verdict(
        not stayed,
        f"agents of killed processes seen beside another for more than {_BESIDE:g} s: {len(stayed)} of"
        f" {len(sightings.ghosts)} {stayed or ''}".rstrip(),
    )
    outlived = sum(kill.outlived for kill in outcome.kills)
    yield verdict(not outlived, f"children that lived {ENDED_WITHIN:g} s after their parent: {outlived}")


def _repeated(answers: Sequence[Answer]) -> str:
    """Whether each key made one session at most; while another one's is in the room, a join answers with that."""
    ordered = sorted((each for each in answers if each.status == _CREATED and each.request.key), key=_key)
    sessions = [{each.session_id for each in group} for _, group in itertools.groupby(ordered, key=_key)]
    several = sum(len(found) > 1 for found in sessions)
    return verdict(not several, f"idempotency keys that made more than one session: {several} of {len(sessions)}")


def _key(answer: Answer) -> str:
    return answer.request.key or ""
