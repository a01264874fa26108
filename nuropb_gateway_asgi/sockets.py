"""Socket options for connections of clients."""

from __future__ import annotations

import contextlib
import socket
import struct
import sys
from typing import Any, Final

if sys.platform == "linux":
    import fcntl
    import termios

__all__ = ["CLOSED_USER_TIMEOUT", "USER_TIMEOUT", "hasten_end", "set_options", "skip_flush", "unacknowledged"]

#: Seconds after which the kernel gives up on a peer that acknowledges nothing, or has no room. Without it a server, and
#: its shutdown, would wait for ever to send the last bytes to a client that does not read.
USER_TIMEOUT: Final = 30
#: The same for a connection that the process has closed: its client has nothing to wait for but these bytes.
CLOSED_USER_TIMEOUT: Final = 8
#: SO_LINGER: on, for 0 seconds.
_NO_LINGER: Final = struct.pack("ii", 1, 0)


def set_options(connection: socket.socket) -> None:
    """Have the kernel send at once, and give up on a silent peer. Connections inherit the options of their listener.

    asyncio sets TCP_NODELAY itself, but only on sockets that were made with the number of the protocol. The sockets of
    uvicorn and anyio are not: there the kernel would hold back the second part of an answer until the client has
    acknowledged the first, which takes it 40 ms.
    """
    if _is_tcp(connection):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        _set_user_timeout(connection, USER_TIMEOUT)


def hasten_end(connection: Any) -> None:
    """Have the kernel give up soon on a peer that does not take the last bytes. To be called before the close.

    ``connection`` is a socket, or the socket-like object of a transport. A peer that reads, however slowly, gets all.
    """
    with contextlib.suppress(OSError):  # the connection is broken already
        if connection is not None and _is_tcp(connection):
            _set_user_timeout(connection, CLOSED_USER_TIMEOUT)
            if hasattr(socket, "TCP_LINGER2"):  # for a peer that has taken all, and closes its side too late
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_LINGER2, CLOSED_USER_TIMEOUT)


def skip_flush(connection: Any) -> None:
    """Have the close of ``connection`` drop unsent bytes and reset the connection, so that the kernel keeps nothing."""
    with contextlib.suppress(OSError):  # the connection is broken already
        if connection is not None and _is_tcp(connection):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)


def unacknowledged(connection: Any) -> int:
    """Return the bytes in the kernel that the peer has not acknowledged; 0 where the kernel does not tell."""
    if sys.platform != "linux" or connection is None:
        return 0
    try:
        return int.from_bytes(fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, bytes(4)), sys.byteorder)
    except (OSError, ValueError):  # the connection is closed already
        return 0


def _is_tcp(connection: Any) -> bool:
    """Whether a socket is one of TCP. Its name tells: uvicorn's ``--fd`` takes every socket for a Unix socket."""
    return isinstance(connection.getsockname(), tuple)


def _set_user_timeout(connection: Any, seconds: int) -> None:
    option = getattr(socket, "TCP_USER_TIMEOUT", None)  # Linux only
    if option is not None:
        connection.setsockopt(socket.IPPROTO_TCP, option, seconds * 1000)
