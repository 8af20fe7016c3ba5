"""When somebody was audible: speech intervals found in received frames, and waits that the frames answer."""

import asyncio
import itertools
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from dataclasses import dataclass

from local.audio import FRAME_SAMPLES, FRAME_SECONDS, Samples, frames_of, peak

#: A ten-millisecond frame whose peak is above this is audible. Far above what a codec makes of silence.
AUDIBLE_PEAK = 400

#: A pause of fewer seconds belongs to the speech around it.
INTERVAL_GAP = 0.8

#: Seconds kept around a stretch of speech: recognisers mishear a word cut at its first audible frame.
SPEECH_MARGIN = 0.1


@dataclass(frozen=True, slots=True)
class Interval:
    """Speech without a long pause, from its first to its last audible frame."""

    started_at: float
    ended_at: float

    @property
    def seconds(self) -> float:
        return self.ended_at - self.started_at


@dataclass(frozen=True, slots=True)
class _Waiter:
    """A question put to every frame; the first answer that is not None ends the wait."""

    answer: Callable[[], float | None]
    future: asyncio.Future[float]


class Hearing:
    """Hears one side of a call, frame by frame. Moments are wall-clock seconds, taken when a frame arrives.

    Every wait is bounded: it raises `TimeoutError` when its time is over and `ConnectionError` when the
    call is lost before.
    """

    def __init__(self) -> None:
        self._audible: list[float] = []
        self._starts: list[float] = []
        self._clock = 0.0
        self._waiters: list[_Waiter] = []
        self._sources = 0
        self._lost: str | None = None

    def feed(self, samples: Samples, *, at: float) -> None:
        """Takes a ten-millisecond frame that arrived at the moment `at`."""
        self._clock = at
        if peak(samples) > AUDIBLE_PEAK:
            if not self._audible or at - self._audible[-1] >= INTERVAL_GAP:
                self._starts.append(at)
            self._audible.append(at)
        self._ask()

    def source_added(self) -> None:
        self._sources += 1

    def source_removed(self) -> None:
        """A track that is gone sends no more frames, so whoever waits for silence is answered here."""
        self._sources -= 1
        self._ask()

    def lose(self, reason: str) -> None:
        """Ends every wait, present and future, with `ConnectionError`."""
        self._lost = reason
        for waiter in self._waiters:
            if not waiter.future.done():
                waiter.future.set_exception(ConnectionError(reason))

    @property
    def intervals(self) -> tuple[Interval, ...]:
        """Everything heard so far, oldest first; the last one may still go on."""
        ends = [self._audible[bisect_left(self._audible, start) - 1] for start in self._starts[1:]]
        return tuple(map(Interval, self._starts, ends + self._audible[-1:]))

    def audible_between(self, earliest: float, latest: float) -> bool:
        """Whether any frame of (earliest, latest] was audible."""
        return bisect_right(self._audible, earliest) < bisect_right(self._audible, latest)

    async def first_audible_after(self, moment: float, *, within: float) -> float:
        """The moment of the first audible frame later than `moment`, heard already or still to come."""

        def first() -> float | None:
            index = bisect_right(self._audible, moment)
            return self._audible[index] if index < len(self._audible) else None

        return await self._wait_for(first, within=within, what="an audible frame")

    async def silent_since(self, moment: float, *, gap: float, within: float) -> float:
        """Waits for `gap` seconds without an audible frame, all of them after `moment`.

        Returns when that silence began: the last audible frame, or `moment` if it was silent already.
        """

        def silence() -> float | None:
            began = max(moment, self._audible[-1]) if self._audible else moment
            return began if self._sources == 0 or self._clock - began >= gap else None

        return await self._wait_for(silence, within=within, what=f"{gap:g} s of silence")

    async def speaking_for(self, seconds: float, *, within: float) -> float:
        """Waits until the interval that is going on has lasted `seconds`; returns when it started."""

        def start() -> float | None:
            if not self._audible or self._clock - self._audible[-1] > INTERVAL_GAP:
                return None
            return self._starts[-1] if self._audible[-1] - self._starts[-1] >= seconds else None

        return await self._wait_for(start, within=within, what=f"{seconds:g} s of speech")

    async def _wait_for(self, answer: Callable[[], float | None], *, within: float, what: str) -> float:
        if self._lost is not None:
            raise ConnectionError(self._lost)
        waiter = _Waiter(answer, asyncio.get_running_loop().create_future())
        self._waiters.append(waiter)
        self._ask()
        try:
            async with asyncio.timeout(within):
                return await waiter.future
        except TimeoutError:
            raise TimeoutError(f"no sign of {what} within {within:g} s") from None
        finally:
            self._waiters.remove(waiter)

    def _ask(self) -> None:
        for waiter in self._waiters:
            if not waiter.future.done() and (moment := waiter.answer()) is not None:
                waiter.future.set_result(moment)


def speech_in(samples: Samples, *, gap: float = INTERVAL_GAP) -> list[Samples]:
    """The stretches of a recording in which somebody speaks; pauses of `gap` seconds and more are left out.

    Each keeps up to `SPEECH_MARGIN` of what is around it.
    """
    audible = [index for index, frame in enumerate(frames_of(samples)) if peak(frame) > AUDIBLE_PEAK]
    pause, margin = round(gap / FRAME_SECONDS), round(SPEECH_MARGIN / FRAME_SECONDS)
    pauses = [(before, after) for before, after in itertools.pairwise(audible) if after - before >= pause]
    starts = [*audible[:1], *(after for _, after in pauses)]
    ends = [*(before for before, _ in pauses), *audible[-1:]]
    return [
        samples[max(0, start - margin) * FRAME_SAMPLES : (end + 1 + margin) * FRAME_SAMPLES]
        for start, end in zip(starts, ends, strict=True)
    ]
