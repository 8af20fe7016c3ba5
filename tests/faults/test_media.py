"""A process whose media is cut hears nothing until it is mended, and has lost nothing but what was said meanwhile."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.faults.media import CutMedia
from local.ports import HOST

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="only Linux lends another process's sockets")

#: Says its port, and every datagram back.
_ECHO = """
import socket
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as own:
    own.bind(("127.0.0.1", 0))
    print(own.getsockname()[1], flush=True)
    while True:
        own.sendto(*own.recvfrom(100))
"""
#: Connects to a port of its own machine and waits.
_CONNECTED = """
import socket, sys
with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as own:
    own.recv(1)
"""


@pytest.fixture
def echo() -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen([sys.executable, "-c", _ECHO], stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


def test_a_process_hears_nothing_while_its_media_is_cut(echo: "subprocess.Popen[str]") -> None:
    assert echo.stdout is not None
    port = int(echo.stdout.readline())
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as caller:
        caller.settimeout(0.5)
        caller.connect((HOST, port))
        with CutMedia(echo.pid, ports=()) as media:
            assert media.cut() == 1
            assert media.cut() == 0, "it is cut already"
            caller.send(b"lost")
            with pytest.raises(TimeoutError):
                caller.recv(100)
        caller.send(b"heard")
        assert caller.recv(100) == b"heard"


def test_a_process_that_is_gone_has_no_media_to_cut(echo: "subprocess.Popen[str]") -> None:
    echo.kill()
    echo.wait()
    with CutMedia(echo.pid, ports=()) as media:
        assert media.cut() == 0


def test_only_connections_to_the_ports_of_the_media_are_cut() -> None:
    with socket.create_server((HOST, 0)) as server:
        port = server.getsockname()[1]
        with subprocess.Popen([sys.executable, "-c", _CONNECTED, str(port)]) as process:
            accepted, _ = server.accept()
            try:
                with CutMedia(process.pid, ports={port + 1}) as media:
                    assert media.cut() == 0
                with CutMedia(process.pid, ports={port}) as media:
                    assert media.cut() == 1
            finally:
                accepted.close()
                process.kill()
