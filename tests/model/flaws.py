"""Schedules in which the protocol, as the code has it, breaks an invariant with every fence on."""

from collections.abc import Callable
from dataclasses import dataclass

from tests.model.schedules import begin_call, join_at_last, open_fleet
from tests.model.world import World


@dataclass(frozen=True)
class Flaw:
    """One story; its docstring is the function's."""

    breaks: str
    play: Callable[[World], None]

    @property
    def name(self) -> str:
        """The function's name as words."""
        return self.play.__name__.replace("_", " ")


FLAWS: list[Flaw] = []


def breaks(invariant: str) -> Callable[[Callable[[World], None]], Callable[[World], None]]:
    """Say which invariant a schedule breaks."""

    def note(play: Callable[[World], None]) -> Callable[[World], None]:
        FLAWS.append(Flaw(invariant, play))
        return play

    return note


@breaks("two sessions in one room")
def redis_is_emptied_between_two_steps_of_a_join(world: World) -> None:
    """The join has read that joins are open, and is the first to ask for the room afterwards."""
    open_fleet(world)
    begin_call(world)
    world.run(20)
    world.join()
    world.step()
    world.empty_redis()
    world.run(10)
    world.settle()


@breaks("two sessions in one room")
def redis_is_emptied_while_a_call_is_cut_off_from_it(world: World) -> None:
    """Its room is its witness for longer than joins stay closed, and it cannot register again."""
    open_fleet(world)
    agent = begin_call(world)
    world.cut_redis(agent.machine)
    world.empty_redis()
    world.until(lambda: world.redis.fleet().ready)
    join_at_last(world)
    world.run(5)
    world.settle()
