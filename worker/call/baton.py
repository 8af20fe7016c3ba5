"""The baton: of two agents that both hear the caller, only the one who holds it answers.

A successor joins early and listens, so that no word falls between the two. What the caller says meanwhile it parks
instead of discarding it, because the owner may go in the middle of a sentence; when the owner has answered it, or had
nothing left to answer, the parked words are dropped. All moments are of this process's own clock.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

#: Seconds a turn may be between its end and the reply before it counts as one that gets none.
_REPLY_BEGINS = 5.0
#: Seconds after which what sounded like speech and brought no words, or words that were no turn, is none.
_WORDLESS = 3.0
#: Frames without a gap from which on the caller's audio flows: behind the first one is a gap of up to half a second.
_STEADY_FRAMES = 6
_GAP = 0.12


class Ear:
    """Whether the caller's audio flows into the recognition."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.hears = asyncio.Event()
        self._clock = clock
        self._frames = 0
        self._last = 0.0

    @property
    def is_deaf(self) -> bool:
        """Whether not a single frame has come."""
        return self._frames == 0

    def frame_arrived(self) -> None:
        """To be called for each frame."""
        now = self._clock()
        self._frames = self._frames + 1 if now - self._last < _GAP else 1
        self._last = now
        if self._frames >= _STEADY_FRAMES:
            self.hears.set()


class Recognition:
    """Whether words are still to come of what the caller has said: a recogniser may be slow."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._due = 0
        #: When the last words came, or were known not to.
        self.told_at = 0.0

    @property
    def is_due(self) -> bool:
        """Whether an utterance that is over is being recognised."""
        return self._due > 0

    def asked(self) -> None:
        """An utterance is over, and its words are asked for."""
        self._due += 1

    def told(self) -> None:
        """They have come, or never will."""
        self._due -= 1
        self.told_at = self._clock()


@dataclass
class _Speech:
    """The turn that the caller is in the middle of, and when they were last heard to stop."""

    begun_at: float | None = None
    #: When its last stretch of sound that is over began, or its first one when none is over. What was heard before may
    #: have been the end of another turn, without a word in it.
    sounded_at: float | None = None
    paused_at: float = 0.0
    is_audible: bool = False


class Baton:
    """Who answers, as one agent of a session knows it; belongs to the call's event loop."""

    def __init__(self, *, is_held: bool, clock: Callable[[], float] = time.time) -> None:
        self.ear = Ear()
        self.recognition = Recognition(clock)
        #: Whether it is being passed on, or was.
        self.is_given = False
        self._is_lost = False
        self._clock = clock
        #: Whether it was passed to this agent by another one, and when, in `time.monotonic()`.
        self.taken_at: float | None = None
        self._held = asyncio.Event()
        self._changed = asyncio.Event()
        self._passed_at = 0.0
        self._was_open = True
        self._committed_at = 0.0
        self._speech = _Speech()
        self._sounds_since: float | None = None
        self._answering_since: float | None = None
        if is_held:
            self._held.set()

    @property
    def is_held(self) -> bool:
        """Whether this agent answers."""
        return self._held.is_set() and not self.is_given

    async def wait(self) -> None:
        """Until it was taken."""
        await self._held.wait()

    def take(self, *, is_open: bool, passed_at: float | None = None) -> None:
        """Answer from here on; `is_open` tells whether the caller was in the middle of a turn when it was passed.

        That was done at `passed_at`, as `now` counts, or just now. What the caller has said since then is this
        agent's to answer, also when taking it has lasted.
        """
        self.taken_at = time.monotonic()
        self._passed_at, self._was_open = passed_at or self._clock(), is_open
        self._held.set()
        self._change()

    def give(self) -> None:
        """Answer nothing while it is being passed on; what the caller says meanwhile is parked."""
        self.is_given = True

    def take_back(self) -> None:
        """Go on answering, with what was parked: nobody took it."""
        self.is_given = False
        self._change()

    def lose(self) -> None:
        """Answer nothing any more."""
        self.is_given = self._is_lost = True
        self._change()

    def owner_committed(self, *, at: float | None = None) -> None:
        """The owner has made a turn of the caller's its own, at this moment as `now` counts, or just now.

        Who answers itself is told of its own turns by that.
        """
        if self._held.is_set():
            return
        self._committed_at = max(self._committed_at, at or self._clock())
        self._change()

    def user_state_changed(self, is_speaking: bool) -> None:
        """Voice activity detection says that the caller began or stopped."""
        now, speech = self._clock(), self._speech
        speech.is_audible = is_speaking
        if not is_speaking:
            speech.paused_at = now
            speech.sounded_at = None if speech.begun_at is None else self._sounds_since
            return
        self._sounds_since = now
        if speech.begun_at is None:
            speech.begun_at = speech.sounded_at = now

    def agent_listens(self) -> None:
        """A reply is over."""
        self._answering_since = None

    async def may_answer(self) -> bool:
        """Whether the turn that is just over is this agent's to answer; waits until that is known."""
        now, speech = self._clock(), self._speech
        open_since = now if speech.is_audible else None
        self._speech = _Speech(begun_at=open_since, sounded_at=open_since, is_audible=speech.is_audible)
        sounded_at = speech.sounded_at or now
        ended_at = now if speech.is_audible or speech.begun_at is None else speech.paused_at
        while not self._is_lost:
            if self.is_held:
                if self._is_settled(sounded_at, ended_at):
                    return False
                self._answering_since = self._clock()
                return True
            if not self._held.is_set() and self._committed_at > sounded_at:
                return False
            self._changed.clear()
            await self._changed.wait()
        return False

    def _is_settled(self, sounded_at: float, ended_at: float) -> bool:
        """Whether the last owner has dealt with this turn, which may have ended after it was passed."""
        return self._committed_at > sounded_at or (not self._was_open and ended_at < self._passed_at)

    def is_between_turns(self, *, heard_since: float) -> bool:
        """Whether nothing is to be answered but what the caller has begun to say after `heard_since`."""
        now = self._clock()
        if self._is_wordless(now):
            self._speech = _Speech()
        if self._answering_since is not None and now - self._answering_since < _REPLY_BEGINS:
            return False
        begun_at = self._speech.begun_at
        return begun_at is None or begun_at > heard_since

    def _is_wordless(self, now: float) -> bool:
        """Whether what was heard is no turn: nothing has come of it, and nothing will."""
        speech, recognition = self._speech, self.recognition
        if speech.begun_at is None or speech.is_audible or recognition.is_due:
            return False
        return now - max(speech.paused_at, recognition.told_at) > _WORDLESS

    @property
    def is_open(self) -> bool:
        """Whether the caller is in the middle of a turn."""
        return self._speech.begun_at is not None

    def now(self) -> float:
        """This moment, as `heard_since` counts it."""
        return self._clock()

    def _change(self) -> None:
        self._changed.set()
