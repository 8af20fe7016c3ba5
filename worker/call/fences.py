"""Fences in the room: of several agents of one session only the youngest may be heard."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from livekit import rtc

from worker.call.ending import Ending
from worker.fleet.errors import RecordUnreadable, StateUnavailable
from worker.fleet.session import Session
from worker.fleet.times import OUTLIVED

logger = logging.getLogger(__name__)

#: Seconds between two attempts to take an older agent out, and between two looks whether it is gone.
_RETRY = 0.5
_LOOK = 0.05


class Fences:
    """Watches one room for other agents of the same session; belongs to the call's event loop.

    `remove` takes a participant out of the room by its identity; while `is_holder` says no, this agent stands by and
    leaves the older one alone. `is_ours` reads from the record whether the session is still this owner's; it raises
    what `records.read` raises. `run` runs something beside the call.
    """

    def __init__(
        self,
        room: rtc.Room,
        session: Session,
        *,
        ending: Ending,
        remove: Callable[[str], Awaitable[None]],
        is_ours: Callable[[], Awaitable[bool]],
        is_holder: Callable[[], bool],
        run: Callable[[Coroutine[Any, Any, None]], object],
    ) -> None:
        self._room = room
        self._session = session
        self._ending = ending
        self._remove = remove
        self._is_ours = is_ours
        self._is_holder = is_holder
        self._run = run
        self._accepted: set[int] = set()
        room.on("participant_connected", ending.guard(self._participant_connected))
        room.on("reconnecting", ending.guard(self._reconnecting))
        room.on("reconnected", ending.guard(self._reconnected))

    @property
    def is_witness(self) -> bool:
        """Whether the room proves that no younger agent of the session talks in it."""
        return self._room.isconnected() and not self._is_younger_there

    def accept(self, epoch: int) -> None:
        """Let the agent of this younger epoch be in the room: it talks only after the session was passed to it."""
        self._accepted.add(epoch)

    def refuse(self, epoch: int) -> None:
        """Take that back: who is in the room in this epoch from here on has the session by force."""
        self._accepted.discard(epoch)

    async def remove_older(self) -> None:
        """Take out every older agent that is in the room; nothing is said before none is seen there.

        One that cannot be taken out is dead by its switch after `OUTLIVED` seconds: it has lost the session, and with
        this agent in the room it has no witness.
        """
        try:
            async with asyncio.timeout(OUTLIVED):
                while self._is_holder() and self._older:
                    await self._take_out_older()
                    await self._see_gone()
        except TimeoutError:
            logger.error("an older agent could not be taken out", extra={"session": self._session.session_id})

    @property
    def _older(self) -> list[str]:
        return [identity for identity, epoch in self._others() if epoch < self._session.epoch]

    async def _take_out_older(self) -> None:
        await asyncio.gather(*(self._remove(identity) for identity in self._older))

    async def _see_gone(self) -> None:
        """Wait for the server's word that they are gone; not for long, the server may not have been reached."""
        for _ in range(round(_RETRY / _LOOK)):
            if not self._older:
                return
            await asyncio.sleep(_LOOK)

    @property
    def _is_younger_there(self) -> bool:
        return any(self._is_successor_by_force(epoch) for _, epoch in self._others())

    def _is_successor_by_force(self, epoch: int) -> bool:
        return epoch > self._session.epoch and epoch not in self._accepted

    def _others(self) -> list[tuple[str, int]]:
        identities = list(self._room.remote_participants)
        epochs = [(identity, self._session.epoch_of(identity)) for identity in identities]
        return [(identity, epoch) for identity, epoch in epochs if epoch is not None]

    def _participant_connected(self, participant: rtc.RemoteParticipant) -> None:
        epoch = self._session.epoch_of(participant.identity)
        if epoch is None:
            return
        if epoch < self._session.epoch and self._is_holder():
            logger.warning("an older agent is taken out of the room", extra={"session": self._session.session_id})
            self._run(self._take_out(participant.identity))
        elif self._is_successor_by_force(epoch):
            self._step_down()

    async def _take_out(self, identity: str) -> None:
        await self._remove(identity)

    def _reconnecting(self) -> None:
        # Whoever lost the connection may have lost the session too, and the server would let it talk on.
        self._silence()
        self._run(self._check())

    async def _check(self) -> None:
        try:
            if not await self._is_ours():
                self._step_down()
        except (StateUnavailable, RecordUnreadable):
            logger.warning("whose session it is cannot be read", extra={"session": self._session.session_id})

    def _reconnected(self) -> None:
        if self._is_younger_there:
            self._step_down()
        elif not self._ending.is_decided:
            for track in self._tracks():
                track.unmute()

    def _step_down(self) -> None:
        """Another owner has the session: fall silent in this very step of the event loop, and go."""
        logger.warning("a younger agent has the session", extra={"session": self._session.session_id})
        self._silence()
        self._ending.supersede()

    def _silence(self) -> None:
        for track in self._tracks():
            track.mute()

    def _tracks(self) -> list[rtc.LocalAudioTrack]:
        published = self._room.local_participant.track_publications.values()
        return [each.track for each in published if isinstance(each.track, rtc.LocalAudioTrack)]
