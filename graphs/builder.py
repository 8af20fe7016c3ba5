"""Builds the supervisor graph from a roster.

START ─(router)─▶ specialist ──text──▶ END
                    ▲   │ tool calls
                    └─ run tools        (a hand-over comes back as another specialist)
"""

from collections.abc import Hashable

from langgraph.graph import START, StateGraph
from langgraph.graph.state import CompiledStateGraph

from graphs.edges import TOOLS, after_answer, after_tools, route_turn
from graphs.nodes import answer, run_tools
from graphs.ports import LLMPort
from graphs.retrieval import Retrieval
from graphs.roster import Roster
from graphs.router import AgentRouterPort, sticky
from graphs.state import State, Turn

Graph = CompiledStateGraph[State, Turn, State, State]


def build_graph(
    roster: Roster,
    *,
    llm: LLMPort,
    router: AgentRouterPort = sticky,
    retrieval: Retrieval | None = None,
) -> Graph:
    """One node per specialist and one for tools; runs with a `Turn` as context and streams agent events.

    LangSmith traces a graph only if the process asks it to: callers' words leave the machine then, so
    workers set LANGSMITH_TRACING=false.
    """
    graph = StateGraph(State, context_schema=Turn)
    # A specialist may have the name of a field of the state, a node must not.
    nodes: dict[Hashable, str] = {name: f"answer as {name}" for name in roster}
    graph.add_conditional_edges(START, route_turn(roster, router), nodes)
    for specialist in roster.values():
        node = nodes[specialist.name]
        graph.add_node(node, answer(specialist, roster=roster, llm=llm, router=router, retrieval=retrieval))
        graph.add_conditional_edges(node, after_answer)
    graph.add_node(TOOLS, run_tools(roster))
    graph.add_conditional_edges(TOOLS, after_tools, nodes)
    return graph.compile()
