"""Replies to other services, which wait for the broker's confirm."""

from __future__ import annotations

import asyncio
from typing import Final

from ...exceptions import MeshUnavailable
from ...identifiers import new_id

__all__ = ["Confirms"]

_UNCONFIRMED: Final = MeshUnavailable("the broker did not confirm the message")


class Confirms:
    """Futures of messages on their way, by keys that no correlation id equals.

    A publisher reports the fate of a message by the key that it was put with, which is the correlation id for a call.
    """

    def __init__(self) -> None:
        self._waiting: dict[str, asyncio.Future[Exception | None]] = {}

    def expect(self) -> tuple[str, asyncio.Future[Exception | None]]:
        """Return the key of a message, and the future of its error: None once the broker has the message."""
        key = f"confirm {new_id()}"
        future = self._waiting[key] = asyncio.get_running_loop().create_future()
        return key, future

    def settle(self, key: str, error: Exception | None = _UNCONFIRMED) -> bool:
        """Set a message's outcome; return False if the key belongs to no message that is waited for."""
        future = self._waiting.pop(key, None)
        if future is None:
            return False
        if not future.done():
            future.set_result(error)
        return True
