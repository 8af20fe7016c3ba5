"""A provider of speech that fails in the middle of a call: the caller does not notice, and it returns."""

import asyncio
import time
from dataclasses import dataclass
from typing import Literal

import pytest

from tests.calls.calling import Fleet, OngoingCall
from tests.provider_server import ProviderServer

pytestmark = pytest.mark.timeout(150)


@dataclass(frozen=True)
class Fault:
    """One provider's part of the work, and who takes it over."""

    part: Literal["openai_stt", "elevenlabs_tts"]
    kind: str
    usual: str
    other: str


HEARING = Fault("openai_stt", "stt", usual="openai", other="elevenlabs")
SPEAKING = Fault("elevenlabs_tts", "tts", usual="elevenlabs", other="openai")
#: What is heard in silence, and what is spoken unheard.
PROBES = ("", "Yes.")


@pytest.mark.slow
@pytest.mark.parametrize("fault", [HEARING, SPEAKING], ids=lambda fault: fault.kind)
async def test_a_call_goes_on_with_the_other_provider_and_returns_to_the_first(fleet: Fleet, fault: Fault) -> None:
    journal = ProviderServer(fleet.providers, fleet.stack.directory / "providers.jsonl")

    def served(since: int, *, probes: bool = False) -> set[str]:
        entries = [entry for entry in journal.requests(fault.kind)[since:] if entry["outcome"] == "done"]
        return {entry["provider"] for entry in entries if (entry["text"].strip() in PROBES) is probes}

    async with fleet.call() as call:
        since = len(journal.requests(fault.kind))
        await ask(fleet, call, "How much does the premium plan cost?")
        assert fault.usual in served(since)

        await fleet.set_fault(fault.part, "fail")
        since = len(journal.requests(fault.kind))
        try:
            await ask(fleet, call, "What are your opening hours?")
            assert served(since) == {fault.other}
        finally:
            mended_at = len(journal.requests(fault.kind))
            await fleet.set_fault(fault.part, "ok")

        deadline = time.monotonic() + 30
        while fault.usual not in served(mended_at, probes=True):
            assert time.monotonic() < deadline, "nobody asks whether it works again"
            await asyncio.sleep(0.1)
        since = len(journal.requests(fault.kind))
        await ask(fleet, call, "How much does the basic plan cost?")
        assert fault.usual in served(since)
        assert (await fleet.state(call.session.session_id, "live")).reason is None

    turns = await fleet.turns(call.session.session_id)
    answers = [turn.text or "" for turn in turns if turn.role == "assistant"]
    assert len([turn for turn in turns if turn.role == "user"]) == 3
    assert not any("again" in answer.lower() for answer in answers), answers
    assert all(turn.timings for turn in turns if turn.role == "assistant" and turn.text != "Hello.")


async def ask(fleet: Fleet, call: OngoingCall, text: str) -> None:
    """Ask and hear the whole answer."""
    answered = await fleet.ask(call, text)
    await call.caller.heard.silent_since(answered, gap=1.0, within=20)
