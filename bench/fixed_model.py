"""A chat model that knows one sentence and takes the same time for every first token: `python -m bench.fixed_model`.

A process of its own, so that it does not share an event loop with what is measured.
"""

import argparse
import asyncio
import json
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from aiohttp import ClientConnectionResetError, web

from graphs.router import STAY
from local.ports import HOST

#: Seconds between two tokens.
_TOKEN_INTERVAL = 0.005
#: The model of this name is a router's, and always lets the specialist speak.
ROUTER = "router"
_SENTENCE = ("We", " open", " at", " nine", ".")
_USAGE = {"prompt_tokens": 1000, "completion_tokens": len(_SENTENCE), "total_tokens": 1000 + len(_SENTENCE)}


def main() -> None:
    """Serve until killed; the port is the only line of the output."""
    parser = argparse.ArgumentParser(prog="python -m bench.fixed_model", description=__doc__)
    parser.add_argument("--first-token-delay", type=float, default=0.0, metavar="SECONDS")
    asyncio.run(_serve(parser.parse_args().first_token_delay))


async def _serve(delay: float) -> None:
    app = web.Application()
    app.router.add_post("/v1/chat/completions", _Model(delay).answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, HOST, 0).start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()


class _Model:
    def __init__(self, delay: float) -> None:
        self._delay = delay

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Read the whole request, as a server does, and stream the sentence."""
        due = time.perf_counter() + self._delay
        words = (STAY,) if (await request.json())["model"] == ROUTER else _SENTENCE
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await asyncio.sleep(due - time.perf_counter())
        with suppress(ClientConnectionResetError):
            # A router's verdict that comes too late is not waited for.
            await self._stream(response, words)
        return response

    async def _stream(self, response: web.StreamResponse, words: Sequence[str]) -> None:
        for token in words:
            await self._send(response, {"choices": [{"index": 0, "delta": {"content": token}}]})
            await asyncio.sleep(_TOKEN_INTERVAL)
        await self._send(response, {"choices": [], "usage": _USAGE})
        await response.write(b"data: [DONE]\n\n")

    async def _send(self, response: web.StreamResponse, fields: dict[str, Any]) -> None:
        chunk = {"id": "fixed", "object": "chat.completion.chunk", "created": 0, "model": "fixed"} | fields
        await response.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")


if __name__ == "__main__":
    main()
