"""Prices of frames, in units of an ordinary small frame. Pure. ``docs/protocol.md`` has them for clients.

A unit is about the CPU time of an ordinary request. Every frame costs one unit before it is read; its size, topics and
descriptions are charged afterwards, see :meth:`~.buckets.RateLimits.charge`.
"""

from __future__ import annotations

from typing import Final

__all__ = ["BYTES_PER_UNIT", "METHODS_PER_UNIT", "extra_for_methods", "extra_for_size", "extra_for_topics"]

#: Bytes of a message that cost one unit. Nested JSON of this size takes about as long as a request.
BYTES_PER_UNIT: Final = 2048
#: Described methods that cost one unit.
METHODS_PER_UNIT: Final = 10


def extra_for_size(size: int) -> int:
    """Return the units of a message of ``size`` bytes or characters, beyond the first one."""
    return (size - 1) // BYTES_PER_UNIT if size else 0


def extra_for_topics(count: int) -> int:
    """Return the units of a subscription to, or from, ``count`` topics, beyond the first one."""
    return max(count - 1, 0)


def extra_for_methods(count: int) -> int:
    """Return the units of a description of ``count`` methods, beyond the first one."""
    return count // METHODS_PER_UNIT
