"""What a turn knows: the graph's state, plain JSON, and what its nodes share besides."""

import asyncio
import operator
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypedDict

from graphs.entities import Exchange, Message, MessageRecord, PassageRecord, ToolCallRecord


class State(TypedDict):
    """What the nodes of one turn have made so far; a turn starts with none of it."""

    #: The tool calls of this turn that are done, each a request and its result.
    messages: Annotated[list[MessageRecord], operator.add]
    #: Who answers.
    active: str | None
    #: What this turn has said so far; not a message yet, because nobody knows how much of it was heard.
    spoken: str
    #: Tool calls that the model asked for and that have not run.
    calls: list[ToolCallRecord]
    model_calls: int
    hops: int
    #: What the documents say about the user's words.
    passages: list[PassageRecord]
    #: The sources that were searched for them, all of them when empty; None before the first search of the turn.
    searched: list[str] | None


class Update(TypedDict, total=False):
    """What a node changes in the state."""

    messages: list[MessageRecord]
    active: str
    spoken: str
    calls: list[ToolCallRecord]
    model_calls: int
    hops: int
    passages: list[PassageRecord]
    searched: list[str] | None


def beginning(active: str) -> State:
    """The state of a turn that begins with this specialist."""
    return {
        "messages": [],
        "active": active,
        "spoken": "",
        "calls": [],
        "model_calls": 0,
        "hops": 0,
        "passages": [],
        "searched": None,
    }


@dataclass(frozen=True, slots=True)
class Turn:
    """What the nodes of one turn share that is not state, so that a long conversation costs a turn nothing.

    `history` ends with the user's words, `slots` are facts about the caller. `remember` makes a finished tool call or
    hand-over lasting at the moment it happens: a turn that is cut off later has still done it. Tools with side effects
    wait for `confirmed`, and run to their end in `finish`, even when the turn is cut off meanwhile.
    """

    turn_id: str
    history: Sequence[Message]
    slots: Mapping[str, object]
    remember: Callable[[Exchange], None]
    confirmed: asyncio.Event
    finish: Callable[[Coroutine[Any, Any, Exchange]], Awaitable[Exchange]]

    @property
    def words(self) -> str:
        """What the user said in this turn."""
        return next((each.content for each in reversed(self.history) if each.role == "user"), "")

    @property
    def has_begun(self) -> bool:
        """Whether an earlier attempt to answer has done something already."""
        return bool(self.history) and self.history[-1].role != "user"
