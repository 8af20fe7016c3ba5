"""Where a turn goes next: from its start to a specialist, to the tools, and back or out.

Each is a coroutine function, because LangGraph gives any other to a thread, and the caller waits for that.
"""

from collections.abc import Awaitable, Callable

from langgraph.graph import END

from graphs.roster import Roster
from graphs.router import AgentRouterPort
from graphs.state import State

TOOLS = "run tools"


def route_turn(roster: Roster, router: AgentRouterPort) -> Callable[[State], Awaitable[str]]:
    async def route(state: State) -> str:
        return router.begin(state["active"], roster)

    return route


async def after_answer(state: State) -> str:
    return TOOLS if state["calls"] else END


async def after_tools(state: State) -> str:
    return str(state["active"])
