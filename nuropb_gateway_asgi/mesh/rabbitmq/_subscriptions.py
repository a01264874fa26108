"""The topics that a process subscribes to, and the bindings of its event queue."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from aiormq.abc import AbstractChannel

from ...wire import codec

__all__ = ["TOPOLOGY_TIMEOUT", "Subscriptions"]

#: Seconds for one answer of the broker to a change of the topology.
TOPOLOGY_TIMEOUT: Final = 10.0


class Subscriptions:
    """Keeps the event queue bound to the subscribed topics and to no others, over all connections.

    ``on_gap`` is called with the reason why events were missed, once all topics are bound again.
    """

    def __init__(self, on_gap: Callable[[str], None]) -> None:
        self._on_gap = on_gap
        #: By topic, the callbacks to call once it is bound.
        self._topics: dict[str, list[Callable[[], None]]] = {}
        #: Topics that are bound for certain.
        self.bound: set[str] = set()
        #: Topics that the broker may have a binding of, also of before.
        self.bindings: set[str] = set()
        self._changed = asyncio.Event()
        self._missed: str | None = None

    def open(self) -> None:
        """Begin in the running event loop: an asyncio.Event belongs to the loop in which it is first waited for."""
        self._changed = asyncio.Event()

    def missed(self, reason: str) -> None:
        """Report a gap once all topics are bound again."""
        self._missed = reason

    def add(self, topic: str, done: Callable[[], None], *, connected: bool) -> None:
        """Subscribe; ``done`` is called once the topic is bound, or at once if that has to wait for a connection."""
        waiting = self._topics.setdefault(topic, [])
        if not connected:
            self._missed = self._missed or "disconnected"
        if topic in self.bound or not connected:
            done()
            return
        waiting.append(done)
        self._changed.set()

    def remove(self, topic: str) -> None:
        """Unsubscribe."""
        for done in self._topics.pop(topic, ()):
            done()
        self._changed.set()

    def rebind(self) -> None:
        """Bind every topic again: an operator may have deleted a binding, and the broker tells nobody."""
        self.bound.clear()
        self._changed.set()

    def release(self) -> None:
        """Call all callbacks that wait, as the connection is lost."""
        self.bound.clear()
        for topic in tuple(self._topics):
            self._call_waiting(topic)

    async def keep_bound(self, channel: AbstractChannel, queue: str) -> None:
        """Bind ``queue`` to the subscribed topics and to no others, until cancelled."""
        self.bound.clear()
        while True:
            self._changed.clear()
            for topic in [topic for topic in self._topics if topic not in self.bound]:
                self.bindings.add(topic)
                async with asyncio.timeout(TOPOLOGY_TIMEOUT):
                    await channel.queue_bind(queue, codec.EVENTS_EXCHANGE, topic)
                self.bound.add(topic)
                self._call_waiting(topic)
            for topic in self.bindings - self._topics.keys():
                if topic in self._topics:  # subscribed to again, in the meantime
                    continue
                self.bound.discard(topic)
                async with asyncio.timeout(TOPOLOGY_TIMEOUT):
                    await channel.queue_unbind(queue, codec.EVENTS_EXCHANGE, topic)
                self.bindings.discard(topic)
            if not self.bindings == self.bound == self._topics.keys():
                continue
            missed, self._missed = self._missed, None
            if missed is not None:
                self._on_gap(missed)
            await self._changed.wait()

    def _call_waiting(self, topic: str) -> None:
        waiting = self._topics.get(topic)
        if waiting:
            self._topics[topic] = []
            for done in waiting:
                done()
