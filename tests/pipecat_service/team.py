"""A small team with a tool, and what it remembers, for the tests of the Pipecat service."""

from collections.abc import Mapping

from graphs.ports import AgentPort, LLMPort
from graphs.roster import Roster, Specialist, Tool
from graphs.supervisor import SupervisorAgent


async def _look_up(arguments: Mapping[str, object], *, idempotency_key: str) -> Mapping[str, object]:
    return {"summary": "It costs forty dollars."}


def agent_with(llm: LLMPort, *, active: str | None = None) -> SupervisorAgent:
    parameters = {"type": "object", "properties": {}, "additionalProperties": False}
    look_up = Tool("look_up", "Look a price up.", parameters, run=_look_up, has_side_effects=False)
    order = Tool("order", "Order it.", parameters, run=_look_up)
    front_desk = Specialist("front_desk", "Front desk", "everything", "Help.", bridge="One moment.")
    sales = Specialist("sales", "Sales", "prices", "Sell.", tools=(look_up, order))
    return SupervisorAgent(Roster([front_desk, sales]), llm=llm, slots={}, active=active)


def remembered(agent: AgentPort) -> list[str]:
    """What was said, one line for each message; an ellipsis marks an interrupted one."""
    return [
        f"{message.role}{'…' * message.interrupted}: {message.content}"
        for message in agent.history
        if message.role in ("user", "assistant") and not message.tool_calls
    ]
