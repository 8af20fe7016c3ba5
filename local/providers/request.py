"""A chat model's request, read as a conversation: who speaks, what was said, what may be called."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from local.providers.intents import REQUEST, SMALL_TALK, VAIN_WORDS, is_in_vain
from local.providers.passages import content, stems

JSON = Mapping[str, Any]

TRANSFER = "transfer_to"


class Conversation:
    """One request: what the caller asked last, what happened since, and what may be called."""

    def __init__(self, messages: Sequence[JSON], tools: Sequence[JSON]) -> None:
        asked = [i for i, message in enumerate(messages) if message["role"] == "user"]
        start = asked[-1] if asked else len(messages)
        system = next((_text(message) for message in messages if message["role"] == "system"), "")
        self._opening = system.split("\n", 1)[0]
        self.passages = _passages(system)
        self.facts = _facts(system)
        self._questions = [_text(messages[i]) for i in asked]
        self.question = self._questions[-1] if asked else ""
        self.question_before = self._questions[-2] if len(asked) > 1 else ""
        replies = [_text(message) for message in messages[:start] if message["role"] == "assistant"]
        self.last_said = next((text for text in reversed(replies) if text), "")
        since = messages[start:]
        self.called_before = _called(messages[:start])
        self.called_last_turn = _called(messages[asked[-2] : start]) if len(asked) > 1 else []
        called_since = _called(since)
        self.transferred = TRANSFER in called_since
        self.results = [_text(message) for message in since if message["role"] == "tool"]
        self.awaits_report = bool(messages) and messages[-1]["role"] == "tool"
        self._results_before = _results(messages[:start])
        functions: dict[str, JSON] = {tool["function"]["name"]: tool["function"] for tool in tools}
        self.transfer_argument, self.colleagues = _colleagues(functions.pop(TRANSFER, None))
        self.tools = [function for name, function in functions.items() if name not in called_since]

    @property
    def name(self) -> str:
        """The caller's name, where the prompt tells it."""
        return self.facts.get("name", "")

    def desk(self, desks: Iterable[str]) -> str:
        """Who is speaking, by the first line of the system prompt; empty when it names none of the desks."""
        return next((word for word in re.findall(r"\w+", self._opening) if word in desks), "")

    def topic(self) -> frozenset[str]:
        """The stems of what was talked about last."""
        return stems(f"{self.question_before} {self.last_said}")

    def problem(self, tool_name: str) -> str:
        """The caller's last words that say what it is about, rather than what to do."""
        around = stems(" ".join(SMALL_TALK | REQUEST | VAIN_WORDS | content(tool_name)))
        for number, question in reversed(list(enumerate(self._questions))):
            before = self._questions[number - 1] if number else ""
            fresh = stems(question) - around
            if fresh and not is_in_vain(question, about=stems(before) | around):
                return question.strip()
        return self.question.strip()

    def result_before(self, tool_name: str) -> str:
        """What the tool returned last in an earlier turn; empty when it was not called."""
        return self._results_before.get(tool_name, "")


def _facts(system: str) -> dict[str, str]:
    """What the prompt says about the caller: lines `- name: value`."""
    found = re.search(r"^About the caller[^\n]*\n((?:- [^\n]*(?:\n|$))+)", system, re.MULTILINE)
    lines = re.findall(r"^- (\w+): (.*)$", found[1], re.MULTILINE) if found else []
    return {str(name): str(value).strip() for name, value in lines}


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


def _results(messages: Sequence[JSON]) -> dict[str, str]:
    """The newest result of each tool; who sends no ids has its results in the order of the calls."""
    results: dict[str, str] = {}
    names = _called(messages)
    texts = [_text(message) for message in messages if message["role"] == "tool"]
    for name, text in zip(names, texts, strict=False):
        results[name] = text
    return results


def _text(message: JSON) -> str:
    text = message.get("content") or ""
    return text if isinstance(text, str) else " ".join(str(part.get("text", "")) for part in text)
