"""The protocol's model: what each fence is for, and that with all of them nothing breaks, whatever happens when."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from local.paths import ROOT
from tests.model.machine import FleetMachine
from tests.model.schedules import (
    SCHEDULES,
    Schedule,
    a_repeated_message_cannot_be_claimed_for_lack_of_an_answer,
    begin_call,
    open_fleet,
)
from tests.model.steps import STEPS, code_of
from tests.model.switches import FENCES, RULES, Switch
from tests.model.world import Broken, World
from worker.fleet import times

#: Shrinking takes minutes; the long form does it.
LOOKING = (Phase.explicit, Phase.reuse, Phase.generate)


@contextmanager
def world(*, off: Collection[Switch] = ()) -> Iterator[World]:
    made = World(off=off)
    try:
        yield made
    finally:
        made.close()


def named(schedule: Schedule) -> str:
    return schedule.name


@pytest.mark.parametrize("place", sorted(STEPS))
def test_each_step_of_the_model_is_a_function_of_the_code(place: str) -> None:
    assert callable(code_of(place))


def test_each_fence_and_each_rule_has_a_schedule_that_needs_it() -> None:
    assert {schedule.needs for schedule in SCHEDULES} == {*FENCES, *RULES} == set(Switch)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=named)
def test_a_schedule_breaks_an_invariant_without_what_it_needs(schedule: Schedule) -> None:
    with world(off={schedule.needs, *schedule.masks}) as fleet, pytest.raises(Broken, match=schedule.breaks):
        schedule.play(fleet)


@pytest.mark.parametrize("schedule", [each for each in SCHEDULES if each.masks], ids=named)
def test_a_schedule_breaks_nothing_once_only_its_masks_are_off(schedule: Schedule) -> None:
    with world(off=schedule.masks) as fleet:
        schedule.play(fleet)


@pytest.mark.parametrize("schedule", [each for each in SCHEDULES if each.masks], ids=named)
def test_what_masks_a_fence_is_named(schedule: Schedule) -> None:
    """With any of its masks on, the schedule does not need the fence."""
    for mask in schedule.masks:
        with world(off={schedule.needs, *schedule.masks} - {mask}) as fleet:
            schedule.play(fleet)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=named)
def test_a_schedule_breaks_nothing_with_everything_on(schedule: Schedule) -> None:
    with world() as fleet:
        schedule.play(fleet)


def test_a_repeated_message_that_cannot_be_claimed_ends_no_call() -> None:
    with world() as fleet:
        a_repeated_message_cannot_be_claimed_for_lack_of_an_answer(fleet)


def explore(*, off: Collection[Switch] = (), examples: int, steps: int, phases: Collection[Phase] = LOOKING) -> None:
    """Have hypothesis look for a schedule that breaks an invariant, the same ones each time."""

    class Machine(FleetMachine):
        pass

    Machine.off = frozenset(off)
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            derandomize=True,
            database=None,
            phases=tuple(phases),
            suppress_health_check=list(HealthCheck),
            report_multiple_bugs=False,
        ),
    )


def test_whatever_happens_nothing_breaks_with_all_fences() -> None:
    explore(examples=50, steps=30)


@pytest.mark.parametrize("kept", [None, Switch.EPOCH_CHECKS], ids=["none of them", "only epoch checks"])
def test_without_the_fences_two_agents_are_found_in_a_room(kept: Switch | None) -> None:
    with pytest.raises(Broken, match="two agents heard in one room"):
        explore(off={*FENCES} - {kept}, examples=100, steps=30)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_whatever_happens_for_long_nothing_breaks_with_all_fences() -> None:
    explore(examples=1500, steps=60, phases=list(Phase))


def test_hand_overs_lose_no_turn_wherever_they_fall() -> None:
    """Without any fault every word of the caller is stored once, in order, whoever has the call."""
    steps = 12
    for start in range(steps):
        with world() as fleet:
            open_fleet(fleet)
            agent = begin_call(fleet)
            for turn in range(steps):
                fleet.caller_begins()
                fleet.run(fleet.tick * (turn % 3))
                if turn == start:
                    fleet.hand_over(agent.session_id)
                fleet.run(fleet.tick)
                fleet.caller_ends()
                fleet.run(fleet.tick * (turn % 4))
            fleet.settle()
            record = fleet.redis.read(agent.session_id)
            assert record is not None and record.epoch == 2


def test_the_page_on_the_protocol_tells_what_the_model_shows() -> None:
    page = (ROOT / "docs" / "protocol.md").read_text()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line[:1] == "|"]
    for schedule in SCHEDULES:
        [row] = [cells for cells in rows if cells[0] == schedule.needs and cells[2:3] == [schedule.name]]
        assert row[3:] == [", ".join(schedule.masks)]
        assert f"*{schedule.breaks}*" in " ".join(page.split())
    for name, seconds in [cells[:2] for cells in rows if cells[0][:1] == "`"]:
        assert getattr(times, name.strip("`")) == float(seconds)
