"""The worker process in which gunicorn runs a service: one greenlet per connection, and a bound for each wait.

Gunicorn parses requests and writes answers. What is here decides how long a client may take and who gives way when
there are too many.
"""

import errno
import gc
import io
import resource
import uuid
from contextlib import suppress
from functools import partial
from typing import Any

import gevent
from gevent import socket
from gevent.event import Event
from gevent.pool import Pool
from gevent.server import StreamServer
from gunicorn import util
from gunicorn.arbiter import Arbiter
from gunicorn.http.errors import NoMoreData
from gunicorn.workers.base_async import AsyncWorker
from gunicorn.workers.ggevent import GeventWorker

from api.http_refusals import encode, refusal
from api.http_requests import BoundedRequests
from api.logs import log_with_ids
from worker.fleet.errors import SettingsInvalid

#: Descriptors that are not for connections: Redis, the broker, files, and what is being accepted at this moment.
RESERVED_DESCRIPTORS = 400

#: Seconds between two signs of life for the arbiter.
_HEARTBEAT = 1.0
#: Seconds after SIGTERM in which a request that is on its way may still arrive.
_ARRIVES_WITHIN = 0.3
#: Seconds and bytes for which a refused client is listened to: closing on it earlier would destroy the answer.
_LINGER = 2.0
_LINGER_BYTES = 16 * 1024 * 1024
#: How a client that has gone shows.
_GONE = (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN, errno.EBADF)


class HttpWorker(GeventWorker):  # type: ignore[misc]
    """Serves connections until it is told to stop.

    An *arriving* connection is one whose next request is not here completely. The application is called when it is, so
    that nothing in it ever waits for a client's bytes. When there are too many connections, the one that has been
    arriving for the longest time is closed. All bounds are in seconds.
    """

    #: A new connection's first byte; after it the rest of the head, and after that the whole body.
    head_within = 10.0
    body_within = 10.0
    #: One piece of an answer: a whole JSON body, or one event of a stream.
    sent_within = 30.0
    #: After SIGTERM: requests that run finish, streams end.
    finish_within = 10.0

    def init_process(self) -> None:
        self._connections: set[gevent.Greenlet[Any, Any]] = set()
        #: The longest arriving one first.
        self._arriving: dict[socket.socket, None] = {}
        self._most_connections = allow_descriptors(self.cfg.worker_connections) - RESERVED_DESCRIPTORS
        self._told_to_stop = Event()
        super().init_process()

    def load_wsgi(self) -> None:
        """Wrong settings are one line in the log, and the end of gunicorn: another worker would find the same."""
        log_with_ids()
        try:
            super().load_wsgi()
        except SettingsInvalid as error:
            self.log.error("%s", error)
            raise SystemExit(Arbiter.APP_LOAD_ERROR) from None

    def run(self) -> None:
        # What was loaded stays: looking through it again and again is tens of milliseconds in which nobody is answered.
        gc.collect()
        gc.freeze()
        servers = [self._serve(listener) for listener in self.sockets]
        while self.alive:
            self.notify()
            self._told_to_stop.wait(_HEARTBEAT)
        for server in servers:
            server.close()
        self._finish()

    def handle_exit(self, sig: int, frame: Any) -> None:
        super().handle_exit(sig, frame)
        # Not from here: a signal may interrupt the event loop itself.
        gevent.spawn(self._told_to_stop.set)

    def handle(self, listener: socket.socket, client: socket.socket, addr: Any) -> None:
        """One connection from its first byte to its last."""
        this = gevent.getcurrent()
        assert isinstance(this, gevent.Greenlet)
        self._connections.add(this)
        self._make_room()
        try:
            self._converse(listener.getsockname(), client, addr)
        except StopIteration:
            # Gunicorn's word for a connection that is not kept.
            return
        except (Exception, gevent.Timeout) as error:
            self.handle_error(None, client, addr, error)
        finally:
            self._connections.discard(this)
            self._arriving.pop(client, None)
            util.close(client)

    def handle_error(self, req: Any, client: socket.socket, addr: Any, exc: BaseException) -> None:
        """Refuse what could not be served and close the connection; nothing the client sent is repeated."""
        gave_way = isinstance(exc, NoMoreData) and client not in self._arriving
        if gave_way or isinstance(exc, TimeoutError) or (isinstance(exc, OSError) and exc.errno in _GONE):
            return
        # Thousands of deadlines may pass in one moment; everybody else has a turn in between.
        gevent.sleep(0)
        request_id = uuid.uuid4().hex
        response = refusal(exc, request_id=request_id)
        if response.status_code == 500:
            self.log.error("request %s failed", request_id, exc_info=exc)
        else:
            self.log.info("request %s refused: %s", request_id, response.status)
        with suppress(OSError):
            client.settimeout(self.sent_within)
            client.sendall(encode(response))
            util.close_graceful(client, timeout=_LINGER, max_drain=_LINGER_BYTES)

    def _serve(self, listener: socket.socket) -> StreamServer:
        listener.setblocking(True)
        # More than `_most_connections`: a new connection is accepted before an old one gives way to it.
        pool = Pool(self._most_connections + StreamServer.max_accept)
        server = StreamServer(listener, handle=partial(self.handle, listener), spawn=pool)
        if self.cfg.workers > 1:
            server.max_accept = 1
        server.start()
        return server

    def _converse(self, listener_name: Any, client: socket.socket, addr: Any) -> None:
        parser = BoundedRequests(self.cfg, client, addr)
        patience = self.head_within
        while self._begins(parser, client, within=patience):
            request = self._receive(parser, client)
            client.settimeout(self.sent_within)
            # Not `GeventWorker`'s: it would go on with a connection that is to end.
            AsyncWorker.handle_request(self, listener_name, request, client, addr)
            if not self.alive:
                return
            client.settimeout(None)
            patience = self.cfg.keepalive

    def _begins(self, parser: Any, client: socket.socket, *, within: float) -> bool:
        """Wait for the next request's first byte; False when none came."""
        self._arriving[client] = None
        with suppress(gevent.Timeout), gevent.Timeout(within):
            first = parser.unreader.read()
            parser.unreader.unread(first)
            return bool(first)
        return False

    def _receive(self, parser: Any, client: socket.socket) -> Any:
        """The request with its whole body; raises `gevent.Timeout` and whatever is wrong with it."""
        from werkzeug.exceptions import RequestEntityTooLarge

        from api.routes import body_limit

        with gevent.Timeout(self.head_within):
            request = next(parser)
        most = body_limit(request.path)
        if request.declared_length > most:
            raise RequestEntityTooLarge()
        with gevent.Timeout(self.body_within):
            if request._expected_100_continue:
                request._expected_100_continue = False
                client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            body = request.body.read(most + 1)
        if len(body) > most:
            raise RequestEntityTooLarge()
        if len(body) < request.declared_length:
            raise NoMoreData()
        request.body = io.BytesIO(body)
        self._arriving.pop(client, None)
        return request

    def _make_room(self) -> None:
        if len(self._connections) > self._most_connections and self._arriving:
            self._drop_longest_arriving()

    def _drop_longest_arriving(self) -> None:
        client = next(iter(self._arriving))
        del self._arriving[client]
        with suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)

    def _finish(self) -> None:
        gevent.joinall([*self._connections], timeout=_ARRIVES_WITHIN)
        while self._arriving:
            self._drop_longest_arriving()
        gevent.joinall([*self._connections], timeout=self.finish_within)
        gevent.killall([*self._connections], timeout=_HEARTBEAT)


def allow_descriptors(wanted: int) -> int:
    """Raise this process's limit of open files to `wanted` where the system lets it; how many there may be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return wanted
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    return allowed
