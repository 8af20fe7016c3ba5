"""How a child comes by a session: it claims one that waits for an owner, or stands by for the owner of a live one."""

import logging
from dataclasses import dataclass, replace

import redis.asyncio

from worker.call.baton import Baton
from worker.fleet import admission, record_moves
from worker.fleet.errors import MoveRefused, SessionNotFound
from worker.fleet.redis_operations import run_async
from worker.fleet.session import Reason, Session, owner_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Claimed:
    """A session that is this child's, or will be once its owner passes the baton.

    With a `refusal` it is only to be ended: its room went to another session.
    """

    session: Session
    baton: Baton
    refusal: Reason | None = None


class Claiming:
    """Comes by one session in one epoch for the worker `worker_id`; `hold` is how many seconds the record lives."""

    def __init__(
        self, session_id: str, epoch: int, *, client: "redis.asyncio.Redis", worker_id: str, hold: float
    ) -> None:
        self._session_id = session_id
        self._epoch = epoch
        self._client = client
        self._owner = owner_of(worker_id)
        self._hold = hold

    async def claim(self) -> Claimed | None:
        """What was claimed; None when the message is void. Raises `StateUnavailable`."""
        step = record_moves.claim(self._session_id, epoch=self._epoch, owner=self._owner, lifetime=self._hold)
        try:
            session = await run_async(self._client, step)
        except (MoveRefused, SessionNotFound):
            return await self._stand_by()
        confirm = admission.confirm(session.tenant, session.room, session.session_id, hold=self._hold)
        refusal = None
        if not await run_async(self._client, confirm):
            refusal = Reason.JOIN_EXPIRED if session.epoch == 1 else Reason.WORKER_LOST
        return Claimed(session, Baton(is_held=True), refusal)

    async def _stand_by(self) -> Claimed | None:
        """The session as this child will own it, if it was offered in this epoch."""
        step = record_moves.stand_by(self._session_id, offered=self._epoch, owner=self._owner)
        try:
            session = await run_async(self._client, step)
        except (MoveRefused, SessionNotFound):
            logger.info("nothing to claim", extra={"session": self._session_id})
            return None
        return Claimed(
            replace(session, epoch=self._epoch, owner=self._owner, standby=""),
            Baton(is_held=False),
        )
