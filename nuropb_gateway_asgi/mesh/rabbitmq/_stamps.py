"""Stamps: messages in a stream that carry its epoch, and when they have to be repeated. Pure, but for the clock."""

from __future__ import annotations

import random
import time
from typing import Final

from ...wire.history import KeptTopic
from ._stream_reader import MARK

__all__ = ["STAMP_AFTER", "Stamps", "read_stamp", "stamp_id"]

#: Messages after which a stamp is repeated, with as many again at random: one of several processes comes first, and the
#: others need not.
STAMP_AFTER: Final = 1000
#: Stamps in the time, and in the bytes, that the stream keeps.
STAMPS_KEPT: Final = 4
_STAMP: Final = f"{MARK}epoch-"


def stamp_id(epoch: str | None, offset: int | None) -> str:
    """Return the correlation id of a stamp; ``offset`` is the latest one that its writer knows."""
    return f"{_STAMP}{epoch}-{-1 if offset is None else offset}"


def read_stamp(correlation_id: str | None, offset: int) -> str | None:
    """Return the epoch of a stamp at ``offset``, or None if the message is no stamp of this stream.

    A process that has not heard yet that the stream was deleted may write a stamp of the former one: it knows of
    offsets that the new stream has not reached.
    """
    if correlation_id is None or not correlation_id.startswith(_STAMP):
        return None
    epoch, _, known = correlation_id.removeprefix(_STAMP).partition("-")
    return epoch if known.lstrip("-").isdigit() and int(known) < offset else None


class Stamps:
    """Tells when the stamp of a stream has to be repeated, before the broker drops the latest one."""

    def __init__(self, topic: KeptTopic) -> None:
        self._seconds = float("inf") if topic.seconds is None else topic.seconds / STAMPS_KEPT
        self._size = topic.size // STAMPS_KEPT
        self.reset()

    def reset(self) -> None:
        """Take note of a stamp."""
        self._count = self._bytes = 0
        self._at = time.monotonic()
        self._limit = STAMP_AFTER + random.randrange(STAMP_AFTER)  # noqa: S311 - not for secrets

    def hurry(self) -> None:
        """Have the next message be one after which a stamp is due."""
        self._count = self._limit

    @property
    def has_old(self) -> bool:
        """Whether messages came since the latest stamp."""
        return self._count > 0

    def is_due(self, size: int) -> bool:
        """Count a message of ``size`` bytes; tell whether a stamp is due."""
        self._count += 1
        self._bytes += size
        return self._count > self._limit or self._bytes > self._size or time.monotonic() - self._at > self._seconds
