"""How a keeper ends a session that nobody runs any more: the record, then the room, then the ghost in it."""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import redis.asyncio

from worker.fleet import admission, record_moves
from worker.fleet.errors import MoveRefused, SessionNotFound
from worker.fleet.redis_operations import run_async
from worker.fleet.session import Reason, Session

logger = logging.getLogger(__name__)

#: Seconds until an end is shown: the pool tells of a dead process's task first, and with a name that says nothing.
_SHOWN_AFTER = 1.0


class Endings:
    """Ends sessions in their owner's place; `counts` tells how many, by reason.

    `show` tells operators about an end; it may block for as long as the broker does.
    """

    def __init__(
        self,
        *,
        client: "redis.asyncio.Redis",
        remove_ghost: Callable[[Session], Awaitable[None]],
        show: Callable[[Session, Reason], None] | None = None,
    ) -> None:
        self.counts: Counter[Reason] = Counter()
        self._client = client
        self._remove_ghost = remove_ghost
        self._show = show
        self._later: set[asyncio.Future[Any]] = set()

    async def end(self, session: Session, reason: Reason) -> None:
        """End the session unless its owner, epoch or state has changed since it was read.

        One that was leaving already keeps its own reason. Raises `StateUnavailable`; may be repeated.
        """
        reason = session.reason or reason
        try:
            await run_async(self._client, record_moves.end(session, reason))
        except (MoveRefused, SessionNotFound) as refusal:
            logger.info("session %s is left alone: %s", session.session_id, refusal)
            return
        self.counts[reason] += 1
        logger.warning(
            "session %s ended by the keeper: %s (%d so far)", session.session_id, reason, self.counts[reason]
        )
        await self.release(session)
        self.clear_up(session, reason)

    def clear_up(self, session: Session, reason: Reason) -> None:
        """Begin to remove the agent of a lost owner and to show the end of its task.

        Nobody waits for it: the room is free without it, because the next agent has another identity.
        """
        if session.owner:
            self._do_later(self._remove_ghost(session))
        if self._show is not None:
            self._do_later(_show_later(self._show, session, reason))

    async def release(self, session: Session) -> None:
        """Give the session's room back."""
        await run_async(self._client, admission.release(session.tenant, session.room, session.session_id))

    async def close(self) -> None:
        """Wait for the ghosts that are being removed and the ends that are being shown."""
        await asyncio.gather(*self._later)

    def _do_later(self, work: Awaitable[None]) -> None:
        doing = asyncio.ensure_future(work)
        self._later.add(doing)
        doing.add_done_callback(self._later.discard)


async def _show_later(show: Callable[[Session, Reason], None], session: Session, reason: Reason) -> None:
    await asyncio.sleep(_SHOWN_AFTER)
    await asyncio.to_thread(show, session, reason)
