"""How a session's message, or that of a turn of text, is put on the broker."""

from collections.abc import Callable

from celery import Celery

from worker.fleet.session import Session

TASK_NAME = "run_session"
SESSIONS_QUEUE = "sessions"
CHAT_TASK_NAME = "run_chat"
CHAT_QUEUE = "chat"
#: Consumed before all others: a caller waits there who was talking already.
RECOVERY_QUEUE = "recovery"


def worker_queue(name: str) -> str:
    """The queue of messages for this very worker."""
    return f"worker.{name}"


def publisher(app: Celery, *, join_ttl: float) -> Callable[[Session], None]:
    """A function that publishes `run_session(session_id, epoch)`; a message older than the join TTL is void."""

    def publish(session: Session) -> None:
        app.send_task(
            TASK_NAME,
            args=(session.session_id, session.epoch),
            task_id=_task_id(session),
            queue=SESSIONS_QUEUE if session.epoch == 1 else RECOVERY_QUEUE,
            expires=join_ttl,
        )

    return publish


def offerer(app: Celery, *, expires: float) -> Callable[[Session, str], None]:
    """A function that publishes an offered session on a queue; `session.epoch` is the offered one.

    It raises `kombu.exceptions.OperationalError`. A message older than `expires` seconds is void.
    """

    def publish(session: Session, queue: str) -> None:
        app.send_task(
            TASK_NAME,
            args=(session.session_id, session.epoch),
            task_id=session.task_id,
            queue=queue,
            expires=expires,
        )

    return publish


def chat_publisher(app: Celery, *, patience: float) -> Callable[[str, str], None]:
    """A function that publishes `run_chat(session_id, turn_id)`; after `patience` seconds the message is void."""

    def publish(session_id: str, turn_id: str) -> None:
        app.send_task(
            CHAT_TASK_NAME,
            args=(session_id, turn_id),
            task_id=turn_id,
            queue=CHAT_QUEUE,
            expires=patience,
        )

    return publish


def _task_id(session: Session) -> str:
    """The session's own for its first message; repeated ones share another, as they usually find nothing to run.

    Under the same id their end would be shown as the end of the call that the first message started.
    """
    return session.task_id if session.published_at is None else f"{session.task_id}~repeated"
