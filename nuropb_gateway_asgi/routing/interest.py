"""Which topics of the mesh are wanted here, by how many, and for how long after. Pure but for the mesh that it asks.

Times are of one monotonic clock, in seconds, and given by the caller.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Final, Protocol

__all__ = ["LINGER", "Interest"]

#: Seconds that a topic stays bound after the last who wanted it has gone: a page that is loaded again, or a client that
#: lost its connection, wants the same a moment later, and a broker pays for every change of a binding.
LINGER: Final = 5.0


class Subscribes(Protocol):
    """What a mesh does about topics."""

    def subscribe(self, topic: str, done: Callable[[], None]) -> None:
        """Have events of ``topic`` come; ``done`` is called once they do, or have to wait for a connection."""

    def unsubscribe(self, topic: str) -> None:
        """Have them come no longer."""


class Interest:
    """Topic patterns, each bound once, however many want it."""

    __slots__ = ("_clock", "_idle", "_mesh", "_wanted")

    def __init__(self, mesh: Subscribes, clock: Callable[[], float]) -> None:
        self._mesh = mesh
        self._clock = clock
        self._wanted: Counter[str] = Counter()
        #: Topics that nobody wants any more, and since when.
        self._idle: dict[str, float] = {}

    def __contains__(self, topic: str) -> bool:
        return topic in self._wanted or topic in self._idle

    def add(self, topic: str, done: Callable[[], None]) -> None:
        """One more wants ``topic``; ``done`` is called as by :meth:`~.mesh.base.Mesh.subscribe`."""
        self._wanted[topic] += 1
        self._idle.pop(topic, None)
        self._mesh.subscribe(topic, done)

    def when_bound(self, topic: str, done: Callable[[], None]) -> None:
        """Call ``done`` as :meth:`add` does, for a topic that is wanted already."""
        self._mesh.subscribe(topic, done)

    def remove(self, topic: str) -> None:
        """One less wants it."""
        self._wanted[topic] -= 1
        if self._wanted[topic] <= 0:
            del self._wanted[topic]
            self._idle[topic] = self._clock()

    def sweep(self, now: float) -> None:
        """Let go of the topics that nobody has wanted for a while."""
        while self._idle:
            topic, since = next(iter(self._idle.items()))
            if now - since < LINGER:
                return
            del self._idle[topic]
            self._mesh.unsubscribe(topic)

    def clear(self) -> None:
        """Let go of everything."""
        for topic in (*self._wanted, *self._idle):
            self._mesh.unsubscribe(topic)
        self._wanted.clear()
        self._idle.clear()
