"""Bindings of topics: each is bound once for all its subscribers, and unbound some time after the last one.

Pure but for the mesh that it asks. Times are of one monotonic clock, in seconds, and given by the caller.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Final, Protocol

__all__ = ["UNBIND_AFTER", "Interest"]

#: Seconds that a topic stays bound after its last subscriber left: a reloaded page or a reconnecting client subscribes
#: again a moment later, and every change of a binding costs the broker.
UNBIND_AFTER: Final = 5.0


class Subscribes(Protocol):
    """The part of a mesh that binds topics."""

    def subscribe(self, topic: str, done: Callable[[bool], None]) -> None:
        """Bind ``topic``; call ``done`` once: with True when its events come or have to wait for a connection, with
        False when the broker refuses the topic."""

    def unsubscribe(self, topic: str) -> None:
        """Unbind ``topic``."""


class Interest:
    """Topic patterns, each bound once for all its subscribers."""

    __slots__ = ("_clock", "_idle", "_mesh", "_wanted")

    def __init__(self, mesh: Subscribes, clock: Callable[[], float]) -> None:
        self._mesh = mesh
        self._clock = clock
        self._wanted: Counter[str] = Counter()
        #: Topics without subscribers, with the time when the last one left.
        self._idle: dict[str, float] = {}

    def __contains__(self, topic: str) -> bool:
        return topic in self._wanted or topic in self._idle

    def add(self, topic: str, done: Callable[[bool], None] | None = None) -> None:
        """Count one more subscriber of ``topic``; ``done`` is called as by :meth:`Subscribes.subscribe`."""
        self._wanted[topic] += 1
        self._idle.pop(topic, None)
        self._mesh.subscribe(topic, done or _unobserved)

    def when_bound(self, topic: str, done: Callable[[bool], None]) -> None:
        """Call ``done`` as :meth:`add` does, for a topic that has subscribers already."""
        self._mesh.subscribe(topic, done)

    def remove(self, topic: str) -> None:
        """Count one subscriber less."""
        self._wanted[topic] -= 1
        if self._wanted[topic] <= 0:
            del self._wanted[topic]
            self._idle[topic] = self._clock()

    def sweep(self, now: float) -> None:
        """Unbind the topics that have had no subscribers for UNBIND_AFTER seconds."""
        while self._idle:
            topic, since = next(iter(self._idle.items()))
            if now - since < UNBIND_AFTER:
                return
            del self._idle[topic]
            self._mesh.unsubscribe(topic)

    def clear(self) -> None:
        """Unbind everything."""
        for topic in (*self._wanted, *self._idle):
            self._mesh.unsubscribe(topic)
        self._wanted.clear()
        self._idle.clear()


def _unobserved(bound: bool) -> None:
    """Take the news of a binding that no caller waits for."""
