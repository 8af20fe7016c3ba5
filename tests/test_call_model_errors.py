"""What LiveKit is told when the model's server does not answer, from a real server to LiveKit's own retries."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from livekit.agents import (
    APIConnectionError,
    APIConnectOptions,
    APIError,
    APIStatusError,
    APITimeoutError,
    llm,
)
from openai import AsyncOpenAI

from graphs.llm.openai import OpenAILLM
from graphs.roster import Specialist
from graphs.supervisor import SpecialistAgent
from tests.model_server import chunk, replies, send, serving, stream
from worker.call.agent_llm import AgentLLM

DESK = Specialist(name="desk", title="Desk", description="everything", instructions="Be kind.")
SECRET = "my number is five five five"


class Server:
    """A model's server that gives these answers in turn; a number is a status, "hang" is silence."""

    def __init__(self, *answers: object) -> None:
        self._answers = list(answers)
        self.asked = 0
        self.over = asyncio.Event()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        answer = self._answers[self.asked]
        self.asked += 1
        if isinstance(answer, int):
            error = {"error": {"message": f"You said: {SECRET}"}}
            return web.json_response(error, status=answer, headers={"x-request-id": "req_7"})
        if answer == "hang":
            await self.over.wait()
            return web.Response()
        if answer == "break":
            response = await stream(request)
            await send(response, chunk(content="We"))
            assert request.transport is not None
            request.transport.abort()
            return response
        usage = {"prompt_tokens": 20, "completion_tokens": 2, "total_tokens": 22}
        return await replies(chunk(content=str(answer)), chunk() | {"usage": usage})(request)


@asynccontextmanager
async def before(server: Server) -> AsyncIterator[AgentLLM]:
    async with serving(server.handle) as url, AsyncOpenAI(api_key="test", base_url=url) as client:
        agent = SpecialistAgent(DESK, llm=OpenAILLM(client, model="small", timeout=0.3), slots={})
        try:
            yield AgentLLM(agent, observe=lambda turn_id, event, at: None, warm=client.models.list)
        finally:
            server.over.set()


async def reply(server: Server, *, retries: int = 0) -> list[llm.ChatChunk]:
    """All chunks of the reply to one turn; `retries` are LiveKit's."""
    context = llm.ChatContext.empty()
    context.add_message(role="user", content="hello?", id="turn_1")
    options = APIConnectOptions(max_retry=retries, retry_interval=0)
    async with before(server) as agent_llm, agent_llm.chat(chat_ctx=context, conn_options=options) as chunks:
        return [chunk async for chunk in chunks]


def text_of(chunks: Sequence[llm.ChatChunk]) -> str:
    return "".join(chunk.delta.content or "" for chunk in chunks if chunk.delta)


@pytest.mark.parametrize(("status", "retryable"), [(400, False), (401, False), (404, False), (429, True), (500, True)])
async def test_a_status_reaches_livekit_with_its_request_id(status: int, retryable: bool) -> None:
    with pytest.raises(APIStatusError) as caught:
        await reply(Server(status))
    assert (caught.value.status_code, caught.value.request_id) == (status, "req_7")
    assert caught.value.retryable is retryable


async def test_silence_reaches_livekit_as_a_time_out() -> None:
    with pytest.raises(APITimeoutError) as caught:
        await reply(Server("hang"))
    assert caught.value.retryable


async def test_a_broken_connection_reaches_livekit_as_one_that_is_not_tried_again_after_a_word() -> None:
    server = Server("break", "never asked")
    with pytest.raises(APIConnectionError) as caught:
        await reply(server, retries=1)
    assert not isinstance(caught.value, APITimeoutError)
    assert not caught.value.retryable
    assert server.asked == 1


@pytest.mark.parametrize("trouble", [429, 500, "hang"])
async def test_livekit_asks_again_what_may_succeed(trouble: object) -> None:
    server = Server(trouble, "Hello.")
    assert text_of(await reply(server, retries=1)) == "Hello."
    assert server.asked == 2


@pytest.mark.parametrize("status", [400, 401])
async def test_livekit_does_not_ask_again_what_will_fail_again(status: int) -> None:
    server = Server(status, "never asked")
    with pytest.raises(APIStatusError):
        await reply(server, retries=1)
    assert server.asked == 1


async def test_a_request_that_the_server_calls_closed_is_no_empty_reply() -> None:
    with pytest.raises(APIConnectionError):
        await reply(Server(499))


@pytest.mark.parametrize("trouble", [400, 500, "break"])
async def test_no_error_quotes_what_the_server_says(trouble: object, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(APIError) as caught:
        await reply(Server(trouble, trouble), retries=1)
    assert SECRET not in f"{caught.value} {caught.value!r} {caplog.text}"


async def test_what_a_turn_consumed_reaches_livekit() -> None:
    chunks = await reply(Server("Hello."))
    assert [chunk.usage for chunk in chunks if chunk.usage] == [
        llm.CompletionUsage(prompt_tokens=20, completion_tokens=2, total_tokens=22)
    ]
    assert {chunk.id for chunk in chunks} == {"turn_1"}
