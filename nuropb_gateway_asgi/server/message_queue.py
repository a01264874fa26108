"""Receive queue of a WebSocket."""

from __future__ import annotations

import asyncio
from typing import Any

__all__ = ["MessageQueue"]


class MessageQueue:
    """Receive queue for one reader or a few. An asyncio.Queue costs 3 KiB per connection."""

    __slots__ = ("_items", "_readers")

    def __init__(self) -> None:
        self._items: list[Any] = []
        self._readers: list[asyncio.Future[None]] = []

    def qsize(self) -> int:
        """Return the number of messages."""
        return len(self._items)

    def empty(self) -> bool:
        """Return whether the queue has no message."""
        return not self._items

    def put_nowait(self, message: Any) -> None:
        """Add a message, and wake the readers."""
        self._items.append(message)
        for reader in self._readers:
            if not reader.done():
                reader.set_result(None)

    def get_nowait(self) -> Any:
        """Take the first message. Raises IndexError if there is none."""
        return self._items.pop(0)

    async def get(self) -> Any:
        """Wait for a message and take it. A cancelled reader loses no message."""
        while not self._items:
            reader = asyncio.get_running_loop().create_future()
            self._readers.append(reader)
            try:
                await reader
            finally:
                self._readers.remove(reader)
        return self._items.pop(0)
