"""The sockets of another process, as the kernel has them (Linux)."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Final

__all__ = ["connections_of"]

#: The number of pidfd_getfd(2), the same on every architecture.
_PIDFD_GETFD: Final = 438


@contextlib.contextmanager
def connections_of(pid: int) -> Iterator[list[socket.socket]]:
    """Yield duplicates of the TCP connections of the process ``pid``, a descendant of this one."""
    with contextlib.ExitStack() as stack:
        connections = []
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                if not os.readlink(entry).startswith("socket:"):
                    continue
                each = stack.enter_context(socket.socket(fileno=_duplicate(pid, int(entry.name))))
                is_tcp = each.family in (socket.AF_INET, socket.AF_INET6) and each.type == socket.SOCK_STREAM
                if is_tcp and not each.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                    connections.append(each)
        yield connections


def _duplicate(pid: int, number: int) -> int:
    process = os.pidfd_open(pid)
    try:
        duplicate: int = ctypes.CDLL(None, use_errno=True).syscall(_PIDFD_GETFD, process, number, 0)
    finally:
        os.close(process)
    if duplicate < 0:
        raise OSError(ctypes.get_errno(), f"pidfd_getfd: {os.strerror(ctypes.get_errno())}")
    return duplicate
