"""The protocol's model: what each fence is for, and that with all of them nothing breaks, whatever happens when."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager

import pytest

from tests.model.schedules import SCHEDULES, Schedule
from tests.model.steps import STEPS, code_of
from tests.model.switches import FENCES, RULES, Switch
from tests.model.world import Broken, World


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
