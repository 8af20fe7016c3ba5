"""Holds a scenario in text: the agent of a call without the call, in this process."""

import json
import tempfile
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field
from pathlib import Path

from graphs.entities import LLMEvent, Message, TextDelta, ToolCalled, ToolSchema, Transferred, UserTurn
from graphs.errors import DocumentUnreadable, LLMUnavailable
from graphs.knowledge.catalogue import Catalogue
from graphs.knowledge.documents import chunks
from graphs.knowledge.index import edit_index
from graphs.knowledge.reading import read_document
from graphs.knowledge.search import FullTextSearch
from graphs.ports import AgentPort, LLMPort, RAGPort
from graphs.retrieval import Retrieval
from graphs.supervisor import build_supervisor
from graphs.tickets import SQLiteTickets
from muster.evals.expectations import judge
from muster.evals.outcome import Answer, LineResult, Outcome, ToolUse
from muster.evals.scenario import Line, Script
from muster.evals.words import count_words, first_words

#: Words a model may be ahead of the voice when the caller interrupts.
AHEAD = 12

#: Opens the search of the company's documents; who calls it closes it.
OpenSearch = Callable[[], RAGPort]


class TextRunner:
    """Holds scenarios with one model; each of them has an agent, memory and tickets of its own.

    `open_search` is the search of documents for scenarios that bring none; `budget` seconds is what it may take.
    """

    def __init__(
        self,
        *,
        llm: LLMPort,
        catalogue: Catalogue | None = None,
        open_search: OpenSearch | None = None,
        budget: float = 0.15,
    ) -> None:
        self._llm = llm
        self._catalogue = catalogue
        self._open_search = open_search
        self._budget = budget

    async def run(self, script: Script, *, number: int = 1) -> Outcome:
        """The whole scenario; what a model's failure leaves unsaid is missing in the outcome's lines."""
        started = time.monotonic()
        error = None
        lines: list[LineResult] = []
        async with AsyncExitStack() as stack:
            try:
                conversation = await self._open(script, stack)
                for line in script.scenario.lines:
                    before = [result.answer for result in lines]
                    lines.append(judge(line, await conversation.answer(line), before=before))
            except (LLMUnavailable, DocumentUnreadable) as failure:
                error = str(failure)
        return Outcome(script, tuple(lines), time.monotonic() - started, error, number)

    async def _open(self, script: Script, stack: AsyncExitStack) -> "_Conversation":
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        search = _search_of(script, folder) or (self._open_search() if self._open_search else None)
        if search is not None:
            stack.push_async_callback(search.aclose)
        witness = _Witness(self._llm)
        agent = build_supervisor(
            llm=witness,
            open_ticket=SQLiteTickets(folder / "tickets.db"),
            slots=script.scenario.slots,
            catalogue=self._catalogue,
            retrieval=Retrieval(search, budget=self._budget) if search else None,
        )
        return _Conversation(agent, witness)


def _search_of(script: Script, folder: Path) -> RAGPort | None:
    """The search of the documents that a scenario brings, found from where its file is. Raises DocumentUnreadable."""
    documents = script.scenario.documents
    if not documents:
        return None
    with edit_index(folder / "knowledge.db") as editor:
        for path in documents:
            document = read_document(script.file.parent / path)
            editor.put(document.source, list(chunks(document)))
    return FullTextSearch(folder / "knowledge.db")


class _Witness:
    """The model, and the messages it was called with last."""

    def __init__(self, llm: LLMPort) -> None:
        self._llm = llm
        self.calls: list[Sequence[Message]] = []

    async def __call__(
        self, messages: Sequence[Message], tools: Sequence[ToolSchema]
    ) -> AsyncGenerator[LLMEvent, None]:
        self.calls.append(messages)
        async with aclosing(self._llm(messages, tools)) as events:
            async for event in events:
                yield event


@dataclass(slots=True)
class _Turn:
    """An answer while it is given."""

    turn_id: str
    text: str = ""
    specialist: str | None = None
    hands_over: list[str] = field(default_factory=list)
    called: list[ToolCalled] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Cut:
    """An interrupted answer: what was heard of it and what the model had written."""

    turn_id: str
    heard: str
    written: str


class _Conversation:
    """Says the caller's lines to an agent, and interrupts it as a voice call does."""

    def __init__(self, agent: AgentPort, witness: _Witness) -> None:
        self._agent = agent
        self._witness = witness
        self._turns = 0
        self._cuts: list[_Cut] = []

    async def answer(self, line: Line) -> Answer:
        """The agent's answer to a line, as far as the caller heard it. Raises LLMUnavailable."""
        self._turns += 1
        self._witness.calls.clear()
        turn = await self._take(line)
        troubles = [trouble for cut in self._cuts for trouble in self._leaks(cut)]
        interrupted = line.barge_in_at is not None and count_words(turn.text) > line.barge_in_at
        heard = first_words(turn.text, line.barge_in_at) if interrupted and line.barge_in_at else turn.text.strip()
        if line.barge_in_at is not None and not interrupted:
            troubles.append(f"the answer was over before word {line.barge_in_at} could be talked over")
        self._agent.commit_assistant(turn.turn_id, heard, interrupted=interrupted, item_id=f"{turn.turn_id}:reply")
        if interrupted:
            self._cuts.append(_Cut(turn.turn_id, heard, turn.text))
        return Answer(
            said=heard,
            specialist=turn.specialist or self._agent.active,
            hands_over=tuple(turn.hands_over),
            tools=tuple(self._use(turn.turn_id, call) for call in turn.called),
            interrupted=interrupted,
            troubles=tuple(troubles),
        )

    async def _take(self, line: Line) -> _Turn:
        turn = _Turn(f"turn-{self._turns}")
        async with aclosing(self._agent.respond(UserTurn(turn.turn_id, line.caller))) as events:
            async for event in events:
                match event:
                    case TextDelta():
                        turn.text += event.text
                        turn.specialist = event.specialist
                    case Transferred():
                        turn.hands_over.append(event.target)
                    case ToolCalled():
                        turn.called.append(event)
                if line.barge_in_at is not None and count_words(turn.text) >= line.barge_in_at + AHEAD:
                    break
        return turn

    def _leaks(self, cut: _Cut) -> list[str]:
        """Whether the model was shown words of an interrupted answer that the caller did not hear."""
        for messages in self._witness.calls:
            if (shown := _reply_in(messages, cut.turn_id)) is not None and shown != cut.heard:
                return [f"the model was shown “{shown}” where the caller had heard “{cut.heard}”"]
        return []

    def _use(self, turn_id: str, call: ToolCalled) -> ToolUse:
        """The call with what the agent remembers of it; a turn that was cut off may not remember it."""
        wanted = f"{turn_id}:{call.call_id}"
        arguments = result = None
        for message in self._agent.history:
            if message.id == wanted:
                arguments = json.loads(message.tool_calls[0].arguments or "{}")
            elif message.id == f"{wanted}:result":
                result = json.loads(message.content)
        return ToolUse(call.name, arguments, result)


def _reply_in(messages: Sequence[Message], turn_id: str) -> str | None:
    """What stands as the answer to a turn; None when the turn is not in the messages."""
    ids = [message.id for message in messages]
    if turn_id not in ids:
        return None
    following = messages[ids.index(turn_id) + 1 :]
    end = next((index for index, message in enumerate(following) if message.role == "user"), len(following))
    return " ".join(message.content for message in following[:end] if message.role == "assistant" and message.content)
