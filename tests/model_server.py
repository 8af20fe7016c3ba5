"""A real HTTP server in the place of a chat model's, and the pieces of what it streams."""

import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

from aiohttp import web

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def serving(handler: Handler) -> AsyncGenerator[str, None]:
    """The base URL of a server that answers chat completions."""
    app = web.Application()
    app.router.add_post("/v1/chat/completions", handler)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    finally:
        await runner.cleanup()


async def stream(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    return response


async def send(response: web.StreamResponse, chunk: object) -> None:
    data = chunk if isinstance(chunk, str) else json.dumps(chunk)
    await response.write(f"data: {data}\n\n".encode())


def chunk(**delta: object) -> dict[str, object]:
    return {"id": "x", "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta}]}


def tool_piece(index: int, *, arguments: str, **start: object) -> dict[str, object]:
    function = {"arguments": arguments} | ({"name": start.pop("name")} if "name" in start else {})
    return chunk(tool_calls=[{"index": index, "function": function, **start}])


def replies(*chunks: object) -> Handler:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = await stream(request)
        for piece in chunks:
            await send(response, piece)
        await send(response, "[DONE]")
        return response

    return handler
