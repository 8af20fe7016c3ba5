"""How a call goes on after its owner was lost: another epoch, and a message for whoever has a free slot."""

import asyncio
import logging
from collections.abc import Callable

import redis.asyncio
from kombu.exceptions import OperationalError

from worker.fleet import record_moves, records
from worker.fleet.actions import Action, Actions
from worker.fleet.endings import Endings
from worker.fleet.errors import MoveRefused, RecoveriesExhausted, SessionNotFound
from worker.fleet.redis_operations import run_async
from worker.fleet.session import Reason, Session, State
from worker.fleet.times import SETTLED, UNOWNED

logger = logging.getLogger(__name__)

#: Owners in a row that a session may lose: what kills every process must not go through the whole fleet.
MOST_IN_A_ROW = 3


class Recovery:
    """Gives sessions of lost owners to other workers.

    `publish` blocks; what it cannot put on the broker the leading keeper publishes again.
    """

    def __init__(
        self,
        *,
        client: "redis.asyncio.Redis",
        actions: Actions,
        endings: Endings,
        publish: Callable[[Session], None],
        lifetime: float,
    ) -> None:
        self._client = client
        self._actions = actions
        self._endings = endings
        self._publish = publish
        self._lifetime = lifetime

    async def recover(self, session: Session, *, is_lost: bool = True) -> None:
        """Let another worker go on with the session, unless its owner, epoch or state has changed since it was read.

        Without `is_lost` its owner gives it away and counts as no lost one. One that was leaving ends, with its own
        reason if it had one, and one that has lost too many owners with `worker_lost`. Raises `StateUnavailable`; may
        be repeated.
        """
        if session.reason is not None or session.state is State.ENDING:
            await self._endings.end(session, Reason.WORKER_LOST)
            return
        step = record_moves.recover(
            session,
            most=MOST_IN_A_ROW,
            settled=SETTLED,
            patience=UNOWNED,
            lifetime=self._lifetime,
            is_lost=is_lost,
        )
        try:
            recovering = await run_async(self._client, step)
        except RecoveriesExhausted:
            await self._endings.end(session, Reason.WORKER_LOST)
            return
        except (MoveRefused, SessionNotFound) as refusal:
            logger.info("session %s is left alone: %s", session.session_id, refusal)
            return
        so_far = self._actions.count(Action.RECOVERED)
        logger.warning(
            "session %s %s its owner and goes on in epoch %d (%d so far)",
            session.session_id,
            "has lost" if is_lost else "leaves",
            recovering.epoch,
            so_far,
        )
        self._endings.clear_up(session, Reason.WORKER_LOST)
        await self.publish(recovering)

    async def publish(self, session: Session) -> None:
        """Put the message of a session that waits for an owner on the broker; raises `StateUnavailable`."""
        try:
            # The broker's library blocks, and children are watched meanwhile.
            await asyncio.to_thread(self._publish, session)
        except OperationalError:
            logger.warning("session %s: message not published", session.session_id, exc_info=True)
            return
        await run_async(self._client, records.stamp_published(session.session_id, epoch=session.epoch))
