"""What can go wrong in a conversation.

GraphError
├── LLMUnavailable         the model did not answer
├── TurnInProgress         two turns at once on one agent
├── RosterInvalid          a specialist cannot be used
├── ConfigurationInvalid   a session's configuration cannot be used
├── CatalogueInvalid       the knowledge folder cannot be used
├── DocumentUnreadable     a file cannot become part of the knowledge index
├── KnowledgeUnavailable   the knowledge index cannot be used
├── EmbeddingsUnavailable  a text got no vector
├── MemoryUnavailable      what is remembered can be neither read nor written
├── MemoryUnreadable       what is remembered is damaged
├── CheckpointPruned       a checkpoint is not kept any more
├── StaleWriter            another owner remembers this conversation
└── ToolError              told to the model, which tells the caller
    ├── ToolRefused
    ├── EndpointFailed
    └── TicketsUnavailable
"""


class GraphError(Exception):
    """The conversation failed."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or type(self).__doc__)


class LLMUnavailable(GraphError):
    """The model did not answer.

    `retryable` tells whether the same request may succeed later; `cause` is what the client reported.
    """

    def __init__(self, *, cause: BaseException, retryable: bool) -> None:
        super().__init__(f"The model did not answer: {type(cause).__name__}")
        self.cause = cause
        self.retryable = retryable


class TurnInProgress(GraphError):
    """The agent is still answering another turn; close that answer first."""


class RosterInvalid(GraphError):
    """The roster names a specialist that cannot be used."""


class ConfigurationInvalid(GraphError):
    """The session's configuration cannot be used."""


class CatalogueInvalid(GraphError):
    """The knowledge folder cannot be used."""


class DocumentUnreadable(GraphError):
    """The file cannot be read as a document."""


class KnowledgeUnavailable(GraphError):
    """The knowledge index cannot be used."""


class EmbeddingsUnavailable(GraphError):
    """The embeddings endpoint did not answer."""


class MemoryUnavailable(GraphError):
    """The memory of the conversation did not answer.

    Whether a write has happened is not known. `cause` is what the client reported.
    """

    def __init__(self, *, cause: BaseException) -> None:
        super().__init__(f"The memory of the conversation did not answer: {type(cause).__name__}")
        self.cause = cause


class MemoryUnreadable(GraphError):
    """What is stored of the conversation cannot be read."""


class CheckpointPruned(GraphError):
    """The checkpoint is not kept any more; newer ones are."""


class StaleWriter(GraphError):
    """The session has another owner, or no record; nothing was written."""


class ToolError(GraphError):
    """The tool could not do what was asked."""


class ToolRefused(ToolError):
    """The model asked for something the tools do not offer."""


class EndpointFailed(ToolError):
    """The tool's endpoint did not answer as agreed."""


class TicketsUnavailable(ToolError):
    """The ticket could not be stored, please try again later."""
