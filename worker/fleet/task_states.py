"""What operators see of a session in Flower: events of its task. They change the view and nothing else."""

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from celery import Celery

from worker.fleet.errors import SessionFailed
from worker.fleet.publishing import TASK_NAME
from worker.fleet.session import Reason, Session, State

logger = logging.getLogger(__name__)

#: The states a session may announce, beside those that Celery announces for every task.
LIVE = "live"
DRAINING = "draining"
#: The result of a message that had nothing to run: the session was over, or had another owner.
VOID = "void"
#: The result of a task whose session goes on with another worker.
HANDED_OVER = "handed_over"


def show(app: Celery, state: str, *, task_id: str | None, hostname: str | None, **fields: Any) -> None:
    """Send the event `task-<state>` in the name of a worker; blocks as long as the broker does, raises nothing."""
    try:
        with app.events.default_dispatcher(hostname=hostname) as dispatcher:
            dispatcher.send(f"task-{state}", uuid=task_id, retry=False, **fields)
    except Exception:
        # A view for operators, so its failure is no reason to end a call.
        logger.warning("state %s of task %s is not shown in Flower", state, task_id, exc_info=True)


def show_end(app: Celery, session: Session, reason: Reason, *, hostname: str) -> None:
    """Show the end that a keeper gave the session; `hostname` stands in for the worker that it never had.

    Nobody else would: the events of a worker that is gone have ended with it.
    """
    worker = session.owner.rpartition("#")[0] or hostname
    if reason.final_state is State.FAILED:
        outcome = {"exception": repr(SessionFailed(reason))}
        show(app, "failed", task_id=session.task_id, hostname=worker, name=TASK_NAME, **outcome)
    else:
        show(app, "succeeded", task_id=session.task_id, hostname=worker, name=TASK_NAME, result=repr(str(reason)))


class Announcer:
    """Shows a task's states in order, by `show`, and never blocks the caller.

    `DRAINING` is the last one: whoever looks for the calls that keep a worker from going must find them all.
    """

    def __init__(self, show: Callable[[str], None]) -> None:
        self._show = show
        self._is_draining = False
        # One thread, so that states arrive in order and a broker that hangs does not stop the session's event loop.
        self._pool = ThreadPoolExecutor(max_workers=1)

    def __call__(self, state: str) -> None:
        """Show the state, soon; to be called from one thread, and not by a signal's handler."""
        if not self._is_draining:
            self._is_draining = state == DRAINING
            self._pool.submit(self._show, state)

    def close(self) -> None:
        """Forget what was not shown yet."""
        self._pool.shutdown(wait=False, cancel_futures=True)
