"""Refusals, and ends of connections that the client can still read."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Final

__all__ = ["LINGER", "close_after_reading", "refusal"]

#: Seconds for a refused client to close its side.
LINGER: Final = 2.0


def refusal(status: HTTPStatus) -> bytes:
    """Write the HTTP response of a refused request."""
    head = f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: text/plain\r\nConnection: close\r\n"
    return f"{head}Content-Length: {len(status.phrase) + 1}\r\n\r\n{status.phrase}\n".encode()


def close_after_reading(transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> asyncio.TimerHandle | None:
    """Close the sending side now, and abort the connection in ``LINGER`` seconds; return the timer of the abort.

    Until then the transport goes on reading, and the caller drops the data. Closing with unread data would send a
    reset, which may overtake the refusal.
    """
    if not transport.can_write_eof():  # TLS has an end of its own
        transport.close()
        return None
    transport.write_eof()
    return loop.call_later(LINGER, transport.abort)
