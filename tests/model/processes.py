"""How the model runs processes: tasks that go from step to step, each step of Redis one that may fail or come late."""

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TYPE_CHECKING, Any

from worker.fleet.errors import FleetError, StateUnavailable
from worker.fleet.redis_operations import REQUEST_TIMEOUT

if TYPE_CHECKING:
    from tests.model.world import World


class HungUp(StateUnavailable):
    """The connection was closed, which is known at once."""


@dataclass(frozen=True)
class Ask:
    """One step in Redis: the method of `stored.Redis` and what it is given."""

    step: str
    given: dict[str, Any]


def ask(step: str, **given: Any) -> Ask:
    """A step in Redis; to be yielded, which gives its answer or raises what it raises."""
    return Ask(step, given)


@dataclass(frozen=True)
class Until:
    """Wait until this is so, or for so many seconds; to be yielded."""

    is_so: Callable[[], bool]
    seconds: float = float("inf")


def sleep(seconds: float) -> Until:
    """Wait for so long; to be yielded."""
    return Until(lambda: False, seconds)


#: What a task does: it yields `Ask` or `Until`, and is given the answer.
Program = Generator[Ask | Until, Any, Any]


class Status(Enum):
    """How a process is."""

    RUNNING = auto()
    #: SIGSTOP: nothing of it runs until SIGCONT.
    STOPPED = auto()
    DEAD = auto()


@dataclass
class Task:
    """One task of a process's event loop."""

    name: str
    program: Program
    waiting: Until | None = None
    asleep_until: float = 0.0
    answer: Any = None
    error: FleetError | None = None
    is_over: bool = False


@dataclass(eq=False)
class Process:
    """A process on a machine."""

    name: str
    world: "World"
    machine: "Machine"
    status: Status = Status.RUNNING
    tasks: list[Task] = field(default_factory=list)

    def spawn(self, program: Program, name: str = "") -> Task:
        """Run something beside the rest."""
        task = Task(name or getattr(program, "__name__", ""), program)
        self.tasks.append(task)
        return task

    def advance(self, task: Task) -> bool:
        """Let one task take its next step; False when it waits."""
        if task.is_over or self.status is not Status.RUNNING or not self._is_due(task):
            return False
        task.waiting, error, task.error = None, task.error, None
        try:
            wanted = task.program.throw(error) if error else task.program.send(task.answer)
        except StopIteration:
            task.is_over = True
        except FleetError as failure:
            task.is_over = True
            self.failed(task, failure)
        else:
            task.answer = None
            if isinstance(wanted, Ask):
                self._ask(task, wanted)
            else:
                task.waiting, task.asleep_until = wanted, self.world.now + wanted.seconds
        return True

    def failed(self, task: Task, failure: FleetError) -> None:
        """A task has let an exception through."""
        raise AssertionError(f"{self.name} {task.name}") from failure

    def crash(self) -> None:
        """Die at once."""
        self.status = Status.DEAD
        self.tasks.clear()

    def _is_due(self, task: Task) -> bool:
        return task.waiting is None or self.world.now >= task.asleep_until or task.waiting.is_so()

    def _ask(self, task: Task, wanted: Ask) -> None:
        try:
            task.answer = self.world.answer(self, wanted)
        except StateUnavailable as failure:
            # Who gets no answer waits for it first.
            seconds = 0.0 if isinstance(failure, HungUp) else REQUEST_TIMEOUT
            task.waiting, task.asleep_until = sleep(seconds), self.world.now + seconds
            task.error = failure
        except FleetError as refusal:
            task.error = refusal


@dataclass(eq=False)
class Machine:
    """What shares a network link; `troubled_at` is when something was last done to it or to what runs on it."""

    name: str
    has_redis: bool = True
    has_rooms: bool = True
    troubled_at: float = float("-inf")
