"""A simulated conversation: what the caller says, what comes back, and when each of it was audible."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from local.audio import Samples
from local.caller import BargeIn, Caller, Utterance
from muster.client import Citation, MusterClient, Turn, TurnEvent, TurnTimings
from muster.errors import CallFailed

#: Seconds until the greeting, or an answer, must have begun.
GREETING_TIMEOUT = 45.0
ANSWER_TIMEOUT = 20.0

#: Seconds an answer may last, and after its end until its words are committed.
REPLY_TIMEOUT = 60.0
COMMIT_TIMEOUT = 6.0

#: The agent has finished when it has been silent for these seconds: longer than the pause before a
#: hand-over's second voice.
REPLY_GAP = 1.2

#: Seconds the agent is allowed to talk before the caller interrupts.
INTERRUPT_AFTER = 2.5

#: Seconds between two looks at the session's turns.
FEED_INTERVAL = 0.2


@dataclass(frozen=True, slots=True)
class Line:
    """Something for the caller to say, and what is said over the answer, `interrupt_after` seconds from its start."""

    text: str
    samples: Samples
    interruption: "Line | None" = None
    interrupt_after: float = INTERRUPT_AFTER


@dataclass(frozen=True, slots=True)
class Greeting:
    """How the agent opened the call, and when the caller first heard it."""

    heard_at: float
    text: str
    specialist: str | None


@dataclass(frozen=True, slots=True)
class Exchange:
    """One line of the caller and everything that came back.

    `heard_at` is the first audible frame of the answer as the caller received it; `interrupted_by` is set
    when the caller talked over the answer; `interrupts` when the line itself was spoken over one.
    """

    said: str
    utterance: Utterance
    heard_at: float | None
    turns: tuple[Turn, ...]
    overlapped: bool = False
    interrupted_by: BargeIn | None = None
    interrupts: BargeIn | None = None

    @property
    def recognised(self) -> str:
        return _spoken_text(self.turns, "user")

    @property
    def reply(self) -> str:
        """What was heard of the answer."""
        return _spoken_text(self.turns, "assistant")

    @property
    def events(self) -> tuple[TurnEvent, ...]:
        return tuple(turn.event for turn in self.turns if turn.event is not None)

    @property
    def specialist(self) -> str | None:
        """Who answered in the end."""
        return next((turn.specialist for turn in reversed(self.turns) if turn.role == "assistant"), None)

    @property
    def citations(self) -> tuple[Citation, ...]:
        """The passages that lay before the model when it answered, each once."""
        return tuple(dict.fromkeys(citation for turn in self.turns for citation in turn.citations))

    @property
    def interrupted(self) -> bool:
        """Whether the agent itself noted that it was interrupted."""
        return any(turn.interrupted for turn in self.turns if turn.role == "assistant")

    @property
    def timings(self) -> TurnTimings | None:
        return next((turn.timings for turn in self.turns if turn.timings is not None), None)

    @property
    def answered(self) -> bool:
        return self.heard_at is not None and bool(self.reply)

    @property
    def latency(self) -> float | None:
        """Seconds from the caller's last audible sample to the agent's first audible frame.

        None without an answer, and where the agent was audible while the caller still spoke: a barge-in's
        answer begins when both have fallen silent, so it says nothing about how fast the agent answers.
        """
        if self.heard_at is None or self.overlapped or self.interrupts:
            return None
        return self.heard_at - self.utterance.ended_at


class Audience(Protocol):
    """Whoever follows the conversation while it goes on."""

    def greeted(self, greeting: Greeting) -> None: ...

    def said(self, text: str) -> None: ...

    def answered(self, exchange: Exchange) -> None: ...


class TurnFeed:
    """The session's committed turns in order, each handed out once. Asks the agent service, bounded."""

    def __init__(self, *, client: MusterClient, session_id: str) -> None:
        self._client = client
        self._session_id = session_id
        self._cursor: str | None = None
        self._waiting: list[Turn] = []

    async def take(self, through: Callable[[Sequence[Turn]], int], *, within: float) -> tuple[Turn, ...]:
        """Reads on until `through` counts turns that belong together, and hands those out.

        After `within` seconds it hands out whatever has come.
        """
        deadline = time.monotonic() + within
        while True:
            await self._read()
            count = through(self._waiting)
            if count == 0 and time.monotonic() < deadline:
                await asyncio.sleep(FEED_INTERVAL)
                continue
            count = count or len(self._waiting)
            taken, self._waiting = tuple(self._waiting[:count]), self._waiting[count:]
            return taken

    async def _read(self) -> None:
        page = await asyncio.to_thread(self._client.turns, self._session_id, after=self._cursor)
        self._waiting += page.turns
        self._cursor = page.cursor


class Conversation:
    """Speaks a script to the agent, line by line, and keeps what came back in `exchanges`."""

    def __init__(self, *, caller: Caller, feed: TurnFeed, audience: Audience) -> None:
        self._caller = caller
        self._feed = feed
        self._audience = audience
        self.greeting: Greeting | None = None
        self.exchanges: list[Exchange] = []

    async def wait_for_greeting(self) -> None:
        """Raises `CallFailed` when the agent says nothing."""
        try:
            heard_at = await self._caller.heard.first_audible_after(0, within=GREETING_TIMEOUT)
        except TimeoutError:
            raise CallFailed(f"the agent said nothing within {GREETING_TIMEOUT:g} s") from None
        turns = await self._finished_reply()
        specialist = next((turn.specialist for turn in turns if turn.role == "assistant"), None)
        self.greeting = Greeting(heard_at, _spoken_text(turns, "assistant"), specialist)
        self._audience.greeted(self.greeting)

    async def speak(self, line: Line) -> None:
        """Says a line and waits until the agent has answered it."""
        self._audience.said(line.text)
        utterance = await self._caller.say(line.samples)
        if line.interruption is not None:
            await self._interrupt(line, utterance, line.interruption)
            return
        overlapped = self._caller.heard.audible_between(utterance.started_at, utterance.ended_at)
        heard_at = await self._first_audible(utterance.ended_at)
        self._keep(Exchange(line.text, utterance, heard_at, await self._finished_reply(), overlapped))

    async def _interrupt(self, line: Line, utterance: Utterance, interruption: Line) -> None:
        heard_at = await self._first_audible(utterance.ended_at)
        try:
            barge_in = await self._caller.barge_in(
                interruption.samples, after=line.interrupt_after, within=ANSWER_TIMEOUT
            )
        except TimeoutError:
            self._keep(Exchange(line.text, utterance, heard_at, await self._finished_reply()))
            return
        turns = await self._feed.take(_through_first_reply, within=COMMIT_TIMEOUT)
        self._keep(Exchange(line.text, utterance, heard_at, turns, interrupted_by=barge_in))
        self._audience.said(interruption.text)
        spoken = barge_in.utterance
        heard_at = await self._first_audible(max(spoken.ended_at, barge_in.agent_silent_at))
        turns = await self._finished_reply()
        self._keep(Exchange(interruption.text, spoken, heard_at, turns, interrupts=barge_in))

    async def _first_audible(self, moment: float) -> float | None:
        try:
            return await self._caller.heard.first_audible_after(moment, within=ANSWER_TIMEOUT)
        except TimeoutError:
            return None

    async def _finished_reply(self) -> tuple[Turn, ...]:
        """Waits until the agent has finished and its words are committed, which may be before or after."""
        await self._agent_silence()
        turns = await self._feed.take(_through_last_reply, within=COMMIT_TIMEOUT)
        await self._agent_silence()
        return turns

    async def _agent_silence(self) -> None:
        now = time.time()
        try:
            await self._caller.heard.silent_since(now - REPLY_GAP, gap=REPLY_GAP, within=REPLY_TIMEOUT)
        except TimeoutError:
            raise CallFailed(f"the agent talked for {REPLY_TIMEOUT:g} s without a pause") from None

    def _keep(self, exchange: Exchange) -> None:
        self.exchanges.append(exchange)
        self._audience.answered(exchange)


def _through_first_reply(turns: Sequence[Turn]) -> int:
    return next((index for index, turn in enumerate(turns, start=1) if turn.role == "assistant"), 0)


def _through_last_reply(turns: Sequence[Turn]) -> int:
    return len(turns) if any(turn.role == "assistant" for turn in turns) else 0


def _spoken_text(turns: Sequence[Turn], role: str) -> str:
    return " ".join(turn.text.strip() for turn in turns if turn.role == role and turn.text)
