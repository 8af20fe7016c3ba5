"""Real calls go on through real faults: the fixed scenarios of the short form, and fresh seeds among the slow tests."""

from collections.abc import Callable

import pytest

from bench.faults.command import seeds_in
from bench.faults.kinds import KINDS
from bench.faults.play import Result
from bench.faults.scenario import Phase, Planned, Scenario

pytestmark = pytest.mark.timeout(150)

DRAWN = {name for name, kind in KINDS.items() if kind.is_drawn}

Play = Callable[[Scenario], Result]


def planned(fault: str, phase: Phase | None, after: float = 0.3, *, seconds: float = 3.0) -> Planned:
    return Planned(fault, 0, phase, after, seconds)


#: Most kinds of fault, in pairs where that is no longer than one.
SHORT = {
    "a killed child and a killed keeper": (
        planned("kill_child", "agent_speaks"),
        planned("kill_keeper", None),
    ),
    "a hand-over while redis hangs up and messages are delivered again": (
        planned("hand_over", "both_listen"),
        planned("hang_up_redis", None, 0.5),
        planned("deliver_again", None, 0.2),
    ),
    "a lost machine": (planned("lose_worker", "agent_thinks"),),
    "redis restarted with its data": (planned("restart_redis", "caller_speaks", seconds=3.0),),
    "redis restarted without its data": (planned("empty_redis", "both_listen", seconds=2.0),),
    "livekit restarted": (planned("kill_livekit", "both_listen", seconds=2.0),),
    "a worker cut off from redis": (planned("cut_redis_link", "agent_speaks", seconds=6.0),),
}


@pytest.mark.parametrize("name", SHORT)
def test_every_invariant_holds_through(name: str, play: Play) -> None:
    result = play(Scenario(seed=-1, callers=1, faults=SHORT[name], ending="leave"))
    assert result.problems == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(len(DRAWN)))
def test_every_invariant_holds_with_each_kind_of_fault(seed: int, play: Play) -> None:
    result = play(Scenario.from_seed(seed))
    assert result.problems == []


@pytest.mark.slow
@pytest.mark.parametrize(("seconds", "epoch"), [(5.0, 1), (25.0, 1), (50.0, 2)])
def test_every_invariant_holds_while_no_media_reaches_the_agent(seconds: float, epoch: int, play: Play) -> None:
    """Whose media is away for longer than a caller may be lost has a successor elsewhere."""
    faults = (planned("cut_media", "both_listen", seconds=seconds),)
    result = play(Scenario(seed=-1, callers=1, faults=faults, ending="leave"))
    assert result.problems == []
    assert [call.epoch for call in result.calls] == [epoch]


def test_seeds_are_given_as_ranges_and_numbers() -> None:
    assert seeds_in("3-5,42") == [3, 4, 5, 42]


def test_a_scenario_is_made_of_its_seed_and_of_nothing_else() -> None:
    assert Scenario.from_seed(7) == Scenario.from_seed(7)
    assert {Scenario.from_seed(seed).faults[0].fault for seed in range(len(DRAWN))} == DRAWN
