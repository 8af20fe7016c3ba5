"""The model adapters: what reaches the server, what comes back, and who is asked when one fails."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager

import pytest
from aiohttp import web
from openai import APITimeoutError, AsyncOpenAI

from graphs.entities import LLMEvent, Message, Token, ToolCall, ToolCallStarted, ToolSchema, UsageReported
from graphs.errors import LLMUnavailable
from graphs.llm.fallback import FallbackLLM
from graphs.llm.openai import OpenAILLM
from graphs.ports import LLMPort
from tests.model_server import Handler, chunk, replies, send, serving, stream, tool_piece
from tests.scripted_llm import ScriptedLLM, says

Adapt = Callable[[OpenAILLM], LLMPort]
QUESTION = (Message(id="u", role="user", content="hi"),)


@asynccontextmanager
async def served(handler: Handler, *, timeout: float = 5.0) -> AsyncGenerator[OpenAILLM, None]:
    """An adapter whose client, with retries as an SDK has them by default, talks to a real HTTP server."""
    async with serving(handler) as url, AsyncOpenAI(api_key="test", base_url=url) as client:
        yield OpenAILLM(client, model="small", timeout=timeout)


async def ask(llm: LLMPort, tools: Sequence[ToolSchema] = ()) -> list[LLMEvent]:
    async with aclosing(llm(QUESTION, tools)) as events:
        return [event async for event in events]


def alone(llm: OpenAILLM) -> LLMPort:
    return llm


def without_others(llm: OpenAILLM) -> LLMPort:
    return FallbackLLM(llm)


def after_another(llm: OpenAILLM) -> LLMPort:
    return FallbackLLM(ScriptedLLM([unavailable()]), llm)


@pytest.fixture(params=[alone, without_others, after_another], ids=["openai", "fallback", "fallback's second"])
def adapt(request: pytest.FixtureRequest) -> Adapt:
    """Each implementation of the port before a real server: the tests that take it are the port's contract."""
    made: Adapt = request.param
    return made


async def test_text_arrives_as_it_comes(adapt: Adapt) -> None:
    heard = asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        response = await stream(request)
        await send(response, chunk(content="We are"))
        await heard.wait()
        await send(response, chunk(content=" open."))
        await send(response, "[DONE]")
        return response

    async with served(handler) as llm, aclosing(adapt(llm)(QUESTION, ())) as events:
        assert await anext(events) == Token("We are")
        heard.set()
        assert [event async for event in events] == [Token(" open.")]


async def test_the_exact_body_that_reaches_the_server() -> None:
    bodies = []

    async def handler(request: web.Request) -> web.StreamResponse:
        bodies.append(await request.json())
        return await replies(chunk(content="ok"))(request)

    call = ToolCall("c1", "look_up", '{"product": "pro"}')
    messages = [
        Message(id="s", role="system", content="Be brief.", specialist="sales"),
        Message(id="u", role="user", content="How much?"),
        Message(id="c", role="assistant", tool_calls=(call,)),
        Message(id="r", role="tool", content='{"price": 49}', tool_call_id="c1"),
        Message(id="a", role="assistant", content="Forty", interrupted=True),
    ]
    tool = ToolSchema("look_up", "Find a price.", {"type": "object", "properties": {}})
    async with served(handler) as llm, aclosing(llm(messages, [tool])) as events:
        assert [event async for event in events] == [Token("ok")]
    function = {"name": "look_up", "description": "Find a price.", "parameters": tool.parameters}
    wire_call = {"id": "c1", "type": "function", "function": {"name": "look_up", "arguments": call.arguments}}
    assert bodies == [
        {
            "model": "small",
            "stream": True,
            "stream_options": {"include_usage": True},
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "How much?"},
                {"role": "assistant", "content": None, "tool_calls": [wire_call]},
                {"role": "tool", "content": '{"price": 49}', "tool_call_id": "c1"},
                {"role": "assistant", "content": "Forty"},
            ],
            "tools": [{"type": "function", "function": function}],
        }
    ]


async def test_no_tools_are_mentioned_when_there_are_none() -> None:
    bodies = []

    async def handler(request: web.Request) -> web.StreamResponse:
        bodies.append(await request.json())
        return await replies(chunk(content="ok"))(request)

    async with served(handler) as llm:
        await ask(llm)
    assert "tools" not in bodies[0]


async def test_a_tool_call_in_pieces_is_announced_by_name_and_then_complete(adapt: Adapt) -> None:
    usage = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
    handler = replies(
        tool_piece(0, id="c1", type="function", name="a", arguments=""),
        tool_piece(0, arguments='{"x"'),
        tool_piece(1, id="c2", type="function", name="b", arguments="{}"),
        tool_piece(0, arguments=": 1}") | {"usage": usage | {"completion_tokens": 1}},
        {"id": "x", "object": "chat.completion.chunk", "choices": [], "usage": usage},
    )
    async with served(handler) as llm:
        assert await ask(adapt(llm)) == [
            ToolCallStarted("c1", "a"),
            ToolCallStarted("c2", "b"),
            ToolCall("c1", "a", '{"x": 1}'),
            ToolCall("c2", "b", "{}"),
            UsageReported(7, 2),
        ]


async def test_calls_without_an_id_get_one_that_no_other_call_has(adapt: Adapt) -> None:
    handler = replies(tool_piece(0, name="a", arguments="{}"), tool_piece(1, name="a", arguments="{}"))
    async with served(handler) as llm:
        made = [event for _ in range(2) for event in await ask(adapt(llm)) if isinstance(event, ToolCall)]
    assert len({call.id for call in made}) == len(made) == 4


async def test_closing_the_answer_closes_the_connection(adapt: Adapt) -> None:
    gone = asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        response = await stream(request)
        try:
            for _ in range(1000):
                await send(response, chunk(content="word "))
                await asyncio.sleep(0.01)
        finally:
            gone.set()
        return response

    async with served(handler) as llm:
        async with aclosing(adapt(llm)(QUESTION, ())) as events:
            assert await anext(events) == Token("word ")
        await asyncio.wait_for(gone.wait(), 2)


@pytest.mark.parametrize(("status", "retryable"), [(401, False), (400, False), (429, True), (503, True)])
async def test_an_error_answer_is_asked_once_and_says_whether_to_retry(
    adapt: Adapt, status: int, retryable: bool
) -> None:
    asked = []

    async def handler(request: web.Request) -> web.StreamResponse:
        asked.append(status)
        return web.json_response({"error": {"message": "no"}}, status=status)

    async with served(handler) as llm:
        with pytest.raises(LLMUnavailable) as caught:
            await ask(adapt(llm))
    assert caught.value.retryable is retryable
    assert asked == [status]


@pytest.mark.parametrize("first", [(), ("We",)], ids=["from the start", "after a word"])
async def test_a_silent_server_is_given_up_after_the_timeout(adapt: Adapt, first: Sequence[str]) -> None:
    over = asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        for word in first:
            await response.prepare(request)
            await send(response, chunk(content=word))
        await over.wait()
        return response

    async with served(handler, timeout=0.2) as llm:
        with pytest.raises(LLMUnavailable) as caught:
            await ask(adapt(llm))
        over.set()
    assert caught.value.retryable
    assert isinstance(caught.value.cause, APITimeoutError)


async def test_a_connection_that_breaks_inside_the_answer_is_an_error_of_the_model(adapt: Adapt) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = await stream(request)
        await send(response, chunk(content="We"))
        assert request.transport is not None
        request.transport.abort()
        return response

    async with served(handler) as llm:
        with pytest.raises(LLMUnavailable) as caught:
            await ask(adapt(llm))
    assert caught.value.retryable


@pytest.mark.parametrize("poison", ['{"error": {"message": "overloaded"}}', "{not json"])
async def test_an_error_inside_the_stream_is_an_error_of_the_model(adapt: Adapt, poison: str) -> None:
    async with served(replies(chunk(content="We"), poison)) as llm:
        heard = []
        with pytest.raises(LLMUnavailable) as caught:
            async with aclosing(adapt(llm)(QUESTION, ())) as events:
                async for event in events:
                    heard.append(event)
    assert heard == [Token("We")]
    assert caught.value.retryable


async def test_nobody_listening_is_an_error_of_the_model() -> None:
    async with AsyncOpenAI(api_key="test", base_url="http://127.0.0.1:1/v1") as client:
        with pytest.raises(LLMUnavailable) as caught:
            await ask(OpenAILLM(client, model="small"))
    assert caught.value.retryable


def unavailable() -> LLMUnavailable:
    return LLMUnavailable(cause=ConnectionError(), retryable=True)


async def test_the_next_model_answers_when_the_first_fails_before_its_first_token() -> None:
    second = ScriptedLLM(says("Hello."))
    assert await ask(FallbackLLM(ScriptedLLM([unavailable()]), second)) == [Token("Hello.")]


async def test_the_next_model_is_left_alone_while_the_first_works() -> None:
    second = ScriptedLLM()
    assert await ask(FallbackLLM(ScriptedLLM(says("Hello.")), second)) == [Token("Hello.")]
    assert second.requests == []


async def test_an_answer_that_broke_off_is_never_started_over_by_another_model() -> None:
    second = ScriptedLLM(says("Hello."))
    with pytest.raises(LLMUnavailable):
        await ask(FallbackLLM(ScriptedLLM([*says("We"), unavailable()]), second))
    assert second.requests == []


async def test_when_every_model_fails_the_last_error_is_raised() -> None:
    last = unavailable()
    with pytest.raises(LLMUnavailable) as caught:
        await ask(FallbackLLM(ScriptedLLM([unavailable()]), ScriptedLLM([last])))
    assert caught.value is last


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


async def test_a_model_that_failed_is_left_alone_until_it_has_rested() -> None:
    first, second = ScriptedLLM([unavailable()], says("First.")), ScriptedLLM(says("One."), says("Two."))
    clock = Clock()
    llm = FallbackLLM(first, second, rest=30, clock=clock)
    assert await ask(llm) == [Token("One.")]
    clock.now += 29
    assert await ask(llm) == [Token("Two.")]
    assert len(first.requests) == 1
    clock.now += 1
    assert await ask(llm) == [Token("First.")]


async def test_a_model_that_broke_off_rests_too() -> None:
    first, second = ScriptedLLM([*says("We"), unavailable()]), ScriptedLLM(says("One."))
    llm = FallbackLLM(first, second, clock=Clock())
    with pytest.raises(LLMUnavailable):
        await ask(llm)
    assert await ask(llm) == [Token("One.")]


async def test_the_rest_doubles_with_each_failure_in_a_row_and_has_an_end() -> None:
    first = ScriptedLLM(*[[unavailable()]] * 4, says("Back."), [unavailable()], says("Back."))
    clock, asked = Clock(), list[float]()
    llm = FallbackLLM(first, ScriptedLLM(*[says("One.")] * 100), rest=10, longest_rest=40, clock=clock)
    for _ in range(14):
        before = len(first.requests)
        await ask(llm)
        asked += [clock.now - 1000] * (len(first.requests) - before)
        clock.now += 10
    assert asked == [0, 10, 30, 70, 110, 120, 130]


async def test_when_all_others_fail_too_a_resting_model_is_asked() -> None:
    first, second = ScriptedLLM([unavailable()], says("Back.")), ScriptedLLM(says("One."), [unavailable()])
    llm = FallbackLLM(first, second, clock=Clock())
    assert await ask(llm) == [Token("One.")]
    assert await ask(llm) == [Token("Back.")]


async def test_an_answer_that_nobody_waits_for_is_no_failure_of_its_model() -> None:
    first, second = ScriptedLLM([asyncio.Event()], says("First.")), ScriptedLLM()
    llm = FallbackLLM(first, second, clock=Clock())
    asking = asyncio.create_task(ask(llm))
    await asyncio.sleep(0)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    assert await ask(llm) == [Token("First.")]
