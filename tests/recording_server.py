"""A server that keeps every request whole and answers as little as the voice providers' clients need."""

import base64
import json
import ssl
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from aiohttp import web
from yarl import URL

#: 100 ms of silence, PCM16 at 24 kHz.
SILENCE = bytes(4800)


@dataclass(frozen=True)
class Recorded:
    """One request as it arrived; header names in lower case."""

    method: str
    url: URL
    headers: dict[str, str]
    body: bytes
    #: What the client said after the upgrade to a WebSocket.
    messages: list[dict[str, Any]] = field(default_factory=list)


class RecordingServer:
    """Listens on 127.0.0.1, and on a Unix socket when `socket` names one; speaks TLS when `tls` is given.

    `requests` is complete once the server is closed.
    """

    def __init__(self, *, tls: ssl.SSLContext | None = None, socket: Path | None = None) -> None:
        self._tls = tls
        self._socket = socket
        self._stack = AsyncExitStack()
        self.requests: list[Recorded] = []
        self.port = 0

    async def __aenter__(self) -> Self:
        app = web.Application(middlewares=[self._record])
        app.add_routes(
            [
                web.get("/v1/models", list_models),
                web.post("/v1/audio/transcriptions", transcribe),
                web.post("/v1/chat/completions", complete),
                web.post("/v1/speech-to-text", transcribe),
                web.post("/v1/audio/speech", speak),
                web.get("/v1/text-to-speech/{voice}/multi-stream-input", self._converse),
            ]
        )
        runner = web.AppRunner(app)
        await runner.setup()
        self._stack.push_async_callback(runner.cleanup)
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=self._tls).start()
        self.port = runner.addresses[0][1]
        if self._socket:
            await web.UnixSite(runner, self._socket, ssl_context=self._tls).start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    @web.middleware
    async def _record(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.requests.append(Recorded(request.method, request.url, headers, await request.read()))
        return await handler(request)

    async def _converse(self, request: web.Request) -> web.WebSocketResponse:
        messages = self.requests[-1].messages
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for frame in socket:
            message = json.loads(frame.data)
            messages.append(message)
            if message.get("close_context"):
                context = {"contextId": message["context_id"]}
                await socket.send_json(context | {"audio": base64.b64encode(SILENCE).decode()})
                await socket.send_json(context | {"isFinal": True})
        return socket


async def list_models(_: web.Request) -> web.Response:
    return web.json_response({"object": "list", "data": []})


async def transcribe(_: web.Request) -> web.Response:
    return web.json_response({"text": "How much is it?"})


async def complete(_: web.Request) -> web.Response:
    delta = {"index": 0, "delta": {"role": "assistant", "content": "Forty."}, "finish_reason": "stop"}
    chunk = {"id": "1", "object": "chat.completion.chunk", "created": 0, "model": "any", "choices": [delta]}
    return web.Response(text=f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n", content_type="text/event-stream")


async def speak(_: web.Request) -> web.Response:
    return web.Response(body=SILENCE, content_type="audio/pcm", headers={"X-Request-Id": "1"})
