"""The roster: specialists are data on a list, and one more is one more file."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from graphs.configuration import AgentConfiguration
from graphs.entities import TextDelta, ToolCall, Transferred
from graphs.errors import RosterInvalid, ToolRefused
from graphs.knowledge.catalogue import load_catalogue
from graphs.roster import Roster, Services, Specialist, load_roster, parse_arguments
from graphs.specialists import ROSTER
from graphs.supervisor import build_supervisor
from graphs.tickets import SQLiteTickets
from tests.scripted_llm import ScriptedLLM, says, take, transfers

BILLING = '''
"""Billing: invoices and payments."""
from graphs.roster import Services, Specialist


def specialist(services: Services) -> Specialist:
    return Specialist(
        name="billing",
        title="Billing",
        description="invoices and payments",
        instructions="Explain bills.",
    )
'''


@pytest.fixture
def modules(tmp_path: Path) -> Iterator[Path]:
    """A package `extra` whose files can be named on a roster."""
    package = tmp_path / "extra"
    package.mkdir()
    (package / "__init__.py").touch()
    sys.path.insert(0, str(tmp_path))
    yield package
    sys.path.remove(str(tmp_path))
    for name in [name for name in sys.modules if name.split(".")[0] == "extra"]:
        del sys.modules[name]


@pytest.fixture
def services(tmp_path: Path) -> Services:
    return Services(catalogue=load_catalogue(), open_ticket=SQLiteTickets(tmp_path / "tickets.db"))


def someone(name: str) -> Specialist:
    return Specialist(name=name, title=name, description="", instructions="")


async def test_a_specialist_is_added_by_one_file_and_one_name(modules: Path, services: Services) -> None:
    (modules / "billing.py").write_text(BILLING)
    llm = ScriptedLLM(transfers("billing"), says("Your bill."), transfers("sales"), says("Sales."))
    agent = build_supervisor(
        llm=llm,
        open_ticket=services.open_ticket,
        slots={},
        configuration=AgentConfiguration(specialists=(*ROSTER, "extra.billing")),
    )
    assert Transferred("front_desk", "billing") in await take(agent, "my invoice")
    assert "billing: invoices and payments" in llm.schemas[0].description
    assert (await take(agent, "a plan", turn_id="turn_2"))[-1] == TextDelta("Sales.", "sales")


def test_the_transfer_tool_offers_everybody_else_with_their_description(services: Services) -> None:
    roster = load_roster(ROSTER, services)
    schema = roster.transfer_schema("sales")
    assert schema is not None
    assert schema.parameters["properties"]["specialist"]["enum"] == ["front_desk", "tech_support"]
    for name in ("front_desk", "tech_support"):
        assert f"{name}: {roster[name].description}" in schema.description


def test_bridges_promise_nothing_that_is_not_done_yet(services: Services) -> None:
    for specialist in load_roster(ROSTER, services).values():
        assert specialist.bridge
        assert not {"transferred", "connected", "done", "have"} & set(specialist.bridge.lower().split())


@pytest.mark.parametrize("text", ["", "specialist = 5", "def specialist(services): return None"])
def test_a_module_that_is_no_specialist_is_named(modules: Path, services: Services, text: str) -> None:
    (modules / "broken.py").write_text(text)
    with pytest.raises(RosterInvalid, match=r"extra\.broken"):
        load_roster(["extra.broken"], services)


def test_a_missing_module_is_named(services: Services) -> None:
    with pytest.raises(RosterInvalid, match="astrology"):
        load_roster(["astrology"], services)


@pytest.mark.parametrize("names", [[], ["a", "a"], ["not a name"]])
def test_a_roster_needs_distinct_names(names: list[str]) -> None:
    with pytest.raises(RosterInvalid):
        Roster(someone(name) for name in names)


def test_a_choice_outside_the_schema_is_refused_with_the_choices(services: Services) -> None:
    tool = load_roster(ROSTER, services)["sales"].tool("look_up_price")
    with pytest.raises(ToolRefused, match="premium plan"):
        parse_arguments(ToolCall("c", tool.name, '{"product": "moon plan"}'), tool.schema)
