"""For each fence and rule a schedule in which it alone stands between the fleet and a broken invariant.

`masks` are what would hide its absence and are off too; each schedule says why. `breaks` is the invariant as
`world.Broken` names it.
"""

from collections.abc import Callable
from dataclasses import dataclass

from tests.model.agent import Agent
from tests.model.switches import Switch
from tests.model.world import World
from worker.fleet.session import State


@dataclass(frozen=True)
class Schedule:
    """One story; its docstring is the function's."""

    needs: Switch
    masks: tuple[Switch, ...]
    breaks: str
    play: Callable[[World], None]

    @property
    def name(self) -> str:
        """The function's name as words."""
        return self.play.__name__.replace("_", " ")


SCHEDULES: list[Schedule] = []


def needs(
    switch: Switch, *, breaks: str, masks: tuple[Switch, ...] = ()
) -> Callable[[Callable[[World], None]], Callable[[World], None]]:
    """Say which part of the protocol a schedule needs."""

    def note(play: Callable[[World], None]) -> Callable[[World], None]:
        SCHEDULES.append(Schedule(switch, masks, breaks, play))
        return play

    return note


def open_fleet(world: World) -> None:
    """Wait until joins are open."""
    world.until(lambda: world.redis.fleet().ready and world.redis.is_open() and world.redis.fleet().workers)


def begin_call(world: World, room: str = "room") -> Agent:
    """A call whose agent talks with the caller."""
    session_id = world.join(room)

    def is_live() -> bool:
        record = world.redis.read(session_id)
        return bool(record and record.state is State.LIVE)

    world.until(is_live)
    return world.agents_heard(room)[-1]


def state_of(world: World, agent: Agent) -> State:
    """The state in the session's record."""
    record = world.redis.read(agent.session_id)
    assert record is not None
    return record.state


def next_is_heard(world: World, agent: Agent) -> bool:
    """Whether another agent of the session is heard."""
    return any(each.session_id == agent.session_id and each is not agent for each in world.agents_heard())


@needs(Switch.EPOCH_CHECKS, breaks="a write of an epoch that is over")
def a_write_arrives_after_its_writer_was_replaced(world: World) -> None:
    """The owner is killed with a turn on its way to Redis, where it arrives when the next owner talks."""
    open_fleet(world)
    agent = begin_call(world)
    world.delay("append_turn")
    world.caller_begins()
    world.caller_ends()
    world.until(lambda: world.late)
    world.kill(agent)
    world.until(lambda: next_is_heard(world, agent))
    world.deliver()
    world.settle()


@needs(Switch.DEAD_MAN, masks=(Switch.REMOVE_FIRST, Switch.KEEPER_REMOVES), breaks="two agents heard in one room")
def a_machine_stands_still_and_goes_on(world: World) -> None:
    """Stopped until another machine has the call, then continued.

    An agent that was taken out of the room is not heard when it continues.
    """
    open_fleet(world)
    agent = begin_call(world)
    world.stop_machine(agent.worker)
    world.until(lambda: next_is_heard(world, agent))
    world.resume_machine(agent.worker)
    world.settle()


@needs(Switch.REMOVE_FIRST, masks=(Switch.OUTLIVE, Switch.KEEPER_REMOVES), breaks="two agents heard in one room")
def a_machine_without_redis_stands_still_for_a_moment(world: World) -> None:
    """While it cannot reach Redis its room is its witness, so the dead-man timer is not due in the moment in which it
    stands still and another machine takes the call. Who outlives it needs not take it out, and the keeper may have.
    """
    open_fleet(world)
    agent = begin_call(world)
    world.cut_redis(agent.machine)
    world.until(lambda: state_of(world, agent) is State.CONNECTING)
    world.stop(agent)
    world.until(lambda: next_is_heard(world, agent))
    world.resume(agent)
    world.settle()


@needs(Switch.OUTLIVE, breaks="two agents heard in one room")
def the_server_takes_nobody_out_when_a_machine_stands_still(world: World) -> None:
    """The same, and LiveKit refuses each removal. The successor waits until the switch of the other has gone off."""
    world.rooms.removes = False
    a_machine_without_redis_stands_still_for_a_moment(world)


def _another_comes_to_a_room_that_nobody_is_taken_out_of(world: World) -> None:
    world.rooms.removes = False
    open_fleet(world)
    agent = begin_call(world)
    world.cut_redis(agent.machine)
    world.until(lambda: next_is_heard(world, agent))
    world.run(10)
    world.settle()


@needs(Switch.YIELD, masks=(Switch.OUTLIVE,), breaks="two agents heard in one room")
def another_has_the_call_and_the_server_takes_nobody_out(world: World) -> None:
    """The old agent cannot reach Redis, and has its room as witness. The successor would wait for its switch."""
    _another_comes_to_a_room_that_nobody_is_taken_out_of(world)


@needs(Switch.WITNESS_ALONE, masks=(Switch.YIELD,), breaks="two agents heard in one room")
def another_waits_for_the_switch_of_one_that_stays(world: World) -> None:
    """The same: whom the successor waits for is dead in time because its room is no witness any more.

    It would have left when the other came.
    """
    _another_comes_to_a_room_that_nobody_is_taken_out_of(world)


@needs(Switch.HOLDER_REMOVES, masks=(Switch.DEAD_MAN,), breaks="two agents heard in one room")
def a_machine_is_suspended_before_it_joins_the_room(world: World) -> None:
    """It goes on when another machine has the call, finds the younger agent there when it joins, of which no event
    tells it, and cannot ask Redis. The kernel's timer does not count the time in which a virtual machine is suspended.
    """
    open_fleet(world)
    world.join()
    world.until(lambda: world.agents and world.agents[0].room)
    agent = world.agents[0]
    world.stop_machine(agent.worker)
    world.until(lambda: next_is_heard(world, agent))
    world.cut_redis(agent.machine)
    world.resume_machine(agent.worker)
    world.run(5)
    world.settle()


@needs(Switch.REFUSE, breaks="two agents heard in one room")
def a_successor_loses_the_room_as_the_baton_is_passed(world: World) -> None:
    """The answer is lost and the owner loses Redis, so it goes on once the successor is gone from the room, and cannot
    take the call back before the successor is there again: that one has learnt that the call is its own.
    """
    open_fleet(world)
    agent = begin_call(world)
    world.hand_over(agent.session_id)
    world.lose_answer("give")
    world.until(lambda: agent.baton.is_given)
    successor = next(each for each in world.agents if each is not agent)
    world.cut_rooms(successor.machine)
    world.cut_redis(agent.machine)
    world.until(lambda: successor.is_talking and agent.is_audible, within=30)
    world.mend_rooms(successor.machine)
    world.run(3)
    world.settle()


def _a_partition_heals(world: World) -> None:
    open_fleet(world)
    agent = begin_call(world)
    world.cut_redis(agent.machine)
    world.run(1)
    world.cut_rooms(agent.machine)
    world.until(lambda: next_is_heard(world, agent))
    world.mend_rooms(agent.machine)
    world.run(2)
    world.settle()


@needs(Switch.LOOK_BACK, masks=(Switch.YIELD, Switch.HOLDER_REMOVES), breaks="two agents heard in one room")
def a_partition_heals_while_redis_stays_away(world: World) -> None:
    """The call goes to another machine; the old agent's SDK comes back by itself, with the token that the server has
    refreshed although it took the agent out, and Redis cannot be asked whose session it is.

    The SDK tells of the younger agent right after it is back, and the holder takes the older one out again.
    """
    _a_partition_heals(world)


@needs(Switch.MUTE, breaks="two agents heard in one room")
def a_partition_heals_before_the_room_is_seen(world: World) -> None:
    """The same: the old agent's sound flows before it learns who else is in the room."""
    _a_partition_heals(world)


@needs(Switch.WITNESS_CONNECTED, masks=(Switch.MUTE,), breaks="two agents heard in one room")
def a_connection_is_reset_while_redis_is_away(world: World) -> None:
    """The old agent knows that it has no room, so it is dead before another one has the call.

    It would come back mute.
    """
    open_fleet(world)
    agent = begin_call(world)
    world.cut_redis(agent.machine)
    world.cut_rooms(agent.machine, is_noticed=True)
    world.until(lambda: next_is_heard(world, agent))
    world.mend_rooms(agent.machine)
    world.run(2)
    world.settle()


def _a_call_is_cancelled_between_two_owners(world: World) -> Agent:
    """The session has no owner when it is left, and gets none; the old one still has its room as witness."""
    open_fleet(world)
    agent = begin_call(world)
    world.cut_redis(agent.machine)
    world.until(lambda: state_of(world, agent) is State.RECOVERING)
    world.leave(agent.session_id)
    world.run(2)
    return agent


@needs(Switch.CHECK, masks=(Switch.ROOM_CHECK, Switch.KEEPER_REMOVES), breaks="an agent without a session")
def a_cancelled_call_is_back_after_a_reset(world: World) -> None:
    """The machine reaches Redis again, and its connection to the room is reset. Nobody is younger there.

    The keeper that gave the owner up has taken its agent out, and a look at the hold finds that it has none.
    """
    agent = _a_call_is_cancelled_between_two_owners(world)
    world.cut_rooms(agent.machine, is_noticed=True)
    world.mend(agent.machine)
    world.settle()


def _a_call_of_a_keeper_that_beats_later(world: World) -> None:
    """Half a beat after the leading one."""
    open_fleet(world)
    world.until(lambda: world.workers[0].renewed_at == world.now)
    world.add_worker("worker-3")
    world.run(2)
    for worker in world.workers[:2]:
        worker.draining = True
    begin_call(world)
    for worker in world.workers[:2]:
        worker.draining = False
    world.run(20)


@needs(Switch.KEEPER_REMOVES, masks=(Switch.ROOM_CHECK,), breaks="an agent without a session")
def a_cancelled_call_has_kept_its_room(world: World) -> None:
    """The machine reaches Redis again, and nobody comes in the place of its agent, which has no reason to ask.

    A look at the hold finds that it has none.
    """
    agent = _a_call_is_cancelled_between_two_owners(world)
    world.mend(agent.machine)
    world.settle()


@needs(Switch.WITNESS, breaks="a call that dies of an outage of Redis")
def redis_is_away_for_ten_seconds(world: World) -> None:
    """No lease can be renewed, and nobody can take the call either."""
    open_fleet(world)
    begin_call(world)
    world.run(20)
    world.lose_redis()
    world.run(10)
    world.mend_redis()
    world.run(10)
    assert world.agents_heard()
    world.settle()


@needs(Switch.WHOLE_LEASE, breaks="a healthy call that is taken from its owner")
def redis_is_back_and_the_leading_keeper_is_the_first_to_see_it(world: World) -> None:
    """Every lease has ended meanwhile; the call's own keeper renews it a moment after the leading one has looked."""
    _a_call_of_a_keeper_that_beats_later(world)
    for seconds in (7.5, 8.0, 8.5):
        world.lose_redis()
        world.run(seconds)
        world.mend_redis()
        world.run(20)
    world.settle()


@needs(Switch.READY_KEY, masks=(Switch.OPEN_ROOMS,), breaks="a live call that loses its room")
def redis_comes_back_empty_and_a_join_is_the_first_to_ask(world: World) -> None:
    """A caller's client asks for an agent in a room whose call has not registered again."""
    _a_call_of_a_keeper_that_beats_later(world)
    world.run(world.tick)
    world.empty_redis()
    for _ in range(8):
        world.join()
        world.run(world.tick)
    world.settle()


@needs(Switch.ROOM_LOCK, breaks="two sessions in one room")
def two_joins_for_one_room(world: World) -> None:
    """Two requests at the same time."""
    open_fleet(world)
    world.join()
    world.join()
    world.run(10)
    world.settle()


@needs(Switch.HOLDINGS, breaks="a session without an owner")
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


@needs(Switch.HOLDINGS, breaks="a session without an owner")
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


@needs(Switch.KNOWN_TURNS, breaks="a turn that is stored twice")
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


@needs(Switch.ROOM_CHECK, breaks="two sessions in one room")
def a_fail_over_loses_the_confirmation_of_a_room(world: World) -> None:
    """The hold ends with the join's time, and nothing renews it: the room is free for another session."""
    open_fleet(world)
    begin_call(world)
    world.fail_over(writes=3)
    world.run(60)
    join_at_last(world)
    world.run(5)
    world.settle()


@needs(Switch.OWN_NAMES, breaks="two writers in one epoch")
def a_fail_over_loses_a_claim(world: World) -> None:
    """The message is published again and another process of the same worker claims the same epoch. Until it comes to
    the room, under the name that the first has there and which puts the first out, the caller talks with the first.
    """
    for worker in world.workers[1:]:
        world.kill(worker)
    open_fleet(world)
    world.join()
    world.until(lambda: world.agents and world.agents[0].is_talking)
    while (record := world.redis.read(world.agents[0].session_id)) and record.owner:
        world.fail_over()
    world.until(lambda: len(world.agents) > 1 and world.agents[1].session)
    world.caller_begins()
    world.caller_ends()
    world.run(20)
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


def join_at_last(world: World) -> None:
    """The first request finds its connection closed."""
    world.join()
    world.run(1)
    world.join()


@needs(Switch.OPEN_ROOMS, breaks="two sessions in one room")
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


@needs(Switch.ROOMS_ASKED, breaks="two sessions in one room")
def redis_is_emptied_while_a_call_is_cut_off_from_it(world: World) -> None:
    """Its room is its witness for longer than joins stay closed, and it cannot register again."""
    open_fleet(world)
    agent = begin_call(world)
    world.cut_redis(agent.machine)
    world.empty_redis()
    world.until(lambda: world.redis.fleet().ready, within=60)
    join_at_last(world)
    world.run(5)
    world.settle()


@needs(Switch.WITNESS_BOUND, breaks="two sessions in one room")
def redis_is_emptied_and_a_call_stays_cut_off_from_it(world: World) -> None:
    """Joins wait for the longest that such a call may live, and no longer."""
    redis_is_emptied_while_a_call_is_cut_off_from_it(world)
