"""Orphans: agents in LiveKit's rooms that nobody vouches for, found and taken out by the leading keeper.

An agent of a session's epoch stays in its room when

    a live worker says that a process of its runs that session in that epoch, or
    the session is not over and the epoch is the record's own or a younger one: an owner's, or a standby's.

All others are orphans once they have been so for `ORPHANED` seconds in which this keeper led and saw Redis without a
break, with joins open: after a loss of data every holder has registered again by then. Without a record only a session
that this keeper has seen before is judged: another fleet's agents may be in rooms of the same LiveKit server.
"""

import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence

import redis.asyncio

from worker.fleet import records, workers
from worker.fleet.actions import Action, Actions
from worker.fleet.errors import RecordUnreadable, RoomServerAway
from worker.fleet.lasting import Lasting
from worker.fleet.redis_operations import run_async
from worker.fleet.session import Session, agent_of
from worker.fleet.times import ORPHANED

logger = logging.getLogger(__name__)

#: Sessions that are remembered to have had a record.
_REMEMBERED = 10_000


class Orphans:
    """Looks for orphans, each time it is asked to.

    `agents` lists rooms and identities of all agents, `take_out` removes one by room and identity; both raise
    `RoomServerAway`.
    """

    def __init__(
        self,
        *,
        client: "redis.asyncio.Redis",
        actions: Actions,
        agents: Callable[[], Awaitable[Sequence[tuple[str, str]]]],
        take_out: Callable[[str, str], Awaitable[None]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._actions = actions
        self._agents = agents
        self._take_out = take_out
        self._clock = clock
        self._lasting = Lasting(clock)
        self._recorded: dict[str, None] = {}
        self._is_away = False

    def forget(self) -> None:
        """Nothing was seen for a while: another keeper led, or Redis was away."""
        self._lasting = Lasting(self._clock)

    async def remove(self) -> None:
        """One look at all rooms; raises `StateUnavailable`."""
        try:
            agents = await self._agents()
        except RoomServerAway as error:
            self._note_away(error)
            return
        self._is_away = False
        sessions = await self._read({agent[0] for _, identity in agents if (agent := agent_of(identity))})
        # Read after the records: whoever has claimed one of them meanwhile had its lease before.
        fleet = await run_async(self._client, workers.fleet())
        if not fleet.ready:
            self.forget()
            return
        vouched = {holding for worker in fleet.workers for holding in worker.holdings}
        for room, identity in agents:
            reason = self._complaint(identity, sessions, vouched)
            if reason and self._lasting.seconds(f"{room} {identity}") >= ORPHANED:
                await self._take_out_of(room, identity, reason)
        self._lasting.next_round()

    async def _read(self, session_ids: set[str]) -> Mapping[str, Session | None]:
        sessions: dict[str, Session | None] = {}
        for session_id in session_ids:
            try:
                session = await run_async(self._client, records.read(session_id))
            except RecordUnreadable:
                continue
            if session is not None:
                self._recorded[session_id] = self._recorded.pop(session_id, None)
                sessions[session_id] = session
            elif session_id in self._recorded:
                sessions[session_id] = None
        for oldest in list(self._recorded)[:-_REMEMBERED]:
            del self._recorded[oldest]
        return sessions

    def _complaint(self, identity: str, sessions: Mapping[str, Session | None], vouched: set[str]) -> str | None:
        """Why the agent is an orphan; None when it is none, or not known to be one."""
        session_id, epoch = agent_of(identity) or ("", 0)
        if session_id not in sessions or workers.holding(session_id, epoch) in vouched:
            return None
        session = sessions[session_id]
        if session is None:
            return "its session has no record any more"
        if session.is_over:
            return "its session is over"
        return "its session goes on in a younger epoch" if epoch < session.epoch else None

    async def _take_out_of(self, room: str, identity: str, reason: str) -> None:
        try:
            await self._take_out(room, identity)
        except RoomServerAway as error:
            self._note_away(error)
            return
        so_far = self._actions.count(Action.ORPHAN_REMOVED)
        logger.warning("%s is taken out of its room: %s (%d so far)", identity, reason, so_far)

    def _note_away(self, error: RoomServerAway) -> None:
        if not self._is_away:
            logger.warning("LiveKit does not answer, its rooms are not looked at", exc_info=error)
        self._is_away = True
