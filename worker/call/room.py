"""The agent's way into a LiveKit room: its own token, and the connection."""

import asyncio
import time
from collections.abc import Callable
from datetime import timedelta

from aiohttp import ClientError, ClientTimeout
from google.protobuf.message import DecodeError
from livekit import api, rtc

from worker.call.errors import ConnectFailed, RoomGone
from worker.call.settings import CallSettings
from worker.fleet.ghosts import Ghosts, RoomServerSettings
from worker.fleet.session import Session

#: Seconds one of the SDK's four attempts may take.
_CONNECT_TIMEOUT = 5.0
#: How often the server is asked whether it is there.
_ATTEMPTS = 4
#: Seconds between two attempts to join a room that an agent was in before.
_RETRY = 1.0
#: Seconds the server has to answer.
_ANSWER = 3.0
#: The server refreshes it while the agent is connected; it only has to outlive the connecting.
_TOKEN_LIFETIME = timedelta(minutes=5)


def agent_token(session: Session, settings: CallSettings) -> str:
    """A token for this session's room alone, with this epoch's identity.

    The kind `agent` lets the room close after the last human left; the grant to update its own metadata is what
    publishes the agent's state to the clients.
    """
    grants = api.VideoGrants(
        room_join=True,
        room=session.room,
        agent=True,
        can_publish=True,
        can_subscribe=True,
        can_publish_data=True,
        can_update_own_metadata=True,
    )
    return (
        api.AccessToken(settings.livekit_api_key, settings.livekit_api_secret)
        .with_identity(session.agent_identity)
        .with_name("agent")
        .with_kind("agent")
        .with_ttl(_TOKEN_LIFETIME)
        .with_attributes({"muster.session": session.session_id, "muster.epoch": str(session.epoch)})
        .with_grants(grants)
        .to_jwt()
    )


async def connect(room: rtc.Room, session: Session, settings: CallSettings) -> None:
    """Join the session's room; raises `ConnectFailed` when the server is not there or the SDK has given up.

    Never cancel it: the SDK would go on joining unseen, and an agent nobody owns would stay in the room.
    """
    # The SDK makes its media engine before it has reached the server. Where the first engine of a process was made in
    # vain, no later one of this process brings any sound.
    if not await _is_there(session, settings):
        raise ConnectFailed()
    options = rtc.RoomOptions(auto_subscribe=True, connect_timeout=_CONNECT_TIMEOUT)
    try:
        await room.connect(settings.livekit_url, agent_token(session, settings), options)
    except rtc.ConnectError as error:
        raise ConnectFailed() from error


async def connect_again(
    room: rtc.Room, session: Session, settings: CallSettings, *, is_given_up: Callable[[], bool]
) -> None:
    """Join a room that an agent of the session was in before, in the time that its caller may be away, too.

    Raises `RoomGone`, also when it `is_given_up`; never cancel it.
    """
    until = time.monotonic() + settings.caller_lost_grace
    while True:
        try:
            await connect(room, session, settings)
            return
        except ConnectFailed as error:
            if is_given_up() or time.monotonic() >= until:
                raise RoomGone() from error
        await asyncio.sleep(_RETRY)


async def _is_there(session: Session, settings: CallSettings) -> bool:
    for _ in range(_ATTEMPTS):
        if await answers(session, settings):
            return True
    return False


async def answers(session: Session, settings: CallSettings) -> bool:
    """Whether the LiveKit server is there."""
    try:
        async with api.LiveKitAPI(
            settings.livekit_url,
            settings.livekit_api_key,
            settings.livekit_api_secret,
            timeout=ClientTimeout(total=_ANSWER),
        ) as server:
            await server.room.list_rooms(api.ListRoomsRequest(names=[session.room]))
    except (api.TwirpError, ClientError, TimeoutError, OSError, DecodeError):
        return False
    return True


def open_ghosts(settings: CallSettings) -> Ghosts:
    """What removes other agents of the session from the room."""
    return Ghosts(
        RoomServerSettings(
            LIVEKIT_URL=settings.livekit_url,
            LIVEKIT_API_KEY=settings.livekit_api_key,
            LIVEKIT_API_SECRET=settings.livekit_api_secret,
        )
    )
