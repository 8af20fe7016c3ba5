"""Holds scenarios in real calls: a whole stack of their own, a caller who speaks, an agent who listens."""

import asyncio
import tempfile
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from local.caller_voice import CallerVoice
from local.parts import ALL_PARTS, FLOWER, PROVIDERS, StackOptions
from local.stack import Stack
from muster.calls import CALL_ERRORS, Call, hold_call, open_client
from muster.client import MusterClient
from muster.conversation import Exchange, Line
from muster.evals.expectations import judge
from muster.evals.outcome import Answer, LineResult, Outcome, ToolUse
from muster.evals.scenario import Scenario, Script

#: A voice on the phone says about as many words in a second.
WORDS_PER_SECOND = 2.6


def hold_calls(scripts: Sequence[Script], *, repeat: int, console: Console) -> list[Outcome]:
    """One call after the other on a stack of their own, each shown as it goes on. Raises LocalError."""
    with tempfile.TemporaryDirectory() as home:
        options = StackOptions(parts=ALL_PARTS - {FLOWER}, preferred_ports=False, home=Path(home))
        with Stack(options=options) as stack, open_client(stack.urls) as client:
            voice = CallerVoice(providers=stack.urls[PROVIDERS])
            return [
                hold(script, number=number, client=client, voice=voice, console=console)
                for script in scripts
                for number in range(1, repeat + 1)
            ]


def hold(script: Script, *, number: int, client: MusterClient, voice: CallerVoice, console: Console) -> Outcome:
    """One scenario as one call."""
    started = time.monotonic()
    console.print(f"[bold]{script.name}[/bold]")
    results: list[LineResult] = []
    error = None
    try:
        lines = _spoken(script.scenario, voice)
        call = Call(client, f"eval-{uuid.uuid4().hex[:8]}", lines, leave=True, metadata=script.scenario.slots)
        results = judged(script.scenario, asyncio.run(hold_call(call, console=console)).exchanges)
        if len(results) < len(script.scenario.lines):
            error = f"line {len(results) + 1} was not said: the answer before it was over too soon"
    except CALL_ERRORS as failure:
        error = str(failure) or type(failure).__name__
    return Outcome(script, tuple(results), time.monotonic() - started, error, number)


def judged(scenario: Scenario, exchanges: Sequence[Exchange]) -> list[LineResult]:
    """Each line that was spoken, with what its exchange shows, up to the first that could not be interrupted."""
    results: list[LineResult] = []
    for line, exchange in zip(scenario.lines, exchanges, strict=False):
        if exchange.said != line.caller:
            break
        results.append(judge(line, _answer(exchange), before=[result.answer for result in results]))
        if line.barge_in_at is not None and exchange.interrupted_by is None:
            break
    return results


def _spoken(scenario: Scenario, voice: CallerVoice) -> list[Line]:
    """The lines as sound; one that is said over an answer belongs to the line before it."""
    spoken: list[Line] = []
    lines = iter(scenario.lines)
    for line in lines:
        if line.barge_in_at is None:
            spoken.append(Line(line.caller, voice.render(line.caller)))
            continue
        over = next(lines).caller
        after = line.barge_in_at / WORDS_PER_SECOND
        interruption = Line(over, voice.render(over))
        spoken.append(Line(line.caller, voice.render(line.caller), interruption, interrupt_after=after))
    return spoken


def _answer(exchange: Exchange) -> Answer:
    events = exchange.events
    troubles = [] if exchange.answered else ["there was no answer"]
    if exchange.interrupted_by is not None and not exchange.interrupted:
        troubles.append("the interrupted answer is not marked as interrupted")
    return Answer(
        said=exchange.reply,
        specialist=exchange.specialist,
        hands_over=tuple(event.target for event in events if event.kind == "transfer" and event.target),
        tools=tuple(ToolUse(event.name) for event in events if event.kind == "tool" and event.name),
        interrupted=exchange.interrupted,
        recognised=exchange.recognised,
        troubles=tuple(troubles),
    )
