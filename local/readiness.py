"""Whether a part of the stack serves: asked of the part itself, never guessed."""

import http.client
import socket
from pathlib import Path
from urllib.parse import urlsplit

from local.ports import HOST

#: Seconds.
_PATIENCE = 5.0


def answers_http(url: str) -> bool:
    """Whether a GET is answered with 200; no proxy is asked on the way."""
    target = urlsplit(url)
    connection = http.client.HTTPConnection(target.hostname or HOST, target.port, timeout=_PATIENCE)
    try:
        connection.request("GET", target.path or "/")
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def answers_ping(port: int) -> bool:
    """Whether the Redis on this port of the loopback address has loaded its data and answers."""
    try:
        with socket.create_connection((HOST, port), timeout=_PATIENCE) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(16).startswith(b"+PONG")
    except OSError:
        return False


def has_logged(log: Path, text: bytes) -> bool:
    """Whether the part has written this to its log."""
    return log.exists() and text in log.read_bytes()
