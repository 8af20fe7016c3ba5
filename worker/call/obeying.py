"""Doing what a session's commands say, as its owner or as the one who stands by."""

import logging

from worker.call.commands import SOCKET_TIMEOUT, commands
from worker.call.serving import Serving
from worker.fleet.chats import THINK
from worker.fleet.redis_operations import connect_async
from worker.fleet.session import Reason

logger = logging.getLogger(__name__)


async def obey(serving: Serving) -> None:
    """Do what the session's commands say, until cancelled."""
    session, baton = serving.session, serving.baton
    async with connect_async(serving.settings.redis_url, timeout=SOCKET_TIMEOUT) as client:
        async for command in commands(session.session_id, client):
            if serving.messages.hear(command, epoch=session.epoch, wish=serving.wish):
                continue
            if command.get("kind") == "leave":
                serving.ending.decide(Reason.LEFT)
            elif command.get("kind") == THINK:
                # Who stands by answers later what the owner has not taken up; it is taken once.
                if not baton.is_given:
                    serving.written.put_nowait(command["id"])
            elif baton.is_held:
                logger.warning("unknown command", extra={"session": session.session_id})
