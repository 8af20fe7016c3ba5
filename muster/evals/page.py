"""The outcomes as one HTML file that needs nothing else."""

import json
from collections.abc import Iterator, Sequence
from html import escape

from muster.evals.outcome import LineResult, Outcome, ToolUse

_STYLE = """
:root { color-scheme: light dark; --good: #1a7f37; --bad: #cf222e; --dim: #6e7781; --edge: #8884; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; }
details { border: 1px solid var(--edge); border-radius: 6px; margin: .5rem 0; padding: .5rem .8rem; }
summary { cursor: pointer; }
.passed { color: var(--good); } .failed { color: var(--bad); } .dim { color: var(--dim); font-size: .85rem; }
dl { display: grid; grid-template-columns: 8rem 1fr; gap: .3rem .8rem; margin: .8rem 0; }
dt { color: var(--dim); text-align: right; } dd { margin: 0; overflow-wrap: anywhere; }
"""


def html_page(outcomes: Sequence[Outcome], *, title: str) -> str:
    """Every conversation word by word; those that failed are unfolded."""
    passed = sum(outcome.passed for outcome in outcomes)
    kind = "passed" if passed == len(outcomes) else "failed"
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>",
            f'<h1>{escape(title)}: <span class="{kind}">{passed} of {len(outcomes)} passed</span></h1>',
            *(part for outcome in outcomes for part in _scenario(outcome)),
            "</body></html>\n",
        ]
    )


def _scenario(outcome: Outcome) -> Iterator[str]:
    kind = "passed" if outcome.passed else "failed"
    scenario = outcome.script.scenario
    yield f"<details{'' if outcome.passed else ' open'}><summary>"
    yield f'<strong>{escape(outcome.name)}</strong> <span class="{kind}">{kind}</span>'
    yield f'<span class="dim">{escape(outcome.script.file.name)}, {outcome.seconds:.1f} s</span></summary>'
    if scenario.description:
        yield f"<p>{escape(scenario.description)}</p>"
    if scenario.slots:
        facts = ", ".join(f"{name}: {value}" for name, value in scenario.slots.items())
        yield f'<p class="dim">About the caller: {escape(facts)}</p>'
    yield "<dl>"
    for result in outcome.lines:
        yield from _line(result)
    yield "</dl>"
    if outcome.error:
        yield f'<p class="failed">{escape(outcome.error)}</p>'
    yield "</details>"


def _line(result: LineResult) -> Iterator[str]:
    answer = result.answer
    yield _row("caller", escape(result.line.caller))
    if answer.recognised is not None and answer.recognised != result.line.caller:
        yield _row("", f'<span class="dim">recognised: {escape(answer.recognised)}</span>')
    events = [f"hand-over to {target}" for target in answer.hands_over] + list(map(_tool, answer.tools))
    for event in events:
        yield _row("", f'<span class="dim">{escape(event)}</span>')
    end = ' <span class="dim">(interrupted)</span>' if answer.interrupted else ""
    yield _row((answer.specialist or "nobody").replace("_", " "), escape(answer.said) + end)
    for failure in result.failures:
        yield _row("", f'<span class="failed">{escape(failure)}</span>')
    for note in result.unchecked:
        yield _row("", f'<span class="dim">not checked: {escape(note)}</span>')


def _tool(use: ToolUse) -> str:
    arguments = "" if use.arguments is None else json.dumps(use.arguments, ensure_ascii=False)
    return f"tool {use.name} {arguments}".strip()


def _row(name: str, content: str) -> str:
    return f"<dt>{escape(name)}</dt><dd>{content}</dd>"
