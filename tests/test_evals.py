"""`muster eval`: scenarios are read or refused, answers are judged, and the outcome is told in every form."""

import json
import os
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from textwrap import dedent
from xml.etree import ElementTree

import pytest
import yaml
from click.testing import CliRunner, Result

from graphs.entities import UsageReported
from graphs.errors import LLMUnavailable
from muster.cli import main
from muster.errors import ScenarioInvalid
from muster.evals.expectations import judge, occurs
from muster.evals.junit import junit_xml
from muster.evals.outcome import Answer, LineResult, Outcome, ToolUse
from muster.evals.page import html_page
from muster.evals.scenario import SHIPPED, Line, Scenario, Script, load
from muster.evals.text import TextRunner
from tests.scripted_llm import ScriptedLLM, Step, calls, says, transfers


def written(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "talks.yaml"
    file.write_text(dedent(text), encoding="utf-8")
    return file


def refusal(tmp_path: Path, text: str) -> str:
    file = written(tmp_path, text)
    with pytest.raises(ScenarioInvalid) as refused:
        load([file])
    return str(refused.value).replace(str(file), "talks.yaml")


def line(**fields: object) -> Line:
    return Line.model_validate({"caller": "Hello?", **fields})


def script(*lines: dict[str, object], **fields: object) -> Script:
    scenario = {"name": "talk", "lines": [{"caller": "Hello?", **each} for each in lines], **fields}
    return Script(Scenario.model_validate(scenario), Path("talks.yaml"))


async def held(scripted: Script, *model: Sequence[Step]) -> Outcome:
    return await TextRunner(llm=ScriptedLLM(*model)).run(scripted)


# Reading scenarios.


def test_thirty_scenarios_come_with_muster_and_some_of_them_are_spoken() -> None:
    scenarios = [each.scenario for each in load([SHIPPED])]
    assert len(scenarios) == 30
    assert 3 <= sum(scenario.audio for scenario in scenarios) <= 6
    assert any(line.barge_in_at for scenario in scenarios for line in scenario.lines)


def test_a_scenario_may_say_everything_the_format_knows(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        """
        scenarios:
          - name: everything
            description: All of it.
            slots: {name: Ada, customer_since: 2019, vip: true}
            documents: [news.md]
            lines:
              - caller: How much is it?
                barge_in_at: 5
                specialist: sales
                hands_over: [sales]
                tools: [look_up_price, {name: open_ticket, arguments: {summary: [router, box], urgent: true, count: 2}}]
                says: [one, [two, three], "/four|five/", "{open_ticket.ticket_id}"]
                says_not: [six]
              - caller: Stop.
                no_tools: true
        """,
    )
    (only,) = load([file])
    first, second = only.scenario.lines
    assert first.tools is not None and [tool.name for tool in first.tools] == ["look_up_price", "open_ticket"]
    assert first.tools[1].arguments == {"summary": ("router", "box"), "urgent": True, "count": 2}
    assert first.says == ("one", ("two", "three"), "/four|five/", "{open_ticket.ticket_id}")
    assert second.expected_tools == () and second.specialist is None
    assert only.scenario.slots == {"name": "Ada", "customer_since": 2019, "vip": True}


def test_a_folder_is_all_its_files(tmp_path: Path) -> None:
    for name in ("b.yaml", "a.yml", "c.txt"):
        (tmp_path / name).write_text(f"scenarios: [{{name: {name[0]}, lines: [{{caller: Hello}}]}}]")
    assert [each.name for each in load([tmp_path])] == ["a", "b"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("scenarios: [", "talks.yaml:1: not YAML"),
        ("", "talks.yaml:1: the file"),
        ("scenarios: []", "talks.yaml:1: scenarios"),
        (
            "scenarios:\n- name: a\n  lines:\n  - caller: Hi\n    say: [x]\n",
            "talks.yaml:5: scenarios[1].lines[1].say: Extra",
        ),
        (
            "scenarios:\n- name: a\n  lines:\n  - says: [x]\n",
            "talks.yaml:4: scenarios[1].lines[1].caller: Field required",
        ),
        (
            "scenarios:\n- name: a\n  lines:\n  - caller: Hi\n    says: [49]\n",
            "talks.yaml:5: scenarios[1].lines[1].says: 49",
        ),
        ("scenarios:\n- name: a\n  lines:\n  - caller: Hi\n    says: x\n", "says: must be a list"),
        ("scenarios:\n- name: a\n  lines:\n  - caller: Hi\n    says: ['/(/']\n", "/(/ is not a regular expression"),
        ("scenarios:\n- name: a\n  lines:\n  - caller: Hi\n    says: ['...']\n", "has no word in it"),
        ("scenarios:\n- name: a\n  lines:\n  - caller: Hi\n    caller: Ho\n", "talks.yaml:5: caller stands here twice"),
        ("scenarios:\n- name: A b\n  lines:\n  - caller: Hi\n", "talks.yaml:2: scenarios[1].name"),
        ("scenarios:\n- name: a\n  lines:\n  - caller: Hi\n    barge_in_at: 3\n", "barge_in_at in the last line"),
        (
            "scenarios:\n- name: a\n  lines:\n  - {caller: Hi, no_tools: true, tools: [x]}\n",
            "no_tools and tools contradict",
        ),
        (
            "scenarios:\n- name: a\n  audio: true\n  lines:\n  - {caller: Hi, barge_in_at: 2}\n"
            "  - {caller: Ho, barge_in_at: 2}\n  - caller: Ha\n",
            "cannot be interrupted itself",
        ),
        ("scenarios:\n- {name: a, audio: true, documents: [x.md], lines: [{caller: Hi}]}\n", "documents are for text"),
        ("scenarios:\n- {name: a, lines: [{caller: Hi}]}\n- {name: a, lines: [{caller: Hi}]}\n", "are named a"),
        ("scenarios: !!python/object/apply:os.getcwd []", "not YAML"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_with_the_place(tmp_path: Path, text: str, told: str) -> None:
    assert told in refusal(tmp_path, text)


def test_everything_wrong_in_a_file_is_named_at_once(tmp_path: Path) -> None:
    told = refusal(tmp_path, "scenarios:\n- name: a\n  colour: red\n  lines:\n  - caller: Hi\n    barge_in_at: 0\n")
    assert [each.split(": ")[0] for each in told.splitlines()] == ["talks.yaml:3", "talks.yaml:6"]


# Judging answers.


@pytest.mark.parametrize(
    ("text", "said", "expected"),
    [
        ("forty nine dollars", "It costs $49 a month.", True),
        ("49 dollars", "It is forty-nine dollars.", True),
        ("49 dollars", "It is one hundred forty nine dollars.", False),
        ("9", "Nineteen.", False),
        ("Harbour Street", "We are at HARBOUR STREET, number 12.", True),
        ("harbour street", "Harbour and Mill Street.", False),
        ("do not know", "I don't know that.", True),
        ("plan", "We have plans.", False),
        (r"/\bplans?\b/", "Our PLANS are good.", True),
        ("/plan$/", "A plan, perhaps.", False),
        ("{open_ticket.ticket_id}", "Its number is T 4 8 1 5.", True),
        ("{open_ticket.ticket_id}", "Its number is T 4 8 1.", False),
        ("number {open_ticket.ticket_id}", "It has the number T4815.", True),
        ("{open_ticket.colour}", "It is blue.", False),
    ],
)
def test_words_are_found_however_they_are_spelled(text: str, said: str, expected: bool) -> None:
    assert occurs(text, said, {("open_ticket", "ticket_id"): "T4815"}) is expected


PRICE = ToolUse("look_up_price", {"product": "premium plan", "year": 1}, {"summary": "It costs forty nine dollars."})
ANSWER = Answer("It costs forty nine dollars.", "sales", hands_over=("sales",), tools=(PRICE,))


@pytest.mark.parametrize(
    "met",
    [
        {"specialist": "sales"},
        {"hands_over": ["sales"]},
        {"tools": ["look_up_price"]},
        {"tools": [{"name": "look_up_price", "arguments": {"product": "premium", "year": 1}}]},
        {"tools": [{"name": "look_up_price", "arguments": {"product": ["basic plan", "premium plan"]}}]},
        {"says": ["49 dollars", ["cheap", "costs"]]},
        {"says": ["{look_up_price.summary}"]},
        {"says_not": ["free", "/gold/"]},
        {},
    ],
)
def test_an_expectation_that_is_met_says_nothing(met: dict[str, object]) -> None:
    assert judge(line(**met), ANSWER).failures == ()


@pytest.mark.parametrize(
    ("missed", "told"),
    [
        ({"specialist": "front_desk"}, "sales answered, not front_desk"),
        ({"hands_over": []}, "handed over to sales, not to nobody"),
        ({"hands_over": ["sales", "tech_support"]}, "handed over to sales, not to sales, tech_support"),
        ({"no_tools": True}, "called look_up_price, not anything"),
        ({"tools": ["look_up_price", "look_up_price"]}, "called look_up_price, not look_up_price, look_up_price"),
        ({"tools": ["open_ticket"]}, "called look_up_price, not open_ticket"),
        (
            {"tools": [{"name": "look_up_price", "arguments": {"product": "basic plan"}}]},
            "called look_up_price with product='premium plan', not “basic plan”",
        ),
        (
            {"tools": [{"name": "look_up_price", "arguments": {"year": True}}]},
            "called look_up_price with year=1, not True",
        ),
        ({"says": ["free"]}, "must say “free”"),
        ({"says": [["free", "/gratis/"]]}, "must say “free” or /gratis/"),
        ({"says_not": [["free", "49 dollars"]]}, "must not say “free” or “49 dollars”"),
        ({"says": ["{open_ticket.ticket_id}"]}, "must say “{open_ticket.ticket_id}”"),
    ],
)
def test_an_expectation_that_is_not_met_says_why(missed: dict[str, object], told: str) -> None:
    assert judge(line(**missed), ANSWER).failures == (told,)


def test_what_a_mode_cannot_see_is_noted_and_not_judged() -> None:
    wanted = line(
        tools=[{"name": "open_ticket", "arguments": {"summary": "router"}}], says=["{open_ticket.ticket_id}", "open"]
    )
    result = judge(wanted, Answer("Your ticket is open.", "tech_support", tools=(ToolUse("open_ticket"),)))
    assert result.failures == ()
    assert [note.partition(" ")[0] for note in result.unchecked] == ["the", "“{open_ticket.ticket_id}”"]


# Holding them in text.


async def test_hand_overs_tools_and_words_are_observed() -> None:
    wanted = script(
        {
            "specialist": "sales",
            "hands_over": ["sales"],
            "tools": [{"name": "look_up_price", "arguments": {"product": "premium plan"}}],
            "says": ["49 dollars", "one moment"],
        }
    )
    price = calls("look_up_price", {"product": "premium plan"})
    outcome = await held(wanted, transfers("sales"), price, says("It costs forty nine dollars."))
    assert outcome.problems == () and outcome.passed
    assert outcome.lines[0].answer.tools[0].result is not None


async def test_a_ticket_s_number_must_be_read_back() -> None:
    wanted = script({"tools": ["open_ticket"], "says": ["{open_ticket.ticket_id}"]})
    ticket = calls("open_ticket", {"summary": "My router."})
    lying = await held(wanted, transfers("tech_support"), ticket, says("Its number is T 0."))
    assert lying.problems == ("line 1: must say “{open_ticket.ticket_id}”",)


async def test_a_tool_that_was_refused_was_not_called() -> None:
    wanted = script({"no_tools": True})
    price = calls("look_up_price", {"product": "gold plan"})
    assert (await held(wanted, transfers("sales"), price, says("There is none."))).passed


async def test_an_interrupted_answer_is_remembered_as_far_as_it_was_heard() -> None:
    llm = ScriptedLLM(says(*(f"word{number} " for number in range(40))), says("All right."))
    wanted = script({"barge_in_at": 3, "says": ["word 2"], "says_not": ["word 3"]}, {"says": ["all right"]})
    outcome = await TextRunner(llm=llm).run(wanted)
    assert outcome.problems == ()
    assert outcome.lines[0].answer.interrupted and outcome.lines[0].answer.said == "word0 word1 word2"
    assert [message.content for message in llm.requests[1].messages[1:]] == ["Hello?", "word0 word1 word2", "Hello?"]


async def test_an_answer_that_is_too_short_to_interrupt_fails() -> None:
    outcome = await held(script({"barge_in_at": 3}, {}), says("Just two"), says("Yes."))
    assert outcome.problems == ("line 1: the answer was over before word 3 could be talked over",)


async def test_the_model_knows_the_slots() -> None:
    llm = ScriptedLLM(says("Hello Ada."))
    assert (await TextRunner(llm=llm).run(script({"says": ["Ada"]}, slots={"name": "Ada"}))).passed
    assert "- name: Ada" in llm.requests[0].system


async def test_the_model_is_given_the_scenario_s_documents(tmp_path: Path) -> None:
    (tmp_path / "news.md").write_text("# News\n\n## Bicycles\nBicycles can be rented for seven dollars a day.\n")
    llm = ScriptedLLM(says("For seven dollars."))
    asked = script({"caller": "Can I rent a bicycle?", "says": ["7 dollars"]}, documents=["news.md"])
    outcome = await TextRunner(llm=llm).run(Script(asked.scenario, tmp_path / "talks.yaml"))
    assert outcome.passed, outcome.problems
    assert "rented for seven dollars" in llm.requests[0].system


async def test_a_document_that_is_missing_is_the_scenario_s_error(tmp_path: Path) -> None:
    outcome = await held(script({}, documents=["missing.md"]), says("Hello."))
    assert not outcome.passed and outcome.lines == () and "missing.md" in (outcome.error or "")


async def test_a_model_that_fails_ends_the_scenario_with_an_error() -> None:
    failing = LLMUnavailable(cause=ConnectionError("gone"), retryable=True)
    outcome = await held(script({}, {}, {}), says("Hello."), [failing])
    assert (len(outcome.lines), outcome.passed) == (1, False)
    assert outcome.problems == ("The model did not answer: ConnectionError",)


async def test_each_scenario_has_a_memory_of_its_own() -> None:
    llm = ScriptedLLM([*says("One."), UsageReported(1, 1)], says("Two."))
    runner = TextRunner(llm=llm)
    for _ in range(2):
        await runner.run(script({}))
    assert [len(request.messages) for request in llm.requests] == [2, 2]


# Telling the outcome.

EVIL = "<script>alert('&')</script> \x00\x1b"


@pytest.fixture
def outcomes() -> list[Outcome]:
    good = script({"caller": EVIL, "says": ["x"]}, name="good", description=EVIL, slots={"name": EVIL})
    bad = script({"caller": "Hello"}, {"caller": "Ho"}, name="bad")
    answer = Answer(EVIL, "front_desk", hands_over=("sales",), tools=(ToolUse("t", {"a": EVIL}),), recognised="Helo")
    passed = LineResult(good.scenario.lines[0], answer, ())
    failed = LineResult(bad.scenario.lines[0], answer, (f"must say {EVIL}", "also this"), ("cannot be seen",))
    return [
        Outcome(good, (passed,), 1.25),
        Outcome(bad, (failed,), 0.5),
        Outcome(bad, (passed,), 0.25, error=EVIL, number=2),
    ]


def test_junit_xml_counts_and_explains(outcomes: list[Outcome]) -> None:
    root = ElementTree.fromstring(junit_xml(outcomes, mode="text"))
    (suite,) = root
    assert (root.tag, suite.tag, suite.get("name")) == ("testsuites", "testsuite", "text")
    for element in (root, suite):
        assert [element.get(name) for name in ("tests", "failures", "errors")] == ["3", "1", "1"]
    assert suite.get("time") == "2.000"
    assert [(case.get("classname"), case.get("name")) for case in suite] == [
        ("talks", "good"),
        ("talks", "bad"),
        ("talks", "bad #2"),
    ]
    good, bad, broken = suite
    assert [child.tag for child in good] == ["system-out"]
    assert [child.tag for child in bad] == ["failure", "system-out"]
    assert [child.tag for child in broken] == ["error", "system-out"]
    assert (bad[0].text or "").splitlines()[-1] == "line 1: also this"
    assert "<script>" in (bad[0].get("message") or "") and "caller: Hello" in (bad[1].text or "")


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [name for name, _ in attributes if name in {"src", "href"}]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_html_page_needs_nothing_else_and_escapes_what_was_said(outcomes: list[Outcome]) -> None:
    html = html_page(outcomes, title="muster eval")
    page = _Page()
    page.feed(html)
    assert "script" not in page.tags and page.links == []
    assert page.text.count("<script>alert('&')</script>") >= 5
    assert html.count("<details open>") == 2 and html.count("<details>") == 1
    assert "1 of 3 passed" in page.text


# The command.


@pytest.fixture(scope="module")
def stand_in() -> None:
    """The stand-in model's wheel; without it tests are skipped, on CI they fail."""
    from local.providers.embeddings import model_folder

    try:
        model_folder()
    except ModuleNotFoundError as missing:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(missing))


def run(*arguments: object, **environ: str | None) -> Result:
    settings = {"OPENAI_API_KEY": None, "OPENAI_BASE_URL": None, "COLUMNS": "200", **environ}
    return CliRunner(env=settings).invoke(main, ["eval", *map(str, arguments)])


def test_a_file_that_cannot_be_used_exits_with_2_and_names_the_place(tmp_path: Path) -> None:
    file = written(tmp_path, "scenarios:\n- name: a\n  lines:\n  - caller: Hi\n    speaks: [x]\n")
    result = run(file)
    assert result.exit_code == 2
    assert f"{file}:5: scenarios[1].lines[1].speaks" in result.output


def test_a_scenario_or_a_mode_that_is_not_there_exits_with_2(tmp_path: Path) -> None:
    file = written(tmp_path, "scenarios: [{name: a, lines: [{caller: Hi}]}]")
    assert run(file, "--only", "b").exit_code == 2
    silent = run(file, "--mode", "audio")
    assert silent.exit_code == 2 and "audio: true" in silent.output
    assert run(tmp_path / "nothing.yaml").exit_code == 2


def test_a_model_that_cannot_be_reached_exits_with_1(tmp_path: Path) -> None:
    file = written(tmp_path, "scenarios: [{name: a, lines: [{caller: Hi}]}]")
    result = run(file, OPENAI_API_KEY="x", OPENAI_BASE_URL="http://127.0.0.1:9/v1")
    assert result.exit_code == 1
    assert "The model did not answer" in result.output and "stand-in" not in result.output


@pytest.mark.timeout(120)
def test_all_thirty_scenarios_pass_with_the_stand_in(stand_in: None, tmp_path: Path) -> None:
    result = run("--junit", tmp_path / "junit.xml", "--html", tmp_path / "report.html")
    assert "30 of 30 passed" in result.output, result.output
    assert result.exit_code == 0
    suite = ElementTree.fromstring((tmp_path / "junit.xml").read_text())[0]
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("30", "0", "0")
    assert "30 of 30 passed" in (tmp_path / "report.html").read_text()


@pytest.mark.timeout(120)
def test_a_scenario_that_fails_exits_with_1_and_shows_what_was_said(stand_in: None, tmp_path: Path) -> None:
    file = written(
        tmp_path,
        """
        scenarios:
          - name: wrong
            lines: [{caller: "What are your opening hours?", specialist: front_desk, says: [all night]}]
          - name: left_out
            lines: [{caller: Hello}]
        """,
    )
    result = run(file, "--only", "wrong", "--repeat", 2)
    assert result.exit_code == 1
    assert "0 of 2 passed" in result.output and "wrong #2" in result.output and "left_out" not in result.output
    assert "must say “all night”" in result.output and "nine to six" in result.output


def test_the_stand_in_knows_no_scenario() -> None:
    lines = [line.caller for each in load([SHIPPED]) for line in each.scenario.lines]
    sources = [file.read_text().casefold() for file in (SHIPPED.parents[2] / "local" / "providers").glob("*.py")]
    long = [caller for caller in lines if len(caller.split()) >= 4]
    assert long and not [caller for caller in long if any(caller.casefold().rstrip("?.!") in text for text in sources)]


def test_the_documented_examples_are_valid(tmp_path: Path) -> None:
    page = (SHIPPED.parents[2] / "docs" / "evals.md").read_text()
    examples = [part.partition("```")[0] for part in page.split("```yaml\n")[1:]]
    assert examples
    for example in examples:
        assert isinstance(yaml.safe_load(example), dict)
        (tmp_path / "example.yaml").write_text(example)
        assert load([tmp_path / "example.yaml"])


def test_arguments_are_shown_as_json(outcomes: list[Outcome]) -> None:
    page = _Page()
    page.feed(html_page(outcomes, title="t"))
    assert f"tool t {json.dumps({'a': EVIL})}" in page.text
