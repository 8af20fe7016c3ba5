"""The words of a conversation: messages, turns, the events of an answer that is being given, and the whole answer."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NotRequired, TypedDict

Role = Literal["system", "user", "assistant", "tool"]
JSONObject = Mapping[str, object]


class ToolCallRecord(TypedDict):
    """A `ToolCall` as plain JSON."""

    id: str
    name: str
    arguments: str


class MessageRecord(TypedDict):
    """A `Message` as plain JSON, the form in which graph state holds it; what is empty is left out."""

    id: str
    role: Role
    content: NotRequired[str]
    tool_calls: NotRequired[list[ToolCallRecord]]
    tool_call_id: NotRequired[str]
    interrupted: NotRequired[bool]
    specialist: NotRequired[str]


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call the model asks for; `arguments` is the JSON text as the model wrote it."""

    id: str
    name: str
    arguments: str

    def record(self) -> ToolCallRecord:
        return {"id": self.id, "name": self.name, "arguments": self.arguments}


@dataclass(frozen=True, slots=True)
class Message:
    """One entry of the conversation's memory.

    `interrupted` marks a reply of which only `content` was heard. `specialist` is who spoke, or, for a
    user's words, who was being spoken to.
    """

    id: str
    role: Role
    content: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    interrupted: bool = False
    specialist: str | None = None

    def record(self) -> MessageRecord:
        record: MessageRecord = {"id": self.id, "role": self.role}
        if self.content:
            record["content"] = self.content
        if self.tool_calls:
            record["tool_calls"] = [call.record() for call in self.tool_calls]
        if self.tool_call_id is not None:
            record["tool_call_id"] = self.tool_call_id
        if self.interrupted:
            record["interrupted"] = True
        if self.specialist is not None:
            record["specialist"] = self.specialist
        return record

    @classmethod
    def of(cls, record: MessageRecord) -> "Message":
        return cls(
            id=record["id"],
            role=record["role"],
            content=record.get("content", ""),
            tool_calls=tuple(ToolCall(**call) for call in record.get("tool_calls", ())),
            tool_call_id=record.get("tool_call_id"),
            interrupted=record.get("interrupted", False),
            specialist=record.get("specialist"),
        )


@dataclass(frozen=True, slots=True)
class Session:
    """What lasts of a conversation: what was said and heard, who answers next, and the facts about the caller.

    `slots` is plain JSON. `cursor` is the id of the last entry of the turn stream that `messages` contains.
    """

    session_id: str
    slots: JSONObject
    messages: tuple[Message, ...]
    active: str
    cursor: str


@dataclass(frozen=True, slots=True)
class UserTurn:
    """What the caller said in one go; `turn_id` is the id of the user message it becomes."""

    turn_id: str
    text: str


@dataclass(frozen=True, slots=True)
class ToolSchema:
    """What a model is told about a tool; `parameters` is a JSON schema of an object."""

    name: str
    description: str
    parameters: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Token:
    """A piece of text from a model, as it arrives."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCallStarted:
    """A model has begun to write a tool call: its name is known, its arguments are not."""

    call_id: str
    name: str


@dataclass(frozen=True, slots=True)
class UsageReported:
    """What one model call consumed, in tokens."""

    prompt_tokens: int
    completion_tokens: int


LLMEvent = Token | ToolCallStarted | ToolCall | UsageReported


@dataclass(frozen=True, slots=True)
class TextDelta:
    """A piece of text to speak now."""

    text: str
    specialist: str


@dataclass(frozen=True, slots=True)
class Transferred:
    """The caller was handed over from one specialist to another."""

    source: str
    target: str


@dataclass(frozen=True, slots=True)
class ToolCalled:
    """A tool is about to run."""

    name: str
    call_id: str


class PassageRecord(TypedDict):
    """A `Passage` as plain JSON."""

    id: str
    source: str
    title: str
    text: str
    score: float


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of a document that may answer a question.

    `source` names the document, `title` is the path of headings to the piece, and `id` is "<source>#<number>".
    A larger `score` is better; scores of different searches do not compare.
    """

    id: str
    source: str
    title: str
    text: str
    score: float

    def record(self) -> PassageRecord:
        return {"id": self.id, "source": self.source, "title": self.title, "text": self.text, "score": self.score}


@dataclass(frozen=True, slots=True)
class PassagesOffered:
    """The specialist answers with these passages before it; which of them it used, nobody can tell."""

    passages: tuple[Passage, ...]


@dataclass(frozen=True, slots=True)
class PassagesMissed:
    """The specialist answers without passages, because the search was "too_slow" or "unavailable"."""

    reason: Literal["too_slow", "unavailable"]


AgentEvent = TextDelta | Transferred | ToolCalled | UsageReported | PassagesOffered | PassagesMissed


@dataclass(frozen=True, slots=True)
class Exchange:
    """A finished tool call or hand-over of a turn: `specialist` asked, and `receiver` is responsible after it.

    `result` has a key "error" when nothing was done.
    """

    turn_id: str
    call: ToolCall
    result: JSONObject
    specialist: str
    receiver: str

    @property
    def is_done(self) -> bool:
        return "error" not in self.result

    @property
    def is_hand_over(self) -> bool:
        return self.is_done and self.receiver != self.specialist

    @property
    def messages(self) -> Sequence[Message]:
        """The request, and the result that `receiver` reads.

        Each call gets a request of its own: a turn cut off between two calls then leaves no request unanswered,
        which a model's API would reject for the rest of the conversation.
        """
        message_id = f"{self.turn_id}:{self.call.id}"
        return (
            Message(id=message_id, role="assistant", tool_calls=(self.call,), specialist=self.specialist),
            Message(
                id=f"{message_id}:result",
                role="tool",
                content=json.dumps(self.result),
                tool_call_id=self.call.id,
                specialist=self.receiver,
            ),
        )


@dataclass(frozen=True, slots=True)
class AgentResponse:
    """The whole answer of a turn.

    `specialist` is who spoke last, `transfers` are the hand-overs on the way, `tools` the names of the tools that
    ran, and the tokens are those of all model calls of the turn.
    """

    text: str
    specialist: str
    transfers: tuple[Transferred, ...] = ()
    tools: tuple[str, ...] = ()
    passages: tuple[Passage, ...] = ()
    prompt_tokens: int = 0
    completion_tokens: int = 0
