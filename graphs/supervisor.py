"""The agents others talk to: a supervised team of specialists, or one specialist alone."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import cast

from graphs.builder import Graph, build_graph
from graphs.entities import AgentEvent, Message, UserTurn
from graphs.errors import TurnInProgress
from graphs.knowledge.catalogue import Catalogue, load_catalogue
from graphs.memory import Memory
from graphs.ports import LLMPort, OpenTicketPort
from graphs.retrieval import Retrieval
from graphs.roster import Roster, Services, Specialist, load_roster
from graphs.router import AgentRouterPort, sticky
from graphs.specialists import ROSTER
from graphs.state import State, Turn


class SupervisorAgent:
    """A team behind one `AgentPort`: the active specialist answers, and may hand the caller over.

    `slots` are facts about the caller. `history` continues an earlier conversation with whoever
    answered last in it. With a `retrieval` each turn is looked up in the company's documents.
    """

    def __init__(
        self,
        roster: Roster,
        *,
        llm: LLMPort,
        slots: Mapping[str, object],
        history: Sequence[Message] = (),
        router: AgentRouterPort = sticky,
        retrieval: Retrieval | None = None,
    ) -> None:
        self._graph: Graph = build_graph(roster, llm=llm, router=router, retrieval=retrieval)
        self._slots = dict(slots)
        spoke = [message.specialist for message in history if message.specialist is not None]
        self._memory = Memory(history, active=router(spoke[-1] if spoke else None, roster))
        self._answering = False

    @property
    def active(self) -> str:
        return self._memory.active

    @property
    def history(self) -> Sequence[Message]:
        return tuple(self._memory.messages)

    def commit_user(self, message: Message) -> None:
        self._memory.commit_user(message)

    def commit_assistant(self, turn_id: str, text: str, *, interrupted: bool, item_id: str) -> None:
        self._memory.commit_assistant(turn_id, text, interrupted=interrupted, item_id=item_id)

    async def respond(self, turn: UserTurn) -> AsyncGenerator[AgentEvent, None]:
        if self._answering:
            raise TurnInProgress
        self._answering = True
        try:
            self.commit_user(Message(id=turn.turn_id, role="user", content=turn.text))
            stream = cast(
                AsyncGenerator[AgentEvent, None],
                self._graph.astream(
                    self._state(),
                    context=Turn(turn_id=turn.turn_id, remember=self._memory.remember),
                    stream_mode="custom",
                ),
            )
            async with aclosing(stream) as events:
                async for event in events:
                    yield event
        finally:
            self._answering = False

    def _state(self) -> State:
        return {
            "messages": [message.record() for message in self._memory.messages],
            "active": self._memory.active,
            "slots": self._slots,
            "spoken": "",
            "calls": [],
            "model_calls": 0,
            "hops": 0,
            "passages": [],
            "searched": None,
        }


class SpecialistAgent(SupervisorAgent):
    """One specialist behind the same `AgentPort`, with nobody to hand over to."""

    def __init__(
        self,
        specialist: Specialist,
        *,
        llm: LLMPort,
        slots: Mapping[str, object],
        history: Sequence[Message] = (),
        retrieval: Retrieval | None = None,
    ) -> None:
        super().__init__(Roster([specialist]), llm=llm, slots=slots, history=history, retrieval=retrieval)


def build_supervisor(
    *,
    llm: LLMPort,
    open_ticket: OpenTicketPort,
    slots: Mapping[str, object],
    roster: Sequence[str] = ROSTER,
    catalogue: Catalogue | None = None,
    history: Sequence[Message] = (),
    retrieval: Retrieval | None = None,
) -> SupervisorAgent:
    """The team named by `roster`, module by module; without a catalogue it is the demo company's.

    Raises RosterInvalid and CatalogueInvalid.
    """
    services = Services(catalogue=catalogue or load_catalogue(), open_ticket=open_ticket)
    return SupervisorAgent(load_roster(roster, services), llm=llm, slots=slots, history=history, retrieval=retrieval)
