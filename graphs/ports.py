"""What the conversation needs from outside, and what it is to those who use it."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Protocol

from graphs.entities import AgentEvent, LLMEvent, Message, Passage, ToolSchema, UserTurn


class AgentPort(Protocol):
    """One side of a conversation: the user's turns go in, speakable text comes out."""

    @property
    def active(self) -> str:
        """Name of the specialist who answers the next turn."""

    @property
    def history(self) -> Sequence[Message]:
        """What was said and heard, oldest first."""

    def respond(self, turn: UserTurn, *, draft: bool = False) -> AsyncGenerator[AgentEvent, None]:
        """Answer one turn, streaming; commits the user's words unless `commit_user` already has.

        A `draft` answers words that may still change, unless they are committed: nothing of it is remembered, and
        tools with side effects wait, until `confirm` or the words' own `commit_user`. The next answer takes the
        place of a draft that was never confirmed.

        Closing the generator ends the turn. The answer's text is not remembered until `commit_assistant`
        tells how much of it was heard. Raises LLMUnavailable, and TurnInProgress while another answer is
        open.
        """

    def commit_user(self, message: Message) -> None:
        """Remember what the user said; the same id again replaces it."""

    def confirm(self, draft_id: str, *, turn_id: str) -> None:
        """The draft of the turn `draft_id`, begun or not, is the answer to the committed turn `turn_id`."""

    def commit_assistant(self, turn_id: str, text: str, *, interrupted: bool, item_id: str) -> None:
        """Remember the words of a reply that were heard; the same `item_id` again replaces them."""

    async def finish_tools(self, *, timeout: float) -> bool:
        """Wait until tools with side effects whose turns were cut off are done and remembered, at most `timeout`
        seconds; True when all are."""


class LLMPort(Protocol):
    """One call of a chat model.

    Yields text as it arrives, the name of a tool call before its arguments, and usage last.
    Closing the generator closes the connection. Raises LLMUnavailable.
    """

    def __call__(self, messages: Sequence[Message], tools: Sequence[ToolSchema]) -> AsyncGenerator[LLMEvent, None]: ...


class RAGPort(Protocol):
    """Finds what the company's documents say about a question."""

    async def search(self, query: str, *, k: int, sources: Sequence[str] = ()) -> Sequence[Passage]:
        """At most `k` passages, best first, and none when nothing fits; `sources` are the only documents looked at.

        Cancelling it stops the search. Raises KnowledgeUnavailable.
        """

    async def aclose(self) -> None:
        """Give back what the searches needed."""


class EmbedderPort(Protocol):
    """Turns texts into vectors whose directions are close when the texts mean the same."""

    @property
    def model(self) -> str:
        """What made the vectors: those of another model do not compare."""

    async def embed(self, texts: Sequence[str]) -> Sequence[Sequence[float]]:
        """One vector for each text, all of one length. Raises EmbeddingsUnavailable."""

    async def aclose(self) -> None:
        """Close its connections."""


class OpenTicketPort(Protocol):
    """Stores a support ticket and returns its id, such as "T4815"; the same key opens it only once.

    Raises TicketsUnavailable.
    """

    async def __call__(self, summary: str, *, idempotency_key: str) -> str: ...


class ToolPort(Protocol):
    """Runs one tool with checked arguments and returns JSON; `summary` in it is a sentence to speak.

    Raises ToolError for what the caller should hear about.
    """

    async def __call__(self, arguments: Mapping[str, object], *, idempotency_key: str) -> Mapping[str, object]: ...
