"""A conversation of two turns that says its second answer word by word, to be killed in the middle.

python -m tests.crashing_graph REDIS_URL THREAD DURABILITY
"""

import asyncio
import operator
import sys
from typing import Annotated, Any, TypedDict

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime
from langgraph.types import Durability

from graphs.checkpointer import open_checkpointer

WORDS = 20


class Talk(TypedDict, total=False):
    said: Annotated[list[str], operator.add]
    active: str


async def _answer(state: Talk, runtime: Runtime) -> Talk:
    for number in range(WORDS):
        await asyncio.sleep(0.02)
        runtime.stream_writer(f"word {number}")
    return {"said": [f"answer to {state['said'][-1]}"]}


def conversation(checkpointer: BaseCheckpointSaver[str]) -> Any:
    """START -> router, which makes "sales" active -> sales, which answers."""
    graph = StateGraph(Talk)
    graph.add_node("router", lambda state: {"active": "sales"})
    graph.add_node("sales", _answer)
    graph.add_edge(START, "router")
    graph.add_edge("router", "sales")
    graph.add_edge("sales", END)
    return graph.compile(checkpointer=checkpointer)


async def _talk(url: str, thread: str, durability: Durability) -> None:
    config: RunnableConfig = {"configurable": {"thread_id": thread}}
    async with open_checkpointer(url, ttl=600, keep=2) as checkpointer:
        graph = conversation(checkpointer)
        await graph.ainvoke({"said": ["first"]}, config, durability=durability)
        words = graph.astream({"said": ["second"]}, config, durability=durability, stream_mode="custom")
        async for word in words:
            print(word, flush=True)


if __name__ == "__main__":
    asyncio.run(_talk(sys.argv[1], sys.argv[2], sys.argv[3]))  # type: ignore[arg-type]
