"""A simulated caller: joins a room, speaks real audio on a strict clock, and hears and records the agent."""

import asyncio
import itertools
import logging
import time
from collections import deque
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from livekit import rtc

from local.audio import (
    FRAME_SAMPLES,
    FRAME_SECONDS,
    SAMPLE_RATE,
    Samples,
    Timeline,
    frames_of,
    trimmed,
    write_wav,
)
from local.hearing import Hearing

logger = logging.getLogger(__name__)

#: Seconds.
CONNECT_TIMEOUT = 20.0

#: Seconds between two attempts to join again.
_REJOIN_PAUSE = 0.5

#: Standard deviation of what a microphone picks up in a quiet room, out of 32768.
NOISE_FLOOR = 8

#: A clock that fell behind by more than these seconds is set anew instead of sending a burst.
CLOCK_SLIP = 0.2
#: Seconds by which a frame may be late before the sound has a gap: a jitter buffer's length.
_GAP = 0.08

#: Seconds of silence after which the agent counts as silenced; speakers pause up to half a second.
SILENCED_GAP = 0.6


@dataclass(frozen=True, slots=True)
class Utterance:
    """When a line was spoken: its first and its last audible sample, wall-clock seconds.

    Both are the moment the sample's frame was handed to the SDK, which encodes it there and then (the
    track's source has no queue). The residual is the codec's framing: Opus packs two of our frames, so a
    sample leaves the machine up to 10 ms after the moment given here.
    """

    started_at: float
    ended_at: float
    #: Where its sound has a gap because a frame came too late, seconds from its beginning.
    gaps: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class BargeIn:
    """A line spoken over the agent, and when the agent fell silent."""

    utterance: Utterance
    agent_silent_at: float

    @property
    def silenced_after(self) -> float:
        """Seconds from the caller's first audible sample to the agent's last audible frame."""
        return self.agent_silent_at - self.utterance.started_at


@dataclass(frozen=True, slots=True)
class Recording:
    """Where a call was written: both sides (caller left, agent right) and the agent alone."""

    both: Path
    agent: Path


def recording_in(folder: Path) -> Recording:
    """Where a caller writes its recording in a folder."""
    return Recording(both=folder / "call.wav", agent=folder / "call.agent.wav")


class _Line:
    """A line on its way to the microphone."""

    def __init__(self, samples: Samples) -> None:
        loop = asyncio.get_running_loop()
        self.frames = deque(frames_of(samples))
        self.gaps: list[float] = []
        self._sent = 0
        self.started: asyncio.Future[float] = loop.create_future()
        self.ended: asyncio.Future[float] = loop.create_future()

    def next_frame(self, at: float, *, late: float) -> Samples:
        frame = self.frames.popleft()
        if late > _GAP:
            self.gaps.append(self._sent * FRAME_SECONDS)
        self._sent += 1
        if not self.started.done():
            self.started.set_result(at)
        if not self.frames:
            self.ended.set_result(at)
        return frame


@dataclass(frozen=True, slots=True)
class HeardTrack:
    """What one track of a participant has brought so far; `sound` begins at `started_at`, Unix seconds."""

    identity: str
    started_at: float
    heard: Hearing
    sound: Timeline


class Caller:
    """One caller in one room, used as an async context manager.

    `heard` tells when the agent was audible, measured in the audio as the caller receives it. Whoever
    else publishes audio in the room counts as the agent; `tracks` keeps them apart, the oldest first.
    When the SDK has given up a lost connection, the caller tries to join again for `rejoin_within` seconds.
    Sample rate everywhere: `SAMPLE_RATE`, mono.
    """

    def __init__(self, *, url: str, token: str, rejoin_within: float = 0.0) -> None:
        self.heard = Hearing()
        self.tracks: list[HeardTrack] = []
        self.connected_at = 0.0
        #: How late a frame was sent at worst, seconds. Far above 0.05 the machine is too busy for timings.
        self.worst_delay = 0.0
        self.left = asyncio.Event()
        self._url = url
        self._token = token
        self._rejoin_within = rejoin_within
        self._rejoining: asyncio.Task[None] | None = None
        self._room = self._new_room()
        self._lines: deque[_Line] = deque()
        self._streams: dict[str, rtc.AudioStream] = {}
        # Kept until the room is left: closing it replaces the native part of each of its tracks, and one that is
        # dropped in that moment is unknown to the SDK, which raises.
        self._tracks: list[rtc.Track] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        """Joins the room and opens the microphone. Raises `TimeoutError` or `livekit.rtc.ConnectError`."""
        started_at = time.time()
        self._own_sound, self._agent_sound = (Timeline(started_at=started_at) for _ in range(2))
        async with asyncio.timeout(CONNECT_TIMEOUT):
            await self._room.connect(self._url, self._token)
        self.connected_at = time.time()
        try:
            await self._open_microphone()
        except BaseException:
            await self._room.disconnect()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.hang_up()

    async def hang_up(self) -> None:
        """Leaves the room; harmless when the caller has left already."""
        self._lose()
        self._microphone.cancel()
        if self._rejoining is not None:
            # The SDK would go on joining unseen if it were cancelled.
            await asyncio.wait([self._rejoining])
        # Before the room goes: it takes its tracks along, and a stream of a track that is gone leaks.
        await asyncio.gather(*(self._close_stream(track) for track in tuple(self._streams)))
        await self._room.disconnect()
        self._tracks.clear()
        ends = await asyncio.gather(self._microphone, *self._tasks, return_exceptions=True)
        for error in ends:
            if isinstance(error, Exception):
                logger.error("a part of the caller failed", exc_info=error)
        await self._source.aclose()

    async def say(self, samples: Samples) -> Utterance:
        """Speaks a line, behind any line still being spoken, and returns once its last sample is sent.

        Raises `ValueError` when nothing in it is audible, `ConnectionError` when the call is lost.
        """
        line = self._enqueue(samples)
        started_at, ended_at = await self._spoken(line.started), await self._spoken(line.ended)
        return Utterance(started_at, ended_at, tuple(line.gaps))

    async def barge_in(self, samples: Samples, *, after: float, within: float) -> BargeIn:
        """Waits until the agent has spoken for `after` seconds, speaks over it and waits for its silence.

        Raises `TimeoutError` when the agent does not speak that long, or not stop, in time.
        """
        await self.heard.speaking_for(after, within=within)
        line = self._enqueue(samples)
        started_at = await self._spoken(line.started)
        silent_at, ended_at = await asyncio.gather(
            self.heard.silent_since(started_at, gap=SILENCED_GAP, within=within),
            self._spoken(line.ended),
        )
        return BargeIn(Utterance(started_at, ended_at, tuple(line.gaps)), silent_at)

    def save_recording(self, folder: Path) -> Recording:
        """Writes what was said and heard so far."""
        recording = recording_in(folder)
        write_wav(recording.both, self._own_sound.samples, self._agent_sound.samples)
        write_wav(recording.agent, self._agent_sound.samples)
        return recording

    def _enqueue(self, samples: Samples) -> _Line:
        audible = trimmed(samples)
        if not audible.size:
            raise ValueError("the line holds no audible sample")
        line = _Line(audible)
        self._lines.append(line)
        return line

    async def _spoken(self, moment: asyncio.Future[float]) -> float:
        lost = asyncio.ensure_future(self.left.wait())
        try:
            anything: set[asyncio.Future[Any]] = {moment, lost, self._microphone}
            await asyncio.wait(anything, return_when=asyncio.FIRST_COMPLETED)
        finally:
            lost.cancel()
        if not moment.done():
            broken = self._microphone.done() and not self._microphone.cancelled()
            failure = self._microphone.exception() if broken else None
            raise ConnectionError("the call ended while the caller was speaking") from failure
        return moment.result()

    async def _open_microphone(self) -> None:
        # Without a queue of its own the source encodes a frame when it is handed over, so that the
        # moment of the call is the moment of the sound. In exchange each frame must be 10 ms, on time.
        self._source = rtc.AudioSource(SAMPLE_RATE, 1, queue_size_ms=0)
        await self._publish_microphone()
        # The first frame starts the encoder, which takes longer than a frame lasts.
        await self._send(np.zeros(FRAME_SAMPLES, np.int16))
        self._microphone = asyncio.create_task(self._run_microphone(), name="caller-microphone")

    async def _publish_microphone(self) -> None:
        track = rtc.LocalAudioTrack.create_audio_track("microphone", self._source)
        self._tracks.append(track)
        options = rtc.TrackPublishOptions(source=rtc.TrackSource.SOURCE_MICROPHONE)
        await self._room.local_participant.publish_track(track, options)

    async def _run_microphone(self) -> None:
        loop, quiet_room = asyncio.get_running_loop(), _noise_frames()
        due = loop.time()
        while True:
            late, moment = loop.time() - due, time.time()
            self.worst_delay = max(self.worst_delay, late)
            samples = self._next_spoken_frame(moment, late)
            if samples is None:
                samples = next(quiet_room)
            self._own_sound.place("caller", at=moment, frame=samples)
            await self._send(samples)
            due += FRAME_SECONDS
            if loop.time() - due > CLOCK_SLIP:
                due = loop.time()
            await asyncio.sleep(max(0.0, due - loop.time()))

    async def _send(self, samples: Samples) -> None:
        frame = rtc.AudioFrame(samples.tobytes(), SAMPLE_RATE, 1, FRAME_SAMPLES)
        await self._source.capture_frame(frame)

    def _next_spoken_frame(self, moment: float, late: float) -> Samples | None:
        if not self._lines:
            return None
        line = self._lines[0]
        frame = line.next_frame(moment, late=late)
        if not line.frames:
            self._lines.popleft()
        return frame

    def _on_track_subscribed(
        self,
        track: rtc.Track,
        publication: rtc.RemoteTrackPublication,
        participant: rtc.RemoteParticipant,
    ) -> None:
        self._tracks.append(track)
        if track.kind == rtc.TrackKind.KIND_AUDIO and not self.left.is_set():
            # The stream is made here and not in its task: frames that came before would be missed.
            stream = rtc.AudioStream(track, sample_rate=SAMPLE_RATE, num_channels=1, frame_size_ms=10)
            self._streams[track.sid] = stream
            self.heard.source_added()
            moment = time.time()
            source = HeardTrack(participant.identity, moment, Hearing(), Timeline(started_at=moment))
            self.tracks.append(source)
            self._start(self._listen(track.sid, stream, source), name=f"caller-hears-{track.sid}")

    def _on_track_unsubscribed(self, track: rtc.Track) -> None:
        if track.sid in self._streams:
            self._start(self._close_stream(track.sid), name=f"caller-closes-{track.sid}")

    def _on_disconnected(self, reason: rtc.DisconnectReason.ValueType) -> None:
        # That is how the SDK tells that it has given up.
        if reason == rtc.DisconnectReason.UNKNOWN_REASON and self._rejoin_within and not self.left.is_set():
            self._rejoining = asyncio.create_task(self._rejoin(), name="caller-rejoins")
            self._tasks.add(self._rejoining)
        else:
            self._lose()

    def _lose(self) -> None:
        self.left.set()
        self.heard.lose("the caller is no longer in the room")

    async def _rejoin(self) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._rejoin_within
        while not self.left.is_set():
            room = self._new_room()
            try:
                await room.connect(self._url, self._token)
            except rtc.ConnectError as error:
                if loop.time() > deadline:
                    logger.warning("the caller cannot join again: %s", error)
                    self._lose()
                await asyncio.sleep(_REJOIN_PAUSE)
            else:
                self._room = room
                await self._publish_microphone()
                return

    def _new_room(self) -> rtc.Room:
        room = rtc.Room()
        room.on("track_subscribed", self._on_track_subscribed)
        room.on("track_unsubscribed", self._on_track_unsubscribed)
        room.on("disconnected", self._on_disconnected)
        return room

    async def _listen(self, track: str, stream: rtc.AudioStream, source: HeardTrack) -> None:
        async for event in stream:
            moment = time.time()
            samples = np.frombuffer(event.frame.data, np.int16)
            self._agent_sound.place(track, at=moment, frame=samples)
            source.sound.place(track, at=moment, frame=samples)
            self.heard.feed(samples, at=moment)
            source.heard.feed(samples, at=moment)

    async def _close_stream(self, track: str) -> None:
        stream = self._streams.pop(track, None)
        if stream is not None:
            self.heard.source_removed()
            await stream.aclose()

    def _start(self, work: Coroutine[None, None, None], *, name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def quiet_room(seconds: float) -> Samples:
    """What a microphone picks up while nobody speaks; always the same."""
    second = np.random.default_rng(0).normal(0, NOISE_FLOOR, SAMPLE_RATE).astype(np.int16)
    return np.resize(second, round(seconds * SAMPLE_RATE))


def _noise_frames() -> Iterator[Samples]:
    """The same second of a quiet room, for ever."""
    return itertools.cycle(tuple(frames_of(quiet_room(1.0))))
