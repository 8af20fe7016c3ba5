"""Simulated calls against a running stack: `muster call` and `muster demo`."""

import asyncio
import json
import logging
import math
import os
import time
import uuid
import wave
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import httpx
from livekit import rtc
from livekit.rtc.participant import PublishTrackError
from rich.console import Console

from local.audio import read_wav
from local.caller import Caller, recording_in
from local.caller_voice import CallerVoice
from local.parts import AGENT_SERVICE, CONTROL_PLANE, PROVIDERS
from local.transcripts import WordErrors, recording_word_error
from muster.client import Joined, MusterClient, Session
from muster.conversation import Conversation, Line, TurnFeed
from muster.display import CallDisplay, print_summary
from muster.errors import CallFailed, MusterError
from muster.measures import CallResult, JoinLatency

CALLER_IDENTITY = "caller"
CALLER_NAME = "Sam"

#: Seconds a session may take to end, and between two looks at whether it has.
END_TIMEOUT = 30.0
END_INTERVAL = 0.5

#: What the demo's caller says; the second of a pair is spoken over the answer to the first.
DEMO_SCRIPT: tuple[tuple[str, str | None], ...] = (
    ("Hello, what are your opening hours?", None),
    ("How much is the premium plan?", None),
    ("What plans do you offer?", "Sorry, stop please."),
    ("My router keeps dropping the connection.", None),
    ("Please open a ticket for me.", None),
    ("Thank you, that is all.", None),
)

#: What a call can fail with that is not our own mistake: the services, the voice, the room, its audio.
CALL_ERRORS = (
    MusterError,
    httpx.HTTPError,
    rtc.ConnectError,
    PublishTrackError,
    ConnectionError,
    TimeoutError,
)

#: What a file that holds no usable sound is refused with.
SOUND_ERRORS = (ValueError, EOFError, wave.Error)


@dataclass(frozen=True, slots=True)
class Call:
    """One call to hold: where, what to say, how to end it, and what the agent knows about the caller."""

    client: MusterClient
    room: str
    lines: Sequence[Line]
    leave: bool
    metadata: Mapping[str, str | int | float | bool | None] = field(default_factory=lambda: {"name": CALLER_NAME})


def run_call(
    *,
    urls: Mapping[str, str],
    script: Sequence[tuple[str, str | None]],
    wav: Path | None,
    room: str | None,
    leave: bool,
    console: Console,
    output: Path | None = None,
) -> int:
    """Calls the agent, says the script's lines (and then plays `wav`), prints what comes back; the exit code.

    A line comes with what is said over its answer, or None. `urls` holds `agent_service`, `control_plane` and
    `providers`, whose voice speaks the lines. With `leave` the agent is asked to leave at the end, else the
    caller just hangs up. `output` is a folder for the recording, the transcript and the numbers.
    """
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
    try:
        lines = _rendered(script, providers=urls[PROVIDERS])
        if wav is not None:
            lines.append(Line(f"({wav.name})", read_wav(wav)))
        with open_client(urls) as client:
            call = Call(client, room or f"call-{uuid.uuid4().hex[:8]}", lines, leave)
            result = asyncio.run(hold_call(call, console=console, output=output))
    except (*CALL_ERRORS, *SOUND_ERRORS) as error:
        console.print(f"The call failed: {error}", style="red", soft_wrap=True)
        return 1
    failures = result.failures(demo=False)
    if output is not None:
        _write_files(output, result, failures)
    print_summary(console, result, where=_where(output, urls) if output else ())
    return _conclude(console, failures)


def run_demo(*, urls: Mapping[str, str], console: Console, output: Path) -> int:
    """Holds the demo's conversation, prints it live with its numbers; 0 only when all of it worked.

    Writes into the folder `output`: `call.wav` (caller left, agent right), `call.agent.wav`,
    `transcript.jsonl` and `result.json`. A `logs` entry of `urls` is named in the summary.
    """
    output.mkdir(parents=True, exist_ok=True)
    try:
        lines = _rendered(DEMO_SCRIPT, providers=urls[PROVIDERS])
        with open_client(urls) as client:
            call = Call(client, f"demo-{uuid.uuid4().hex[:8]}", lines, leave=True)
            result = asyncio.run(hold_call(call, console=console, output=output))
        result = replace(result, recording_errors=_recognised_again(result, urls[PROVIDERS], output))
    except CALL_ERRORS as error:
        console.print(f"The demo failed: {error}", style="red", soft_wrap=True)
        return 1
    failures = result.failures(demo=True)
    _write_files(output, result, failures)
    print_summary(console, result, where=_where(output, urls))
    return _conclude(console, failures)


def open_client(urls: Mapping[str, str]) -> MusterClient:
    return MusterClient(
        urls[AGENT_SERVICE], control_plane=urls[CONTROL_PLANE], api_key=os.environ.get("MUSTER_API_KEY")
    )


def _rendered(script: Sequence[tuple[str, str | None]], *, providers: str) -> list[Line]:
    """Renders every line before the call, so that the call's own voice has the machine for itself."""
    voice = CallerVoice(providers=providers)
    return [Line(text, voice.render(text), Line(over, voice.render(over)) if over else None) for text, over in script]


async def hold_call(call: Call, *, console: Console, output: Path | None = None) -> CallResult:
    """Holds the call; its recording is written into `output`, also when the call fails on the way."""
    # The SDK warns of a handle dropped twice whenever the agent leaves first, in the middle of the chat.
    logging.getLogger("livekit").setLevel(logging.ERROR)
    requested_at = time.time()
    token = await asyncio.to_thread(call.client.token, room=call.room, identity=CALLER_IDENTITY, metadata=call.metadata)
    joined = token.session
    if joined is None:
        raise CallFailed("the control plane gave a token but started no session")
    async with AsyncExitStack() as stack:
        caller = await stack.enter_async_context(Caller(url=token.url, token=token.token))
        if output is not None:
            stack.callback(caller.save_recording, output)
        feed = TurnFeed(client=call.client, session_id=joined.session_id)
        conversation = Conversation(caller=caller, feed=feed, audience=CallDisplay(console))
        await _converse(conversation, call, joined)
        if call.leave:
            await asyncio.to_thread(call.client.leave, joined.session_id)
            # A caller who hangs up before the agent has left would be the reason for its end.
            await _ended(call.client, joined, within=END_TIMEOUT)
    session = await _ended(call.client, joined, within=END_TIMEOUT)
    join = _join_latency(session, conversation, caller, requested_at=requested_at)
    exchanges = tuple(conversation.exchanges)
    return CallResult(session, join, conversation.greeting, exchanges, caller.worst_delay)


async def _converse(conversation: Conversation, call: Call, joined: Joined) -> None:
    """Speaks the script. Raises `CallFailed` as soon as the session ends under it."""
    talk = asyncio.create_task(_talk(conversation, call.lines), name="conversation")
    end = asyncio.create_task(_ended(call.client, joined, within=math.inf), name="session-watch")
    try:
        await asyncio.wait({talk, end}, return_when=asyncio.FIRST_COMPLETED)
        if not talk.done():
            session = await end
            raise CallFailed(f"session {session.session_id} is {session.status}: {session.reason}")
        await talk
    finally:
        talk.cancel()
        end.cancel()
        await asyncio.wait({talk, end})


async def _talk(conversation: Conversation, lines: Sequence[Line]) -> None:
    await conversation.wait_for_greeting()
    for line in lines:
        await conversation.speak(line)


async def _ended(client: MusterClient, joined: Joined, *, within: float) -> Session:
    """The session once it is over. Raises `CallFailed` when it does not end in time."""
    deadline = time.monotonic() + within
    while not (session := await asyncio.to_thread(client.session, joined.session_id)).over:
        if time.monotonic() > deadline:
            raise CallFailed(f"session {joined.session_id} is still {session.status} after {within:g} s")
        await asyncio.sleep(END_INTERVAL)
    return session


def _join_latency(session: Session, conversation: Conversation, caller: Caller, *, requested_at: float) -> JoinLatency:
    timings, greeting = session.timings, conversation.greeting
    return JoinLatency(
        requested_at=requested_at,
        admitted_at=timings.admitted_at,
        claimed_at=timings.claimed_at,
        connected_at=timings.connected_at,
        first_audio_at=timings.first_audio_at,
        heard_at=greeting.heard_at if greeting else None,
        caller_connected_at=caller.connected_at,
    )


def _recognised_again(result: CallResult, providers: str, output: Path) -> WordErrors:
    """Recognises the agent's recorded audio and compares it with the words the session says were heard."""
    greeting = result.greeting.text if result.greeting else ""
    replies = [greeting, *(exchange.reply for exchange in result.exchanges)]
    return recording_word_error(recording_in(output).agent, replies, providers=providers)


def _write_files(output: Path, result: CallResult, failures: Sequence[str]) -> None:
    _write_transcript(output / "transcript.jsonl", result)
    (output / "result.json").write_text(json.dumps(result.to_json(failures=failures), indent=2) + "\n")


def _write_transcript(path: Path, result: CallResult) -> None:
    """One JSON object a line, in the order of the call."""
    greeting = result.greeting
    entries: list[dict[str, object]] = []
    if greeting is not None:
        entries.append({"at": greeting.heard_at, "who": greeting.specialist, "text": greeting.text})
    for exchange in result.exchanges:
        entries.append(
            {
                "at": exchange.utterance.started_at,
                "who": "caller",
                "text": exchange.said,
                "recognised": exchange.recognised,
            }
        )
        entries += [
            {
                "at": turn.at,
                "who": turn.specialist,
                "text": turn.text,
                "interrupted": turn.interrupted,
                "citations": [asdict(citation) for citation in turn.citations],
            }
            if turn.event is None
            else {"at": turn.at, "who": "event", **asdict(turn.event)}
            for turn in exchange.turns
            if turn.role != "user"
        ]
    path.write_text("".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries))


def _where(output: Path, urls: Mapping[str, str]) -> list[tuple[str, str]]:
    recording = recording_in(output)
    places = [
        ("Recording (caller left, agent right)", str(recording.both)),
        ("Transcript", str(output / "transcript.jsonl")),
        ("All numbers", str(output / "result.json")),
    ]
    return [*places, ("Logs", urls["logs"])] if "logs" in urls else places


def _conclude(console: Console, failures: Sequence[str]) -> int:
    """Says whether the call worked; the exit code."""
    for failure in failures:
        console.print(f"Failed: {failure}", style="red", soft_wrap=True)
    if not failures:
        console.print("The call worked.", style="green")
    return 1 if failures else 0
