"""The stand-in responder behind OpenAI's interface, without ears and voice, in a thread of the tests' own process."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from aiohttp import web

from graphs.knowledge.catalogue import DEMO
from local.providers.embeddings import SentenceEmbedder
from local.providers.responder import Answer, Responder
from local.providers.server import create_app
from tests.test_responder import bag_of_words

#: Seconds between two words: time enough to do something in the middle of an answer.
TOKEN_INTERVAL = 0.03


class ResponderServer:
    """Keeps the messages of every request; while `gate` is closed no answer begins."""

    def __init__(self) -> None:
        self.requests: list[list[dict[str, Any]]] = []
        self.gate = threading.Event()
        self.gate.set()
        self._responder = Responder(knowledge=DEMO, embed=bag_of_words)
        self.url = ""

    def answer(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> Answer:
        self.requests.append(messages)
        assert self.gate.wait(30)
        return self._responder.answer(messages, tools)

    @contextmanager
    def running(self) -> Iterator["ResponderServer"]:
        """Serve until the block ends."""
        ready, loop = threading.Event(), asyncio.new_event_loop()
        stop = asyncio.Event()

        async def serve() -> None:
            # Nobody asks for speech or embeddings.
            nothing = cast(SentenceEmbedder, None)
            app = create_app(
                recogniser=None, voice=None, embedder=nothing, responder=self, token_interval=TOKEN_INTERVAL
            )
            runner = web.AppRunner(app, shutdown_timeout=0.1)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            self.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
            ready.set()
            await stop.wait()
            await runner.cleanup()

        thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
        thread.start()
        try:
            assert ready.wait(20)
            yield self
        finally:
            self.gate.set()
            loop.call_soon_threadsafe(stop.set)
            thread.join()
            loop.close()
