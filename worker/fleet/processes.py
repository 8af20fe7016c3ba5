"""The processes of a worker: what its parent does before it forks, its keeper, and what a fork must satisfy."""

import gc
import json
import logging
import os
import select
import subprocess
import sys
import threading
import time
import uuid
from dataclasses import asdict
from pathlib import Path
from typing import Any

from billiard import current_process
from celery import bootsteps, signals
from celery.exceptions import WorkerShutdown
from celery.worker.state import maybe_shutdown

from worker.fleet.child import Child
from worker.fleet.publishing import SESSIONS_QUEUE, TASK_NAME, worker_queue
from worker.fleet.table import Table
from worker.fleet.tasks import RunSession
from worker.fleet.workers import WorkerStatus

logger = logging.getLogger(__name__)

#: Set before anything heavy is imported, whatever the environment says: numpy and onnxruntime start a thread at import
#: otherwise, and a process with a thread must not fork; tracing would send what was said to a third party. A shell that
#: sets such a variable for other programs would stop the worker or, worse, listen in.
QUIET_LIBRARIES = {
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "ORT_DISABLE_TELEMETRY": "1",
    "LANGSMITH_TRACING": "false",
}
#: Seconds a worker waits for its first lease before it gives up.
_FIRST_LEASE = 30.0
_KEEPER_CHECK = 0.5
#: Seconds the keeper has to give the lease back.
_RESIGNATION = 2.0


def share_memory(**_: Any) -> None:
    """Right before a fork: what is loaded is shared by every child. A parent with a second thread ends its worker."""
    threads = _thread_count()
    if threads != 1:
        # Celery swallows every `Exception` of a signal's receiver; this one ends the worker, its calls first.
        logger.critical("the parent has %d threads, a child would inherit their locks", threads)
        raise WorkerShutdown(os.EX_SOFTWARE)
    # What lives until here is never collected in a child, so its pages stay shared.
    gc.collect()
    gc.freeze()


class Keeper:
    """The keeper of a worker, as its parent sees it: started, started again, told to resign."""

    def __init__(self, *, table: Table, status: WorkerStatus) -> None:
        self._table = table
        self._status = status
        self._process = self._spawn()

    def wait_for_lease(self) -> None:
        """Return when the worker has a lease; without one it stops, and when it is told to."""
        deadline = time.monotonic() + _FIRST_LEASE
        while not self._is_leased():
            maybe_shutdown()
            if time.monotonic() > deadline:
                logger.critical("no lease after %.0f s, is Redis there?", _FIRST_LEASE)
                raise WorkerShutdown(os.EX_UNAVAILABLE)
            self.revive()

    def _is_leased(self) -> bool:
        """Wait a moment for it to say so; a keeper that dies meanwhile says nothing."""
        stdout = self._process.stdout
        assert stdout is not None
        readable, _, _ = select.select([stdout], [], [], _KEEPER_CHECK)
        return bool(readable and stdout.readline())

    def revive(self) -> None:
        """Start it again if it died."""
        code = self._process.poll()
        if code is not None:
            logger.error("the keeper died with code %d and is started again", code)
            self._close()
            self._process = self._spawn()

    def resign(self) -> None:
        """Have it give the lease back and exit."""
        self._process.terminate()
        try:
            self._process.wait(_RESIGNATION)
        except subprocess.TimeoutExpired:
            logger.warning("the keeper could not resign in time, the lease will end by itself")
            self._process.kill()
            self._process.wait()
        self._close()

    def _spawn(self) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            [
                sys.executable,
                "-m",
                "worker.fleet.keeper",
                str(self._table.fileno),
                json.dumps(asdict(self._status)),
            ],
            pass_fds=[self._table.fileno],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            # What a terminal or a supervisor sends to the worker's group must not reach the keeper: it resigns when
            # the parent says so.
            start_new_session=True,
        )

    def _close(self) -> None:
        if self._process.stdout is not None:
            self._process.stdout.close()


class Processes(bootsteps.StartStopStep):
    """Makes the worker's table, keeper and queue, preloads, and looks after every fork."""

    requires = ("celery.worker.components:Hub",)

    def __init__(self, parent: Any, **options: Any) -> None:
        super().__init__(parent, **options)
        self._app = parent.app
        self._timer: Any = None
        self._worker_id = f"{parent.hostname}#{uuid.uuid4().hex[:8]}"

    @property
    def _task(self) -> RunSession:
        task: RunSession = self._app.tasks[TASK_NAME]
        return task

    def create(self, worker: Any) -> None:
        """Runs before any step starts, so before the first fork.

        The keeper comes first: while the parent preloads, it already gets the lease and watches Redis.
        """
        os.environ.update(QUIET_LIBRARIES)
        self._table = worker.liveness = Table.create(slots=worker.concurrency)
        self._keeper = worker.keeper = Keeper(table=self._table, status=self._status(worker))
        self._renderer = self._task.render_ahead()
        self._task.preload()
        self._add_own_queue(worker)
        signals.worker_before_create_process.connect(share_memory, weak=False)
        signals.worker_process_init.connect(self._enter_child, weak=False)
        signals.worker_shutdown.connect(self._resign, weak=False)

    def start(self, worker: Any) -> None:
        """Nothing may be claimed without a lease: to the leading keeper the claim would look orphaned."""
        self._keeper.wait_for_lease()

    def register_with_event_loop(self, worker: Any, hub: Any) -> None:
        """Called at the start and again after every reconnection to the broker."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = hub.call_repeatedly(_KEEPER_CHECK, self._look_after)

    def _look_after(self) -> None:
        self._keeper.revive()
        # A process that has ended stays in the table until its parent has asked.
        if self._renderer is not None and self._renderer.poll() is not None:
            if self._renderer.returncode:
                logger.warning("phrases were not rendered ahead, each first call will")
            self._renderer = None

    def _status(self, worker: Any) -> WorkerStatus:
        return WorkerStatus(
            worker_id=self._worker_id,
            name=worker.hostname.partition("@")[0],
            slots=worker.concurrency,
            busy=0,
            draining=False,
            started_at=time.time(),
        )

    def _add_own_queue(self, worker: Any) -> None:
        """Consume the worker's own queue right before the common one."""
        queues = self._app.amqp.queues
        chosen = list(queues.consume_from)
        if SESSIONS_QUEUE in chosen:
            own = worker_queue(worker.hostname.partition("@")[0])
            chosen.insert(chosen.index(SESSIONS_QUEUE), own)
            queues.select(chosen)

    def _enter_child(self, **_: Any) -> None:
        # The index of the process in the pool: unique among the living, inherited by a replacement.
        index: int = current_process().index  # type: ignore[attr-defined]
        child = Child(worker_id=self._worker_id, table=self._table, index=index)
        child.install_handlers()
        self._task.child = child

    def _resign(self, **_: Any) -> None:
        self._keeper.resign()


def _thread_count() -> int:
    """Threads of this process; on Linux also those that Python did not start."""
    tasks = Path("/proc/self/task")
    return sum(1 for _ in tasks.iterdir()) if tasks.exists() else threading.active_count()
