"""Drain: how a worker stops without disturbing its calls, and how fast its pool sees a dead child.

Celery's own warm shutdown leaves the event loop: heartbeats and remote control stop for as long as the longest call,
and the read that is under way swallows the next message for just as long. Draining stays in the loop instead.
"""

import logging
import os
import time
from types import FrameType
from typing import Any

from celery import bootsteps, platforms
from celery.worker import state

from worker.fleet.child import DRAIN
from worker.fleet.table import Table

logger = logging.getLogger(__name__)

#: Seconds until a blocking read that was under way has ended; the transport's own bound is one second.
_READ_ENDS = 1.2
_TICK = 0.1
#: Seconds between two looks for dead children; the pool's own timer of 5 s is too slow for a free slot.
_REAP = 0.2


class Drain(bootsteps.StartStopStep):
    """On SIGTERM: stop consuming, tell the children, exit when no session is left.

    A second SIGTERM is Celery's warm shutdown. While the broker is away there is nothing to stop consuming from and
    no event loop to stay in, so there the first one is, too.
    """

    requires = ("celery.worker.components:Hub", "celery.worker.components:Pool")

    def __init__(self, parent: Any, **options: Any) -> None:
        super().__init__(parent, **options)
        self._worker = parent
        self._timers: list[Any] = []
        self._since: float | None = None
        self._cancelled = False
        self._children_told = False

    @property
    def _table(self) -> Table:
        table: Table = self._worker.liveness
        return table

    def register_with_event_loop(self, worker: Any, hub: Any) -> None:
        """Called at the start and again after every reconnection to the broker."""
        for timer in self._timers:
            timer.cancel()
        self._timers = [
            hub.call_repeatedly(_REAP, worker.pool.maintain_pool),
            hub.call_repeatedly(_TICK, self._tick),
        ]
        platforms.signals["SIGTERM"] = self._on_sigterm

    def _on_sigterm(self, number: int, frame: FrameType | None) -> None:
        # Whatever is not a plain assignment waits for the tick: this interrupts arbitrary code.
        self._table.draining = True
        if self._since is not None or self._worker.consumer.connection is None:
            _stop()
        else:
            self._since = time.monotonic()

    def _tick(self) -> None:
        if self._since is None:
            return
        if not self._cancelled:
            self._cancelled = True
            self._stop_consuming()
        if not self._children_told:
            self._children_told = True
            self._tell_children()
        if time.monotonic() - self._since < _READ_ENDS:
            return
        if state.should_stop is None and not state.active_requests and not state.reserved_requests:
            logger.info("drained")
            _stop()

    def _stop_consuming(self) -> None:
        logger.info("draining, %d sessions are running", len(state.active_requests))
        for queue in list(self._worker.app.amqp.queues.consume_from):
            self._worker.consumer.cancel_task_queue(queue)

    def _tell_children(self) -> None:
        for process in self._worker.pool._pool._pool:
            try:
                os.kill(process.pid, DRAIN)
            except ProcessLookupError:
                logger.info("child %d was gone before it could be told", process.pid)


def _stop() -> None:
    # Celery's event loop looks at it in every turn and raises it as the exit code.
    state.should_stop = os.EX_OK  # type: ignore[assignment]
