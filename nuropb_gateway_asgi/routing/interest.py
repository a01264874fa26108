"""Bindings of topics: each is bound once for all its subscribers, and unbound some time after the last one.

Pure but for the mesh that it asks. Times are of one monotonic clock, in seconds, and given by the caller.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from typing import Final, Protocol, TypeAlias

__all__ = ["ASKED_AT_ONCE", "UNBIND_AFTER", "Interest"]

#: Seconds that a topic stays bound after its last subscriber left: a reloaded page or a reconnecting client subscribes
#: again a moment later, and every change of a binding costs the broker.
UNBIND_AFTER: Final = 5.0
#: Topics that the mesh is asked to bind at a time. The others wait in a queue for each user, and users take turns: a
#: user with thousands of new topics delays the one new topic of another user by these at most.
ASKED_AT_ONCE: Final = 8

#: Called with True once the events of a topic come, with False if the broker refuses the topic.
Done: TypeAlias = Callable[[bool], None]


class Subscribes(Protocol):
    """The part of a mesh that binds topics."""

    def subscribe(self, topic: str, done: Done) -> None:
        """Bind ``topic``; call ``done`` once: with True when its events come or have to wait for a connection, with
        False when the broker refuses the topic."""

    def unsubscribe(self, topic: str) -> None:
        """Unbind ``topic``, or do not bind it any more; a ``done`` that waits is called."""


class Interest:
    """Topic patterns, each bound once for all its subscribers."""

    __slots__ = ("_asked", "_asking", "_clock", "_idle", "_known", "_mesh", "_queued", "_queues", "_wanted")

    def __init__(self, mesh: Subscribes, clock: Callable[[], float]) -> None:
        self._mesh = mesh
        self._clock = clock
        self._wanted: Counter[str] = Counter()
        #: Topics without subscribers, with the time when the last one left.
        self._idle: dict[str, float] = {}
        #: Topics that the mesh knows of: bound, refused, or asked for.
        self._known: set[str] = set()
        #: Topics that the mesh was asked to bind, and has not answered yet.
        self._asked: set[str] = set()
        #: Topics that the mesh is still to be asked for: the user whose turn they wait for, and the waiting callbacks.
        self._queued: dict[str, tuple[str, list[Done]]] = {}
        #: The same topics by user, in the order of the users' turns.
        self._queues: dict[str, dict[str, None]] = {}
        self._asking = False

    def __contains__(self, topic: str) -> bool:
        return topic in self._wanted or topic in self._idle

    def __len__(self) -> int:
        """Return the number of topics that are bound or about to be, those without subscribers included."""
        return len(self._wanted) + len(self._idle)

    @property
    def waiting(self) -> int:
        """The number of topics that the mesh is still to be asked for."""
        return len(self._queued)

    def add(self, topic: str, done: Done | None = None, *, user_id: str = "") -> None:
        """Count one more subscriber of ``topic``; ``done`` is called as by :meth:`Subscribes.subscribe`.

        A new topic waits for the turn of ``user_id``; the gateway's own have a turn of their own.
        """
        self._wanted[topic] += 1
        self._idle.pop(topic, None)
        if topic not in self._known and topic not in self._queued:
            self._queued[topic] = (user_id, [])
            self._queues.setdefault(user_id, {})[topic] = None
        self.when_bound(topic, done or _unobserved)
        self._ask()

    def when_bound(self, topic: str, done: Done) -> None:
        """Call ``done`` as :meth:`add` does, for a topic that has subscribers already."""
        if topic in self._queued:
            self._queued[topic][1].append(done)
        else:
            self._mesh.subscribe(topic, done)

    def remove(self, topic: str) -> None:
        """Count one subscriber less. A topic that is not bound yet and has no subscribers is not bound any more."""
        self._wanted[topic] -= 1
        if self._wanted[topic] > 0:
            return
        del self._wanted[topic]
        if topic in self._queued or topic in self._asked:
            self._drop(topic)
        else:
            self._idle[topic] = self._clock()

    def sweep(self, now: float) -> None:
        """Unbind the topics that have had no subscribers for UNBIND_AFTER seconds."""
        while self._idle:
            topic, since = next(iter(self._idle.items()))
            if now - since < UNBIND_AFTER:
                return
            del self._idle[topic]
            self._drop(topic)

    def clear(self) -> None:
        """Unbind everything."""
        topics = (*self._wanted, *self._idle)
        self._wanted.clear()
        self._idle.clear()
        for topic in topics:
            self._drop(topic)

    def _drop(self, topic: str) -> None:
        if topic not in self._queued:
            self._known.discard(topic)
            self._mesh.unsubscribe(topic)
            return
        user_id, waiting = self._queued.pop(topic)
        del self._queues[user_id][topic]
        if not self._queues[user_id]:
            del self._queues[user_id]
        for done in waiting:
            done(True)

    def _ask(self) -> None:
        """Ask the mesh for as many topics as it may bind at a time; users take turns."""
        if self._asking:
            return  # the mesh has answered at once, within the loop below
        self._asking = True
        try:
            while self._queues and len(self._asked) < ASKED_AT_ONCE:
                user_id = next(iter(self._queues))
                topics = self._queues.pop(user_id)
                topic = next(iter(topics))
                del topics[topic]
                if topics:
                    self._queues[user_id] = topics  # behind the others
                _, waiting = self._queued.pop(topic)
                self._known.add(topic)
                self._asked.add(topic)
                self._mesh.subscribe(topic, functools.partial(self._on_answer, topic, waiting))
        finally:
            self._asking = False

    def _on_answer(self, topic: str, waiting: list[Done], bound: bool) -> None:
        self._asked.discard(topic)
        for done in waiting:
            done(bound)
        self._ask()


def _unobserved(bound: bool) -> None:
    """Take the news of a binding that no caller waits for."""
