"""The topics that a process subscribes to, and the bindings of its event queue."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Final

from aiormq.abc import AbstractChannel
from aiormq.exceptions import ChannelAccessRefused

from ...wire import codec
from ._connection import Connection

__all__ = ["TOPOLOGY_TIMEOUT", "Subscriptions"]

logger = logging.getLogger(__name__)

#: Seconds for one answer of the broker to a change of the topology.
TOPOLOGY_TIMEOUT: Final = 10.0
#: Seconds until the broker is asked again for a topic that it refused: each refusal costs a channel.
REFUSED_FOR: Final = 60.0
#: Refused topics that are remembered; beyond it the oldest is forgotten.
MAX_REFUSED: Final = 10_000


class Subscriptions:
    """Keeps the event queue bound to the subscribed topics and to no others, over all connections.

    ``on_gap`` is called with the reason why events were missed, once all topics are bound again. ``on_refused`` is
    called with a topic that was subscribed to, and that the broker refuses from now on (its topic permissions).
    """

    def __init__(self, on_gap: Callable[[str], None], on_refused: Callable[[str], None]) -> None:
        self._on_gap = on_gap
        self._on_refused = on_refused
        #: By topic, the callbacks to call once it is bound.
        self._topics: dict[str, list[Callable[[bool], None]]] = {}
        #: Topics that are bound for certain.
        self.bound: set[str] = set()
        #: Topics that the broker may have a binding of, also of before.
        self.bindings: set[str] = set()
        #: Topics that the broker refuses, with the time when it is asked again.
        self._refused: dict[str, float] = {}
        self._changed = asyncio.Event()
        self._missed: str | None = None

    def open(self) -> None:
        """Begin in the running event loop: an asyncio.Event belongs to the loop in which it is first waited for."""
        self._changed = asyncio.Event()

    def missed(self, reason: str) -> None:
        """Report a gap once all topics are bound again."""
        self._missed = reason

    def add(self, topic: str, done: Callable[[bool], None], *, connected: bool) -> None:
        """Subscribe; ``done`` is called once the topic is bound (True) or refused (False).

        If that has to wait for a connection, ``done`` is called at once, with True.
        """
        waiting = self._topics.setdefault(topic, [])
        if not connected:
            self._missed = self._missed or "disconnected"
        if topic in self.bound or not connected:
            done(True)
        elif self._is_refused(topic):
            done(False)
        else:
            waiting.append(done)
            self._changed.set()

    def remove(self, topic: str) -> None:
        """Unsubscribe."""
        for done in self._topics.pop(topic, ()):
            done(True)
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

    async def keep_bound(self, channel: AbstractChannel, connection: Connection, queue: str) -> None:
        """Bind ``queue`` to the subscribed topics and to no others, until cancelled.

        ``channel`` is for bindings alone: the broker closes it for a topic that it refuses. ``connection`` then opens
        another.
        """
        self.bound.clear()
        self._refused.clear()
        while True:
            self._changed.clear()
            for topic in [topic for topic in self._topics if topic not in self.bound and not self._is_refused(topic)]:
                known = topic in self.bindings
                self.bindings.add(topic)
                if await self._change(channel.queue_bind, queue, topic):
                    self._refused.pop(topic, None)
                    self.bound.add(topic)
                    self._call_waiting(topic)
                else:
                    # The broker has closed this channel, but no other one.
                    channel = await connection.open_channel()
                    self._refuse(topic, known=known)
            for topic in self.bindings - self._topics.keys():
                if topic in self._topics:  # subscribed to again, in the meantime
                    continue
                self.bound.discard(topic)
                if not await self._change(channel.queue_unbind, queue, topic):
                    # Events without a subscriber come until the queue's end.
                    channel = await connection.open_channel()
                self.bindings.discard(topic)
            wanted = {topic for topic in self._topics if not self._is_refused(topic)}
            if self.bound != wanted or self.bindings - self._topics.keys():
                continue
            missed, self._missed = self._missed, None
            if missed is not None:
                self._on_gap(missed)
            await self._changed.wait()

    async def _change(self, change: Callable[..., Awaitable[object]], queue: str, topic: str) -> bool:
        """Make or remove a binding; return False if the broker refuses that to this user."""
        try:
            async with asyncio.timeout(TOPOLOGY_TIMEOUT):
                await change(queue, codec.EVENTS_EXCHANGE, topic)
        except ChannelAccessRefused:
            return False
        return True

    def _is_refused(self, topic: str) -> bool:
        return self._refused.get(topic, 0.0) > time.monotonic()

    def _refuse(self, topic: str, *, known: bool) -> None:
        """Note that the broker has refused a topic; ``known`` if there may be a binding of before."""
        if not known:
            self.bindings.discard(topic)
        if topic not in self._refused:
            logger.warning("mesh: the broker refuses events of the topic %s to this user (topic permissions)", topic)
            if len(self._refused) >= MAX_REFUSED:
                del self._refused[next(iter(self._refused))]
        self._refused[topic] = time.monotonic() + REFUSED_FOR
        self._call_waiting(topic, bound=False)
        if topic in self._topics:
            self._on_refused(topic)

    def _call_waiting(self, topic: str, *, bound: bool = True) -> None:
        waiting = self._topics.get(topic)
        if waiting:
            self._topics[topic] = []
            for done in waiting:
                done(bound)
