"""The agents others talk to: a supervised team of specialists, or one specialist alone."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any, cast

from graphs.builder import Graph, build_graph
from graphs.configuration import AgentConfiguration
from graphs.configured import configured_roster
from graphs.entities import AgentEvent, Exchange, Message, UserTurn
from graphs.errors import TurnInProgress
from graphs.http_tools import NO_HTTP_ACCESS, HTTPAccess
from graphs.knowledge.catalogue import Catalogue, load_catalogue
from graphs.memory import Memory
from graphs.ports import LLMPort, OpenTicketPort
from graphs.retrieval import Retrieval
from graphs.roster import Roster, Services, Specialist
from graphs.router import AgentRouterPort, sticky
from graphs.state import Turn, beginning

OnExchange = Callable[[Exchange], None]

UNCONFIGURED = AgentConfiguration()


class _Attempt:
    """One answer of a turn; what it does is held back until the words that it answers are certain."""

    def __init__(self, turn_id: str, keep: OnExchange) -> None:
        self.draft_id = self._turn_id = turn_id
        self.confirmed = asyncio.Event()
        self._keep = keep
        self._held: list[Exchange] = []

    def confirm(self, turn_id: str) -> None:
        self._turn_id = turn_id
        self.confirmed.set()
        held, self._held = self._held, []
        for exchange in held:
            self.remember(exchange)

    def remember(self, exchange: Exchange) -> None:
        if self.confirmed.is_set():
            self._keep(replace(exchange, turn_id=self._turn_id))
        else:
            self._held.append(exchange)


class SupervisorAgent:
    """A team behind one `AgentPort`: the active specialist answers, and may hand the caller over.

    `slots` are facts about the caller. `history` continues an earlier conversation with `active`, or else with
    whoever answered last in it. With a `retrieval` each turn is looked up in the company's documents. `on_exchange` is
    told what a committed turn has done, at once, so that it can be stored.
    """

    def __init__(
        self,
        roster: Roster,
        *,
        llm: LLMPort,
        slots: Mapping[str, object],
        history: Sequence[Message] = (),
        active: str | None = None,
        router: AgentRouterPort = sticky,
        retrieval: Retrieval | None = None,
        on_exchange: OnExchange | None = None,
    ) -> None:
        self._graph: Graph = build_graph(roster, llm=llm, router=router, retrieval=retrieval)
        self._slots = dict(slots)
        self._roster = roster
        self._router = router
        self.restore(history, active=active)
        self._on_exchange = on_exchange
        self._attempt: _Attempt | None = None
        #: The newest confirmed draft, and the turn it answers: who asks it again means that turn.
        self._confirmed = ("", "")
        self._answering = False
        #: Held here because nobody else does when a turn is cut off.
        self._unfinished: set[asyncio.Task[Exchange]] = set()

    def restore(self, history: Sequence[Message], *, active: str | None) -> None:
        """Remember this conversation, and nothing else, as another process has left it; no answer may be open."""
        spoke = active or next((each.specialist for each in reversed(history) if each.specialist), None)
        self._memory = Memory(history, active=self._router.begin(spoke, self._roster))

    @property
    def active(self) -> str:
        return self._memory.active

    @property
    def history(self) -> Sequence[Message]:
        return tuple(self._memory.messages)

    def commit_user(self, message: Message) -> None:
        self._memory.commit_user(message)
        self._confirm_attempt(message.id, turn_id=message.id)

    def confirm(self, draft_id: str, *, turn_id: str) -> None:
        # It may not have begun: another answer is just being closed.
        self._confirmed = (draft_id, turn_id)
        self._confirm_attempt(draft_id, turn_id=turn_id)

    def _confirm_attempt(self, draft_id: str, *, turn_id: str) -> None:
        attempt = self._attempt
        if attempt is not None and attempt.draft_id == draft_id:
            attempt.confirm(turn_id)

    def commit_assistant(self, turn_id: str, text: str, *, interrupted: bool, item_id: str) -> None:
        self._memory.commit_assistant(turn_id, text, interrupted=interrupted, item_id=item_id)

    async def finish_tools(self, *, timeout: float) -> bool:
        unfinished = set(self._unfinished)
        if unfinished:
            await asyncio.wait(unfinished, timeout=timeout)
        return all(task.done() for task in unfinished)

    async def respond(self, turn: UserTurn, *, draft: bool = False) -> AsyncGenerator[AgentEvent, None]:
        if self._answering:
            raise TurnInProgress
        self._answering = True
        try:
            context = self._begin(turn, draft=draft)
            stream = cast(
                AsyncGenerator[AgentEvent, None],
                self._graph.astream(beginning(self._memory.active), context=context, stream_mode="custom"),
            )
            async with aclosing(stream) as events:
                async for event in events:
                    yield event
        finally:
            self._answering = False

    def _begin(self, turn: UserTurn, *, draft: bool) -> Turn:
        draft_id, confirmed_as = self._confirmed
        turn_id = confirmed_as if turn.turn_id == draft_id else turn.turn_id
        self._attempt = attempt = _Attempt(turn.turn_id, self._keep)
        words = Message(id=turn_id, role="user", content=turn.text)
        is_committed = self._memory.knows(turn_id)
        if is_committed:
            attempt.confirm(turn_id)
        elif not draft:
            self.commit_user(words)
        return Turn(
            turn_id=turn_id,
            history=[*self._memory.messages, *([words] if draft and not is_committed else [])],
            slots=self._slots,
            remember=attempt.remember,
            confirmed=attempt.confirmed,
            finish=self._finish,
        )

    async def _finish(self, work: Coroutine[Any, Any, Exchange]) -> Exchange:
        """Do what cannot be half done: it goes on, and is remembered, when whoever waits for it is cancelled."""
        task = asyncio.create_task(work)
        self._unfinished.add(task)
        task.add_done_callback(self._unfinished.discard)
        return await asyncio.shield(task)

    def _keep(self, exchange: Exchange) -> None:
        if not exchange.is_hand_over:
            # A tool that ended after its turn was cut off does not undo a hand-over made since.
            exchange = replace(exchange, receiver=self._memory.active)
        self._memory.remember(exchange.turn_id, exchange.messages, active=exchange.receiver)
        if self._on_exchange is not None:
            self._on_exchange(exchange)


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
        on_exchange: OnExchange | None = None,
    ) -> None:
        super().__init__(
            Roster([specialist]),
            llm=llm,
            slots=slots,
            history=history,
            retrieval=retrieval,
            on_exchange=on_exchange,
        )


def build_supervisor(
    *,
    llm: LLMPort,
    open_ticket: OpenTicketPort,
    slots: Mapping[str, object],
    configuration: AgentConfiguration = UNCONFIGURED,
    http_access: HTTPAccess = NO_HTTP_ACCESS,
    catalogue: Catalogue | None = None,
    history: Sequence[Message] = (),
    active: str | None = None,
    router: AgentRouterPort = sticky,
    retrieval: Retrieval | None = None,
    on_exchange: OnExchange | None = None,
) -> SupervisorAgent:
    """The team that `configuration` describes, or the whole roster; without a catalogue it is the demo company's.

    How it sounds and which model answers is for whoever brings `llm` and the voice.

    Raises RosterInvalid and CatalogueInvalid.
    """
    services = Services(catalogue=catalogue or load_catalogue(), open_ticket=open_ticket)
    return SupervisorAgent(
        configured_roster(configuration, services, http_access=http_access),
        llm=llm,
        slots=slots,
        history=history,
        active=active,
        router=router,
        retrieval=retrieval,
        on_exchange=on_exchange,
    )
