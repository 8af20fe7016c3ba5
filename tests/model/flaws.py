"""Schedules in which the protocol, as the code has it, breaks an invariant with every fence on.

`fix` names what in the model closes it; None where nothing in the model does, for what must come together is more than
the design promises to survive.
"""

from collections.abc import Callable
from dataclasses import dataclass

from tests.model.schedules import begin_call, open_fleet
from tests.model.switches import Fix
from tests.model.world import World


@dataclass(frozen=True)
class Flaw:
    """One story; its docstring is the function's."""

    breaks: str
    fix: Fix | None
    play: Callable[[World], None]

    @property
    def name(self) -> str:
        """The function's name as words."""
        return self.play.__name__.replace("_", " ")


FLAWS: list[Flaw] = []


def breaks(invariant: str, *, fix: Fix | None) -> Callable[[Callable[[World], None]], Callable[[World], None]]:
    """Say which invariant a schedule breaks, and what would help."""

    def note(play: Callable[[World], None]) -> Callable[[World], None]:
        FLAWS.append(Flaw(invariant, fix, play))
        return play

    return note


@breaks("a session without an owner", fix=Fix.LOOK_FOR_OWN)
def a_child_and_its_keeper_die_together(world: World) -> None:
    """The keeper has cleared the dead child's slot and waits for Redis; what it knows dies with it.

    The worker's next keeper finds an empty slot, and the reaper a worker whose lease holds.
    """
    open_fleet(world)
    agent = begin_call(world)
    world.lose_redis()
    world.kill(agent)
    world.run(1)
    world.kill(agent.worker.keeper)
    world.mend_redis()
    world.run(20)
    world.settle()


@breaks("a session without an owner", fix=Fix.LOOK_FOR_OWN)
def a_claim_arrives_when_its_child_has_given_up(world: World) -> None:
    """The claim's packet is sent again by the kernel after the child's time-out and after the keeper's look."""
    open_fleet(world)
    world.delay("claim")
    world.join()
    world.until(lambda: world.late)
    world.run(2)
    world.deliver()
    world.run(20)
    world.settle()


@breaks("a turn that is stored twice", fix=Fix.KNOWN_TURNS)
def a_turn_arrives_after_its_repetition_and_the_reply(world: World) -> None:
    """Only the newest entry is compared, and the reply is newer."""
    open_fleet(world)
    begin_call(world)
    world.delay("append_turn")
    world.caller_begins()
    world.caller_ends()
    world.run(6)
    world.deliver()
    world.settle()


@breaks("two sessions in one room", fix=Fix.READY_AGAIN)
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


def a_repeated_message_cannot_be_claimed_for_lack_of_an_answer(world: World) -> None:
    """A second process of the worker that has the call takes the same message; its claim gets no answer, and the keeper
    takes what it leaves behind for the call itself.
    """
    for worker in world.workers[1:]:
        world.kill(worker)
    open_fleet(world)
    agent = begin_call(world)
    world.run(20)
    world.lose_answer("claim")
    world.repeat_message(agent.session_id)
    world.run(10)
    world.settle()


@breaks("two sessions in one room", fix=None)
def a_fail_over_loses_the_confirmation_of_a_room(world: World) -> None:
    """The hold ends with the join's time, and nothing renews it: the room is free for another session."""
    open_fleet(world)
    begin_call(world)
    world.fail_over(writes=3)
    world.run(60)
    _join_at_last(world)
    world.run(5)
    world.settle()


@breaks("two sessions in one room", fix=None)
def redis_is_emptied_while_a_call_is_cut_off_from_it(world: World) -> None:
    """Its room is its witness for longer than joins stay closed, and it cannot register again."""
    open_fleet(world)
    agent = begin_call(world)
    world.cut_redis(agent.machine)
    world.empty_redis()
    world.until(lambda: world.redis.fleet().ready)
    _join_at_last(world)
    world.run(5)
    world.settle()


@breaks("two writers in one epoch", fix=None)
def a_fail_over_loses_a_claim(world: World) -> None:
    """The message is published again and another process of the same worker claims the same epoch: nothing tells the
    two apart. In the room the second has the name of the first, which is put out and records the end of the call.
    """
    for worker in world.workers[1:]:
        world.kill(worker)
    open_fleet(world)
    world.join()
    world.until(lambda: world.agents and world.agents[0].session)
    world.fail_over(writes=3)
    world.run(20)
    world.settle()


def _join_at_last(world: World) -> None:
    """The first request finds its connection closed."""
    world.join()
    world.run(1)
    world.join()
