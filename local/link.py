"""A link between one process and a server: a TCP proxy that can be cut, stalled and mended.

The command `python -m local.link PORT HOST:PORT SOCKET` forwards from the first port to the second address and obeys
what a `Link` says on the Unix socket.
"""

import asyncio
import contextlib
import signal
import socket
import struct
import sys
from enum import StrEnum
from pathlib import Path

_CHUNK = 64 * 1024
#: Seconds.
_ANSWER = 5.0
#: Linger: on, for no time.
_AT_ONCE = struct.pack("ii", 1, 0)


class LinkState(StrEnum):
    """What happens to the bytes."""

    #: They pass.
    MENDED = "mended"
    #: Every connection is reset, and every other one as soon as it is made.
    CUT = "cut"
    #: Connections stay and are made, but nothing passes; it does when the link is mended.
    STALLED = "stalled"
    #: Connections stay; what the server sends on them is lost for ever.
    DEAF = "deaf"


class Link:
    """The handle on a link that runs in a process of its own."""

    def __init__(self, control: Path) -> None:
        self._control = control

    def set(self, state: LinkState) -> None:
        """Change the link's state; returns when it has changed. Raises `OSError`."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(_ANSWER)
            connection.connect(str(self._control))
            connection.sendall(f"{state}\n".encode())
            if connection.recv(16) != b"done\n":
                raise ConnectionError("the link did not obey")

    def cut(self) -> None:
        """Reset every connection, and those that are tried."""
        self.set(LinkState.CUT)

    def stall(self) -> None:
        """Let nothing pass for a while."""
        self.set(LinkState.STALLED)

    def deafen(self) -> None:
        """Lose what the server sends."""
        self.set(LinkState.DEAF)

    def mend(self) -> None:
        """Let everything pass."""
        self.set(LinkState.MENDED)


class Proxy:
    """Forwards connections to one address, as its state allows."""

    def __init__(self, host: str, port: int) -> None:
        self._address = host, port
        self._state = LinkState.MENDED
        self._flows = asyncio.Event()
        self._flows.set()
        self._writers: set[asyncio.StreamWriter] = set()

    def change(self, state: LinkState) -> None:
        """From here on."""
        self._state = state
        if state is LinkState.STALLED:
            self._flows.clear()
        else:
            self._flows.set()
        if state is LinkState.CUT:
            for writer in self._writers:
                _reset(writer)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One client's connection."""
        self._writers.add(writer)
        try:
            await self._flows.wait()
            if self._state is LinkState.CUT:
                _reset(writer)
                return
            await self._join(reader, writer)
        except OSError:
            # The server is gone, and so is the connection to it.
            _reset(writer)
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection(*self._address)
        self._writers.add(server_writer)
        directions = [
            asyncio.create_task(self._pass(reader, server_writer, is_answer=False)),
            asyncio.create_task(self._pass(server_reader, writer, is_answer=True)),
        ]
        try:
            await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for direction in directions:
                direction.cancel()
            await asyncio.gather(*directions, return_exceptions=True)
            self._writers.discard(server_writer)
            server_writer.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_answer: bool) -> None:
        while chunk := await reader.read(_CHUNK):
            await self._flows.wait()
            if is_answer and self._state is LinkState.DEAF:
                continue
            writer.write(chunk)
            await writer.drain()

    async def obey(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """What a `Link` says."""
        with contextlib.closing(writer):
            self.change(LinkState((await reader.readline()).decode().strip()))
            writer.write(b"done\n")
            await writer.drain()


def _reset(writer: asyncio.StreamWriter) -> None:
    transport = writer.transport
    if not transport.is_closing():
        # Without it, the other side is told of an orderly end.
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
        transport.abort()


async def run(port: int, host: str, target: int, control: Path) -> None:
    """Forward until SIGTERM; prints "ready"."""
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    proxy = Proxy(host, target)
    async with (
        await asyncio.start_server(proxy.serve, "127.0.0.1", port),
        await asyncio.start_unix_server(proxy.obey, control),
    ):
        print("ready", flush=True)
        await stopped.wait()
        proxy.change(LinkState.CUT)


def main() -> None:
    """Run the link that the command line describes."""
    port, target, control = sys.argv[1:]
    host, _, target_port = target.rpartition(":")
    asyncio.run(run(int(port), host, int(target_port), Path(control)))


if __name__ == "__main__":
    main()
