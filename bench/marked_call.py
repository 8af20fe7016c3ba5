"""A call whose words are counted: marked words that the caller said, what was stored of them, what was answered."""

import asyncio
import itertools
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta

import numpy as np
from livekit import api

from bench.service import AgentService, Turn
from local.audio import FRAME_SAMPLES, SAMPLE_RATE, Samples
from local.caller import Caller, HeardTrack
from local.caller_voice import CallerVoice
from local.hearing import AUDIBLE_PEAK
from local.marks import UTTERANCES, WORD_SECONDS, Mark, find_marks, full_scale, marks_in, marks_of
from local.parts import AGENT_SERVICE, LIVEKIT, PROVIDERS
from local.stack import Stack

IDENTITY = "caller"
#: Seconds until the greeting must be heard, and until it must be over.
_GREETED_WITHIN = 15.0
#: Seconds for which a caller who lost the room tries to come back.
REJOIN_WITHIN = 60.0
#: Seconds without a sound after which nobody speaks.
QUIET = 0.5
#: Seconds an answer is waited for before the caller goes on, and an answer may last.
_PATIENCE = 12.0
_LONGEST_ANSWER = 20.0
#: Seconds between two stored turns and the utterance they may belong to.
_STORED_WITHIN = 45.0
#: Seconds of sound before and behind a gap that it disturbs as well: a few packets of the codec.
_CARRIED = 0.06


@dataclass(frozen=True)
class Said:
    """One utterance: its number in the call, its marks, and when it was spoken (Unix seconds)."""

    number: int
    marks: tuple[Mark, ...]
    started_at: float
    ended_at: float
    #: Where its sound has a gap because the caller's own process came too late, seconds from its beginning.
    gaps: tuple[float, ...] = ()

    def is_broken(self, mark: Mark) -> bool:
        """Whether one of the gaps is in this word, or so near that the codec carries it there."""
        begins = mark.word * WORD_SECONDS
        return any(begins - _CARRIED < gap < begins + WORD_SECONDS + _CARRIED for gap in self.gaps)


@dataclass(frozen=True)
class Answer:
    """When the caller began to hear an utterance's number again, and from which participant."""

    number: int
    at: float
    identity: str


@dataclass(frozen=True)
class WordCount:
    """What became of the words that were said; `foreign` ones were stored but never said.

    A word with a gap in it, which the caller's own process has made, may be recognised as two; so were those in `cut`.
    """

    sent: int
    lost: tuple[Mark, ...]
    doubled: tuple[Mark, ...]
    foreign: tuple[Mark, ...]
    cut: tuple[Mark, ...] = ()

    @property
    def is_exact(self) -> bool:
        """Whether every word was stored once, and nothing else."""
        return not (self.lost or self.doubled or self.foreign)


@dataclass
class MarkedCall:
    """A caller in a room with an agent; `said` grows with each utterance."""

    caller: Caller
    client: AgentService
    voice: CallerVoice
    room: str
    session_id: str
    joined_at: float
    said: list[Said] = field(default_factory=list)

    async def say(self, count: int) -> Said:
        """Speak an utterance of `count` words; returns when its last sample is sent."""
        return await self.speak(count, await self.prepare(count))

    async def prepare(self, count: int) -> Samples:
        """The next utterance as sound, for who must know when it begins."""
        return await asyncio.to_thread(self.voice.render, " ".join(map(str, marks_of(len(self.said), count))))

    async def speak(self, count: int, line: Samples) -> Said:
        """Speak what was prepared with this `count`, from this moment on."""
        number = len(self.said)
        spoken = await self.caller.say(line)
        self.said.append(Said(number, marks_of(number, count), spoken.started_at, spoken.ended_at, spoken.gaps))
        return self.said[-1]

    async def quiet(self, *, within: float = _LONGEST_ANSWER) -> float:
        """Wait until nobody has spoken for `QUIET` seconds; when the silence began."""
        return await self.caller.heard.silent_since(time.time(), gap=QUIET, within=within)

    async def ask(self, count: int, *, within: float = _PATIENCE) -> float:
        """Say it, and wait until something is heard after it; the moment it is."""
        said = await self.say(count)
        return await self.caller.heard.first_audible_after(said.ended_at, within=within)

    async def converse(self, until: asyncio.Event, *, counts: Iterable[int] = (3, 5, 2, 4), pause: float = 0.3) -> None:
        """Ask, hear the answer out, wait and ask again; ends after the exchange in which `until` was set.

        An answer that does not come is not waited for longer than the caller's patience: the count shows it.
        """
        for count in itertools.cycle(counts):
            try:
                await self.ask(count)
                await self.quiet()
            except TimeoutError:
                pass
            if until.is_set():
                return
            await asyncio.sleep(pause)

    async def turns(self) -> tuple[Turn, ...]:
        """Everything stored of the conversation."""
        turns: list[Turn] = []
        cursor: str | None = None
        while (page := await asyncio.to_thread(self.client.turns, self.session_id, after=cursor)).turns:
            turns += page.turns
            cursor = page.cursor
        return tuple(turns)

    async def count_words(self) -> WordCount:
        """What was stored of what was said."""
        return count_words(self.said, await self.turns())

    def answers(self) -> list[Answer]:
        """What was answered, as it was heard."""
        return answers(self.said, self.caller.tracks)

    def overlap(self) -> float:
        """Seconds in which two agents were audible."""
        return overlap(self.caller.tracks)


@asynccontextmanager
async def marked_call(
    stack: Stack, *, client: AgentService | None = None, room: str | None = None, identity: str = IDENTITY
) -> AsyncIterator[MarkedCall]:
    """A caller who has been greeted, in a stack whose providers are marked; hangs up at the end."""
    room = room or f"marked-{uuid.uuid4().hex[:10]}"
    client = client or AgentService(stack.urls[AGENT_SERVICE])
    voice = CallerVoice(providers=stack.urls[PROVIDERS])
    token = caller_token(stack.settings, room, identity)
    async with Caller(url=stack.urls[LIVEKIT], token=token, rejoin_within=REJOIN_WITHIN) as caller:
        joined_at = time.time()
        joined = await asyncio.to_thread(client.join, room=room, user_id=identity)
        call = MarkedCall(caller, client, voice, room, joined.session_id, joined_at)
        await caller.heard.first_audible_after(joined_at, within=_GREETED_WITHIN)
        await call.quiet()
        yield call


def caller_token(settings: Mapping[str, str], room: str, identity: str = IDENTITY) -> str:
    """A token for a caller of a stack with these settings."""
    return (
        api.AccessToken(settings["LIVEKIT_API_KEY"], settings["LIVEKIT_API_SECRET"])
        .with_identity(identity)
        .with_ttl(timedelta(hours=1))
        .with_grants(api.VideoGrants(room_join=True, room=room))
        .to_jwt()
    )


def count_words(said: Sequence[Said], turns: Iterable[Turn]) -> WordCount:
    """Compare what was said with the user's turns that were stored."""
    stored: Counter[tuple[int | None, Mark]] = Counter()
    cut: list[Mark] = []
    broken = {(each.number, mark) for each in said for mark in each.marks if each.is_broken(mark)}
    for turn in turns:
        before: Mark | None = None
        for mark in marks_in(turn.text or "") if turn.role == "user" else ():
            number = _number(said, mark, turn.at or 0.0)
            if mark == before and (number, mark) in broken:
                cut.append(mark)
            else:
                stored[number, mark] += 1
            before = mark
    sent = [(each.number, mark) for each in said for mark in each.marks]
    return WordCount(
        sent=len(sent),
        lost=tuple(mark for number, mark in sent if not stored[number, mark]),
        doubled=tuple(mark for number, mark in sent if stored[number, mark] > 1),
        foreign=tuple(mark for number, mark in stored if (number, mark) not in set(sent)),
        cut=tuple(cut),
    )


def _number(said: Sequence[Said], mark: Mark, at: float) -> int | None:
    """Which utterance of this number, as far as a mark tells it, had begun last before that moment."""
    fitting = [
        each.number
        for each in said
        if each.number % UTTERANCES == mark.utterance and each.started_at < at < each.ended_at + _STORED_WITHIN
    ]
    return fitting[-1] if fitting else None


def answers(said: Sequence[Said], tracks: Iterable[HeardTrack]) -> list[Answer]:
    """Each time that an agent began to repeat an utterance, in the order in which they were heard."""
    found = []
    for track in tracks:
        last = None
        for each in find_marks(full_scale(track.sound.samples), rate=SAMPLE_RATE):
            at = track.started_at + each.at
            number = _number(said, each.mark, at)
            if number is not None and (number != last or each.mark.word == 0):
                found.append(Answer(number, at, track.identity))
            last = number
    return sorted(found, key=lambda answer: answer.at)


def audible_seconds(tracks: Iterable[HeardTrack], *, since: float, identity: str) -> float:
    """For how many seconds a participant was audible after that moment."""
    frames = {frame for track in tracks if track.identity == identity for frame in _audible_frames(track)}
    return sum(frame * FRAME_SAMPLES >= since * SAMPLE_RATE for frame in frames) * FRAME_SAMPLES / SAMPLE_RATE


def overlap(tracks: Sequence[HeardTrack]) -> float:
    """Seconds in which the tracks of two participants were audible at the same time."""
    seconds = 0.0
    for first, second in itertools.combinations(tracks, 2):
        if first.identity != second.identity:
            common = set(_audible_frames(first)).intersection(_audible_frames(second))
            seconds += len(common) * FRAME_SAMPLES / SAMPLE_RATE
    return seconds


def _audible_frames(track: HeardTrack) -> Iterator[int]:
    """The hundredths of a Unix second in which the track is audible."""
    offset = round(track.started_at * SAMPLE_RATE / FRAME_SAMPLES)
    samples: Samples = track.sound.samples
    frames = samples[: len(samples) // FRAME_SAMPLES * FRAME_SAMPLES].reshape(-1, FRAME_SAMPLES)
    peaks = np.abs(frames.astype(np.int32)).max(axis=1, initial=0)
    return (offset + int(index) for index in np.flatnonzero(peaks > AUDIBLE_PEAK))
