"""A small deterministic stand-in for a chat model: it finds answers in a knowledge folder and calls tools.

It reads what any model reads, messages and tool schemas, and the folder's Markdown files, one per desk. Passages of
documents in the system prompt, one JSON object a line between <passages> and </passages>, are the desk's own knowledge.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from local.providers.intents import (
    SMALL_TALK,
    agrees,
    asks_for,
    asks_price,
    is_in_vain,
    small_talk,
    wants_repetition,
    without_price,
)
from local.providers.passages import (
    ALIKE,
    FITS,
    MAX_ANSWER_WORDS,
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
    tokens,
    vocabulary,
    words,
)
from local.providers.request import JSON, TRANSFER, Conversation
from local.providers.synonyms import plainly

#: Another desk must know clearly more before the caller is sent there.
STAY_BONUS = 0.04
#: A question with a pronoun leads to another desk by itself from this score on.
CLEARLY_FITS = 0.6
#: A question of this many words or fewer may lean on the question before it.
ELLIPTIC_WORDS = 3
#: An answer that names so many choices compares them; one with fewer is about the first.
SEVERAL = 3
#: A choice that is not named is meant from this closeness on, when no other comes near.
MEANT, MEANT_CLEARLY = 0.65, 0.15

ASK_AGAIN = "I am sorry, I did not quite get that. Could you say it in other words?"
WELCOME = "Hello, you are through to {desk}. How can I help you?"
WHICH_ONE = "Which one do you mean? There is {choices}."
DID_NOT_WORK = "I am sorry, that did not work. Please try again a little later."
FACT = "Your {name} is {value}."

_LEANING = vocabulary("it its that this they them those these one ones")
_CONNECTING = vocabulary("talk speak put connect transfer pass reach someone somebody through switch get forward")
_DESK_WORDS = vocabulary("department team desk colleague colleagues agent person people staff there call")
_WHICH = WHICH_ONE.partition("?")[0]
#: What stands around the name of a choice in a question that leans on the one before.
_AROUND_A_CHOICE = vocabulary("one ones instead then same other plan plans product products")


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
        self._index = Index(sections, self._embed)
        self._strangers: dict[tuple[str, str], Index] = {}

    def answer(self, messages: Sequence[JSON], tools: Sequence[JSON]) -> Answer:
        """The next step of a conversation, given an OpenAI request's `messages` and `tools`."""
        talk = Conversation(messages, tools)
        if talk.awaits_report and (report := _report(talk.results)):
            return Answer(report)
        if step := _act(talk):
            return step
        if not talk.transferred and (reply := small_talk(talk.question, name=talk.name) or _fact(talk)):
            return Answer(reply)
        if not talk.transferred and talk.last_said and wants_repetition(talk.question):
            return self._repeat(talk)
        return self._look_up(talk) or self._put_through(talk) or self._find(talk, talk.question)

    def _repeat(self, talk: Conversation) -> Answer:
        """The last answer again; one that was cut off is given anew."""
        if talk.last_said.rstrip().endswith((".", "!", "?")):
            return Answer(talk.last_said)
        return self._find(talk, talk.question_before)

    def _put_through(self, talk: Conversation) -> Answer | None:
        """The hand-over that the caller asks for by a desk's name, and by nothing else; its welcome at that desk."""
        heard = tokens(plainly(talk.question))
        rest = content(" ".join(heard)) - SMALL_TALK - _CONNECTING - _DESK_WORDS
        own = talk.desk(self._desks)
        for desk in (own, *talk.colleagues) if set(heard) & _CONNECTING else ():
            name = tokens(desk)
            is_named = all(any(word.startswith(each) for word in heard) for each in name)
            if not name or not is_named or any(not word.startswith(tuple(name)) for word in rest):
                continue
            if desk == own or talk.transferred:
                return _welcome(own)
            return Answer("", (ToolCall(TRANSFER, {talk.transfer_argument: desk}),))
        return None

    def _find(self, talk: Conversation, question: str) -> Answer:
        """The best section's words, or a hand-over to the desk that owns it."""
        desk = talk.desk(self._desks)
        matches = self._search(talk, question)
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
        return _welcome(desk) if talk.transferred else Answer(ASK_AGAIN)

    def _read(self, talk: Conversation, desk: str) -> Match | None:
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

    def _search(self, talk: Conversation, question: str) -> list[Match]:
        """Matches of the question, or of the one before and this when it says too little by itself."""
        matches = self._search_all(question, talk.colleagues)
        if not talk.question_before or len(content(question)) > ELLIPTIC_WORDS:
            return matches
        leaves = matches[0].section.desk in talk.colleagues
        if matches[0].score >= (CLEARLY_FITS if leaves and words(question) & _LEANING else FITS):
            return matches
        together = self._search_all(f"{talk.question_before} {question}", talk.colleagues)
        return together if together[0].score >= FITS else matches

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

    def _look_up(self, talk: Conversation) -> Answer | None:
        """The call of a tool that has a choice to name."""
        for tool in talk.tools:
            for argument, schema in tool.get("parameters", {}).get("properties", {}).items():
                if "enum" in schema and (step := self._choose(tool, argument, schema["enum"], talk)):
                    return step
        return None

    def _choose(self, tool: JSON, argument: str, choices: Sequence[str], talk: Conversation) -> Answer | None:
        """The call with the choices the caller means, now or in what was said before; a question when unclear."""
        named = _mentioned(choices, talk.question)
        wants = _asks_for_result(tool, talk.question)
        if not wants and not (named and _goes_on(tool, named, talk)):
            return None
        if not named:
            named = self._meant(choices, talk)
        if not named:
            return None
        if named == list(choices):
            listed = ", ".join(f"the {choice}" for choice in choices[:-1])
            return Answer(WHICH_ONE.format(choices=f"{listed} and the {choices[-1]}"))
        return Answer("", tuple(ToolCall(tool["name"], {argument: choice}) for choice in named))

    def _talked_about(self, choices: Sequence[str], talk: Conversation) -> list[str]:
        """The choice that the caller named before, or that the last answer was about; of several the fitting one."""
        if named := _mentioned(choices, talk.question_before):
            return named[:1]
        mentions = {clause: _mentioned(choices, clause) for clause in re.split(r"[,.;:?!]", talk.last_said)}
        clauses = {clause: named for clause, named in mentions.items() if named}
        spoken_of = list(dict.fromkeys(named[0] for named in clauses.values()))
        if len(spoken_of) < SEVERAL:
            return spoken_of[:1]
        closeness = self._embed(list(clauses)) @ self._embed([talk.question_before or talk.question])[0]
        return list(clauses.values())[int(closeness.argmax())][:1]

    def _meant(self, choices: Sequence[str], talk: Conversation) -> list[str]:
        """The choice in other words or from what was said before; all of them when nothing tells which."""
        rest = [word for word in without_price(talk.question) if word not in _AROUND_A_CHOICE]
        if "my" in words(talk.question) and (own := _mentioned(choices, " ".join(talk.facts.values()))):
            return own
        if not rest:
            return self._talked_about(choices, talk) or list(choices)
        wanted = " ".join(without_price(talk.question))
        closeness = self._embed(list(choices)) @ self._embed([wanted])[0]
        first, second = np.argsort(-closeness)[:2] if len(choices) > 1 else (0, 0)
        clearly = len(choices) == 1 or closeness[first] - closeness[second] >= MEANT_CLEARLY
        return [choices[first]] if clearly and closeness[first] >= MEANT else []


def _welcome(desk: str) -> Answer:
    return Answer(WELCOME.format(desk=desk.replace("_", " ") or "the right place"))


def _report(results: Sequence[str]) -> str:
    """What to say about the tools' results; empty when there is nothing to say."""
    return " ".join(filter(None, map(_report_one, results)))


def _report_one(result: str) -> str:
    try:
        fields = json.loads(result)
    except ValueError:
        return result
    if not isinstance(fields, dict):
        return ""
    return DID_NOT_WORK if "error" in fields else str(fields.get("summary", ""))


def _fact(talk: Conversation) -> str:
    """A fact about the caller, when that is what they ask for."""
    question = plainly(talk.question)
    asked = words(question)
    if not asked & {"my", "i", "me"} or not asked & vocabulary("what which who know tell remember have do am whats"):
        return ""
    rest = content(question) - SMALL_TALK - vocabulary("remember currently current number")
    for name, value in talk.facts.items():
        if rest and rest <= words(name) and set(tokens(name)) & asked:
            return FACT.format(name=name.replace("_", " "), value=value)
    return ""


def _act(talk: Conversation) -> Answer | None:
    """The call of a tool that takes the caller's own words, or what it returned before."""
    for tool in talk.tools:
        properties = tool.get("parameters", {}).get("properties", {})
        argument = next((name for name, schema in properties.items() if "enum" not in schema), None)
        if argument is None:
            continue
        thing = tokens(tool["name"])[-1]
        if _wants_action(tool, thing, talk):
            return Answer("", (ToolCall(tool["name"], {argument: talk.problem(tool["name"])}),))
        earlier = talk.result_before(tool["name"])
        if earlier and (thing in words(talk.question) or "number" in words(talk.question)) and not talk.transferred:
            return Answer(_report([earlier])) if _report([earlier]) else None
    return None


def _wants_action(tool: JSON, thing: str, talk: Conversation) -> bool:
    """Whether the caller asks for what the tool makes, accepts an offer of it, or has been helped by nothing else."""
    if any(alike(word, thing) for word in tokens(plainly(talk.question))):
        return asks_for(thing, talk.question)
    if tool["name"] in talk.called_last_turn or talk.transferred:
        return False
    if thing in words(talk.last_said) and agrees(talk.question):
        return True
    suggested = bool(content(talk.question_before) - SMALL_TALK)
    return suggested and tool["name"] not in talk.called_before and is_in_vain(talk.question, about=talk.topic())


def _asks_for_result(tool: JSON, question: str) -> bool:
    """Whether the question is about what the tool tells, named last in its name."""
    thing = tokens(tool["name"])[-1]
    if asks_price(thing):
        return asks_price(question)
    return thing in words(question)


def _goes_on(tool: JSON, named: Sequence[str], talk: Conversation) -> bool:
    """Whether a question that only names choices asks the same as the one before, or answers which one is meant."""
    if tool["name"] not in talk.called_last_turn and _WHICH not in talk.last_said:
        return False
    known = tokens(" ".join(named))
    rest = content(plainly(talk.question)) - SMALL_TALK - _AROUND_A_CHOICE
    return not [word for word in rest if not any(alike(word, each) for each in known)]


def _mentioned(choices: Sequence[str], text: str) -> list[str]:
    """The choices a text speaks of, as recognisers misspell them; a word that choices share is no sign."""
    heard = tokens(plainly(text))
    shared_by = Counter(word for choice in choices for word in words(choice))
    joined = {"".join(heard[i : i + size]) for size in (1, 2, 3) for i in range(len(heard) - size + 1)}
    scores: dict[str, float] = {}
    for choice in choices:
        name = tokens(choice)
        telling = [word for word in name if shared_by[word] == 1]
        known = sum(any(alike(word, heard_word) for heard_word in heard) for word in telling)
        whole = max((likeness(window, "".join(name)) for window in joined), default=0.0)
        scores[choice] = max(whole if whole >= ALIKE else 0.0, known / len(telling) if telling else 0.0)
    best = max(scores.values(), default=0.0)
    return [choice for choice in choices if best and scores[choice] == best]
