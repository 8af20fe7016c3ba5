"""Where a turn goes next: from its start to a specialist, to the tools, and back or out."""

from collections.abc import Callable

from langgraph.graph import END

from graphs.roster import Roster
from graphs.router import AgentRouterPort
from graphs.state import State

TOOLS = "run tools"


def route_turn(roster: Roster, router: AgentRouterPort) -> Callable[[State], str]:
    def route(state: State) -> str:
        return router.begin(state["active"], roster)

    return route


def after_answer(state: State) -> str:
    return TOOLS if state["calls"] else END


def after_tools(state: State) -> str:
    return str(state["active"])
