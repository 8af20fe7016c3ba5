"""Serves one session in a worker's child: claim, talk, record the end, release the room."""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager

import redis.asyncio
from livekit.agents import utils

from worker.call.claiming import Claimed, Claiming
from worker.call.ending import Ending
from worker.call.errors import ConnectFailed, RoomGone, SpeechNotRendered
from worker.call.handing_over import Messages, Wish
from worker.call.obeying import obey
from worker.call.own_record import OwnRecord
from worker.call.room import open_ghosts
from worker.call.serving import Serving
from worker.call.settings import CallSettings
from worker.call.talking import talk
from worker.fleet.actions import Actions
from worker.fleet.app import create_producer
from worker.fleet.child import Child
from worker.fleet.endings import Endings
from worker.fleet.publishing import publisher
from worker.fleet.recovery import Recovery
from worker.fleet.redis_operations import connect_async
from worker.fleet.session import Reason, Session
from worker.fleet.task_states import DRAINING
from worker.fleet.times import STAMP

logger = logging.getLogger(__name__)

#: Seconds from the decided end to the end of everything: room, tools, turns and pipeline have bounds of their own,
#: which add up to less. What waits for Redis gives signs of life itself.
_LEFT_WITHIN = 40.0


def serve(session_id: str, epoch: int, *, child: Child, announce: Callable[[str], None]) -> Reason | str | None:
    """Serve the session until it is over or handed over, if this child may claim it or stand by for its owner.

    Returns why the session is over, or `HANDED_OVER`; None when it is not this child's to say or the message was void.
    `announce` tells operators about a state of the task and does not block.
    """
    settings = CallSettings.from_env()
    return asyncio.run(_Service(session_id, epoch, settings=settings, child=child, announce=announce).run())


class _Service:
    """One session in one event loop."""

    def __init__(
        self,
        session_id: str,
        epoch: int,
        *,
        settings: CallSettings,
        child: Child,
        announce: Callable[[str], None],
    ) -> None:
        self._session_id = session_id
        self._epoch = epoch
        self._settings = settings
        self._child = child
        self._announce = announce
        self._ending = Ending(session_id)
        self._wish = Wish()
        # From before the claim: what Redis loses from then on is registered again.
        self._emptied = child.emptied
        # Nobody acts in this owner's place, so nothing is counted as that.
        self._actions = Actions()

    async def run(self) -> Reason | str | None:
        """Claim, serve, record the end and release the room; why the session is over."""
        async with connect_async(self._settings.redis_url) as client:
            # From before the claim to after the end: whatever happens in between, the keeper sees whose it is.
            self._child.slot.hold(self._session_id, self._epoch)
            claiming = Claiming(
                self._session_id,
                self._epoch,
                client=client,
                worker_id=self._child.worker_id,
                hold=self._settings.session_hold,
            )
            claimed = await claiming.claim()
            endings = self._endings(client)
            record = self._own_record(claimed, client, endings) if claimed else None
            if claimed and record:
                with self._watching_signals():
                    await self._serve(claimed, record, client)
            await endings.close()
            self._child.slot.clear()
            return await record.outcome() if record else None

    def _endings(self, client: "redis.asyncio.Redis") -> Endings:
        ghosts = open_ghosts(self._settings)
        # The agent itself has left the room by then.
        return Endings(client=client, actions=self._actions, remove_ghost=_leave_alone, tell_room=ghosts.tell_failed)

    def _own_record(self, claimed: Claimed, client: "redis.asyncio.Redis", endings: Endings) -> OwnRecord:
        return OwnRecord(
            claimed.session,
            client=client,
            child=self._child,
            ending=self._ending,
            baton=claimed.baton,
            recovery=self._recovery(client, endings),
            hold=self._settings.session_hold,
            emptied=self._emptied,
        )

    def _recovery(self, client: "redis.asyncio.Redis", endings: Endings) -> Recovery:
        settings = self._settings

        def publish(session: Session) -> None:
            publisher(create_producer(settings.broker_url), join_ttl=settings.join_ttl)(session)

        return Recovery(
            client=client,
            actions=self._actions,
            endings=endings,
            publish=publish,
            lifetime=settings.session_hold,
        )

    @contextmanager
    def _watching_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()

        def stop() -> None:
            loop.call_soon_threadsafe(self._ending.decide, Reason.MAX_DURATION)

        def tell() -> None:
            loop.call_soon_threadsafe(self._announce, DRAINING)
            loop.call_soon_threadsafe(self._wish.drain)

        if self._child.draining:
            self._wish.drain()
        with self._child.watch(on_soft_limit=stop, on_drain=tell):
            yield

    async def _serve(self, claimed: Claimed, record: OwnRecord, client: "redis.asyncio.Redis") -> None:
        try:
            if claimed.refusal is not None:
                self._ending.decide(claimed.refusal)
                return
            async with AsyncExitStack() as stack:
                serving = self._serving(claimed, record, client, stack)
                serving.keep(self._stamp())
                serving.keep(record.stay_registered())
                serving.keep(obey(serving))
                await stack.enter_async_context(utils.http_context.open())
                await self._talk(serving)
        finally:
            await record.end()

    def _serving(
        self, claimed: Claimed, record: OwnRecord, client: "redis.asyncio.Redis", stack: AsyncExitStack
    ) -> Serving:
        return Serving(
            session=claimed.session,
            settings=self._settings,
            client=client,
            child=self._child,
            ending=self._ending,
            baton=claimed.baton,
            record=record,
            wish=self._wish,
            messages=Messages.none(),
            written=asyncio.Queue(),
            announce=self._announce,
            stack=stack,
        )

    async def _talk(self, serving: Serving) -> None:
        try:
            await talk(serving)
        except ConnectFailed:
            self._ending.decide(Reason.CONNECT_FAILED)
        except RoomGone:
            self._ending.decide(Reason.ROOM_CLOSED)
        except SpeechNotRendered:
            self._ending.decide(Reason.PROVIDER_FAILED)
        except Exception:
            logger.exception("the call broke", extra={"session": self._session_id})
            self._ending.decide(Reason.INTERNAL_ERROR)

    async def _stamp(self) -> None:
        """Show the keeper that this event loop lives, and after the end is decided only for as long as leaving takes.

        A process that hangs in that is killed by the keeper, which gives its slot back.
        """
        until = math.inf
        while time.monotonic() < until:
            self._child.die_without_memory()
            self._child.slot.stamp()
            await asyncio.sleep(STAMP)
            if self._ending.is_decided:
                until = min(until, time.monotonic() + _LEFT_WITHIN)


async def _leave_alone(session: Session) -> None:
    pass
