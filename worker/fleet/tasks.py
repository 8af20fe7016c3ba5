"""The one task of a worker: run a session from its claim to its end."""

import logging
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from celery import Task

from worker.fleet.child import Child
from worker.fleet.publishing import TASK_NAME

logger = logging.getLogger(__name__)


class RunSession(Task[[str, int], None]):
    """Runs one session per message; the message carries ids only, everything else is in the record.

    Celery keeps one instance per process, so what belongs to the process hangs here. A subclass that replaces
    `preload` and `serve` makes a worker for another kind of session.
    """

    name = TASK_NAME
    ignore_result = True
    #: Set in every pool process before its first task.
    child: Child

    def preload(self) -> None:
        """Load, in the parent, what every child shares; starts no thread, loop or network client."""
        from worker.call.preload import load

        load()

    def render_ahead(self) -> "subprocess.Popen[bytes] | None":
        """Start the process that renders what the first call needs; it ends by itself."""
        return subprocess.Popen([sys.executable, "-m", "worker.call.phrases"], stdin=subprocess.DEVNULL)

    def serve(
        self,
        session_id: str,
        epoch: int,
        *,
        child: Child,
        announce: Callable[[str], None],
    ) -> None:
        """Claim the session, run it and return when it is over; `announce` shows a state in Flower and never blocks.

        It holds the child's slot before it claims and clears it after it has recorded the end: what is still held
        when it returns or raises is ended by the keeper, if it is this worker's.
        """
        from worker.call.service import serve

        serve(session_id, epoch, child=child, announce=announce)

    def run(self, session_id: str, epoch: int) -> None:
        """The task itself."""
        self.child.begin()
        # One thread, so that states arrive in order and a broker that hangs does not stop the session's event loop.
        announcer = ThreadPoolExecutor(max_workers=1)
        show = partial(self._show, self.request.id, self.request.hostname)

        def announce(state: str) -> None:
            announcer.submit(show, state)

        try:
            self.serve(session_id, epoch, child=self.child, announce=announce)
        finally:
            announcer.shutdown(wait=False, cancel_futures=True)
            self.child.finish()

    def _show(self, task_id: str | None, hostname: str | None, state: str) -> None:
        try:
            with self.app.events.default_dispatcher(hostname=hostname) as dispatcher:
                dispatcher.send(f"task-{state}", uuid=task_id, retry=False)
        except Exception:
            # A view for operators, so its failure is no reason to end a call.
            logger.warning("state %s of task %s is not shown in Flower", state, task_id, exc_info=True)
