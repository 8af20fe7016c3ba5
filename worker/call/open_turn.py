"""The caller's turn while it is open: its words are kept for the next owner, and what the last owner kept is used."""

import asyncio
import logging
import re
from collections.abc import Awaitable, Iterable

import redis.asyncio
from livekit import rtc
from livekit.agents import stt

from worker.call.open_sound import OpenSound
from worker.fleet import drafts
from worker.fleet.errors import MoveRefused, SessionNotFound, StateUnavailable
from worker.fleet.redis_operations import run_async
from worker.fleet.session import Session

logger = logging.getLogger(__name__)

#: Seconds between two writes: a recogniser may send its words one by one.
_APART = 0.25
_INTERIM = frozenset({stt.SpeechEventType.INTERIM_TRANSCRIPT, stt.SpeechEventType.PREFLIGHT_TRANSCRIPT})


class OpenTurn:
    """What is recognised of the turn that the caller is in; belongs to the call's event loop.

    `cut_off` is what the caller had said of a turn when the last owner was lost: it begins this one. Without `sound`
    only the words of a turn are kept, not how they sound.
    """

    def __init__(self, session: Session, *, client: "redis.asyncio.Redis", sound: OpenSound | None = None) -> None:
        self._session = session
        self._client = client
        self._sound = sound
        self._is_settled = asyncio.Event()
        self._is_settled.set()
        self.cut_off = ""
        self._final: list[str] = []
        self._interim = ""
        self._kept = ""
        self._changed = asyncio.Event()

    @property
    def keeps_sound(self) -> bool:
        """Whether it matters how the turn sounds."""
        return self._sound is not None

    async def recover(self, words: Awaitable[str]) -> None:
        """Begin with `words`, once they are known."""
        self._is_settled.clear()
        try:
            self.cut_off = await words
        finally:
            self._is_settled.set()

    async def settle(self) -> None:
        """Until it is known what was cut off."""
        await self._is_settled.wait()

    def sounds(self, frames: Iterable[rtc.AudioFrame]) -> None:
        """The caller speaks, and this is the next of it."""
        if self._sound is not None:
            self._sound.heard(frames)

    def was_wordless(self) -> None:
        """What sounded like speech, and is over, was none."""
        if self._sound is not None and self._is_settled.is_set() and not self.words:
            self._sound.give_up()

    def heard(self, event: stt.SpeechEvent) -> None:
        """Take note of what recognition says."""
        words = event.alternatives[0].text if event.alternatives else ""
        if event.type in _INTERIM:
            self._interim = words
        elif event.type is stt.SpeechEventType.FINAL_TRANSCRIPT:
            self._final.append(words)
            self._interim = ""
        else:
            return
        self._changed.set()

    def close(self, words: str) -> str:
        """The turn is over: what it says as a whole, with what was cut off before `words`."""
        cut_off, self.cut_off = self.cut_off, ""
        self._final, self._interim = [], ""
        if self._sound is not None:
            self._sound.close()
        # Storing the turn deletes them.
        self._kept = ""
        return joined(cut_off, words)

    @property
    def words(self) -> str:
        """What is known of it."""
        return joined(self.cut_off, " ".join(filter(None, [*self._final, self._interim])))

    async def keep(self) -> None:
        """Write what changes, until cancelled; one that cannot be written is no loss until the owner is."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            words = self.words
            if words != self._kept and await self._write(words):
                self._kept = words
            await asyncio.sleep(_APART)

    async def _write(self, words: str) -> bool:
        try:
            await run_async(self._client, drafts.write(self._session, words))
        except (StateUnavailable, SessionNotFound, MoveRefused) as refusal:
            # Who stands by is refused, too: the owner writes what both hear.
            logger.info("an open turn is not kept: %s", refusal, extra={"session": self._session.session_id})
            return False
        return True


def joined(cut_off: str, words: str) -> str:
    """Both, unless the caller has begun again and said it once more."""
    if not cut_off or not words or _plain(words).startswith(_plain(cut_off)):
        return words or cut_off
    return f"{cut_off} {words}"


def _plain(words: str) -> str:
    return " ".join(re.findall(r"\w+", words.lower()))
