"""The reaper: what the leading keeper does each second for sessions that nobody looks after.

It judges only after its keeper has seen Redis without a break for a whole lease. By then every worker that lives has
renewed its lease again, so an outage of Redis, however long, ends no call.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence

import redis.asyncio

from worker.fleet import admission, records, workers
from worker.fleet.actions import Action, Actions
from worker.fleet.endings import Endings
from worker.fleet.errors import RecordUnreadable, RoomServerAway
from worker.fleet.lasting import Lasting
from worker.fleet.recovery import Recovery
from worker.fleet.redis_operations import Answer, Operation, run_async
from worker.fleet.session import Reason, Session, State
from worker.fleet.times import (
    CLOSED,
    LEASE,
    LEAVING,
    UNCLAIMED,
    UNHELD,
    UNOWNED_SEEN,
    UNOWNED_UNSEEN,
    UNPUBLISHED,
    UNRECORDED,
)

logger = logging.getLogger(__name__)

_RECENT = 1000
#: Seconds; who leads must show it again in less than `LEADER_LOCK`.
_LIVEKIT_TIMEOUT = 1.0


class Reaper:
    """Judges every session of one tenant that is not over.

    `agents` lists rooms and identities of all agents in LiveKit; it raises `RoomServerAway`.

    A session whose owner's lease holds is not touched as long as a process of that worker runs it.
    """

    def __init__(
        self,
        *,
        client: "redis.asyncio.Redis",
        tenant: str,
        worker_id: str,
        actions: Actions,
        endings: Endings,
        recovery: Recovery,
        agents: Callable[[], Awaitable[Sequence[tuple[str, str]]]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._tenant = tenant
        self._worker_id = worker_id
        self._actions = actions
        self._endings = endings
        self._recovery = recovery
        self._agents = agents
        self._clock = clock
        self._lasting = Lasting(clock)
        self._closed_since: float | None = None
        self._unfinished: set[str] | None = None
        self._unreadable: set[str] = set()

    def forget_sessions(self) -> None:
        """What was remembered of sessions may be outdated: another keeper led, or Redis was away."""
        self._unfinished = None
        self._lasting = Lasting(self._clock)

    def forget_joins(self) -> None:
        """Redis was away or another keeper led, so the lease that joins wait for starts again."""
        self._closed_since = None

    async def open_joins(self) -> None:
        """Open joins one lease after they were found closed; raises `StateUnavailable`.

        Redis has just started or lost its data then. Within a lease every worker that reaches it has registered its
        calls; joins wait for those of others as long as a call lives that is cut off from Redis.
        """
        if (await self._run(workers.fleet())).ready and await self._run(admission.is_open(self._tenant)):
            self._closed_since = None
            return
        if self._closed_since is None:
            self._closed_since = self._clock()
        closed_for = self._clock() - self._closed_since
        if closed_for >= CLOSED or (closed_for >= LEASE and await self._is_every_agent_registered()):
            await self._run(admission.open_joins(self._tenant))
            await self._run(workers.open_joins(self._worker_id))
            self._actions.count(Action.JOINS_OPENED)
            logger.info("joins are open")

    async def _is_every_agent_registered(self) -> bool:
        """Whether each room with an agent in it is held; False when LiveKit does not say who is in its rooms."""
        try:
            async with asyncio.timeout(_LIVEKIT_TIMEOUT):
                agents = await self._agents()
        except (RoomServerAway, TimeoutError):
            logger.warning("joins stay closed: LiveKit does not say whether a call has to register again")
            return False
        for room in {room for room, _ in agents}:
            if await self._run(admission.holder(self._tenant, room)) is None:
                logger.info("joins stay closed: an agent is in a room that nobody holds")
                return False
        return True

    async def judge(self) -> None:
        """One round; raises `StateUnavailable`."""
        holders = await self._run(admission.holders(self._tenant))
        sessions = await self._read(await self._known(holders))
        # Read after the records: the owner of every session seen there has had its lease by now.
        fleet = await self._run(workers.fleet())
        alive = {worker.worker_id for worker in fleet.workers}
        for session_id, session in sessions.items():
            if session is None:
                await self._release_unrecorded(session_id, holding=session_id in holders)
            elif session.is_over:
                await self._release_over(session, alive, holding=session_id in holders)
            elif session.state in (State.QUEUED, State.RECOVERING):
                await self._judge_unclaimed(session)
            elif session.worker_id not in alive or self._is_unheld(session, fleet):
                await self._recovery.recover(session)
        self._unfinished = {key for key, session in sessions.items() if session and not session.is_over}
        self._lasting.next_round()

    async def _read(self, session_ids: Collection[str]) -> Mapping[str, Session | None]:
        """Their records; those that cannot be read are left to whoever can, and none of them stops a round."""
        sessions = {}
        for session_id in session_ids:
            try:
                sessions[session_id] = await self._run(records.read(session_id))
            except RecordUnreadable:
                if session_id not in self._unreadable:
                    logger.warning("session %s is left alone: its record is not readable", session_id)
                    self._unreadable.add(session_id)
        self._unreadable.intersection_update(session_ids)
        return sessions

    async def _known(self, holders: Sequence[str]) -> Collection[str]:
        """Holders, and those whose hold has ended: an expired join holds no room but its record is still queued."""
        if self._unfinished is None:
            self._unfinished = {*await self._run(admission.recent(self._tenant, count=_RECENT))}
        return self._unfinished.union(holders)

    def _is_unheld(self, session: Session, fleet: workers.Fleet) -> bool:
        """Whether its owner's worker lives and no process of it runs the session: child and keeper died together, or
        the claim came to Redis when its child had given up."""
        holding = workers.holding(session.session_id, session.epoch)
        if any(holding in worker.holdings for worker in fleet.workers if worker.worker_id == session.worker_id):
            return False
        return self._lasting.seconds(f"unheld {holding} {session.owner}") >= UNHELD

    async def _release_unrecorded(self, session_id: str, *, holding: bool) -> None:
        if not holding:
            if await self._run(admission.delist(self._tenant, session_id, after=UNRECORDED)):
                self._actions.count(Action.STALE_INDEX_REMOVED)
                logger.warning("session %s was listed without a record, it is not any more", session_id)
        elif self._lasting.seconds(f"unrecorded {session_id}") >= UNRECORDED:
            # Its room is not known, and need not be: a room whose holder is not in the live set is free.
            await self._run(admission.release(self._tenant, "", session_id))
            self._actions.count(Action.RELEASED_UNRECORDED)
            logger.warning("session %s held a room without a record, released", session_id)

    async def _release_over(self, session: Session, alive: Collection[str], *, holding: bool) -> None:
        if not holding:
            return
        lasting = self._lasting.seconds(f"leaving {session.session_id}")
        if session.worker_id not in alive or lasting >= LEAVING:
            await self._endings.release(session)
            self._actions.count(Action.RELEASED_OVER)
            logger.warning("session %s held its room after its end, released", session.session_id)

    async def _judge_unclaimed(self, session: Session) -> None:
        seen = self._lasting.seconds(f"waiting {session.session_id} {session.epoch}")
        if session.state is State.QUEUED and time.time() > session.join_deadline:
            await self._endings.end(session, Reason.JOIN_EXPIRED)
        elif session.state is State.RECOVERING and self._is_given_up(session, seen=seen):
            await self._endings.end(session, Reason.WORKER_LOST)
        else:
            await self._publish_again(session)

    def _is_given_up(self, session: Session, *, seen: float) -> bool:
        """Whether nobody comes for a lost call; while Redis is away nobody can, so only what was seen of it counts."""
        late = time.time() - session.join_deadline
        return late > UNOWNED_UNSEEN or (late > 0 and seen >= UNOWNED_SEEN)

    async def _publish_again(self, session: Session) -> None:
        waiting = f"unclaimed {session.session_id} {session.epoch}"
        patience = UNPUBLISHED if session.published_at is None else UNCLAIMED
        if self._lasting.seconds(waiting) >= patience:
            self._lasting.restart(waiting)
            self._actions.count(Action.REPUBLISHED)
            logger.info("session %s is still %s, its message is published again", session.session_id, session.state)
            await self._recovery.publish(session)

    async def sweep(self) -> None:
        """Remove what workers without a lease have left in the fleet's index; raises `StateUnavailable`."""
        for worker_id in await self._run(workers.sweep()):
            self._actions.count(Action.STALE_INDEX_REMOVED)
            logger.warning("worker %s was listed without a lease, it is not any more", worker_id)

    async def _run(self, operation: Operation[Answer]) -> Answer:
        return await run_async(self._client, operation)
