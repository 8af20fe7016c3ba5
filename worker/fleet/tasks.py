"""The one task of a worker: run a session from its claim to its end."""

import subprocess
import sys
from collections.abc import Callable
from functools import partial

from celery import Task

from worker.fleet.child import Child
from worker.fleet.errors import SessionFailed
from worker.fleet.publishing import TASK_NAME
from worker.fleet.session import Reason, State
from worker.fleet.task_states import DRAINING, VOID, Announcer, show


class RunSession(Task[[str, int], str]):
    """Runs one session per message; the message carries ids only, everything else is in the record.

    Celery keeps one instance per process, so what belongs to the process hangs here. A subclass that replaces
    `preload` and `serve` makes a worker for another kind of session.
    """

    name = TASK_NAME
    ignore_result = True
    #: A failed session is no defect of the task: one line in the log instead of a traceback.
    throws = (SessionFailed,)
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
    ) -> Reason | str | None:
        """Claim the session, run it and return why it is over; None when it was or went on without this child.

        `HANDED_OVER` tells that this child has passed it on itself.

        `announce` shows `LIVE` or `DRAINING` in Flower and never blocks. It is called from the session's own thread,
        but not within `Child.watch`'s callbacks, which interrupt arbitrary code.

        It holds the child's slot before it claims and clears it after it has recorded the end: what is still held
        when it returns or raises is ended by the keeper, if it is this worker's.
        """
        from worker.call.service import serve

        return serve(session_id, epoch, child=child, announce=announce)

    def run(self, session_id: str, epoch: int) -> str:
        """The task itself; the reason of an ended session, or `VOID`, is its result. Raises `SessionFailed`."""
        self.child.begin()
        announce = Announcer(partial(show, self.app, task_id=self.request.id, hostname=self.request.hostname))
        if self.child.draining:
            announce(DRAINING)
        try:
            reason = self.serve(session_id, epoch, child=self.child, announce=announce)
        finally:
            announce.close()
            self.child.finish()
        if reason is None:
            return VOID
        if isinstance(reason, Reason) and reason.final_state is State.FAILED:
            raise SessionFailed(reason)
        return str(reason)
