"""The address of the admin API: a Unix socket with mode 600, or a port. One process of the gateway has it at a time."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import sys
import tempfile
from collections.abc import Iterator

if sys.platform != "win32":
    import fcntl

__all__ = ["Taken", "taking"]


class Taken(OSError):
    """Raised while another process has the address."""


@contextlib.contextmanager
def taking(address: str | tuple[str, int]) -> Iterator[socket.socket]:
    """Listen at an address as long as the context lasts. Raises Taken, or OSError for an address that cannot be had."""
    with _taking_path(address) if isinstance(address, str) else _taking_port(*address) as listener:
        yield listener


@contextlib.contextmanager
def _taking_port(host: str, port: int) -> Iterator[socket.socket]:
    family, _, _, _, found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        if sys.platform != "win32":  # there it would take the port from the process that has it
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _bind(listener, found)
        yield listener


def _bind(listener: socket.socket, address: object) -> None:
    try:
        listener.bind(address)  # type: ignore[arg-type]
        listener.listen(32)
        listener.setblocking(False)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise Taken(error.errno, "in use") from error
        raise


@contextlib.contextmanager
def _taking_path(path: str) -> Iterator[socket.socket]:
    if sys.platform == "win32":
        raise OSError(0, "Unix sockets are not supported here")
    lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            # The kernel gives the lock back when the process ends, whatever ends it.
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Taken(error.errno, "in use") from error
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISSOCK(os.lstat(path).st_mode):
                raise FileExistsError(0, "a file that is no socket is there")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            # Nobody else can connect before its mode is 600: only this user may enter the directory.
            with tempfile.TemporaryDirectory(prefix=".a", dir=os.path.dirname(path)) as directory:
                made = os.path.join(directory, "s")
                listener.bind(made)
                os.chmod(made, 0o600)
                listener.listen(32)
                os.rename(made, path)  # also in the place of the socket that a killed process has left
            listener.setblocking(False)
            try:
                yield listener
            finally:
                with contextlib.suppress(OSError):
                    os.unlink(path)
    finally:
        os.close(lock)
