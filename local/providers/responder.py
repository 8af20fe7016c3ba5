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
from numpy.typing import NDArray

from local.providers.elsewhere import Elsewhere
from local.providers.intents import (
    SMALL_TALK,
    agrees,
    asks_again,
    asks_for,
    asks_for_somebody,
    asks_price,
    is_in_vain,
    small_talk,
    wants_it_done,
    wants_repetition,
    without_price,
)
from local.providers.passages import (
    ALIKE,
    FITS,
    MAX_ANSWER_WORDS,
    SHORTEST_ASKING,
    Embed,
    Index,
    Match,
    Section,
    alike,
    asking_sentence,
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
from local.providers.request import JSON, TRANSFER, Conversation
from local.providers.synonyms import plainly

#: Another desk must know clearly more before the caller is sent there.
STAY_BONUS = 0.04
#: A question with a pronoun leads to another desk by itself from this score on.
CLEARLY_FITS = 0.48
#: A question of this many words or fewer may lean on the question before it.
ELLIPTIC_WORDS = 3
#: An answer that names so many choices compares them; one with fewer is about the first.
SEVERAL = 3
#: A choice that is not named is meant from this closeness on.
MEANT = 0.45
#: What it takes when the words are others, and what the same words are worth.
MEANT_CLEARLY, SHARED_WEIGHT = 0.65, 0.3
#: A question is about something else when that is closer than this, and closer than the best match by so much; one that
#: names the other topic may be a little less close.
LEAST_CLOSE, ELSEWHERE_LEAD, NAMED_LEAD = 0.25, 0.02, -0.05
#: What comes so near to the best answer is said along with it.
NEAR = 0.08
#: What a price is worth to the colleague who is there for prices.
PRICE_BONUS = 0.08
#: Topics of a colleague that are told.
TOPICS_TOLD = 3

ASK_AGAIN = "I am sorry, I did not quite get that. Could you say it in other words?"
WELCOME = "Hello, you are through to {desk}. How can I help you?"
WHICH_ONE = "Which one do you mean? There is {choices}."
DID_NOT_WORK = "I am sorry, that did not work. Please try again a little later."
FACT = "Your {name} is {value}."
NOT_MINE = "I am sorry, I cannot help you with that: I do not know anything about it."
NOT_TOLD = "I am sorry, I do not know that: nobody has told me."
NOT_ABLE = "I cannot do that for you myself."
COLLEAGUES = "I can put you through to a colleague. {colleagues}. Whom would you like?"
COLLEAGUE = "There is {name} for {topics}"

_LEANING = vocabulary("it its that this they them those these one ones")
_CONNECTING = vocabulary("talk speak put connect transfer pass reach someone somebody through switch get forward")
_DESK_WORDS = vocabulary("department team desk colleague colleagues agent person people staff there call")
_WHICH = WHICH_ONE.partition("?")[0]
#: What stands around the name of a choice in a question that leans on the one before.
_AROUND_A_CHOICE = vocabulary("one ones instead then same other plan plans product products")

_CHOOSING = vocabulary("suggest recommend choose which best right suit suits advise offer take")


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
        self._elsewhere = Elsewhere(self._embed)
        self._clauses: dict[tuple[str, ...], Clauses] = {}

    def answer(self, messages: Sequence[JSON], tools: Sequence[JSON]) -> Answer:
        """The next step of a conversation, given an OpenAI request's `messages` and `tools`."""
        talk = Conversation(messages, tools)
        if talk.awaits_report and (report := _report(talk.results)):
            return Answer(report)
        step = _act(talk)
        if step and not (step.tool_calls and self._is_elsewhere(talk, talk.question, self._best(talk))):
            return step
        if not talk.transferred and (reply := small_talk(talk.question, name=talk.name) or _fact(talk)):
            return Answer(reply)
        if not talk.transferred and talk.last_said and wants_repetition(talk.question):
            return self._repeat(talk)
        return self._look_up(talk) or self._put_through(talk) or self._offer(talk) or self._find(talk, talk.question)

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
        for desk in (own, *talk.colleagues):
            name = tokens(desk)
            is_named = all(any(word.startswith(each) for word in heard) for each in name)
            if not set(heard) & _CONNECTING:
                is_named = any(word.startswith(tuple(name)) for word in rest)
            if not name or not is_named or any(not word.startswith(tuple(name)) for word in rest):
                continue
            if desk == own or talk.transferred:
                return _welcome(own)
            return Answer("", (ToolCall(TRANSFER, {talk.transfer_argument: desk}),))
        return None

    def _offer(self, talk: Conversation) -> Answer | None:
        """The colleagues, for a caller who wants somebody else and does not say what for."""
        if not asks_for_somebody(talk.question) or not talk.colleagues or talk.transferred:
            return None
        desk = talk.desk(self._desks)
        names = [tokens(colleague)[-1] for colleague in talk.colleagues]
        for section in self._index.sections:
            if section.desk == desk and words(section.speak()) >= set(names):
                return Answer(section.speak())
        return Answer(COLLEAGUES.format(colleagues=". ".join(map(_introduce, talk.colleagues.items()))))

    def _find(self, talk: Conversation, question: str) -> Answer:
        """The best section's words, or a hand-over to the desk that owns it."""
        desk = talk.desk(self._desks)
        matches = self._search(talk, question)
        own = next((match for match in matches if match.section.desk == desk), None)
        read = self._read(talk, desk)
        if read and (own is None or read.score > own.score):
            own = read
        own_score = own.score if own else 0.0
        if self._is_elsewhere(talk, question, max(own_score, matches[0].score)):
            return Answer(NOT_MINE)
        if told := self._told_before(talk, max(FITS, own_score)):
            return Answer(told)
        other = self._other(talk, matches, question)
        if other and not talk.transferred and other.score >= max(FITS, own_score + STAY_BONUS):
            return Answer("", (ToolCall(TRANSFER, {talk.transfer_argument: other.section.desk}),))
        if own and own_score >= FITS and own.section.sentences:
            near = [
                match.section for match in matches if match.section.desk == desk and match.score >= own_score - NEAR
            ]
            return Answer(_speak(self._along_with(own.section, near, question), talk, question))
        if talk.transferred and asks_price(question):
            return Answer(NOT_MINE)
        return _welcome(desk) if talk.transferred else Answer(ASK_AGAIN)

    def _told_before(self, talk: Conversation, score: float) -> str:
        """What a tool made for the caller, where that is clearly closer to the question than the score; else empty."""
        for tool in talk.tools if not talk.transferred else ():
            summary = _report([talk.result_before(tool["name"])])
            if summary and not _has_choices(tool):
                closeness = self._embed(split_sentences(summary)) @ self._embed([plainly(talk.question)])[0]
                if float(closeness.max()) >= score + STAY_BONUS:
                    return summary
        return ""

    def _best(self, talk: Conversation) -> float:
        """The score of the best match of the question by itself, whosever it is."""
        return self._search_all(talk.question, talk.colleagues)[0].score

    def _along_with(self, section: Section, others: Sequence[Section], question: str) -> Section:
        """The section, and after it what others that come near say closest to the question."""
        if section not in others:
            return section
        for other in others:
            closest = self._closest(other.sentences, question)
            section = (
                section.along_with(other.sentences) or section.along_with(other.sentences[closest:][:1]) or section
            )
        return section

    def _closest(self, sentences: Sequence[str], question: str) -> int:
        return int((self._embed(sentences) @ self._embed([plainly(question)])[0]).argmax())

    def _other(self, talk: Conversation, matches: Sequence[Match], question: str) -> Match | None:
        """The best match among the colleagues'; a price is worth more to the one who is there for prices."""
        theirs = [match for match in matches if match.section.desk in talk.colleagues]
        if asks_price(question) and not any(_tells_prices(tool) for tool in talk.tools):
            theirs = [
                Match(match.section, match.score + PRICE_BONUS * asks_price(talk.colleagues[match.section.desk]))
                for match in theirs
            ]
        return max(theirs, key=lambda match: match.score, default=None)

    def _is_elsewhere(self, talk: Conversation, question: str, score: float) -> bool:
        """Whether a question with words that nobody here uses is closer to another topic than the best match."""
        if not talk.desk(self._desks):
            # What the business of a desk without a file is, nobody can tell.
            return False
        told = stems(" ".join(f"{title} {text}" for title, text in talk.passages))
        told |= stems(" ".join(f"{tool['name']} {tool.get('description', '')}" for tool in talk.tools))
        asked = stems(asking_sentence(plainly(question))) - told
        strange = " ".join(word for word in asked if not self._index.knows(word))
        lead = NAMED_LEAD if self._elsewhere.names(strange) else ELSEWHERE_LEAD
        return bool(strange) and self._elsewhere.closeness(question) > max(LEAST_CLOSE, score + lead)

    def _read(self, talk: Conversation, desk: str) -> Match | None:
        """The passage of the prompt that answers best; a long one from the sentence that is closest."""
        if not talk.passages:
            return None
        sections = [Section(desk, title, split_sentences(text)) for title, text in talk.passages]
        best = Index(sections, self._embed).search(talk.question)[0]
        sentences = best.section.sentences
        if len(" ".join(sentences).split()) <= MAX_ANSWER_WORDS:
            return best
        start = self._closest(sentences, talk.question)
        return Match(Section(desk, best.section.heading, sentences[start:]), best.score)

    def _search(self, talk: Conversation, question: str) -> list[Match]:
        """Matches of the question, or of the one before and this when it says too little by itself."""
        matches = self._search_all(question, talk.colleagues)
        if not talk.question_before or len(content(question)) > ELLIPTIC_WORDS:
            return matches
        leaves = matches[0].section.desk in talk.colleagues
        leans = bool(words(question) & _LEANING) and (leaves or len(content(question)) < SHORTEST_ASKING)
        if matches[0].score >= (CLEARLY_FITS if leans else FITS):
            return matches
        together = self._search_all(f"{talk.question_before} {question}", talk.colleagues)
        return together if together[0].score >= FITS else matches

    def _search_all(self, question: str, colleagues: Mapping[str, str]) -> list[Match]:
        """Matches in the folder, and among the descriptions of colleagues who have no file there."""
        matches = self._index.search(question, mends=not self._elsewhere.names(question))
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
        asked = " ".join(_telling(talk.question_before or talk.question))
        return [self._told(choices, talk).closest(asked, among=spoken_of)]

    def _meant(self, choices: Sequence[str], talk: Conversation) -> list[str]:
        """The choice in other words or from what was said before; all of them when nothing tells which."""
        rest = [word for word in without_price(talk.question) if word not in _AROUND_A_CHOICE]
        if "my" in words(talk.question) and (own := _mentioned(choices, " ".join(talk.facts.values()))):
            return own
        if not rest:
            return self._talked_about(choices, talk) or list(choices)
        if chosen := self._described(choices, talk):
            return chosen
        leans = len(rest) < SHORTEST_ASKING and words(talk.question) & _LEANING
        return self._talked_about(choices, talk) if leans else []

    def _described(self, choices: Sequence[str], talk: Conversation) -> list[str]:
        """The choice about which the closest clause of the own sections is; none when it is about something else."""
        chosen = self._told(choices, talk).about(" ".join(without_price(talk.question)))
        return [choice for choice in chosen if choice]

    def _told(self, choices: Sequence[str], talk: Conversation) -> "Clauses":
        """What the own sections tell about the choices."""
        desk = talk.desk(self._desks)
        key = (desk, *choices)
        if key not in self._clauses:
            sections = [section for section in self._index.sections if section.desk == desk]
            self._clauses[key] = Clauses(choices, sections, self._embed)
        return self._clauses[key]


class Clauses:
    """What sections tell about the choices of a tool, clause by clause."""

    def __init__(self, choices: Sequence[str], sections: Sequence[Section], embed: Embed) -> None:
        self._embed = embed
        clauses: list[str] = []
        self._owners: list[str] = []
        for section in sections:
            headed = _mentioned(choices, section.heading)
            for clause in re.split(r"(?<=[.?!,;:])\s+", " ".join(section.sentences)):
                named = _mentioned(choices, clause) or headed
                clauses.append(clause)
                self._owners.append(named[0] if len(named) == 1 else "")
        # Where nothing is told about the choices, their names are all there is to go by.
        clauses, self._owners = (clauses, self._owners) if clauses else (list(choices), list(choices))
        self._stems = [stems(plainly(clause)) for clause in clauses]
        self._vectors: NDArray[np.float32] = embed(clauses)

    def closest(self, wanted: str, *, among: Sequence[str]) -> str:
        """The one of some choices that a clause close to the text is about."""
        closeness = self._vectors @ self._embed([wanted])[0]
        best: dict[str, float] = dict.fromkeys(among, -1.0)
        for owner, value in zip(self._owners, closeness, strict=True):
            if owner in best:
                best[owner] = max(best[owner], float(value))
        return max(best, key=lambda choice: best[choice])

    def about(self, wanted: str) -> list[str]:
        """The choice that the closest clause is about, in a list; an empty one when it is about none, or not close."""
        telling = stems(wanted) - stems(" ".join(_AROUND_A_CHOICE))
        shared = np.array([len(telling & known) / max(len(telling), 1) for known in self._stems], np.float32)
        closeness = self._vectors @ self._embed([wanted])[0] + SHARED_WEIGHT * shared
        best = int(closeness.argmax())
        return [self._owners[best]] if closeness[best] >= (MEANT if shared[best] else MEANT_CLEARLY) else []


def _telling(question: str) -> list[str]:
    """The words of a question that tell what the choice should be like, in order."""
    return [word for word in tokens(plainly(question)) if content(word) and word not in _AROUND_A_CHOICE | _CHOOSING]


def _introduce(colleague: tuple[str, str]) -> str:
    desk, description = colleague
    topics = re.split(r"\s*[,:]\s*", description)[:TOPICS_TOLD]
    return COLLEAGUE.format(name=desk.replace("_", " "), topics=", ".join(topics))


def _speak(section: Section, talk: Conversation, question: str) -> str:
    """The section's words; before them that nobody here can do what the caller wants to be done, unless a tool can."""
    text = section.speak()
    is_offered = any(tokens(tool["name"])[-1] in words(text) for tool in talk.tools)
    return f"{NOT_ABLE} {text}" if wants_it_done(question) and not is_offered else text


def _has_choices(tool: JSON) -> bool:
    return any("enum" in schema for schema in tool.get("parameters", {}).get("properties", {}).values())


def _tells_prices(tool: JSON) -> bool:
    return asks_price(tokens(tool["name"])[-1])


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
    asked = words(question) | words(talk.question)
    if not asked & {"my", "i", "me"} or not asked & vocabulary("what which who know tell remember have do am whats"):
        return ""
    rest = content(question) - SMALL_TALK - vocabulary("remember currently current number")
    for name, value in talk.facts.items():
        if rest and rest <= words(name) and set(tokens(name)) & asked:
            return FACT.format(name=name.replace("_", " "), value=value)
    return NOT_TOLD if rest == {"name"} and {"my", "name"} <= asked else ""


def _act(talk: Conversation) -> Answer | None:
    """The call of a tool that takes the caller's own words, or what it returned before."""
    for tool in talk.tools:
        properties = tool.get("parameters", {}).get("properties", {})
        argument = next((name for name, schema in properties.items() if "enum" not in schema), None)
        if argument is None:
            continue
        thing = tokens(tool["name"])[-1]
        earlier = talk.result_before(tool["name"])
        if earlier and asks_again(thing, talk.question) and not talk.transferred and _report([earlier]):
            return Answer(_report([earlier]))
        if _wants_action(tool, thing, talk):
            return Answer("", (ToolCall(tool["name"], {argument: talk.problem(tool["name"])}),))
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
    return asks_price(question) if _tells_prices(tool) else tokens(tool["name"])[-1] in words(question)


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
