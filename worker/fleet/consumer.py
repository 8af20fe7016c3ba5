"""The part of a worker's parent that reads messages, as it is when the broker is lost with one of them in hand."""

from typing import Any

from celery.worker import consumer


class Consumer(consumer.Consumer):
    """Celery's, which does not put a message back over a connection that is lost: its worker would end of trying.

    The message lies in Redis as a dead worker's does, and the leading keeper publishes its session again.
    """

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        """Forget the connection and what came on it."""
        connection: Any = self.connection
        for channel in connection.transport.channels:
            channel.do_restore = False
        super().on_connection_error_after_connected(exc)
