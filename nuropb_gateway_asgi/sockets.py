"""What the kernel is told about a client's connection."""

from __future__ import annotations

import socket
from typing import Final

__all__ = ["USER_TIMEOUT", "set_user_timeout"]

#: Seconds. The kernel gives up on a peer that acknowledges nothing, or has no room, for so long. Servers themselves
#: would wait for ever for the last bytes to a client that does not read, and so would their shutdown.
USER_TIMEOUT: Final = 30


def set_user_timeout(connection: socket.socket) -> None:
    """Have the kernel give up on a peer that is silent; what a listener accepts inherits it."""
    option = getattr(socket, "TCP_USER_TIMEOUT", None)  # Linux only
    if option is not None and connection.family != getattr(socket, "AF_UNIX", None):
        connection.setsockopt(socket.IPPROTO_TCP, option, USER_TIMEOUT * 1000)
