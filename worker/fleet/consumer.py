"""The part of a worker's parent that reads messages, and what it does while the broker is lost."""

import logging
from typing import Any

from celery.worker import consumer
from celery.worker.state import maybe_shutdown

logger = logging.getLogger(__name__)

#: Seconds between two attempts to reach a lost broker.
_RETRY = 1.0
#: Of so many attempts one is logged.
_LOGGED = 10


class Consumer(consumer.Consumer):
    """Celery's, which does not put a message back over a connection that is lost: its worker would end of trying.

    The message lies in Redis as a dead worker's does, and the leading keeper publishes its session again.

    Nor does it wait longer and longer between two attempts. There is no event loop meanwhile, so that nobody would
    look after the keeper, without whom the worker's calls end when Redis is back.
    """

    #: Whether it is trying to reach the broker, so that there is no event loop.
    is_connecting = False

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        """Forget the connection and what came on it."""
        connection: Any = self.connection
        for channel in connection.transport.channels:
            channel.do_restore = False
        super().on_connection_error_after_connected(exc)

    def ensure_connected(self, conn: Any) -> Any:
        """The connection when it is one, however long that takes; raises when the worker is told to stop."""
        self.is_connecting = True
        try:
            # Also before the first attempt: what is done over a new connection may fail each time.
            self._look_after()
            connected = conn.ensure_connection(
                self._log_attempt,
                interval_start=_RETRY,
                interval_step=0,
                interval_max=_RETRY,
                callback=self._look_after,
            )
        finally:
            self.is_connecting = False
        self.first_connection_attempt = False
        self.broker_connection_retry_attempt = 0
        return connected

    def _look_after(self) -> None:
        maybe_shutdown()
        # The stubs of the library do not know it.
        worker: Any = self.controller  # type: ignore[attr-defined]
        if worker.keeper is not None:
            worker.keeper.revive()

    def _log_attempt(self, error: Exception, seconds: float) -> None:
        if self.broker_connection_retry_attempt % _LOGGED == 0:
            logger.error("the broker cannot be reached, and is tried every %g s: %s", seconds, error)
        self.broker_connection_retry_attempt += 1
