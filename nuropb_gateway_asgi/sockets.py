"""Socket options for connections of clients."""

from __future__ import annotations

import socket
from typing import Final

__all__ = ["USER_TIMEOUT", "set_user_timeout"]

#: Seconds after which the kernel gives up on a peer that acknowledges nothing, or has no room. Without it a server, and
#: its shutdown, would wait for ever to send the last bytes to a client that does not read.
USER_TIMEOUT: Final = 30


def set_user_timeout(connection: socket.socket) -> None:
    """Have the kernel give up on a silent peer; connections inherit the option from their listener."""
    option = getattr(socket, "TCP_USER_TIMEOUT", None)  # Linux only
    if option is not None and connection.family != getattr(socket, "AF_UNIX", None):
        connection.setsockopt(socket.IPPROTO_TCP, option, USER_TIMEOUT * 1000)
