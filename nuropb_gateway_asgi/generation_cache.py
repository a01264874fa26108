"""A bounded map in two generations. Pure."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

__all__ = ["GenerationCache"]

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class GenerationCache(Generic[K, V]):
    """A bounded map in two generations: keeps at least the last ``count`` keys and at most twice as many.

    The older generation is dropped as a whole. A dictionary that drops its first entry for every new one would search
    for that entry ever longer.
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
        """Return the last value of ``key``, or None."""
        return self._young[key] if key in self._young else self._old.get(key)

    def add(self, key: K, value: V) -> None:
        """Set the value of ``key``."""
        if len(self._young) >= self._count:
            self._old, self._young = self._young, {}
        self._young[key] = value

    def renew(self, key: K, make: Callable[[], V]) -> V:
        """Return the value of ``key``, which ``make`` makes if there is none; the key counts as the latest one."""
        value = self.get(key)
        if value is None:
            value = make()
        self.add(key, value)
        return value
