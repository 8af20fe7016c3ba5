"""What the graph adds to a chat model until the first token of a turn.

It is measured against calling OpenAI's client directly in the same way, on the same connections to the same server,
which takes a fixed time for it. The ways take turns in random order, so that a busy moment of the machine meets all of
them.
"""

import asyncio
import gc
import random
import subprocess
import sys
import tempfile
import time
import uuid
from collections import defaultdict
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from pathlib import Path

from openai import AsyncOpenAI

from bench.fixed_model import ROUTER
from bench.report import Figure, Report
from graphs.entities import LLMEvent, Message, Role, TextDelta, Token, ToolSchema, UserTurn
from graphs.llm.openai import OpenAILLM
from graphs.ports import LLMPort
from graphs.router import AgentRouterPort, SpeculativeRouter, sticky
from graphs.supervisor import SupervisorAgent, build_supervisor
from graphs.tickets import SQLiteTickets
from local.ports import HOST

#: Seconds that the server takes for a first token, also for that of a router.
_FIRST_TOKEN_DELAY = 0.04
_HISTORY = 40
_WARM_UP = 20
_SEED = 5
_ROLES: Sequence[Role] = ("user", "assistant")
_DIRECT = "OpenAI client directly"

Way = Callable[[], Awaitable[float]]


def measure_graph(*, count: int) -> Report:
    """`count` turns each way: seconds to the first token, and what each turn of the graph took more than the client."""
    with _served() as url, tempfile.TemporaryDirectory() as directory:
        seconds = asyncio.run(_Comparison(url, Path(directory)).measure(count=count))
    direct = seconds[_DIRECT]
    more = {
        f"{name} − directly": Figure([one - other for one, other in zip(taken, direct, strict=True)])
        for name, taken in seconds.items()
        if name != _DIRECT
    }
    notes = [
        f"History of {_HISTORY} messages; the server takes {1000 * _FIRST_TOKEN_DELAY:g} ms to a first token.",
        "Differences are those of the same round; the ways take turns in random order.",
    ]
    figures = {name: Figure(taken) for name, taken in seconds.items()} | more
    return Report("Question to the first token", figures, notes, decimals=2)


class _Comparison:
    """The same question, asked in each way."""

    def __init__(self, url: str, directory: Path) -> None:
        self._url = url
        self._tickets = SQLiteTickets(directory / "tickets.db")

    async def measure(self, *, count: int) -> Mapping[str, list[float]]:
        chance = random.Random(_SEED)
        seconds: dict[str, list[float]] = defaultdict(list)
        async with AsyncOpenAI(api_key="bench", base_url=self._url, max_retries=0) as client:
            ways = await self._ways(client)
            # As a worker's processes do before they serve calls.
            gc.collect()
            gc.freeze()
            for _ in range(_WARM_UP + count):
                for name in chance.sample(list(ways), k=len(ways)):
                    seconds[name].append(await ways[name]())
        return {name: seconds[name][_WARM_UP:] for name in ways}

    async def _ways(self, client: AsyncOpenAI) -> Mapping[str, Way]:
        model = OpenAILLM(client, model="fixed")
        speculative = SpeculativeRouter(OpenAILLM(client, model=ROUTER))
        body = await self._body()

        def through_graph(router: AgentRouterPort, *, draft: bool) -> Way:
            async def way() -> float:
                agent = self._agent(model, router)
                # The first turn of a graph does what later ones need not.
                await _first_token(agent, draft=True)
                return await _first_token(agent, draft=draft)

            return way

        async def directly() -> float:
            await _first_token_directly(client, body)
            return await _first_token_directly(client, body)

        return {
            _DIRECT: directly,
            "graph": through_graph(sticky, draft=False),
            "graph, draft": through_graph(sticky, draft=True),
            "graph, speculative router": through_graph(speculative, draft=False),
        }

    def _agent(self, model: LLMPort, router: AgentRouterPort = sticky) -> SupervisorAgent:
        slots = {"name": "Ada", "locale": "en"}
        return build_supervisor(llm=model, open_ticket=self._tickets, slots=slots, history=_history(), router=router)

    async def _body(self) -> Mapping[str, object]:
        """What the graph sends, as somebody who uses the client directly would have it."""
        asked = _Asked()
        await _first_token(self._agent(asked), draft=True)
        return {
            "messages": [{"role": message.role, "content": message.content} for message in asked.messages],
            "tools": [
                {
                    "type": "function",
                    "function": {"name": one.name, "description": one.description, "parameters": one.parameters},
                }
                for one in asked.tools
            ],
        }


class _Asked:
    """A model that keeps what it was asked."""

    def __init__(self) -> None:
        self.messages: Sequence[Message] = ()
        self.tools: Sequence[ToolSchema] = ()

    async def __call__(
        self, messages: Sequence[Message], tools: Sequence[ToolSchema]
    ) -> AsyncGenerator[LLMEvent, None]:
        self.messages, self.tools = messages, tools
        yield Token("Noted.")


def _history() -> Sequence[Message]:
    said = ("How late are you open on Saturdays, and can I park there?", "Until one, and parking is behind the house.")
    return [
        Message(id=f"message_{n}", role=_ROLES[n % 2], content=f"{said[n % 2]} ({n})", specialist="front_desk")
        for n in range(_HISTORY)
    ]


async def _first_token(agent: SupervisorAgent, *, draft: bool) -> float:
    turn = UserTurn(uuid.uuid4().hex, "And when do you open on Mondays?")
    begun, heard = time.perf_counter(), 0.0
    async with aclosing(agent.respond(turn, draft=draft)) as events:
        async for event in events:
            if not heard and isinstance(event, TextDelta):
                heard = time.perf_counter()
    return heard - begun


async def _first_token_directly(client: AsyncOpenAI, body: Mapping[str, object]) -> float:
    begun, heard = time.perf_counter(), 0.0
    stream = await client.chat.completions.create(
        model="fixed", messages=[], stream=True, stream_options={"include_usage": True}, extra_body=body
    )
    async with stream:
        async for chunk in stream:
            if not heard and chunk.choices and chunk.choices[0].delta.content:
                heard = time.perf_counter()
    return heard - begun


@contextmanager
def _served() -> Iterator[str]:
    command = [sys.executable, "-m", "bench.fixed_model", "--first-token-delay", str(_FIRST_TOKEN_DELAY)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            yield f"http://{HOST}:{int(server.stdout.readline())}/v1"
        finally:
            server.terminate()
