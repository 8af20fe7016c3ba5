"""Agents by configuration: specialists without a file, and what a session's configuration changes in its call."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from livekit.agents import utils

from graphs import entities
from graphs.configuration import AgentConfiguration
from graphs.entities import AgentEvent, Message, TextDelta, ToolCalled, Transferred, UserTurn
from graphs.errors import RosterInvalid
from graphs.http_tools import NO_HTTP_ACCESS, HTTPAccess
from graphs.ports import OpenTicketPort
from graphs.specialists import ROSTER
from graphs.supervisor import SupervisorAgent, build_supervisor
from graphs.tickets import SQLiteTickets
from tests.open_fleet import agent_service, claim, open_joins
from tests.recording_server import RecordingServer
from tests.scripted_llm import ScriptedLLM, calls, says, spoken, take, transfers
from tests.test_graphs_roster import BILLING, modules
from tests.test_provider_wire import VOICE
from tests.tool_server import ToolServer
from worker.call.agents import open_agent, settings_of
from worker.call.providers import connect_options, open_providers
from worker.call.settings import CallSettings, tool_secrets
from worker.fleet.session import Session

#: A fixture of the roster's tests.
__all__ = ["modules"]

CALL = {
    "LIVEKIT_URL": "ws://127.0.0.1:1",
    "LIVEKIT_API_KEY": "key",
    "LIVEKIT_API_SECRET": "secret",
    "OPENAI_API_KEY": "any",
    "ELEVEN_API_KEY": "any",
}


@pytest.fixture
async def server() -> AsyncIterator[ToolServer]:
    async with ToolServer() as server:
        yield server


@pytest.fixture
def tickets(tmp_path: Path) -> SQLiteTickets:
    return SQLiteTickets(tmp_path / "tickets.db")


def weather_desk(origin: str = "https://tools.test", **tool: Any) -> dict[str, Any]:
    """A specialist who is nothing but configuration."""
    return {
        "name": "weather_desk",
        "title": "Weather desk",
        "description": "the weather in a city",
        "instructions": "Tell callers what the weather is like.",
        "bridge": "Let me get the weather desk.",
        "tools": [
            {
                "name": "look_outside",
                "description": "The weather in a city.",
                "method": "GET",
                "url": f"{origin}/weather",
                "parameters": {
                    "type": "object",
                    "properties": {"city": {"type": "string"}},
                    "required": ["city"],
                },
                **tool,
            }
        ],
    }


def agent_of(
    configuration: dict[str, Any],
    llm: ScriptedLLM,
    tickets: OpenTicketPort,
    *,
    http_access: HTTPAccess = NO_HTTP_ACCESS,
) -> SupervisorAgent:
    return build_supervisor(
        llm=llm,
        open_ticket=tickets,
        slots={},
        configuration=AgentConfiguration.of(configuration),
        http_access=http_access,
    )


def anywhere(url: str) -> bool:
    return True


async def test_a_specialist_by_configuration_alone_is_handed_to_and_answers_with_its_tool(
    server: ToolServer, tickets: SQLiteTickets
) -> None:
    llm = ScriptedLLM(
        transfers("weather_desk"),
        calls("look_outside", {"city": "Oslo"}),
        says("It is twenty one degrees."),
    )
    configuration = {"specialists": [*ROSTER, weather_desk(server.origin)]}
    agent = agent_of(configuration, llm, tickets, http_access=HTTPAccess(may_call=anywhere))

    events = await take(agent, "What is the weather like in Oslo?")

    assert "weather_desk: the weather in a city" in llm.schemas[0].description
    assert Transferred("front_desk", "weather_desk") in events
    assert spoken(events) == "One moment, please. I will get the right colleague for you. It is twenty one degrees."
    assert agent.active == "weather_desk"
    [called] = server.called
    assert (called.query, called.headers["idempotency-key"]) == ({"city": "Oslo"}, "turn_1:call_1")
    assert '"degrees": 21' in llm.requests[2].last.content
    assert "Tell callers what the weather is like." in llm.requests[1].system


async def test_one_agent_is_made_of_a_file_a_name_of_the_roster_and_configuration(
    modules: Path, tickets: SQLiteTickets
) -> None:
    (modules / "billing.py").write_text(BILLING)
    llm = ScriptedLLM(
        transfers("sales"),
        says("Sales."),
        transfers("weather_desk"),
        says("Rain."),
        transfers("billing"),
        says("Bill."),
    )
    agent = agent_of({"specialists": ["extra.billing", "sales", weather_desk()]}, llm, tickets)

    speakers = [agent.active]
    for number, question in enumerate(("a plan", "the weather", "my invoice")):
        events = await take(agent, question, turn_id=f"turn_{number}")
        speakers += [event.specialist for event in events[-1:] if isinstance(event, TextDelta)]

    assert speakers == ["billing", "sales", "weather_desk", "billing"]
    assert {name for schema in llm.schemas if schema.name == "transfer_to" for name in choices(schema)} == {
        "billing", "sales", "weather_desk"
    }  # fmt: skip


def choices(schema: entities.ToolSchema) -> list[str]:
    names: list[str] = schema.parameters["properties"]["specialist"]["enum"]
    return names


async def test_an_endpoint_that_fails_is_told_to_the_model_and_the_turn_goes_on(
    server: ToolServer, tickets: SQLiteTickets
) -> None:
    llm = ScriptedLLM(calls("look_outside", {"city": "Oslo"}), says("I cannot see it from here."))
    configuration = {"specialists": [weather_desk(server.origin, url=f"{server.origin}/broken")]}
    agent = agent_of(configuration, llm, tickets, http_access=HTTPAccess(may_call=anywhere))

    assert spoken(await take(agent, "The weather?")) == "I cannot see it from here."
    assert "status 500" in llm.requests[1].last.content


async def test_the_worker_asks_no_host_that_it_has_not_listed_itself(
    server: ToolServer, tickets: SQLiteTickets
) -> None:
    llm = ScriptedLLM(calls("look_outside", {"city": "Oslo"}), says("I do not know."))
    agent = agent_of({"specialists": [weather_desk(server.origin)]}, llm, tickets)

    await take(agent, "The weather?")

    assert "not available" in llm.requests[1].last.content
    assert server.called == []


@pytest.mark.parametrize(("method", "runs"), [("GET", True), ("POST", False)])
async def test_a_draft_runs_a_get_and_a_post_waits_for_the_caller_s_last_word(
    server: ToolServer, tickets: SQLiteTickets, method: str, runs: bool
) -> None:
    llm = ScriptedLLM(calls("look_outside", {"city": "Oslo"}), says("Sunny."))
    configuration = {"specialists": [weather_desk(server.origin, method=method)]}
    agent = agent_of(configuration, llm, tickets, http_access=HTTPAccess(may_call=anywhere))

    async def answer() -> list[AgentEvent]:
        async with aclosing(agent.respond(UserTurn("draft_1", "The weather?"), draft=True)) as events:
            return [event async for event in events]

    drafting = asyncio.create_task(answer())
    await asyncio.wait([drafting], timeout=0.5)
    before = len(server.called)
    agent.confirm("draft_1", turn_id="turn_1")

    assert spoken(await drafting) == "Sunny."
    assert (before, len(server.called)) == (1 if runs else 0, 1)


async def test_what_all_are_told_reaches_every_specialist(tickets: SQLiteTickets) -> None:
    llm = ScriptedLLM(transfers("weather_desk"), says("Rain."))
    configuration = {
        "specialists": ["sales", weather_desk()],
        "instructions": "Mention the summer fair.",
        "language": "de",
    }
    await take(agent_of(configuration, llm, tickets), "The weather?")

    for request in llm.requests:
        assert "Mention the summer fair." in request.system
        assert "in the language 'de'" in request.system


async def test_a_specialist_by_configuration_hands_over_with_its_own_bridge(tickets: SQLiteTickets) -> None:
    llm = ScriptedLLM(transfers("sales"), says("Sales."))
    events = await take(agent_of({"specialists": [weather_desk(), "sales"]}, llm, tickets), "A plan, please.")
    assert spoken(events) == "Let me get the weather desk. Sales."


async def test_a_specialist_may_be_called_as_a_field_of_the_graph_s_state(tickets: SQLiteTickets) -> None:
    for name in ("messages", "active", "calls"):
        specialist = {**weather_desk(), "name": name}
        llm = ScriptedLLM(transfers(name), says("Here."))
        assert (await take(agent_of({"specialists": ["sales", specialist]}, llm, tickets), "?"))[-1] == TextDelta(
            "Here.", name
        )


def test_a_name_that_this_worker_does_not_know_is_named(tickets: SQLiteTickets) -> None:
    with pytest.raises(RosterInvalid, match="astrology"):
        agent_of({"specialists": ["astrology"]}, ScriptedLLM(), tickets)


def joined(redis_url: str, configuration: dict[str, Any], **environ: str) -> Session:
    """The session that a /join with this configuration has made, as the worker that claims it reads it."""
    open_joins(redis_url)
    service = agent_service(redis_url, **environ).test_client()
    asked = {"room": "kitchen", "user_id": "ada", "metadata": {"name": "Ada"}, "configuration": configuration}
    answer = service.post("/join", json=asked)
    assert answer.status_code == 202, answer.text
    return claim(redis_url, answer.get_json()["session_id"])


def begun(session: Session) -> entities.Session:
    return entities.Session(session.session_id, session.metadata, (), active="", cursor="0-0")


async def test_a_call_is_answered_by_whom_its_join_has_configured(
    server: ToolServer, redis_url: str, tickets: SQLiteTickets, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = weather_desk(server.origin, headers={"Authorization": {"secret": "WEATHER_TOKEN"}})
    configuration = {"specialists": [desk, "sales"], "model": "another-model", "temperature": 0.25}
    environ = {"REDIS_URL": redis_url, "MUSTER_TOOL_HOSTS": server.origin}
    monkeypatch.setenv("MUSTER_SECRET_WEATHER_TOKEN", "Bearer hunter2")

    session = joined(redis_url, configuration, **environ)
    settings = settings_of(
        session, CallSettings.from_env({**CALL, **environ, "OPENAI_BASE_URL": f"{server.origin}/v1"})
    )
    async with utils.http_context.open():
        providers = open_providers(settings)
        agent = open_agent(session, begun(session), settings, client=providers.openai, open_ticket=tickets)
        events = await take(agent, "What is the weather like in Oslo?")
        await providers.aclose()

    assert spoken(events) == "It is twenty one degrees."
    assert [event.name for event in events if isinstance(event, ToolCalled)] == ["look_outside"]
    assert [(prompt["model"], prompt["temperature"]) for prompt in server.prompts] == [("another-model", 0.25)] * 2
    system = server.prompts[0]["messages"][0]["content"]
    assert "weather_desk (Weather desk)" in system and "name: Ada" in system
    [called] = server.called
    assert (called.query, called.headers["authorization"]) == ({"city": "Oslo"}, "Bearer hunter2")


async def test_a_call_without_a_configuration_is_as_the_settings_say(
    server: ToolServer, redis_url: str, tickets: SQLiteTickets
) -> None:
    given = CallSettings.from_env({**CALL, "REDIS_URL": redis_url, "OPENAI_BASE_URL": f"{server.origin}/v1"})
    session = joined(redis_url, {})

    settings = settings_of(session, given)
    async with utils.http_context.open():
        providers = open_providers(settings)
        agent = open_agent(session, begun(session), settings, client=providers.openai, open_ticket=tickets)
        await take(agent, "Hello.")
        await providers.aclose()

    assert settings == given
    assert agent.active == ROSTER[0]
    assert (server.prompts[0]["model"], "temperature" in server.prompts[0]) == (given.llm_model, False)


async def test_a_call_speaks_and_listens_as_its_join_has_configured(redis_url: str) -> None:
    configuration = {"voice": "anothervoice", "language": "de", "greeting": "Guten Tag."}
    session = joined(redis_url, configuration)
    async with RecordingServer() as server, utils.http_context.open():
        url = f"http://127.0.0.1:{server.port}/v1"
        environ = {**CALL, "REDIS_URL": redis_url, "OPENAI_BASE_URL": url, "ELEVEN_BASE_URL": url}
        settings = settings_of(session, CallSettings.from_env(environ))
        providers, options = open_providers(settings), connect_options(settings)
        await providers.stt.recognize(VOICE, conn_options=options.stt_conn_options)
        async with providers.tts.stream(conn_options=options.tts_conn_options) as speech:
            speech.push_text("Es regnet.")
            speech.end_input()
            assert [audio async for audio in speech]
        await providers.aclose()

    heard, said = server.requests
    assert b'name="language"\r\n\r\nde\r\n' in heard.body
    assert "/anothervoice/" in said.url.path and said.url.query["language_code"] == "de"
    assert settings.phrases[0] == settings.greeting == "Guten Tag."


async def test_a_conversation_that_goes_on_starts_with_whom_the_configuration_still_has(
    server: ToolServer, redis_url: str, tickets: SQLiteTickets
) -> None:
    session = joined(redis_url, {"specialists": ["sales", "tech_support"]})
    said = Message(id="1", role="assistant", content="Hello.", specialist="tech_support")
    settings = settings_of(session, CallSettings.from_env({**CALL, "REDIS_URL": redis_url}))
    async with utils.http_context.open():
        providers = open_providers(settings)
        for active, expected in (("tech_support", "tech_support"), ("weather_desk", "sales")):
            old = entities.Session(session.session_id, {}, (said,), active=active, cursor="1-0")
            agent = open_agent(session, old, settings, client=providers.openai, open_ticket=tickets)
            assert (agent.active, agent.history) == (expected, (said,))
        await providers.aclose()


def test_secrets_are_those_variables_that_are_set() -> None:
    environ = {"MUSTER_SECRET_CRM": "Bearer a", "MUSTER_SECRET_EMPTY": "", "OPENAI_API_KEY": "b"}
    assert tool_secrets(environ) == {"CRM": "Bearer a"}
