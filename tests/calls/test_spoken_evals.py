"""Scenarios spoken in real calls: the agent's turns are judged, an interruption included."""

import asyncio
from pathlib import Path

import pytest
from rich.console import Console

from muster.evals.audio import hold
from muster.evals.outcome import Outcome
from muster.evals.scenario import SHIPPED, Scenario, Script, load
from tests.calls.calling import Fleet

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


async def spoken(fleet: Fleet, script: Script) -> Outcome:
    quiet = Console(quiet=True)
    return await asyncio.to_thread(hold, script, number=1, client=fleet.client, voice=fleet.voice, console=quiet)


@pytest.mark.parametrize("name", ["price_of_a_plan", "stop_please"])
async def test_a_spoken_scenario_passes(fleet: Fleet, name: str) -> None:
    (script,) = [each for each in load([SHIPPED]) if each.name == name]
    outcome = await spoken(fleet, script)
    assert outcome.problems == ()
    assert len(outcome.lines) == len(script.scenario.lines)
    assert [result.answer.interrupted for result in outcome.lines] == [
        line.barge_in_at is not None for line in script.scenario.lines
    ]


async def test_a_spoken_scenario_that_expects_something_else_fails(fleet: Fleet) -> None:
    line = {"caller": "What are your opening hours?", "specialist": "sales", "says": ["nine to six", "all night"]}
    scenario = Scenario.model_validate({"name": "wrong", "audio": True, "lines": [line]})
    outcome = await spoken(fleet, Script(scenario, Path("wrong.yaml")))
    assert outcome.problems == ("line 1: front_desk answered, not sales", "line 1: must say “all night”")
