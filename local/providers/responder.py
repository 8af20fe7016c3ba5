"""A small deterministic stand-in for a chat model: it finds answers in a knowledge folder and calls tools.

It reads what any model reads, messages and tool schemas, and the folder's Markdown files, one per desk. Passages of
documents in the system prompt, one JSON object a line between <passages> and </passages>, are the desk's own knowledge.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from local.providers.passages import (
    ALIKE,
    FILLERS,
    FITS,
    MAX_ANSWER_WORDS,
    SHORTEST_FUZZY,
    Embed,
    Index,
    Match,
    Section,
    alike,
    content,
    likeness,
    read_sections,
    remembering,
    split_sentences,
    stems,
    tokens,
    vocabulary,
    words,
)

JSON = Mapping[str, Any]

TRANSFER = "transfer_to"
#: Another desk must know clearly more before the caller is sent there.
STAY_BONUS = 0.04
#: A question of this many words or fewer may lean on the question before it.
ELLIPTIC_WORDS = 3

ASK_AGAIN = "I am sorry, I did not quite get that. Could you say it in other words?"
WELCOME = "Hello, you are through to {desk}. How can I help you?"
WHICH_ONE = "Which one do you mean? There is {choices}."
DID_NOT_WORK = "I am sorry, that did not work. Please try again a little later."
ANYTHING_ELSE = "All right. Is there anything else I can do for you?"
TAKE_YOUR_TIME = "Of course, take your time."
GOODBYE = "Thank you for calling. Goodbye!"
YOU_ARE_WELCOME = "You are welcome. Is there anything else I can do for you?"
HELLO = "Hello! How can I help you?"
GLADLY = "Of course. What can I help you with?"

_KINDS = {
    "wait": vocabulary("stop wait hold hang pause moment minute second sorry excuse interrupt"),
    "parting": vocabulary("bye goodbye farewell later day"),
    "thanks": vocabulary("thanks thank appreciate cheers great perfect wonderful excellent nice kind"),
    "greeting": vocabulary("hello hi hey morning afternoon evening good greetings"),
    "help": vocabulary("help helpful helped"),
    "yes": vocabulary("yes yeah yep sure please okay ok absolutely definitely exactly correct fine"),
    "no": vocabulary("no nope nothing not all everything"),
}
_SMALL_TALK = frozenset[str]().union(*_KINDS.values())
_IN_VAIN = vocabulary("still same already tried help helped helping work worked works didnt doesnt")
_PRICE = vocabulary("price prices priced cost costs much expensive cheap dollars pay charge charged")


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool the model wants to be run."""

    name: str
    arguments: dict[str, object]


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model says, or the tools it wants to be run first."""

    text: str
    tool_calls: tuple[ToolCall, ...] = ()


class Responder:
    """Answers as a small language model would, and always the same.

    `embed` turns texts into rows of unit vectors. A desk is whoever answers callers: it has a file
    `<desk>.md` in the knowledge folder, is named in the first line of its system prompt, and is a choice of
    its colleagues' tool `transfer_to`.
    """

    def __init__(self, *, knowledge: Path, embed: Embed) -> None:
        pages = {page.stem: page.read_text(encoding="utf-8") for page in sorted(knowledge.glob("*.md"))}
        self._embed = remembering(embed)
        self._desks = frozenset(pages)
        sections = [section for desk, page in pages.items() for section in read_sections(desk, page)]
        self._index = Index(sections, embed)
        self._strangers: dict[tuple[str, str], Index] = {}

    def answer(self, messages: Sequence[JSON], tools: Sequence[JSON]) -> Answer:
        """The next step of a conversation, given an OpenAI request's `messages` and `tools`."""
        talk = Conversation(messages, tools)
        if talk.result is not None and (report := _report(talk.result)):
            return Answer(report)
        if step := _use_tool(talk):
            return step
        if not talk.transferred and (reply := _small_talk(talk.question)):
            return Answer(reply)
        return self._find(talk)

    def _find(self, talk: "Conversation") -> Answer:
        """The best section's words, or a hand-over to the desk that owns it."""
        desk = talk.desk(self._desks)
        matches = self._search(talk)
        own = next((match for match in matches if match.section.desk == desk), None)
        read = self._read(talk, desk)
        if read and (own is None or read.score > own.score):
            own = read
        other = next((match for match in matches if match.section.desk in talk.colleagues), None)
        own_score = own.score if own else 0.0
        if other and not talk.transferred and other.score >= max(FITS, own_score + STAY_BONUS):
            return Answer("", (ToolCall(TRANSFER, {talk.transfer_argument: other.section.desk}),))
        if own and own_score >= FITS and own.section.sentences:
            return Answer(own.section.speak())
        if talk.transferred or own_score >= FITS:
            return Answer(WELCOME.format(desk=desk.replace("_", " ") or "the right place"))
        return Answer(ASK_AGAIN)

    def _read(self, talk: "Conversation", desk: str) -> Match | None:
        """The passage of the prompt that answers best; a long one from the sentence that is closest."""
        if not talk.passages:
            return None
        sections = [Section(desk, title, split_sentences(text)) for title, text in talk.passages]
        best = Index(sections, self._embed).search(talk.question)[0]
        sentences = best.section.sentences
        if len(" ".join(sentences).split()) <= MAX_ANSWER_WORDS:
            return best
        start = int((self._embed(sentences) @ self._embed([talk.question])[0]).argmax())
        return Match(Section(desk, best.section.heading, sentences[start:]), best.score)

    def _search(self, talk: "Conversation") -> list[Match]:
        matches = self._search_all(talk.question, talk.colleagues)
        elliptic = len(content(talk.question)) <= ELLIPTIC_WORDS
        if talk.question_before and elliptic and matches[0].score < FITS:
            return self._search_all(f"{talk.question_before} {talk.question}", talk.colleagues)
        return matches

    def _search_all(self, question: str, colleagues: Mapping[str, str]) -> list[Match]:
        """Matches in the folder, and among the descriptions of colleagues who have no file there."""
        matches = self._index.search(question)
        for stranger in colleagues.items():
            desk, description = stranger
            if desk in self._desks:
                continue
            if stranger not in self._strangers:
                topics = [Section(desk, topic.strip()) for topic in description.split(",")]
                self._strangers[stranger] = Index(topics, self._embed)
            matches += self._strangers[stranger].search(question)
        return sorted(matches, key=lambda match: -match.score)


class Conversation:
    """One request: what the caller asked last, what happened since, and what may be called."""

    def __init__(self, messages: Sequence[JSON], tools: Sequence[JSON]) -> None:
        asked = [i for i, message in enumerate(messages) if message["role"] == "user"]
        start = asked[-1] if asked else len(messages)
        system = next((_text(message) for message in messages if message["role"] == "system"), "")
        self._opening = system.split("\n", 1)[0]
        self.passages = _passages(system)
        self._questions = [_text(messages[i]) for i in asked]
        self.question = self._questions[-1] if asked else ""
        self.question_before = self._questions[-2] if len(asked) > 1 else ""
        replies = [_text(message) for message in messages[:start] if message["role"] == "assistant"]
        self.last_said = next((text for text in reversed(replies) if text), "")
        self.called_before, called_since = _called(messages[:start]), _called(messages[start:])
        self.transferred = TRANSFER in called_since
        self.result = _text(messages[-1]) if messages and messages[-1]["role"] == "tool" else None
        functions: dict[str, JSON] = {tool["function"]["name"]: tool["function"] for tool in tools}
        self.transfer_argument, self.colleagues = _colleagues(functions.pop(TRANSFER, None))
        self.tools = [function for name, function in functions.items() if name not in called_since]

    def desk(self, desks: Iterable[str]) -> str:
        """Who is speaking, by the first line of the system prompt; empty when it names none of the desks."""
        return next((word for word in re.findall(r"\w+", self._opening) if word in desks), "")

    def problem(self, *, without: frozenset[str]) -> str:
        """The caller's last words that say what it is about, rather than what to do."""
        for question in reversed(self._questions):
            if content(question) - _SMALL_TALK - _IN_VAIN and not stems(question) & without:
                return question.strip()
        return self.question.strip()


def _passages(system: str) -> list[tuple[str, str]]:
    """Heading and text of each passage in the prompt."""
    found = re.search(r"^<passages>\n(.*?)\n</passages>$", system, re.MULTILINE | re.DOTALL)
    passages = [json.loads(line) for line in found[1].split("\n")] if found else []
    return [(passage["title"].rpartition(" > ")[2], passage["text"]) for passage in passages]


def _colleagues(transfer: JSON | None) -> tuple[str, dict[str, str]]:
    """The argument that names a desk, and what is said about each: lines `desk: topics`."""
    if transfer is None:
        return "", {}
    argument, schema = next(iter(transfer["parameters"]["properties"].items()))
    described = dict(re.findall(r"^(\w+): (.*)$", str(transfer.get("description", "")), re.MULTILINE))
    return str(argument), {desk: described.get(desk, desk.replace("_", " ")) for desk in schema["enum"]}


def _called(messages: Sequence[JSON]) -> list[str]:
    calls = (call for message in messages for call in message.get("tool_calls") or ())
    return [str(call["function"]["name"]) for call in calls]


def _text(message: JSON) -> str:
    text = message.get("content") or ""
    return text if isinstance(text, str) else " ".join(str(part.get("text", "")) for part in text)


def _report(result: str) -> str:
    """What to say about a tool's result; empty when there is nothing to say."""
    try:
        fields = json.loads(result)
    except ValueError:
        return result
    if not isinstance(fields, dict):
        return ""
    return DID_NOT_WORK if "error" in fields else str(fields.get("summary", ""))


def _small_talk(question: str) -> str:
    """The reply to words that ask for nothing; empty when they do ask for something."""
    kinds = [_kinds(word) for word in tokens(question) if word not in FILLERS or word in _SMALL_TALK]
    if not kinds or not all(kinds):
        return ""
    heard = frozenset[str]().union(*kinds)
    if "thanks" in heard:
        return GOODBYE if heard & {"parting", "no"} else YOU_ARE_WELCOME
    replies = {"wait": TAKE_YOUR_TIME, "parting": GOODBYE, "help": GLADLY, "greeting": HELLO}
    return next((reply for kind, reply in replies.items() if kind in heard), ANYTHING_ELSE)


def _kinds(word: str) -> frozenset[str]:
    def belongs(known: str) -> bool:
        return word == known or (len(known) >= SHORTEST_FUZZY and word.startswith(known))

    return frozenset(kind for kind, known_words in _KINDS.items() if any(map(belongs, known_words)))


def _use_tool(talk: Conversation) -> Answer | None:
    """The call of a tool that fits: one with a choice to name, or one that takes the caller's own words."""
    for tool in talk.tools:
        for argument, schema in tool.get("parameters", {}).get("properties", {}).items():
            step = _choose(tool, argument, schema["enum"], talk) if "enum" in schema else None
            if "enum" not in schema and _wants_action(tool, talk):
                problem = talk.problem(without=stems(tool["name"]))
                step = Answer("", (ToolCall(tool["name"], {argument: problem}),))
            if step:
                return step
    return None


def _wants_action(tool: JSON, talk: Conversation) -> bool:
    """Whether the caller asks for what the tool makes, named last in its name, or accepts an offer of it."""
    thing = tokens(tool["name"])[-1]
    heard = words(talk.question)
    if any(alike(word, thing) for word in heard):
        return True
    refused = bool(heard & {"no", "nope"}) and not heard & _IN_VAIN
    if refused or thing not in words(talk.last_said):
        return False
    agreeing = _KINDS["yes"] | _KINDS["no"] | _IN_VAIN
    return bool(heard & (_KINDS["yes"] | _IN_VAIN)) and not content(talk.question) - agreeing


def _choose(tool: JSON, argument: str, choices: Sequence[str], talk: Conversation) -> Answer | None:
    """The call with the choice the caller means, now or in what was said before; a question when unclear."""
    named = _mentioned(choices, talk.question)
    described = words(f"{tool['name']} {tool.get('description', '')}") - words(" ".join(choices))
    topic = described - (FILLERS - _PRICE)
    if topic & _PRICE:
        topic |= _PRICE
    wants = bool(words(talk.question) & topic)
    rest = content(talk.question) - topic - _SMALL_TALK
    if named:
        goes_on = talk.called_before[-1:] == [tool["name"]] and len(rest - words(named)) <= 1
        return Answer("", (ToolCall(tool["name"], {argument: named}),)) if wants or goes_on else None
    if not wants or rest:
        return None
    if before := _mentioned(choices, talk.question_before) or _mentioned(choices, talk.last_said):
        return Answer("", (ToolCall(tool["name"], {argument: before}),))
    listed = ", ".join(f"the {choice}" for choice in choices[:-1])
    return Answer(WHICH_ONE.format(choices=f"{listed} and the {choices[-1]}"))


def _mentioned(choices: Sequence[str], text: str) -> str | None:
    """The choice a text speaks of, as recognisers misspell it; a word that choices share is no sign."""
    heard = tokens(text)
    shared_by = Counter(word for choice in choices for word in words(choice))
    joined = {"".join(heard[i : i + size]) for size in (1, 2, 3) for i in range(len(heard) - size + 1)}
    best, best_score = None, 0.0
    for choice in choices:
        name = tokens(choice)
        telling = [word for word in name if shared_by[word] == 1]
        known = sum(any(alike(word, heard_word) for heard_word in heard) for word in telling)
        whole = max((likeness(window, "".join(name)) for window in joined), default=0.0)
        score = max(whole if whole >= ALIKE else 0.0, known / len(telling) if telling else 0.0)
        if score > best_score:
            best, best_score = choice, score
    return best
