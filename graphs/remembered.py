"""The lasting state of a conversation, as the state of a graph that a checkpointer keeps."""

from typing import Any, TypedDict

from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.graph import END, START, StateGraph

from graphs.entities import Message, MessageRecord, Session
from graphs.errors import MemoryUnreadable

_NODE = "conversation"


class Remembered(TypedDict):
    """A `Session` as plain JSON; each save replaces the whole of it."""

    messages: list[MessageRecord]
    active: str
    slots: dict[str, object]
    cursor: str


class SessionMemory:
    """Saves and loads one session, which is one thread of the checkpointer.

    One or two kept checkpoints are enough, because nothing goes back to an earlier one. Both methods raise
    what the checkpointer raises, such as MemoryUnavailable and StaleWriter.
    """

    def __init__(self, checkpointer: BaseCheckpointSaver[str], *, session_id: str) -> None:
        graph = StateGraph(Remembered)
        graph.add_node(_NODE, lambda state: {})
        graph.add_edge(START, _NODE)
        graph.add_edge(_NODE, END)
        self._graph = graph.compile(checkpointer=checkpointer)
        self._session_id = session_id

    async def load(self) -> Session | None:
        """The session as it was saved last; None when it never was. Raises MemoryUnreadable."""
        state = await self._graph.aget_state({"configurable": {"thread_id": self._session_id}})
        return self._session(state.values) if state.values else None

    async def save(self, session: Session) -> None:
        """Remember the session in place of what was remembered of it."""
        if session.session_id != self._session_id:
            raise ValueError("this is the memory of another session")
        remembered: Remembered = {
            "messages": [message.record() for message in session.messages],
            "active": session.active,
            "slots": dict(session.slots),
            "cursor": session.cursor,
        }
        config: Any = {"configurable": {"thread_id": self._session_id}}
        await self._graph.aupdate_state(config, remembered, as_node=_NODE)

    def _session(self, remembered: Any) -> Session:
        try:
            return Session(
                session_id=self._session_id,
                slots=remembered["slots"],
                messages=tuple(map(Message.of, remembered["messages"])),
                active=remembered["active"],
                cursor=remembered["cursor"],
            )
        except (KeyError, TypeError) as error:
            raise MemoryUnreadable from error
