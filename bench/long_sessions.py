"""What the graph's own work takes in the turns of a long session: the last ones must not cost more than the first.

The model and the tools are in this process and take no time. Nothing is waited for, so that the processor's time is
measured: other work on the machine does not count.
"""

import asyncio
import gc
import json
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from statistics import median

from bench.report import Figure, Report
from graphs.entities import LLMEvent, Message, Token, ToolCall, ToolCallStarted, ToolSchema, UsageReported, UserTurn
from graphs.supervisor import build_supervisor

_TURNS = 100
#: The same kinds of turns come round: of ten one hands over, one opens a ticket and one hands back.
_ROUND = 10
_KINDS = {
    2: ("transfer_to", {"specialist": "tech_support"}),
    3: ("open_ticket", {"summary": "The red light is on."}),
    5: ("transfer_to", {"specialist": "front_desk"}),
}
_QUESTION = "And when do you open on Mondays, and can I park there?"
_ANSWER = ("We open", " at nine,", " and parking", " is behind", " the house.")


def measure_long_sessions(*, sessions: int) -> Report:
    """Seconds of each turn of `sessions` sessions of 100 turns, from the question to the remembered answer."""
    asyncio.run(_session())
    taken = [asyncio.run(_session()) for _ in range(sessions)]
    ratios = sorted(sum(turns[-_ROUND:]) / sum(turns[:_ROUND]) for turns in taken)
    middle = (_TURNS - _ROUND) // 2
    figures = {
        "turns 1 to 10": Figure([turn for turns in taken for turn in turns[:_ROUND]]),
        "turns 46 to 55": Figure([turn for turns in taken for turn in turns[middle : middle + _ROUND]]),
        "turns 91 to 100": Figure([turn for turns in taken for turn in turns[-_ROUND:]]),
    }
    notes = [
        f"A session's last ten turns against its first ten: {median(ratios):.2f} in the middle, "
        f"{ratios[0]:.2f} to {ratios[-1]:.2f}.",
        "Of ten turns one hands over, one opens a ticket and one hands back.",
    ]
    return Report("The graph's own time in a session of 100 turns", figures, notes, decimals=2)


async def _session() -> Sequence[float]:
    model = _InstantModel()
    agent = build_supervisor(llm=model, open_ticket=_open_ticket, slots={"name": "Ada"})
    taken = []
    gc.collect()
    for number in range(_TURNS):
        turn = UserTurn(f"turn_{number}", _QUESTION)
        begun = time.process_time()
        agent.commit_user(Message(id=turn.turn_id, role="user", content=turn.text))
        async with aclosing(agent.respond(turn, draft=True)) as events:
            async for _ in events:
                pass
        agent.commit_assistant(turn.turn_id, "".join(_ANSWER), interrupted=False, item_id=f"reply_{number}")
        taken.append(time.process_time() - begun)
    return taken


async def _open_ticket(summary: str, *, idempotency_key: str) -> str:
    return "T1000"


class _InstantModel:
    """Does what the kind of the turn asks for, then answers in words."""

    def __init__(self) -> None:
        self._turns = 0

    async def __call__(
        self, messages: Sequence[Message], tools: Sequence[ToolSchema]
    ) -> AsyncGenerator[LLMEvent, None]:
        use = _KINDS.get(self._turns % _ROUND) if messages[-1].role == "user" else None
        if use is not None:
            name, arguments = use
            call_id = f"call_{self._turns}"
            yield ToolCallStarted(call_id, name)
            yield ToolCall(call_id, name, json.dumps(arguments))
        else:
            self._turns += 1
            for word in _ANSWER:
                yield Token(word)
        yield UsageReported(1000, len(_ANSWER))
