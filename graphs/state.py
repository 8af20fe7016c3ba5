"""What a turn knows: the graph's state, plain JSON so that any checkpointer can hold it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, TypedDict

from graphs.entities import Message, MessageRecord, PassageRecord, ToolCallRecord


def upsert(known: list[MessageRecord], new: Sequence[MessageRecord]) -> list[MessageRecord]:
    """The known messages with new ones appended, or replaced where the id is known."""
    merged = {message["id"]: message for message in known}
    merged.update((message["id"], message) for message in new)
    return list(merged.values())


class State(TypedDict):
    """State of the supervisor graph."""

    messages: Annotated[list[MessageRecord], upsert]
    active: str | None
    slots: Mapping[str, object]
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


@dataclass(frozen=True, slots=True)
class Turn:
    """What the nodes of one turn share that is not state.

    `remember(messages, active)` makes finished tool calls and a hand-over lasting at the moment they
    happen: a turn that is cut off later has still done them.
    """

    turn_id: str
    remember: Callable[[Sequence[Message], str], None]
