"""The JSON of text turns: a user's text, and the events of its answer."""

from collections.abc import Mapping
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, model_validator

from api.asked import Asked
from api.models import Answer, Citation, Cursor, IdempotencyKey, Metadata, Name, SessionId
from worker.fleet.chats import ReplyKind

#: The longest text, in bytes of UTF-8.
TEXT_LIMIT = 4 * 1024


def _text(text: str) -> str:
    if not text.strip():
        raise ValueError("there is no word in it")
    if any(not char.isprintable() and char not in "\t\n\r" for char in text):
        raise ValueError("characters that do not print are not allowed, besides tabs and ends of lines")
    if len(text.encode()) > TEXT_LIMIT:
        raise ValueError(f"at most {TEXT_LIMIT} bytes of UTF-8 are allowed")
    return text


def _absent_when_empty(header: str) -> str | None:
    return header or None


Text = Annotated[
    str,
    Field(
        min_length=1,
        max_length=TEXT_LIMIT,
        description=f"Words, tabs and ends of lines, at most {TEXT_LIMIT} bytes of UTF-8.",
        json_schema_extra={"format": "printable-text"},
    ),
    AfterValidator(_text),
]


class ChatRequest(Asked):
    """Have `text` answered in a session, or without one in a session of its own that knows `metadata`."""

    model_config = ConfigDict(json_schema_extra={"not": {"required": ["session_id", "metadata"]}})

    user_id: Name
    text: Text
    session_id: SessionId | None = None
    metadata: Metadata = Field(default_factory=dict)

    @model_validator(mode="after")
    def only_a_new_session_gets_metadata(self) -> "ChatRequest":
        """What a session knows about its caller is said when it begins."""
        if {"session_id", "metadata"} <= self.model_fields_set:
            raise ValueError("metadata is for a session that this request makes")
        return self


class ChatHeaders(Asked):
    """Requests with the same key write one text."""

    idempotency_key: IdempotencyKey | None = Field(default=None, alias="Idempotency-Key")


class ChatPath(Asked):
    """Whose answer it is."""

    session_id: SessionId
    turn_id: SessionId


class FollowHeaders(Asked):
    """The last event that was received."""

    last_event_id: Annotated[Cursor | None, BeforeValidator(_absent_when_empty)] = Field(
        default=None, alias="Last-Event-ID"
    )


class ChatStarted(Answer):
    """The text was written; `status` is its session's, `turn_id` finds the answer again."""

    session_id: str
    turn_id: str
    status: str


class ChatBegun(Answer):
    """An answer begins, with this specialist; text that came before belongs to an attempt that broke off."""

    specialist: str


class ChatText(Answer):
    """A piece of the answer."""

    text: str
    specialist: str


class ChatTransfer(Answer):
    """The conversation went from one specialist to another."""

    source: str = Field(alias="from")
    target: str = Field(alias="to")


class ChatTool(Answer):
    """A tool is about to run."""

    name: str


class ChatUsage(Answer):
    """What the answer's model calls consumed, in tokens."""

    prompt_tokens: int
    completion_tokens: int


class ChatDone(Answer):
    """The whole answer, the last event; `cursor` is that of its turn in the session's turns.

    `interrupted`: a caller's voice took the answer's place.
    """

    text: str
    specialist: str
    interrupted: bool
    usage: ChatUsage
    citations: list[Citation]
    cursor: str


class ChatError(Answer):
    """There is no answer, or not all of it; the last event. `code` is stable."""

    code: str
    detail: str


class ChatEvents(Answer):
    """The events of an answer: the name of each is a field here, and its data what the field is."""

    session: ChatStarted
    begun: ChatBegun
    text: ChatText
    transfer: ChatTransfer
    tool: ChatTool
    done: ChatDone
    error: ChatError


#: What the data of each event must look like.
EVENTS: Mapping[ReplyKind, type[Answer]] = {
    ReplyKind.BEGUN: ChatBegun,
    ReplyKind.TEXT: ChatText,
    ReplyKind.TRANSFER: ChatTransfer,
    ReplyKind.TOOL: ChatTool,
    ReplyKind.DONE: ChatDone,
    ReplyKind.ERROR: ChatError,
}
