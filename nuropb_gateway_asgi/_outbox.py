"""What one connection still has to be told: a queue bounded in bytes, with one reader."""

from __future__ import annotations

import asyncio
from collections import deque

__all__ = ["Outbox"]


class Outbox:
    """Messages on their way to one client.

    Putting never waits: a message that does not fit is not taken, and the caller hangs up. Only one task may wait in
    :meth:`get`.
    """

    __slots__ = ("_closed", "_items", "_limit", "_size", "_waiter")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._size = 0
        self._items: deque[tuple[str, int]] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._closed = False

    @property
    def size(self) -> int:
        """Bytes of UTF-8 that wait."""
        return self._size

    def put(self, text: str) -> bool:
        """Take ``text``, or answer False if it does not fit. After :meth:`close` it is dropped, and that is True.

        An empty outbox takes a message of any size: what is sent is limited by whoever makes it.
        """
        if self._closed:
            return True
        size = len(text) if text.isascii() else len(text.encode())
        if self._items and self._size + size > self._limit:
            return False
        self._items.append((text, size))
        self._size += size
        self._wake()
        return True

    async def get(self) -> str | None:
        """The next message, or None once the outbox was closed and is empty. Cancelling it loses nothing."""
        while not self._items:
            if self._closed:
                return None
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        text, size = self._items.popleft()
        self._size -= size
        return text

    def close(self, *, discard: bool = False) -> None:
        """Take nothing more; what waits is still handed out, unless it is to be discarded."""
        self._closed = True
        if discard:
            self._items.clear()
            self._size = 0
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
