"""Finding TCP and UDP ports of the loopback address that nobody else uses."""

import random
import socket

HOST = "127.0.0.1"

#: Below the range from which kernels take the ports of outgoing connections: a port found here stays free
#: until the part that gets it has bound it.
_SEARCHED = range(20_000, 32_000)


def is_free(port: int) -> bool:
    """Whether a server could bind this port, for TCP and for UDP."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_STREAM) as tcp,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
    ):
        # As every server does: connections of an earlier one that linger do not count.
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tcp.bind((HOST, port))
            udp.bind((HOST, port))
        except OSError:
            return False
    return True


class PortPicker:
    """Gives out ports, none of them twice."""

    def __init__(self) -> None:
        self._given: set[int] = set()

    def pick(self, preferred: int | None = None) -> int:
        """The preferred port when it is free, else another one that is."""
        candidates = random.sample(_SEARCHED, k=500)
        if preferred is not None:
            candidates.insert(0, preferred)
        for port in candidates:
            if port not in self._given and is_free(port):
                self._given.add(port)
                return port
        raise OSError("no free port on the loopback address")
