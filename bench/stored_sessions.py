"""What a session of 100 turns stores in Redis and sends there, beside LangGraph's own way of remembering.

The server's own count of what it received is used; the model takes no time and the turns are stored as a call stores
them.
"""

import asyncio
import operator
import tempfile
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Annotated, Any, TypedDict

from redis.asyncio import Redis

from bench.report import Figure, Report
from graphs.checkpointer import open_checkpointer
from graphs.entities import LLMEvent, Message, MessageRecord, TextDelta, Token, ToolSchema, UserTurn
from graphs.supervisor import build_supervisor
from local.parts import REDIS, StackOptions
from local.stack import Stack
from worker.conversation.continuing import open_conversation
from worker.conversation.transcript import Transcript, Turn, exchange_turn
from worker.fleet import record_moves
from worker.fleet.redis_operations import connect_async, run_async
from worker.fleet.session import Session, State

_TURNS = 100
_QUESTION = "And when do you open on Mondays, and can I park there with a trailer?"
#: As long as an answer of three spoken sentences.
_ANSWER = (
    "We open at nine o'clock on Mondays and close at six. You can park behind the house, also with a trailer, if you "
    "come through the second gate. Is there anything else that I can do for you?"
)
_OWNER = "worker@bench#1"
_LIFETIME = 3900.0

Take = Callable[[int], Awaitable[None]]


class _Messages(TypedDict):
    """The state of a LangGraph conversation as its introduction has it."""

    messages: Annotated[list[MessageRecord], operator.add]


@dataclass(frozen=True)
class _Measured:
    """One session: bytes received and seconds of each turn, bytes stored in the end."""

    received: Sequence[int]
    seconds: Sequence[float]
    stored: int

    @property
    def growth(self) -> float:
        """What the last ten turns sent, against the first ten."""
        return sum(self.received[-10:]) / sum(self.received[:10])

    @property
    def worst_ten(self) -> int:
        """The most that any ten turns in a row sent."""
        return max(sum(self.received[start : start + 10]) for start in range(len(self.received) - 9))


def measure_stored_sessions(*, sessions: int) -> Report:
    """Turns of `sessions` sessions, ours and LangGraph's ways after the other, on a server of their own."""
    with tempfile.TemporaryDirectory() as folder:
        options = StackOptions(parts=frozenset({REDIS}), preferred_ports=False, home=Path(folder))
        with Stack(options=options) as stack:
            url = stack.settings["REDIS_URL"]
            ways = {
                "turn stream and checkpoint": partial(_ours, url),
                "LangGraph, a checkpoint each turn": partial(_langgraph, url, keep=1),
                "LangGraph, every checkpoint kept": partial(_langgraph, url, keep=None),
            }
            measured = {name: [asyncio.run(way()) for _ in range(sessions)] for name, way in ways.items()}
    figures = {name: Figure([each for one in all_ for each in one.seconds]) for name, all_ in measured.items()}
    return Report("A turn of a session of 100 turns, stored", figures, _notes(measured))


def _notes(measured: dict[str, list[_Measured]]) -> list[str]:
    return [
        f"{name}: {median(one.stored for one in all_) / 1000:.1f} kB stored in the end; the last ten turns send "
        f"{median(one.growth for one in all_):.2f} times what the first ten send "
        f"({median(sum(one.received[:10]) for one in all_) / 1000:.1f} and "
        f"{median(sum(one.received[-10:]) for one in all_) / 1000:.1f} kB); the most in any ten turns is "
        f"{median(one.worst_ten for one in all_) / 1000:.1f} kB, all together "
        f"{median(sum(one.received) for one in all_) / 1000:.1f} kB."
        for name, all_ in measured.items()
    ]


async def _ours(url: str) -> _Measured:
    """As a call does it: each item goes to the turn stream, and a checkpoint is written when it is worth it."""
    session = Session(
        session_id=f"ours-{time.monotonic_ns()}",
        tenant="bench",
        room="bench",
        user_id="caller",
        metadata={"name": "Ada"},
        state=State.QUEUED,
        epoch=1,
    )
    async with connect_async(url) as client:
        await run_async(client, record_moves.create(session, lifetime=_LIFETIME))
        session = await run_async(
            client, record_moves.claim(session.session_id, epoch=1, owner=_OWNER, lifetime=_LIFETIME)
        )
        opened = open_conversation(session, client=client, redis_url=url, lifetime=_LIFETIME, on_lost=_lost)
        async with opened as conversation, asyncio.TaskGroup() as group:
            transcript = Transcript(session, client=client, lifetime=_LIFETIME, on_lost=_lost)
            agent = build_supervisor(
                llm=_InstantModel(),
                open_ticket=_open_ticket,
                slots=dict(session.metadata),
                on_exchange=lambda exchange: transcript.add(exchange_turn(exchange)),
            )
            writing = group.create_task(transcript.write(then=partial(conversation.compact, agent, transcript)))

            async def take(number: int) -> None:
                turn = Turn(item_id=f"{number:032x}", role="user", at=time.time(), turn_id=f"{number:032x}")
                turn = replace(turn, text=_QUESTION, specialist=agent.active)
                agent.commit_user(Message(id=turn.item_id, role="user", content=turn.text))
                transcript.add(turn)
                said = ""
                async for event in agent.respond(UserTurn(turn.item_id, turn.text), draft=True):
                    said += event.text if isinstance(event, TextDelta) else ""
                reply = replace(turn, item_id=f"reply-{number:026x}", role="assistant", at=time.time(), text=said)
                agent.commit_assistant(turn.item_id, said, interrupted=False, item_id=reply.item_id)
                transcript.add(reply)
                await transcript.flush(timeout=5)

            measured = await _measure(url, session.session_id, take)
            writing.cancel()
    return measured


async def _langgraph(url: str, *, keep: int | None) -> _Measured:
    """As LangGraph does it: the graph's state is checkpointed in each turn, with the whole conversation in it."""
    from langgraph.graph import END, START, StateGraph

    session_id = f"langgraph-{time.monotonic_ns()}"

    async def answer(state: _Messages) -> _Messages:
        reply = Message(id=f"reply-{len(state['messages']):026x}", role="assistant", content=_ANSWER)
        return {"messages": [reply.record()]}

    async with open_checkpointer(url, ttl=_LIFETIME, keep=keep) as checkpointer:
        graph = StateGraph(_Messages)
        graph.add_node("front_desk", answer)
        graph.add_edge(START, "front_desk")
        graph.add_edge("front_desk", END)
        compiled = graph.compile(checkpointer=checkpointer)
        config: Any = {"configurable": {"thread_id": session_id}}

        async def take(number: int) -> None:
            words = Message(id=f"{number:032x}", role="user", content=_QUESTION)
            await compiled.ainvoke({"messages": [words.record()]}, config)

        return await _measure(url, session_id, take)


async def _measure(url: str, session_id: str, take: Take) -> _Measured:
    received, seconds = [], []
    async with Redis.from_url(url) as observer:
        own = await _received(observer)
        own = await _received(observer) - own
        for number in range(_TURNS):
            before, begun = await _received(observer), time.perf_counter()
            await take(number)
            seconds.append(time.perf_counter() - begun)
            # A checkpoint is written behind the turn.
            await asyncio.sleep(0.01)
            received.append(await _received(observer) - before - own)
        keys = [key async for key in observer.scan_iter(match=f"muster:{{s:{session_id}}}:*")]
        stored = sum([await observer.memory_usage(key, samples=0) or 0 for key in keys])
    return _Measured(received, seconds, stored)


async def _received(observer: "Redis") -> int:
    return int((await observer.info("stats"))["total_net_input_bytes"])


async def _open_ticket(summary: str, *, idempotency_key: str) -> str:
    return "T1000"


class _InstantModel:
    """Answers at once, always the same."""

    async def __call__(
        self, messages: Sequence[Message], tools: Sequence[ToolSchema]
    ) -> AsyncGenerator[LLMEvent, None]:
        yield Token(_ANSWER)


def _lost() -> None:
    raise RuntimeError("another owner holds the session of the measurement")
