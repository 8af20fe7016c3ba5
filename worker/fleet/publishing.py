"""How a session's message is put on the broker."""

from collections.abc import Callable

from celery import Celery

from worker.fleet.session import Session

TASK_NAME = "run_session"
SESSIONS_QUEUE = "sessions"


def publisher(app: Celery, *, join_ttl: float) -> Callable[[Session], None]:
    """A function that publishes `run_session(session_id, epoch)`; a message older than the join TTL is void."""

    def publish(session: Session) -> None:
        app.send_task(
            TASK_NAME,
            args=(session.session_id, session.epoch),
            task_id=session.task_id,
            queue=SESSIONS_QUEUE,
            expires=join_ttl,
        )

    return publish
