"""The hypothesis state machine over the model's world: any fault at any step, and at the end nothing is left over."""

from collections.abc import Callable
from typing import ClassVar, TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from tests.model.agent import Agent
from tests.model.fleet import Worker
from tests.model.processes import Status
from tests.model.schedules import open_fleet
from tests.model.switches import Switch
from tests.model.world import World
from worker.fleet.session import State

#: Steps of Redis that may come late, or whose answer may get lost.
LATE = (
    "claim",
    "append_turn",
    "move",
    "end",
    "offer",
    "ready",
    "give",
    "take_back",
    "step_back",
    "recover",
    "renew",
    "release",
    "confirm",
    "stand_by",
    "create",
    "admit",
    "publish",
    "stamp_published",
    "lead",
    "leave",
    "open_rooms",
    "open_joins",
)
LOST = (*LATE, "read")
ROOMS = ("room", "another room")

Thing = TypeVar("Thing")
which = st.integers(min_value=0, max_value=7)


class FleetMachine(RuleBasedStateMachine):
    """A fleet of two workers, or three, and callers in two rooms; `off` is what is switched off."""

    off: ClassVar[frozenset[Switch]] = frozenset()

    def __init__(self) -> None:
        super().__init__()
        self.world = World(off=self.off)

    @initialize()
    def begin(self) -> None:
        """One call is live."""
        open_fleet(self.world)
        self.world.join(ROOMS[0])
        self.world.run(4)

    def teardown(self) -> None:
        """What is mended heals."""
        try:
            self.world.settle()
        finally:
            self.world.close()

    # --- what callers and operators do ---

    @rule(room=st.sampled_from(ROOMS))
    def join(self, room: str) -> None:
        """A `/join`."""
        self.world.join(room)

    @rule(room=st.sampled_from(ROOMS))
    def caller_begins(self, room: str) -> None:
        """A caller begins to speak."""
        self.world.caller_begins(room)

    @rule(room=st.sampled_from(ROOMS))
    def caller_ends(self, room: str) -> None:
        """A caller has said something."""
        self.world.caller_ends(room)

    @rule(number=which)
    def leave(self, number: int) -> None:
        """A `/leave`."""
        for session_id in self._some(sorted(self.world.redis.tables.sessions), number):
            self.world.leave(session_id)

    @rule(number=which)
    def hand_over(self, number: int) -> None:
        """`muster handover`."""
        live = [key for key, stored in self.world.redis.tables.sessions.items() if stored.record.state is State.LIVE]
        for session_id in self._some(sorted(live), number):
            self.world.hand_over(session_id)

    @rule(number=which)
    def drain(self, number: int) -> None:
        """SIGTERM to a worker; another one comes in its place."""
        for worker in self._some([each for each in self._workers if not each.draining], number):
            self.world.drain(worker)
            self.world.add_worker(f"worker-{len(self.world.workers) + 1}")

    # --- time ---

    @rule(seconds=st.sampled_from([0.5, 1.0, 1.5, 2.0, 4.0]), backwards=st.booleans())
    def run(self, seconds: float, backwards: bool) -> None:
        """Time goes on."""
        self.world.run(seconds, backwards=backwards)

    @rule(seconds=st.sampled_from([6.0, 8.0, 12.0]))
    def run_long(self, seconds: float) -> None:
        """Longer than a lease."""
        self.world.run(seconds)

    @rule(steps=st.integers(min_value=1, max_value=6), backwards=st.booleans())
    def step(self, steps: int, backwards: bool) -> None:
        """Some steps, and no time."""
        for _ in range(steps):
            self.world.step(backwards=backwards)

    # --- what befalls processes ---

    @rule(number=which)
    def kill_agent(self, number: int) -> None:
        """kill -9 to a child."""
        self._one(self._agents, number, self.world.kill)

    @rule(number=which)
    def kill_keeper(self, number: int) -> None:
        """kill -9 to a keeper."""
        self._one([worker.keeper for worker in self._workers], number, self.world.kill)

    @rule(number=which)
    def kill_worker(self, number: int) -> None:
        """A machine is lost; another one comes in its place."""
        for worker in self._some(self._workers, number):
            self.world.kill(worker)
            self.world.add_worker(f"worker-{len(self.world.workers) + 1}")

    @rule(number=which)
    def stop_agent(self, number: int) -> None:
        """SIGSTOP to a child."""
        self._one(self._agents, number, self.world.stop)

    @rule(number=which)
    def stop_keeper(self, number: int) -> None:
        """SIGSTOP to a keeper."""
        self._one([worker.keeper for worker in self._workers], number, self.world.stop)

    @rule(number=which)
    def stop_machine(self, number: int) -> None:
        """SIGSTOP to all of a worker's processes."""
        self._one(self._workers, number, self.world.stop_machine)

    @rule(number=which, seconds=st.sampled_from([1.5, 3.0, 8.0, 12.0]), slow=st.booleans())
    def stand_still(self, number: int, seconds: float, slow: bool) -> None:
        """A machine stands still for a while; keepers may be slow to remove the ghosts of it."""
        for worker in self._some(self._serving, number):
            self.world.ghosts_stay = 30.0 if slow else 0.0
            self.world.stop_machine(worker)
            self.world.run(seconds)
            self.world.resume_machine(worker)

    @rule()
    def resume(self) -> None:
        """SIGCONT to whatever is stopped."""
        self.world.resume(*(each for each in self.world.processes if each.status is Status.STOPPED))

    # --- what befalls links, Redis and LiveKit ---

    @rule(number=which)
    def cut_redis(self, number: int) -> None:
        """A machine is cut off from Redis."""
        self._one(self._workers, number, lambda worker: self.world.cut_redis(worker.machine))

    @rule(number=which, is_noticed=st.booleans())
    def cut_rooms(self, number: int, is_noticed: bool) -> None:
        """A machine is cut off from LiveKit."""
        self._one(self._workers, number, lambda worker: self.world.cut_rooms(worker.machine, is_noticed=is_noticed))

    @rule(number=which, seconds=st.sampled_from([1.5, 3.0, 8.0, 12.0]), only_rooms=st.booleans())
    def partition(self, number: int, seconds: float, only_rooms: bool) -> None:
        """A machine is cut off from everything for a while, perhaps from Redis for longer."""
        for worker in self._some(self._serving, number):
            self.world.cut_redis(worker.machine)
            self.world.run(1)
            self.world.cut_rooms(worker.machine)
            self.world.run(seconds)
            mend = self.world.mend_rooms if only_rooms else self.world.mend
            mend(worker.machine)
            self.world.run(1)

    @rule(number=which, only_rooms=st.booleans())
    def mend(self, number: int, only_rooms: bool) -> None:
        """A machine's links are there again."""
        mend = self.world.mend_rooms if only_rooms else self.world.mend
        self._one(self._workers, number, lambda worker: mend(worker.machine))

    @rule()
    def lose_redis(self) -> None:
        """Redis does not answer."""
        self.world.lose_redis()

    @rule()
    def mend_redis(self) -> None:
        """It answers again."""
        self.world.mend_redis()

    @rule()
    def empty_redis(self) -> None:
        """Redis loses its data."""
        self.world.empty_redis()

    @rule()
    def slow_ghosts(self) -> None:
        """From here on keepers are slow to remove ghosts."""
        self.world.ghosts_stay = 30.0

    # --- what befalls messages and steps ---

    @rule()
    def lose_message(self) -> None:
        """What lies on the broker is lost."""
        self.world.lose_message()

    @rule(number=which)
    def repeat_message(self, number: int) -> None:
        """A message comes again."""
        self._one(sorted(self.world.redis.tables.sessions), number, self.world.repeat_message)

    @rule(step=st.sampled_from(LATE))
    def delay(self, step: str) -> None:
        """The next such step is late."""
        self.world.delay(step)

    @rule(step=st.sampled_from(LOST))
    def lose_answer(self, step: str) -> None:
        """The next such step is done, and its answer lost."""
        self.world.lose_answer(step)

    @precondition(lambda self: self.world.late)
    @rule()
    def deliver(self) -> None:
        """What was late arrives."""
        self.world.deliver()

    # --- helpers ---

    @property
    def _workers(self) -> list[Worker]:
        return [worker for worker in self.world.workers if worker.status is not Status.DEAD]

    @property
    def _serving(self) -> list[Worker]:
        return [worker for worker in self._workers if worker.agents]

    @property
    def _agents(self) -> list[Agent]:
        return [agent for agent in self.world.agents if agent.status is not Status.DEAD]

    def _some(self, things: list[Thing], number: int) -> list[Thing]:
        return [things[number % len(things)]] if things else []

    def _one(self, things: list[Thing], number: int, do: Callable[[Thing], None]) -> None:
        for thing in self._some(things, number):
            do(thing)
