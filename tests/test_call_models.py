"""The chat model and the router of a call, as the settings name them, before a real server."""

from collections.abc import Mapping
from typing import Any

from aiohttp import web
from openai import AsyncOpenAI

from graphs.entities import TextDelta, Transferred
from graphs.roster import Roster, Specialist
from graphs.router import StickyRouter
from graphs.supervisor import SupervisorAgent
from tests.model_server import chunk, replies, serving, tool_piece
from tests.scripted_llm import spoken, take
from worker.call.models import open_model, open_router
from worker.call.settings import CallSettings

ENVIRON = {
    "REDIS_URL": "redis://127.0.0.1:1/0",
    "BROKER_URL": "redis://127.0.0.1:1/0",
    "CACHE_URL": "redis://127.0.0.1:1/0",
    "LIVEKIT_URL": "ws://127.0.0.1:1",
    "LIVEKIT_API_KEY": "key",
    "LIVEKIT_API_SECRET": "secret",
    "OPENAI_API_KEY": "key",
    "ELEVEN_API_KEY": "key",
    "MUSTER_LLM_MODEL": "large",
}
TEAM = Roster(
    Specialist(name=name, title=name, description=name, instructions=f"You are {name}.", bridge="One moment.")
    for name in ("desk", "sales")
)


class Models:
    """A server on which the model "broken" fails, and the model "small" hands every caller to sales."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.asked.append(body)
        if body["model"] == "broken":
            return web.json_response({"error": {"message": "no"}}, status=503)
        if body["model"] == "small":
            return await replies(tool_piece(0, id="c", name="transfer_to", arguments='{"specialist": "sales"}'))(
                request
            )
        return await replies(chunk(content=f"I am {body['model']}."))(request)

    @property
    def names(self) -> list[str]:
        return [body["model"] for body in self.asked]


async def answer(models: Models, environ: Mapping[str, str], *, turns: int = 1) -> list[Any]:
    settings = CallSettings.from_env({**ENVIRON, **environ})
    async with serving(models.handle) as url, AsyncOpenAI(api_key="test", base_url=url) as client:
        model, router = open_model(client, settings, temperature=0.2), open_router(client, settings)
        agent = SupervisorAgent(TEAM, llm=model, slots={}, router=router)
        return [await take(agent, "how much?", turn_id=f"turn_{number}") for number in range(turns)]


async def test_one_model_answers_unless_the_settings_name_more() -> None:
    models = Models()
    [events] = await answer(models, {})
    assert events == [TextDelta("I am large.", "desk")]
    assert (models.names, models.asked[0]["temperature"]) == (["large"], 0.2)


async def test_the_second_model_answers_for_the_first_one_and_then_at_once() -> None:
    models = Models()
    first, second = await answer(models, {"MUSTER_LLM_MODEL": "broken", "MUSTER_LLM_FALLBACK_MODEL": "spare"}, turns=2)
    assert spoken(first) == spoken(second) == "I am spare."
    assert models.names == ["broken", "spare", "spare"]


async def test_the_small_model_decides_who_answers_when_the_router_is_speculative() -> None:
    models = Models()
    [events] = await answer(models, {"MUSTER_ROUTER": "speculative", "MUSTER_ROUTER_MODEL": "small"})
    assert Transferred("desk", "sales") in events
    assert sorted(models.names) == ["large", "large", "small"]
    assert next(body for body in models.asked if body["model"] == "small")["messages"][-1]["content"] == "how much?"


def test_without_a_setting_nobody_but_the_specialist_is_asked() -> None:
    client = AsyncOpenAI(api_key="test")
    assert type(open_router(client, CallSettings.from_env(ENVIRON))) is StickyRouter
