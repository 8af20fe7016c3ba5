"""The sound of the caller's turn while it is open: written for the next owner, and recognised by it."""

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

import redis.asyncio
from livekit import rtc
from livekit.agents import APIConnectOptions, APIError, stt, utils

from worker.fleet import drafts
from worker.fleet.drafts import Sound
from worker.fleet.errors import MoveRefused, SessionNotFound, StateUnavailable
from worker.fleet.redis_operations import Operation, run_async
from worker.fleet.session import Session

logger = logging.getLogger(__name__)

#: Seconds between two writes: as much of a sentence is lost with its owner.
_APART = 0.15
#: Seconds in which the sound that the last owner kept must be recognised.
_RECOGNISED_WITHIN = 4.0
#: Seconds: less is no beginning of a turn, but the silent end of one that was stored while its last piece was written.
_SHORTEST = 0.3


class OpenSound:
    """What was heard of the turn that the caller is in and is not written yet; belongs to the call's event loop.

    Only who answers (`is_owner`) keeps anything. A piece that cannot be written is left out.
    """

    def __init__(self, session: Session, *, client: "redis.asyncio.Redis", is_owner: Callable[[], bool]) -> None:
        self._session = session
        self._client = client
        self._is_owner = is_owner
        self._frames: list[rtc.AudioFrame] = []
        self._is_full = False
        self._is_void = False
        self._changed = asyncio.Event()

    def heard(self, frames: Iterable[rtc.AudioFrame]) -> None:
        """The caller speaks, and this is the next of it."""
        if self._is_owner() and not self._is_full:
            self._frames.extend(frames)
            self._changed.set()

    def close(self) -> None:
        """The turn is over; storing it deletes what is written."""
        self._frames, self._is_full = [], False

    def give_up(self) -> None:
        """There were no words in it."""
        self.close()
        self._is_void = True
        self._changed.set()

    async def keep(self) -> None:
        """Write what is heard, until cancelled."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            if self._is_void:
                self._is_void = False
                await self._write(drafts.forget_sound(self._session))
            if self._frames:
                frame, self._frames = utils.merge_frames(self._frames), []
                piece = Sound(frame.sample_rate, bytes(frame.data))
                self._is_full = not await self._write(drafts.append_sound(self._session, piece))
            await asyncio.sleep(_APART)

    async def _write(self, step: Operation[bool]) -> bool:
        """Whether there is room for more."""
        try:
            return await run_async(self._client, step)
        except (StateUnavailable, SessionNotFound, MoveRefused) as refusal:
            logger.info("the sound of a turn is not kept: %s", refusal, extra={"session": self._session.session_id})
            return True


async def cut_off_words(session: Session, *, client: "redis.asyncio.Redis", recogniser: stt.STT[Any]) -> str:
    """What the caller had begun to say to the last owner, by its sound or as that owner had recognised it.

    The sound is of the whole turn unless it was too long for it, so whichever has more words has them all.
    """
    try:
        words = await run_async(client, drafts.read(session.session_id))
        sound = await run_async(client, drafts.read_sound(session.session_id))
    except StateUnavailable:
        return ""
    is_begun = sum(piece.seconds for piece in sound) >= _SHORTEST
    heard = await _bounded(_recognised(sound, recogniser), session) if is_begun else ""
    return heard if len(_plain(heard)) >= len(_plain(words)) else words


async def _recognised(sound: Sequence[Sound], recogniser: stt.STT[Any]) -> str:
    frames = [rtc.AudioFrame(piece.samples, piece.rate, 1, len(piece.samples) // 2) for piece in sound]
    # Only frames of one rate can be merged; a call whose rate is another one since is heard from there on.
    alike = [frame for frame in frames if frame.sample_rate == frames[-1].sample_rate]
    once = APIConnectOptions(max_retry=0, timeout=_RECOGNISED_WITHIN)
    event = await recogniser.recognize(utils.merge_frames(alike), conn_options=once)
    return event.alternatives[0].text.strip() if event.alternatives else ""


async def _bounded(recognising: Awaitable[str], session: Session) -> str:
    try:
        async with asyncio.timeout(_RECOGNISED_WITHIN):
            return await recognising
    except (APIError, TimeoutError):
        logger.warning("the sound of a cut-off turn is not recognised", extra={"session": session.session_id})
        return ""


def _plain(words: str) -> list[str]:
    return re.findall(r"\w+", words.lower())
