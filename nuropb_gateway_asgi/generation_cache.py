"""What is known of things that have passed, for a while. Pure."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

__all__ = ["GenerationCache"]

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class GenerationCache(Generic[K, V]):
    """Remembers the last ``count`` things at least, and twice as many at most.

    It has two generations, of which the older one is forgotten as a whole: a dictionary that loses its first entry with
    every new one has to look for it ever longer.
    """

    __slots__ = ("_count", "_old", "_young")

    def __init__(self, count: int) -> None:
        self._count = count
        self._young: dict[K, V] = {}
        self._old: dict[K, V] = {}

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def __contains__(self, key: K) -> bool:
        return key in self._young or key in self._old

    def get(self, key: K) -> V | None:
        """What was remembered of ``key`` last, or None."""
        return self._young[key] if key in self._young else self._old.get(key)

    def add(self, key: K, value: V) -> None:
        """Remember ``value`` of ``key``."""
        if len(self._young) >= self._count:
            self._old, self._young = self._young, {}
        self._young[key] = value
