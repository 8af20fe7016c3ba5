"""The model's world: time, machines and links, the faults that befall them, and what must be so all the time.

Time goes in ticks. Within a tick every task of every running process takes its steps in turn, one step of Redis at a
time, so that what happens between a question and its answer can be told. A process that runs hears of its room at once;
one that was stopped is audible before it hears of anything.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any

from tests.model.agent import Agent
from tests.model.fleet import Api, Worker
from tests.model.processes import Ask, HungUp, Machine, Process, Program, Status, Until, ask
from tests.model.room import CALLER, GIVEN_UP, Room, RoomServer
from tests.model.stored import Message, Redis, Tables
from tests.model.switches import Switch
from worker.fleet.errors import FleetError, StateUnavailable
from worker.fleet.session import Session, State, states_before
from worker.fleet.settings import FleetSettings
from worker.fleet.times import LEASE, WITNESS

#: Rounds of steps in one tick at most.
_ROUNDS = 60
#: Steps that leave nothing behind which a fail-over could lose; leases are renewed each second.
_NO_WRITES = (
    *("read", "fleet", "holders", "holder", "is_open", "recent", "turns_after", "commands_after"),
    *("renew", "lead", "take"),
)


class Broken(AssertionError):
    """An invariant does not hold; its message says which, when and by whom."""


@dataclass
class Late:
    """A step that was sent and has not arrived; whoever sent it has given up waiting."""

    process: Process
    ask: Ask


class World:
    """Everything, from an empty Redis; `off` names what is switched off."""

    tick = 0.5

    def __init__(
        self,
        *,
        off: Collection[Switch] = (),
        workers: int = 2,
        slots: int = 2,
    ) -> None:
        self.off = frozenset(off)
        #: One event loop for what waits on the real `Baton`; it runs when the model says so.
        self.loop = asyncio.new_event_loop()
        self.now = 1000.0
        self.join_ttl = float(FleetSettings.model_fields["join_ttl"].default)
        self.session_hold = 600.0
        #: Seconds a lost owner's agent stays in the room if only the keeper removes it.
        self.ghosts_stay = 0.0
        self._moments = self._sessions_made = self._turns_made = 0
        self.redis = Redis(lambda: self.now, has=self.has, on_write=self._written)
        self.redis_is_up = True
        self.redis_went_down_at = float("-inf")
        self.rooms = RoomServer()
        #: What was done to the fleet, for whoever reads a failure.
        self.happened: list[str] = []
        self._late_next: Counter[str] = Counter()
        self._answers_lost_next: Counter[str] = Counter()
        self.late: list[Late] = []
        self._disconnected: set[Process] = set()
        #: Tables and writers before each of the last writes.
        self._history: list[tuple[Tables, dict[tuple[str, int], str]]] = []
        self._is_disturbed = False
        self._has_failed_over = False
        self._writers: dict[tuple[str, int], str] = {}
        self._spoken: dict[str, list[str]] = {}
        self._cut_since: dict[Room, float] = {}
        #: All agents there have been, and those whose process is not dead.
        self.agents: list[Agent] = []
        self.living: list[Agent] = []
        self.api = Api(self)
        self.workers: list[Worker] = []
        for number in range(workers):
            self.add_worker(f"worker-{number + 1}", slots=slots)

    def close(self) -> None:
        """Let go of the event loop."""
        for agent in list(self.living):
            agent.crash()
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
        self._spin()
        self.loop.close()

    # --- what the model's parts ask for ---

    def has(self, part: Switch) -> bool:
        """Whether this part of the protocol is on."""
        return part not in self.off

    def moment(self) -> float:
        """Now, for a clock of which two readings are never the same."""
        self._moments += 1
        return self.now + self._moments * 1e-6

    def count(self, agent: Agent) -> int:
        """Note an agent; how many there have been, this one included."""
        self.agents.append(agent)
        self.living.append(agent)
        return len(self.agents)

    def new_session(self, session_id: str, room: str) -> Session:
        """A session as `/join` makes it."""
        return Session(
            session_id=session_id,
            tenant="default",
            room=room,
            user_id=CALLER,
            metadata={},
            state=State.QUEUED,
            epoch=1,
            join_deadline=self.now + self.join_ttl,
            admitted_at=self.now,
        )

    def is_done(self, task: "asyncio.Task[bool]") -> bool:
        """Whether what waits on the event loop has an answer."""
        self._spin()
        return task.done()

    def answer(self, process: Process, asked: Ask) -> Any:
        """What Redis answers, if it does; raises `StateUnavailable`."""
        if not (self.redis_is_up and process.machine.has_redis):
            raise StateUnavailable()
        if process in self._disconnected:
            self._disconnected.discard(process)
            raise HungUp()
        if self._late_next[asked.step]:
            self._late_next[asked.step] -= 1
            self.late.append(Late(process, asked))
            raise StateUnavailable()
        is_lost = bool(self._answers_lost_next[asked.step])
        try:
            answer = self._apply(asked)
        except FleetError:
            if not is_lost:
                raise
        if is_lost:
            self._answers_lost_next[asked.step] -= 1
            raise StateUnavailable()
        return answer

    def _apply(self, asked: Ask) -> Any:
        if asked.step in _NO_WRITES:
            return getattr(self.redis, asked.step)(**asked.given)
        before, writers = self.redis.tables.snapshot(), dict(self._writers)
        answer = getattr(self.redis, asked.step)(**asked.given)
        if vars(before) != vars(self.redis.tables):
            self._history = [*self._history[-7:], (before, writers)]
        return answer

    # --- time ---

    def run(self, seconds: float, *, backwards: bool = False) -> None:
        """Let time pass; `backwards` has the last process of each round go first."""
        until = self.now + seconds
        while self.now < until:
            self.now += self.tick
            self._ring()
            self._give_up_participants()
            for _ in range(_ROUNDS):
                if not self.step(backwards=backwards):
                    break

    def step(self, *, backwards: bool = False) -> bool:
        """One step of each task that has something to do; False when there is none."""
        processes = self.processes
        has_moved = False
        for process in reversed(processes) if backwards else processes:
            for task in list(process.tasks):
                if process.advance(task):
                    has_moved = True
                    self.tell()
                    self.check()
            process.tasks = [task for task in process.tasks if not task.is_over]
        return has_moved

    @property
    def processes(self) -> list[Process]:
        """All that are not dead."""
        known: list[Process] = [self.api]
        for worker in self.workers:
            known += [worker, worker.keeper]
        return [process for process in [*known, *self.living] if process.status is not Status.DEAD]

    def tell(self) -> None:
        """Whoever runs hears of its room."""
        for agent in self.living:
            if agent.room is not None and agent.is_running:
                agent.room.tell()

    def _ring(self) -> None:
        for agent in list(self.living):
            if agent.alarm_at <= self.now:
                self.happened.append(f"{self.now} the dead-man timer kills {agent.name}")
                self._check_alarm(agent)
                agent.crash()

    def _give_up_participants(self) -> None:
        for agent in self.agents:
            if agent.room is None or not self.rooms.has(agent.room):
                continue
            if agent.is_running and agent.room.has_link:
                self._cut_since.pop(agent.room, None)
            elif self.now - self._cut_since.setdefault(agent.room, self.now) >= GIVEN_UP:
                self.rooms.leave(agent.room)

    # --- what is done to it ---

    def _does(self, what: str, *machines: Machine, disturbs: bool = True) -> None:
        self.happened.append(f"{self.now} {what}")
        self._is_disturbed |= disturbs
        for machine in machines:
            machine.troubled_at = self.now

    def add_worker(self, name: str, *, slots: int = 2) -> Worker:
        """Start a worker."""
        worker = Worker(self, name, slots=slots)
        self.workers.append(worker)
        return worker

    def join(self, room: str = "room") -> str:
        """A `/join`; the session's id."""
        self._sessions_made += 1
        session_id = f"s{self._sessions_made}"
        self._does(f"/join {room} as {session_id}", disturbs=False)
        self.api.join(session_id, room)
        return session_id

    def caller_begins(self, room: str = "room") -> None:
        """The caller begins to speak."""
        self._does(f"the caller of {room} begins to speak", disturbs=False)
        for agent in self._hearing(room):
            agent.baton.user_state_changed(True)

    def caller_ends(self, room: str = "room") -> str:
        """The caller's turn is over; its words."""
        self._turns_made += 1
        text = f"turn {self._turns_made}"
        self._does(f"the caller of {room} has said {text}", disturbs=False)
        for agent in self._hearing(room):
            agent.baton.user_state_changed(False)
            agent.spawn(agent.on_user_turn_completed(text), "on_user_turn_completed")
            if agent.is_talking and agent.baton.is_held and self.has(Switch.ROOM_LOCK):
                said = self._spoken.setdefault(agent.session_id, [])
                said += [text] if text not in said else []
        return text

    def _hearing(self, room: str) -> list[Agent]:
        return [agent for agent in self.living if agent.hears and agent.room and agent.room.name == room]

    def leave(self, session_id: str) -> None:
        """`/leave`."""
        self._does(f"{session_id} is to be left")
        self.redis.leave(session_id, command_id="asked")

    def drain(self, worker: Worker) -> None:
        """SIGTERM to a worker."""
        self._does(f"{worker.name} drains", disturbs=False)
        worker.drain()

    def hand_over(self, session_id: str, *, to: str = "") -> None:
        """`muster handover`."""
        self._does(f"{session_id} is to be handed over", disturbs=False)
        self.redis.ask(session_id, to=to, command_id="asked")

    def kill(self, process: Process) -> None:
        """kill -9. A keeper's parent starts another one."""
        self._does(f"{process.name} is killed", process.machine)
        process.crash()
        for worker in self.workers:
            if worker.keeper is process and worker.status is not Status.DEAD:
                worker.keeper = type(worker.keeper)(worker)

    def stop(self, *processes: Process) -> None:
        """SIGSTOP."""
        for process in processes:
            if process.status is Status.RUNNING:
                self._does(f"{process.name} is stopped", process.machine)
                process.status = Status.STOPPED

    def stop_machine(self, worker: Worker) -> None:
        """SIGSTOP to all of a worker's processes."""
        self.stop(worker, worker.keeper, *worker.agents.values())

    def resume(self, *processes: Process) -> None:
        """SIGCONT; what it says is heard before it hears anything."""
        for process in processes:
            if process.status is Status.STOPPED:
                self._does(f"{process.name} continues", process.machine)
                process.status = Status.RUNNING
                self.check()
        self.tell()
        self.check()

    def resume_machine(self, worker: Worker) -> None:
        """SIGCONT to all of a worker's processes."""
        self.resume(worker, worker.keeper, *worker.agents.values())

    def cut_redis(self, machine: Machine) -> None:
        """Its link to Redis is cut."""
        self._does(f"{machine.name} is cut off from Redis", machine)
        machine.has_redis = False

    def cut_rooms(self, machine: Machine, *, is_noticed: bool = False) -> None:
        """Its link to LiveKit is cut; whether the SDK notices, because the connection was reset."""
        self._does(f"{machine.name} is cut off from LiveKit{', noticed' if is_noticed else ''}", machine)
        machine.has_rooms = False
        for room in self._rooms_of(machine):
            room.has_link = False
            room.is_broken |= is_noticed

    def mend(self, machine: Machine) -> None:
        """Both links are there again."""
        machine.has_redis = True
        self.mend_rooms(machine)

    def mend_rooms(self, machine: Machine) -> None:
        """The link to LiveKit is there again."""
        redis = "" if machine.has_redis else ", not to Redis"
        self._does(f"{machine.name} is linked to LiveKit again{redis}", machine)
        machine.has_rooms = True
        for room in self._rooms_of(machine):
            room.has_link = True
        self.tell()
        self.check()

    def _rooms_of(self, machine: Machine) -> list[Room]:
        return [agent.room for agent in self.agents if agent.machine is machine and agent.room is not None]

    def lose_redis(self) -> None:
        """Redis does not answer."""
        self._does("Redis is away")
        if self.redis_is_up:
            self.redis_is_up, self.redis_went_down_at = False, self.now

    def mend_redis(self) -> None:
        """Redis answers again, with its data."""
        self._does("Redis is back")
        self.redis_is_up = True

    def empty_redis(self) -> None:
        """Redis loses its data, and every connection to it breaks."""
        self._does("Redis has lost its data")
        self.redis.tables = Tables()
        self.late.clear()
        self._history.clear()
        self._writers.clear()
        self._spoken.clear()
        self._disconnected = set(self.processes)

    def fail_over(self, *, writes: int = 1) -> None:
        """Another server takes over, which the last writes have not reached; every connection breaks.

        Leases and leader are as they were: what is lost of them is written again within a beat.
        """
        self._does(f"Redis fails over without its last {writes} writes")
        self._has_failed_over = True
        for _ in range(min(writes, len(self._history))):
            names = ("leases", "status", "leader", "ready", "is_open")
            kept = {name: getattr(self.redis.tables, name) for name in names}
            tables, self._writers = self._history.pop()
            self.redis.tables = replace(tables, **kept)
        self._disconnected = set(self.processes)

    def lose_message(self) -> None:
        """What lies on the broker is lost."""
        self._does("the messages on the broker are lost")
        self.redis.tables.queues.clear()

    def repeat_message(self, session_id: str) -> None:
        """A session's message is delivered once more."""
        record = self.redis.read(session_id)
        if record is not None:
            self._does(f"the message of {session_id} comes again", disturbs=False)
            self.api.spawn(self._publish_again(record), "publish")

    def _publish_again(self, record: Session) -> Program:
        try:
            message = Message(record.session_id, record.epoch, self.now + self.join_ttl)
            yield ask("publish", message=message, queue="recovery")
        except StateUnavailable:
            yield Until(lambda: True)

    def delay(self, step: str) -> None:
        """The next step of this name gets to Redis when nobody waits for it any more."""
        self._does(f"the next {step} is late")
        self._late_next[step] += 1

    def lose_answer(self, step: str) -> None:
        """The next step of this name is done, and its answer lost."""
        self._does(f"the answer of the next {step} is lost")
        self._answers_lost_next[step] += 1

    def deliver(self) -> None:
        """What was late arrives."""
        late, self.late = self.late, []
        for each in late:
            self._does(f"the late {each.ask.step} of {each.process.name} arrives")
            try:
                self._apply(each.ask)
            except FleetError as refusal:
                self.happened.append(f"{self.now} it is refused: {refusal}")
            self.check()

    # --- what must be so ---

    def agents_heard(self, room: str | None = None) -> list[Agent]:
        """The agents that callers hear."""
        heard = [agent for agent in self.living if agent.is_audible]
        return [agent for agent in heard if room is None or (agent.room and agent.room.name == room)]

    def check(self) -> None:
        """Of each room one agent at most is heard."""
        heard: dict[str, Agent] = {}
        for agent in self.agents_heard():
            assert agent.room is not None
            other = heard.setdefault(agent.room.name, agent)
            if other is agent:
                continue
            if other.session_id != agent.session_id:
                self._break("two sessions in one room", f"{other.name} and {agent.name}")
            self._break("two agents heard in one room", f"{other.name} and {agent.name}")

    def _written(self, by: str, before: Session | None, after: Session) -> None:
        assert before is not None
        if after.state is not before.state and before.state not in states_before(after.state):
            self._break("an illegal move", f"{before.state} to {after.state} by {by}")
        is_taken_back = after.epoch < before.epoch == after.offered_epoch - 1
        if after.epoch < before.epoch and not is_taken_back:
            self._break("an epoch that goes back", by)
        if after.epoch > before.epoch and not by and before.owner:
            self._check_recovery(before)
        if after.is_over and not by and before.owner:
            self._check_end(before)
        if by:
            self._check_writer(by, after if is_taken_back else before)
            self._check_turns(before.session_id)

    def _check_writer(self, by: str, record: Session) -> None:
        agent = next((each for each in self.agents if each.name == by), None)
        if agent is not None and agent.epoch != record.epoch:
            self._break("a write of an epoch that is over", by)
        writer = self._writers.setdefault((record.session_id, record.epoch), by)
        if writer != by and record.state not in (State.QUEUED, State.RECOVERING):
            self._break("two writers in one epoch", f"{writer} and {by}")

    def _check_turns(self, session_id: str) -> None:
        said = [turn.text for turn in self.redis.turns_after(session_id, 0) if turn.role == "user"]
        twice = [text for text, times in Counter(said).items() if times > 1]
        if twice:
            self._break("a turn that is stored twice", ", ".join(twice))

    def _check_recovery(self, record: Session) -> None:
        agent = self._agent_of(record)
        if agent and self._is_untroubled(agent.machine) and not self.late:
            self._break("a healthy call that is taken from its owner", agent.name)

    def _check_end(self, record: Session) -> None:
        agent = self._agent_of(record)
        if agent and agent.is_audible and self._is_untroubled(agent.machine):
            self._break("a healthy call that is ended by a keeper", agent.name)

    def _agent_of(self, record: Session) -> Agent | None:
        """The running agent that serves the record's session in its epoch."""
        told = (record.session_id, record.epoch, record.owner)
        agents = [each for each in self.living if (each.session_id, each.epoch, each._me) == told]
        serving = [each for each in agents if each.session and each.is_running and not each.ending.is_decided]
        return serving[0] if serving else None

    def _check_alarm(self, agent: Agent) -> None:
        is_short = self.now - self.redis_went_down_at < WITNESS and not self.redis_is_up
        if is_short and agent.is_audible and self._is_untroubled(agent.machine):
            self._break("a call that dies of an outage of Redis", agent.name)

    def _is_untroubled(self, machine: Machine) -> bool:
        is_long_ago = self.now - machine.troubled_at > 3 * LEASE
        return is_long_ago and not self._has_failed_over and machine.has_redis

    def settle(self, seconds: float = 60.0) -> None:
        """Mend everything, wait, and see that nothing is left over."""
        self.happened.append(f"{self.now} everything is mended")
        self.redis_is_up = True
        self._late_next.clear()
        self._answers_lost_next.clear()
        self.deliver()
        for worker in list(self.workers):
            self.resume_machine(worker)
            self.mend(worker.machine)
        if not [each for each in self.workers if each.status is Status.RUNNING and not each.draining]:
            self.add_worker("worker-last")
        self.run(seconds)
        self._check_sessions()
        if not self._is_disturbed:
            self._check_gaps()

    def _check_sessions(self) -> None:
        for stored in self.redis.tables.sessions.values():
            record = stored.record
            mine = [
                agent for agent in self.agents if (agent.session_id, agent.epoch) == (record.session_id, record.epoch)
            ]
            has_owner = any(agent.is_running and agent.is_talking for agent in mine)
            if not record.is_over and not has_owner:
                self._break("a session without an owner", f"{record.session_id} {record.state} of {record.owner}")
        for session_id in self.redis.holders():
            held = self.redis.read(session_id)
            if held is None or held.is_over:
                self._break("a room that is not given back", session_id)
        for agent in self.agents_heard():
            record_of = self.redis.read(agent.session_id)
            if record_of is None or record_of.is_over:
                self._break("an agent without a session", agent.name)

    def _check_gaps(self) -> None:
        for session_id, said in self._spoken.items():
            stored = [turn.text for turn in self.redis.turns_after(session_id, 0) if turn.role == "user"]
            if stored != said:
                self._break("a turn that is lost or out of order", f"{said} was said, {stored} is stored")

    def gave_room_away(self, agent: Agent) -> None:
        """A call that registers again finds another session in its room."""
        self._break("a live call that loses its room", agent.name)

    def until(self, is_so: Callable[[], object], *, within: float = 20.0) -> None:
        """Let time pass until this is so."""
        until = self.now + within
        while not is_so():
            assert self.now < until, "\n".join(["it does not happen", *self.happened])
            self.run(self.tick)

    def _break(self, invariant: str, by: str) -> None:
        raise Broken("\n".join([f"{self.now} {invariant}: {by}", *self.happened]))

    def _spin(self) -> None:
        self.loop.call_soon(self.loop.stop)
        self.loop.run_forever()
