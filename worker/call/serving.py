"""What the parts of a call share for as long as one process serves its session."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, TypeVar

import redis.asyncio
from livekit.agents import utils

from worker.call.baton import Baton
from worker.call.ending import Ending
from worker.call.handing_over import Messages, Wish
from worker.call.own_record import OwnRecord
from worker.call.settings import CallSettings
from worker.fleet.child import Child
from worker.fleet.session import Reason, Session

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")


@dataclass(frozen=True, kw_only=True)
class Serving:
    """One session in one event loop; what hangs on `stack` goes with it.

    `announce` tells operators about a state of the task and does not block.
    """

    session: Session
    settings: CallSettings
    client: "redis.asyncio.Redis"
    child: Child
    ending: Ending
    baton: Baton
    record: OwnRecord
    wish: Wish
    messages: Messages
    #: The turns of what is written to the session while it is on the phone.
    written: "asyncio.Queue[str]"
    announce: Callable[[str], None]
    stack: AsyncExitStack

    def keep(self, work: Coroutine[Any, Any, Answer]) -> asyncio.Task[Answer]:
        """Run `work` beside the call, at most as long as it; what fails unseen ends the call."""
        task = asyncio.create_task(work)
        task.add_done_callback(self._check)
        self.stack.push_async_callback(utils.aio.cancel_and_wait, task)
        return task

    def _check(self, task: asyncio.Task[Any]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            logger.error("a part of the call broke", exc_info=error, extra={"session": self.session.session_id})
            self.ending.decide(Reason.INTERNAL_ERROR)
