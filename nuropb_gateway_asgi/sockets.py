"""Socket options for connections of clients."""

from __future__ import annotations

import socket
from typing import Final

__all__ = ["USER_TIMEOUT", "set_options"]

#: Seconds after which the kernel gives up on a peer that acknowledges nothing, or has no room. Without it a server, and
#: its shutdown, would wait for ever to send the last bytes to a client that does not read.
USER_TIMEOUT: Final = 30


def set_options(connection: socket.socket) -> None:
    """Have the kernel send at once, and give up on a silent peer. Connections inherit the options of their listener.

    asyncio sets TCP_NODELAY itself, but only on sockets that were made with the number of the protocol. The sockets of
    uvicorn and anyio are not: there the kernel would hold back the second part of an answer until the client has
    acknowledged the first, which takes it 40 ms.
    """
    if connection.family not in (socket.AF_INET, socket.AF_INET6):
        return
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    option = getattr(socket, "TCP_USER_TIMEOUT", None)  # Linux only
    if option is not None:
        connection.setsockopt(socket.IPPROTO_TCP, option, USER_TIMEOUT * 1000)
