"""Drain: how a worker stops without disturbing its calls, and how fast its pool sees a dead child.

Celery's own warm shutdown leaves the event loop: heartbeats and remote control stop for as long as the longest call,
and the read that is under way swallows the next message for just as long. Draining stays in the loop instead.
"""

import logging
import os
import signal
import time
from contextlib import suppress
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

    A second SIGTERM is Celery's warm shutdown. While the broker is away Celery tries to reach it and has no event loop,
    so that a timer of the kernel does what cannot wait for one: the children hear of the drain, to hand over when Redis
    is back, and a worker without sessions exits.
    """

    requires = ("celery.worker.components:Hub", "celery.worker.components:Pool")

    def __init__(self, parent: Any, **options: Any) -> None:
        super().__init__(parent, **options)
        self._worker = parent
        self._timers: list[Any] = []
        self._since: float | None = None
        self._cancelled = False
        self._children_told = False
        self._is_stopped = False

    @property
    def _table(self) -> Table:
        table: Table = self._worker.liveness
        return table

    @property
    def _has_event_loop(self) -> bool:
        consumer = self._worker.consumer
        return consumer.connection is not None and not consumer.is_connecting

    @property
    def _is_idle(self) -> bool:
        """Whether no process runs a session: what they report waits for the event loop, the table does not."""
        return all(slot.read() is None for slot in self._table.slots)

    def register_with_event_loop(self, worker: Any, hub: Any) -> None:
        """Called at the start and again after every reconnection to the broker."""
        for timer in self._timers:
            timer.cancel()
        self._timers = [
            hub.call_repeatedly(_REAP, worker.pool.maintain_pool),
            hub.call_repeatedly(_TICK, self._tick),
        ]
        platforms.signals["SIGTERM"] = self._on_sigterm

    def stop(self, parent: Any) -> None:
        """No alarm comes any more: the interpreter gives it its deadly meaning back when it ends.

        A second SIGTERM may have been faster than the first alarm, and the children hear of the drain all the same.
        """
        self._is_stopped = True
        # However it was told to: nobody may count on its slots while it waits for its calls.
        self._table.draining = True
        signal.setitimer(signal.ITIMER_REAL, 0)
        if self._since is not None:
            self._tell_children()

    def terminate(self, parent: Any) -> None:
        """The same in a cold shutdown."""
        self.stop(parent)

    def _on_sigterm(self, number: int, frame: FrameType | None) -> None:
        # Whatever is not a plain assignment waits for the tick: this interrupts arbitrary code.
        self._table.draining = True
        if self._since is not None or self._is_stopped:
            _stop()
            return
        # Also where it stops at once: a session that is just beginning hears of the drain when the worker stops.
        self._since = time.monotonic()
        if not self._has_event_loop and self._is_idle:
            _stop()
        else:
            signal.signal(signal.SIGALRM, self._on_alarm)
            signal.setitimer(signal.ITIMER_REAL, _TICK, _TICK)

    def _on_alarm(self, number: int, frame: FrameType | None) -> None:
        # It interrupts arbitrary code, too, so nothing is logged here.
        if self._since is None or self._has_event_loop:
            return
        self._tell_children()
        if self._is_idle and time.monotonic() - self._since >= _READ_ENDS:
            _stop()

    def _tick(self) -> None:
        if self._since is None:
            return
        if not self._cancelled:
            self._cancelled = True
            self._stop_consuming()
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
        """Once; who is forked later reads it in the table."""
        pool = self._worker.pool._pool
        if self._children_told or pool is None:
            return
        self._children_told = True
        for process in pool._pool:
            # None is the one of a process that is just being forked.
            if process.pid is not None:
                with suppress(ProcessLookupError):
                    os.kill(process.pid, DRAIN)


def _stop() -> None:
    # Celery's event loop looks at it in every turn and raises it as the exit code.
    state.should_stop = os.EX_OK  # type: ignore[assignment]
