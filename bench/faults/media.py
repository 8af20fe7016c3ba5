"""A process's media cut off: what arrives on its sockets for it is thrown away by the kernel (Linux)."""

import ctypes
import errno
import os
import socket
import struct
from collections.abc import Collection
from contextlib import ExitStack
from types import TracebackType
from typing import Self

#: `pidfd_getfd` has one number on every architecture; Python does not know it.
_PIDFD_GETFD = 438
#: `asm-generic/socket.h`; Python does not know them either.
_ATTACH_FILTER, _DETACH_FILTER = 26, 27
#: One instruction of classic BPF, return 0: of no packet anything is kept.
_NOTHING = struct.pack("HBBI", 0x06, 0, 0, 0)


class CutMedia:
    """The cut of one process: its UDP sockets, and its TCP connections to any of `ports`, hear nothing.

    What it sends still leaves. Raises `OSError` where the kernel does not let this process look into that one.
    """

    def __init__(self, pid: int, *, ports: Collection[int]) -> None:
        self._pid = pid
        self._ports = ports
        self._stack = ExitStack()
        #: The sockets that need no second look, by the names the kernel has for them.
        self._seen: set[str] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()

    def cut(self) -> int:
        """Cut the sockets that the process has by now; how many were cut anew, 0 when the process is gone."""
        found = [(number, name) for number, name in _sockets(self._pid) if name not in self._seen]
        return sum(self._cut_socket(number, name) for number, name in found)

    def _cut_socket(self, number: int, name: str) -> bool:
        handle = _duplicate(self._pid, number)
        if handle is None:
            return False
        is_media = self._is_media(handle)
        if is_media is not None:
            self._seen.add(name)
        if not is_media:
            handle.close()
            return False
        program = ctypes.create_string_buffer(_NOTHING)
        # struct sock_fprog: how many instructions, and where they are.
        handle.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, struct.pack("HL", 1, ctypes.addressof(program)))
        self._stack.callback(_let_go, handle)
        return True

    def _is_media(self, handle: socket.socket) -> bool | None:
        """None while it is not known yet whom a connection leads to."""
        if handle.family not in (socket.AF_INET, socket.AF_INET6):
            return False
        if handle.type == socket.SOCK_DGRAM:
            return True
        try:
            return handle.getpeername()[1] in self._ports
        except OSError as error:
            if error.errno == errno.ENOTCONN:
                return None
            raise


def _sockets(pid: int) -> list[tuple[int, str]]:
    """The process's sockets: the number it knows each under, and the kernel's name for it."""
    directory = f"/proc/{pid}/fd"
    sockets = []
    try:
        for number in os.listdir(directory):
            try:
                name = os.readlink(f"{directory}/{number}")
            except FileNotFoundError:
                continue
            if name.startswith("socket:"):
                sockets.append((int(number), name))
    except (FileNotFoundError, ProcessLookupError):
        return []
    return sockets


def _duplicate(pid: int, number: int) -> socket.socket | None:
    """A handle of our own on the process's socket; None when either is gone."""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    try:
        return _socket_of(_pidfd_getfd(process, number))
    except OSError as error:
        # The number may also be something else's by now.
        if error.errno in (errno.ESRCH, errno.EBADF, errno.ENOTSOCK):
            return None
        raise
    finally:
        os.close(process)


def _socket_of(number: int) -> socket.socket:
    try:
        return socket.socket(fileno=number)
    except OSError:
        os.close(number)
        raise


def _pidfd_getfd(process: int, number: int) -> int:
    library = ctypes.CDLL(None, use_errno=True)
    own = int(library.syscall(_PIDFD_GETFD, process, number, 0))
    if own < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return own


def _let_go(handle: socket.socket) -> None:
    with handle:
        handle.setsockopt(socket.SOL_SOCKET, _DETACH_FILTER, 0)
