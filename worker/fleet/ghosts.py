"""Ghosts: participants whose process is dead, and how a room gets rid of them."""

import importlib
import logging

from pydantic import Field

from worker.fleet.session import Session
from worker.fleet.settings import EnvironmentSettings

logger = logging.getLogger(__name__)

#: Seconds the LiveKit server has to answer.
_TIMEOUT = 3.0


class RoomServerSettings(EnvironmentSettings):
    """Where the LiveKit server is; all empty in a fleet without rooms."""

    url: str = Field(default="", alias="LIVEKIT_URL")
    api_key: str = Field(default="", alias="LIVEKIT_API_KEY")
    api_secret: str = Field(default="", alias="LIVEKIT_API_SECRET", repr=False)


class Ghosts:
    """Removes participants; without LiveKit settings it only says that one was left to the server's timeout."""

    def __init__(self, settings: RoomServerSettings) -> None:
        self._settings = settings

    @property
    def _is_possible(self) -> bool:
        return bool(self._settings.url and self._settings.api_key and self._settings.api_secret)

    def warm_up(self) -> None:
        """Import the server's client, which blocks half a second; after a child's death its room would wait for it."""
        if self._is_possible:
            importlib.import_module("livekit.api")

    async def remove(self, session: Session) -> None:
        """Remove the session's agent from its room; one that is not there is fine, an absent server is logged."""
        await self.remove_identity(session, session.agent_identity)

    async def remove_identity(self, session: Session, identity: str) -> None:
        """The same for one of its agents, by the participant's identity."""
        settings = self._settings
        if not self._is_possible:
            logger.info("session %s: no LiveKit settings, its participant stays until it times out", session.session_id)
            return
        # A fleet without rooms does without its 24 MB.
        from aiohttp import ClientError, ClientTimeout
        from livekit import api

        try:
            async with api.LiveKitAPI(
                settings.url,
                settings.api_key,
                settings.api_secret,
                timeout=ClientTimeout(total=_TIMEOUT),
            ) as server:
                await server.room.remove_participant(api.RoomParticipantIdentity(room=session.room, identity=identity))
        except (api.TwirpError, ClientError, TimeoutError, OSError) as error:
            if getattr(error, "code", None) != "not_found":
                logger.warning("session %s: its participant is still in the room", session.session_id, exc_info=error)
