"""The Celery applications: the worker's, which `celery -A` names, and the one that only publishes."""

from celery import Celery

from worker.fleet.drain import Drain
from worker.fleet.processes import Processes
from worker.fleet.publishing import TASK_NAME
from worker.fleet.redis_operations import AT_A_TIME
from worker.fleet.tasks import RunSession

#: Seconds a publisher waits for the broker to accept a connection or to answer.
_PUBLISH_TIMEOUT = 1.0
#: Seconds it waits for one of the process's `AT_A_TIME` connections, when all are in use.
_CONNECTION_WAIT = 0.5


def create_worker(task: type[RunSession]) -> Celery:
    """A worker's application that runs sessions with `task`, configured by the top-level `celeryconfig`.

    The configuration, and with it the environment, is read when it is first used, not here.
    """
    application = Celery("muster", set_as_current=False)
    application.config_from_object("celeryconfig")
    # `register_task` would read the configuration; a function's task is made when the worker needs it.
    application.task(name=TASK_NAME, base=task, bind=True, shared=False)(task.run)
    application.steps["worker"].update({Processes, Drain})
    return application


def create_producer(broker_url: str) -> Celery:
    """An application that publishes and gives up soon: a frozen broker costs 1 s, an absent one 20 ms.

    Publishing raises `kombu.exceptions.OperationalError`; the message may have arrived all the same.
    """
    application = Celery("muster", broker=broker_url, set_as_current=False)
    application.conf.update(
        task_ignore_result=True,
        broker_connection_timeout=_PUBLISH_TIMEOUT,
        broker_pool_limit=AT_A_TIME,
        broker_pool_acquire_timeout=_CONNECTION_WAIT,
        broker_transport_options={
            "socket_timeout": _PUBLISH_TIMEOUT,
            "socket_connect_timeout": _PUBLISH_TIMEOUT,
            "max_retries": 1,
            "priority_steps": [0],
        },
        # A frozen broker costs one timeout per attempt, and the leading keeper publishes what was not.
        task_publish_retry_policy={"max_retries": 0},
    )
    # Its modules; the first join would wait for them, and all other requests with it.
    application.connection_for_write().get_transport_cls()
    return application


app = create_worker(RunSession)
