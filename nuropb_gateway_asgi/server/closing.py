"""Refusals, and ends of connections that the client can still read."""

from __future__ import annotations

import asyncio
import contextlib
from http import HTTPStatus
from typing import Final

from ..sockets import skip_flush, unacknowledged

__all__ = ["LINGER", "close_after_reading", "cut", "refusal", "unsent"]

#: Seconds for a refused client to close its side.
LINGER: Final = 2.0


def refusal(status: HTTPStatus) -> bytes:
    """Write the HTTP response of a refused request."""
    head = f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: text/plain\r\nConnection: close\r\n"
    return f"{head}Content-Length: {len(status.phrase) + 1}\r\n\r\n{status.phrase}\n".encode()


def unsent(transport: asyncio.Transport) -> int:
    """Return the bytes that the client has not acknowledged: those of the process, and those of the kernel."""
    return transport.get_write_buffer_size() + unacknowledged(transport.get_extra_info("socket"))


def cut(transport: asyncio.Transport) -> None:
    """End a connection at once, and drop what its client has not read.

    ``transport.abort()`` alone drops the bytes of the process; the kernel would go on to offer its own to a client that
    does not read.
    """
    skip_flush(transport.get_extra_info("socket"))
    transport.abort()


def close_after_reading(transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> asyncio.TimerHandle:
    """Close the sending side now, and cut the connection in ``LINGER`` seconds; return the timer of the cut.

    Until then the transport goes on reading, and the caller drops the data. Closing with unread data would send a
    reset, which may overtake the refusal.
    """
    if transport.can_write_eof():
        with contextlib.suppress(OSError):  # the client has reset the connection: nobody reads the end
            transport.write_eof()
    else:
        transport.close()  # TLS has an end of its own
    return loop.call_later(LINGER, cut, transport)
