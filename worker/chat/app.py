"""The Celery application of text turns: `celery -A worker.chat.app worker`."""

import os
import signal
from typing import Any

from celery import Celery, bootsteps, signals

from worker.chat.settings import ChatSettings
from worker.chat.tasks import RunChat
from worker.fleet.child import DRAIN
from worker.fleet.drain import Drain
from worker.fleet.health import HealthFile
from worker.fleet.processes import QUIET_LIBRARIES, share_memory
from worker.fleet.publishing import CHAT_TASK_NAME
from worker.fleet.table import Table

#: Seconds between two signs of health.
_HEALTHY = 2.0


class Preload(bootsteps.StartStopStep):
    """Loads the conversation in the parent, once for all processes, which share the memory; tells that it lives."""

    requires = ("celery.worker.components:Hub",)

    def __init__(self, parent: Any, **options: Any) -> None:
        super().__init__(parent, **options)
        self._timer: Any = None

    def create(self, worker: Any) -> None:
        """Runs before the first fork."""
        os.environ.update(QUIET_LIBRARIES)
        # The drain tells by it that the worker takes nothing any more; a text turn holds no slot in it.
        worker.liveness = Table.create(slots=worker.concurrency)
        # A turn is over before anybody would take its worker for lost.
        worker.keeper = None
        task: RunChat = worker.app.tasks[CHAT_TASK_NAME]
        task.preload()
        self._health = HealthFile(ChatSettings.from_env().health_file)
        signals.worker_before_create_process.connect(share_memory, weak=False)
        signals.worker_process_init.connect(_finish_turns, weak=False)
        signals.worker_shutdown.connect(self._say_goodbye, weak=False)

    def register_with_event_loop(self, worker: Any, hub: Any) -> None:
        """Called at the start and again after every reconnection to the broker, without which nothing is healthy."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = hub.call_repeatedly(_HEALTHY, self._health.touch)

    def _say_goodbye(self, **_: Any) -> None:
        self._health.remove()


def _finish_turns(**_: Any) -> None:
    # A turn is over in seconds, whether the worker drains or not.
    signal.signal(DRAIN, signal.SIG_IGN)


def create_chat_worker(task: type[RunChat]) -> Celery:
    """A worker's application that answers texts with `task`; its configuration is read when it is first used."""
    application = Celery("muster-chat", set_as_current=False)
    application.config_from_object("worker.chat.celery_settings")
    application.task(name=CHAT_TASK_NAME, base=task, bind=True, shared=False)(task.run)
    application.steps["worker"].update({Preload, Drain})
    return application


app = create_chat_worker(RunChat)
