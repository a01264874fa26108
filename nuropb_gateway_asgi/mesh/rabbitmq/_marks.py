"""Marks: messages in a stream by whose offsets a reader knows the present."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final

from ...exceptions import MeshUnavailable
from ...identifiers import new_id
from ._stream_reader import MARK

__all__ = ["Marks", "mark_id"]

logger = logging.getLogger(__name__)

#: Seconds between two marks in a stream, whatever clients do.
MARK_INTERVAL: Final = 0.2


def mark_id() -> str:
    """Draw the correlation id of a mark."""
    return f"{MARK}mark-{new_id()}"


class Marks:
    """The marks that a process writes into one stream: one for all that wait, but not too often.

    ``publish`` writes a message with a correlation id into a stream, and raises MeshUnavailable.
    """

    def __init__(self, stream: str, publish: Callable[[str, str], None]) -> None:
        self._stream = stream
        self._publish = publish
        #: Callbacks by the marks that are on their way, and those that no mark was written for yet.
        self._sent: dict[str, list[Callable[[int], None]]] = {}
        self._waiting: list[Callable[[int], None]] = []
        self._sent_at = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def ask(self, done: Callable[[int], None]) -> None:
        """Call ``done`` with the offset of a mark that is written from now on, once it has come."""
        self._waiting.append(done)
        self.send_soon()

    def send_soon(self) -> None:
        """Write a mark if callbacks wait for one. Raises MeshUnavailable."""
        if self._timer is not None or not self._waiting:
            return
        wait = self._sent_at + MARK_INTERVAL - time.monotonic()
        if wait <= 0:
            self._send()
        else:
            self._timer = asyncio.get_running_loop().call_later(wait, self._on_timer)

    def take(self, correlation_id: str, offset: int) -> None:
        """Take a mark that has come."""
        for done in self._sent.pop(correlation_id, ()):
            done(offset)

    def forget_sent(self) -> None:
        """Forget the marks that are on their way: their consumer has ended."""
        self._sent.clear()

    def clear(self) -> None:
        """Call no callback any more."""
        self._sent.clear()
        self._waiting.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_timer(self) -> None:
        self._timer = None
        try:
            self._send()
        except MeshUnavailable as error:  # those that wait give up after a while
            logger.debug("mesh: a mark for %s could not be written: %s", self._stream, error)

    def _send(self) -> None:
        mark = mark_id()
        waiting, self._waiting = self._waiting, []
        self._sent_at = time.monotonic()
        self._publish(self._stream, mark)
        self._sent[mark] = waiting
