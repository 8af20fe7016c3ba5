"""The outcomes as JUnit XML, which build servers read."""

import re
from collections.abc import Sequence
from xml.etree import ElementTree

from muster.evals.outcome import Outcome

#: Characters that no XML 1.0 document may hold.
_FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit_xml(outcomes: Sequence[Outcome], *, mode: str) -> str:
    """One test case for each scenario, one suite for the run; a scenario that broke off is an error."""
    counts = {
        "tests": str(len(outcomes)),
        "failures": str(sum(not outcome.passed and outcome.error is None for outcome in outcomes)),
        "errors": str(sum(outcome.error is not None for outcome in outcomes)),
        "time": f"{sum(outcome.seconds for outcome in outcomes):.3f}",
    }
    root = ElementTree.Element("testsuites", {"name": "muster eval", **counts})
    suite = ElementTree.SubElement(root, "testsuite", {"name": mode, "skipped": "0", **counts})
    for outcome in outcomes:
        _add_case(suite, outcome)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _add_case(suite: ElementTree.Element, outcome: Outcome) -> None:
    attributes = {
        "classname": outcome.script.file.stem,
        "name": outcome.name,
        "file": str(outcome.script.file),
        "time": f"{outcome.seconds:.3f}",
    }
    case = ElementTree.SubElement(suite, "testcase", {key: _clean(value) for key, value in attributes.items()})
    if not outcome.passed:
        kind = "error" if outcome.error else "failure"
        problem = ElementTree.SubElement(case, kind, {"message": _clean(outcome.problems[0]), "type": kind})
        problem.text = _clean("\n".join(outcome.problems))
    ElementTree.SubElement(case, "system-out").text = _clean(_transcript(outcome))


def _transcript(outcome: Outcome) -> str:
    said = [
        f"caller: {result.line.caller}\n{result.answer.specialist or 'nobody'}: {result.answer.said}"
        for result in outcome.lines
    ]
    return "\n".join([*said, *(f"not checked, {note}" for note in outcome.unchecked)])


def _clean(text: str) -> str:
    return _FORBIDDEN.sub("\ufffd", text)
