"""Ghosts: participants whose process is dead, how a room gets rid of them, and what its caller is told instead."""

import asyncio
import importlib
import json
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from pydantic import Field

from worker.fleet.errors import RoomServerAway
from worker.fleet.session import Reason, Session, agent_of
from worker.fleet.settings import EnvironmentSettings

if TYPE_CHECKING:
    from livekit.api.room_service import RoomService

logger = logging.getLogger(__name__)

#: Seconds the LiveKit server has to answer.
_TIMEOUT = 3.0


class RoomServerSettings(EnvironmentSettings):
    """Where the LiveKit server is; all empty in a fleet without rooms."""

    url: str = Field(default="", alias="LIVEKIT_URL")
    api_key: str = Field(default="", alias="LIVEKIT_API_KEY")
    api_secret: str = Field(default="", alias="LIVEKIT_API_SECRET", repr=False)


class Ghosts:
    """Looks after rooms from outside of them; without LiveKit settings it only says what was left to the server."""

    def __init__(self, settings: RoomServerSettings) -> None:
        self._settings = settings
        self._importing = asyncio.Lock()

    @property
    def is_possible(self) -> bool:
        """Whether there is a LiveKit server to ask."""
        return bool(self._settings.url and self._settings.api_key and self._settings.api_secret)

    async def warm_up(self) -> None:
        """Import the server's client, which takes half a second; after a child's death its room would wait for it."""
        if self.is_possible:
            await self._import_client()

    async def remove(self, session: Session) -> None:
        """Remove the session's agent from its room; one that is not there is fine, an absent server is logged."""
        await self.remove_identity(session, session.agent_identity)

    async def remove_identity(self, session: Session, identity: str) -> None:
        """The same for one of its agents, by the participant's identity."""
        if not self.is_possible:
            logger.info("session %s: no LiveKit settings, its participant stays until it times out", session.session_id)
            return
        try:
            await self.take_out(session.room, identity)
        except RoomServerAway as error:
            logger.warning("session %s: its participant is still in the room", session.session_id, exc_info=error)

    async def take_out(self, room: str, identity: str) -> None:
        """Remove a participant from a room; one that is not there is fine. Raises `RoomServerAway`."""
        await self._import_client()
        from livekit.protocol.room import RoomParticipantIdentity

        async with self._ask() as rooms:
            await rooms.remove_participant(RoomParticipantIdentity(room=room, identity=identity))

    async def agents(self) -> Sequence[tuple[str, str]]:
        """Room and identity of every participant whose identity is that of a session's agent.

        Empty without LiveKit settings. Raises `RoomServerAway`.
        """
        if not self.is_possible:
            return []
        await self._import_client()
        from livekit.protocol.room import ListRoomsRequest

        found: list[tuple[str, str]] = []
        async with self._ask() as rooms:
            for room in (await rooms.list_rooms(ListRoomsRequest())).rooms:
                found.extend((room.name, identity) for identity in await _identities(rooms, room.name))
        return [(room, identity) for room, identity in found if agent_of(identity)]

    async def tell_failed(self, session: Session, reason: Reason) -> None:
        """Say in the room's metadata that the session has failed, under the key `muster` of a JSON object.

        What else stands in it stays; metadata that is no JSON object stays as it is. An absent server is logged.
        """
        if not self.is_possible:
            return
        try:
            await self._tell_failed(session, reason)
        except RoomServerAway as error:
            logger.warning("session %s: its caller is not told that it failed", session.session_id, exc_info=error)

    async def _tell_failed(self, session: Session, reason: Reason) -> None:
        await self._import_client()
        from livekit.protocol.room import ListRoomsRequest, UpdateRoomMetadataRequest

        async with self._ask() as rooms:
            for room in (await rooms.list_rooms(ListRoomsRequest(names=[session.room]))).rooms:
                metadata = _with_failure(room.metadata, session, reason)
                if metadata is None:
                    logger.warning("session %s: its room's metadata is not Muster's to change", session.session_id)
                    continue
                await rooms.update_room_metadata(UpdateRoomMetadataRequest(room=room.name, metadata=metadata))

    async def _import_client(self) -> None:
        """Beside the event loop, and once at a time: of two imports one would find what the other has half done."""
        async with self._importing:
            await asyncio.to_thread(importlib.import_module, "livekit.api")

    @asynccontextmanager
    async def _ask(self) -> "AsyncIterator[RoomService]":
        """The server's room service; whoever is not there is passed over, else raises `RoomServerAway`."""
        settings = self._settings
        # A fleet without rooms does without its 24 MB.
        from aiohttp import ClientError, ClientTimeout
        from google.protobuf.message import DecodeError
        from livekit import api

        try:
            async with api.LiveKitAPI(
                settings.url,
                settings.api_key,
                settings.api_secret,
                timeout=ClientTimeout(total=_TIMEOUT),
            ) as server:
                yield server.room
        except (api.TwirpError, ClientError, TimeoutError, OSError, DecodeError) as error:
            if getattr(error, "code", None) != "not_found":
                raise RoomServerAway from error


async def _identities(rooms: "RoomService", room: str) -> Sequence[str]:
    """Who is in a room; nobody in one that was closed meanwhile."""
    from livekit.api import TwirpError
    from livekit.protocol.room import ListParticipantsRequest

    try:
        listed = await rooms.list_participants(ListParticipantsRequest(room=room))
    except TwirpError as error:
        if error.code == "not_found":
            return []
        raise
    return [participant.identity for participant in listed.participants]


def _with_failure(metadata: str, session: Session, reason: Reason) -> str | None:
    """The room's metadata with the session's end in it; None when it is no JSON object and so another's."""
    try:
        existing = json.loads(metadata or "{}")
    except ValueError:
        return None
    if not isinstance(existing, dict):
        return None
    end = {"session": session.session_id, "status": reason.final_state, "reason": reason}
    return json.dumps({**existing, "muster": end})
