"""Judges an answer: every expectation of a line against what was observed."""

import re
from collections.abc import Mapping, Sequence

from local.transcripts import words_of
from muster.evals.outcome import Answer, LineResult, ToolUse
from muster.evals.scenario import Line, Phrase, ToolExpectation, alternatives, pattern_of

#: `{open_ticket.ticket_id}`: a field of a tool's result.
_RESULT = re.compile(r"\{(\w+)\.(\w+)\}")

Results = Mapping[tuple[str, str], str]


def judge(line: Line, answer: Answer, *, before: Sequence[Answer] = ()) -> LineResult:
    """What the line expects and the answer lacks; `before` are the scenario's earlier answers, oldest first."""
    uses = [use for each in (*before, answer) for use in each.tools]
    results = {(use.name, key): str(value) for use in uses for key, value in (use.result or {}).items()}
    hidden = {use.name for use in uses if use.result is None}
    failures = [*answer.troubles, *_who(line, answer), *_tools(line, answer)]
    unchecked = [
        f"the arguments of {wanted.name} cannot be seen in this mode"
        for wanted, use in zip(line.expected_tools or (), answer.tools, strict=False)
        if wanted.arguments and use.arguments is None
    ]
    for phrase, wanted in [*((each, True) for each in line.says), *((each, False) for each in line.says_not)]:
        texts = alternatives(phrase)
        known = [text for text in texts if not _needs(text) & hidden]
        if len(known) < len(texts):
            unchecked.append(f"{_shown(texts)} names a result that cannot be seen in this mode")
            if wanted:
                continue
        if any(occurs(text, answer.said, results) for text in known) != wanted and known:
            failures.append(f"must {'' if wanted else 'not '}say {_shown(known)}")
    return LineResult(line, answer, tuple(failures), tuple(unchecked))


def occurs(text: str, said: str, results: Results | None = None) -> bool:
    """Whether a text, or the regular expression between its slashes, occurs in what was said.

    Plain texts are compared by words: without case and punctuation, contractions written out, numbers in words or in
    figures alike. A number fits only a whole number. `results` are what `{tool.field}` stands for; without its result
    a text does not occur.
    """
    if (pattern := pattern_of(text)) is not None:
        return re.search(pattern, said, re.IGNORECASE) is not None
    for tool, key in _RESULT.findall(text):
        value = (results or {}).get((tool, key))
        if value is None:
            return False
        text = text.replace(f"{{{tool}.{key}}}", value)
    return _contains(words_of(said), words_of(text))


def _contains(words: Sequence[str], wanted: Sequence[str]) -> bool:
    """Whether the words stand in a row, without a figure of a longer number beside their own."""
    size = len(wanted)
    for start in range(len(words) - size + 1):
        if list(words[start : start + size]) != list(wanted):
            continue
        before = words[start - 1 : start] if start else ()
        after = words[start + size : start + size + 1]
        if not _is_cut(before, wanted[:1]) and not _is_cut(wanted[-1:], after):
            return bool(wanted)
    return False


def _is_cut(left: Sequence[str], right: Sequence[str]) -> bool:
    return bool(left and right) and left[0].isdigit() and right[0].isdigit()


def _needs(text: str) -> set[str]:
    """The tools whose results a text names."""
    return set() if pattern_of(text) is not None else {tool for tool, _ in _RESULT.findall(text)}


def _who(line: Line, answer: Answer) -> list[str]:
    failures = []
    if line.specialist is not None and answer.specialist != line.specialist:
        failures.append(f"{answer.specialist or 'nobody'} answered, not {line.specialist}")
    if line.hands_over is not None and answer.hands_over != line.hands_over:
        reached, wanted = (", ".join(names) or "nobody" for names in (answer.hands_over, line.hands_over))
        failures.append(f"handed over to {reached}, not to {wanted}")
    return failures


def _tools(line: Line, answer: Answer) -> list[str]:
    expected = line.expected_tools
    if expected is None:
        return []
    called, wanted = [use.name for use in answer.tools], [tool.name for tool in expected]
    if called != wanted:
        return [f"called {', '.join(called) or 'nothing'}, not {', '.join(wanted) or 'anything'}"]
    return [
        failure for tool, use in zip(expected, answer.tools, strict=True) for failure in _argument_failures(tool, use)
    ]


def _argument_failures(tool: ToolExpectation, use: ToolUse) -> list[str]:
    if use.arguments is None:
        return []
    given = use.arguments
    return [
        f"called {tool.name} with {name}={given.get(name)!r}, not {_value(value)}"
        for name, value in tool.arguments.items()
        if not _fits(value, given.get(name))
    ]


def _fits(wanted: Phrase | bool | int | float, given: object) -> bool:
    if isinstance(wanted, bool | int | float):
        return type(given) is type(wanted) and given == wanted
    return isinstance(given, str) and any(occurs(text, given) for text in alternatives(wanted))


def _value(value: Phrase | bool | int | float) -> str:
    return str(value) if isinstance(value, bool | int | float) else _shown(alternatives(value))


def _shown(texts: Sequence[str]) -> str:
    return " or ".join(text if pattern_of(text) is not None else f"“{text}”" for text in texts)
