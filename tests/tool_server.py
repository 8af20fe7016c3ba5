"""A server with endpoints for HTTP tools, good and bad, and with a chat model that uses the one tool it is offered."""

import asyncio
import gzip
import json
import ssl
from dataclasses import dataclass
from typing import Any, Self

from aiohttp import web

from graphs.http_tools import RESULT_LIMIT

#: What each address answers besides those with a handler of their own.
BODIES = {
    "list": b"[1, 2]",
    "nothing": b"",
    "words": b"It is fine.",
    "not a number": b'{"temperature": NaN}',
    "deep": b"[" * 12_000,
    "as much as allowed": json.dumps("x" * (RESULT_LIMIT - 2)).encode(),
    "one byte too many": json.dumps("x" * (RESULT_LIMIT - 1)).encode(),
    "half a character": b'{"summary": "\xc3"}',
}


@dataclass(frozen=True)
class Called:
    """One request to an endpoint; header names in lower case."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes


class ToolServer:
    """Listens on 127.0.0.1, with `tls` as localhost; keeps what was asked of the endpoints and of the model."""

    def __init__(self, *, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self.called: list[Called] = []
        self.prompts: list[dict[str, Any]] = []

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.add_routes(
            [
                web.post("/v1/chat/completions", self._complete),
                web.get("/v1/models", _models),
                web.route("*", "/{name:.*}", self._answer),
            ]
        )
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=self._tls).start()
        self.origin = f"{'https://localhost' if self._tls else 'http://127.0.0.1'}:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.called.append(Called(request.method, request.path, dict(request.query), headers, await request.read()))
        name = request.match_info["name"]
        if name == "weather":
            return web.json_response({"degrees": 21, "summary": "It is twenty one degrees."})
        if name == "slow":
            await asyncio.sleep(5)
        if name == "drips":
            return await _drip(request)
        if name == "moved":
            raise web.HTTPFound("/weather")
        if name == "packed":
            return web.Response(body=gzip.compress(b" " * 1_000_000), headers={"Content-Encoding": "gzip"})
        if name in BODIES:
            return web.Response(body=BODIES[name], content_type="application/json")
        return web.Response(status=500, text="secret details")

    async def _complete(self, request: web.Request) -> web.Response:
        prompt = await request.json()
        self.prompts.append(prompt)
        *_, last = prompt["messages"]
        tools = [tool["function"]["name"] for tool in prompt.get("tools", [])]
        wanted = next((name for name in tools if name != "transfer_to"), None)
        if last["role"] == "tool":
            delta: dict[str, Any] = {"content": json.loads(last["content"])["summary"]}
        elif wanted:
            function = {"name": wanted, "arguments": '{"city": "Oslo"}'}
            delta = {"tool_calls": [{"index": 0, "id": "call_1", "type": "function", "function": function}]}
        else:
            delta = {"content": "Nothing to use."}
        choice = {"index": 0, "delta": {"role": "assistant", **delta}, "finish_reason": None}
        chunk = {"id": "1", "object": "chat.completion.chunk", "created": 0, "model": "any", "choices": [choice]}
        return web.Response(text=f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n", content_type="text/event-stream")


async def _models(_: web.Request) -> web.Response:
    return web.json_response({"object": "list", "data": []})


async def _drip(request: web.Request) -> web.StreamResponse:
    """A byte in time, again and again: no wait is long, the whole is."""
    response = web.StreamResponse()
    await response.prepare(request)
    for _ in range(50):
        await response.write(b" ")
        await asyncio.sleep(0.1)
    return response
