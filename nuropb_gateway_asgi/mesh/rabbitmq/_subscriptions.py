"""The topics that a process subscribes to, and the bindings of its event queue."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Final

from aiormq.abc import AbstractChannel
from aiormq.exceptions import ChannelAccessRefused, ChannelInvalidStateError

from ...wire import codec
from ._connection import Connection

__all__ = ["TOPOLOGY_TIMEOUT", "Subscriptions"]

logger = logging.getLogger(__name__)

#: Seconds for one answer of the broker to a change of the topology.
TOPOLOGY_TIMEOUT: Final = 10.0
#: Seconds until the broker is asked again for a topic that it refused: each refusal costs a channel.
REFUSED_FOR: Final = 60.0
#: Bindings that are on their way to the broker at a time.
BINDINGS_AT_ONCE: Final = 8
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
        #: Topics to bind, for which subscribers wait; topics to bind again; and topics to unbind.
        self._new: dict[str, None] = {}
        self._again: dict[str, None] = {}
        self._unwanted: dict[str, None] = {}
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
            self._again[topic] = None
            self._changed.set()
        if topic in self.bound or not connected:
            done(True)
        elif self._is_refused(topic):
            done(False)
        else:
            waiting.append(done)
            self._new[topic] = None
            self._changed.set()

    def remove(self, topic: str) -> None:
        """Unsubscribe."""
        for done in self._topics.pop(topic, ()):
            done(True)
        self._new.pop(topic, None)
        self._unwanted[topic] = None
        self._changed.set()

    def rebind(self) -> None:
        """Bind every topic again: an operator may have deleted a binding, and the broker tells nobody."""
        self.bound.clear()
        self._again = dict.fromkeys(self._topics)
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
        self._refused.clear()
        self.rebind()
        self._unwanted = dict.fromkeys(self.bindings - self._topics.keys())
        while True:
            self._changed.clear()
            if topics := self._next_topics():
                known = self.bindings.intersection(topics)
                self.bindings.update(topics)
                if not await self._bind_together(channel, queue, topics):
                    channel = await self._bind_one_by_one(connection, queue, topics, known)
            elif (unwanted := self._next_unwanted()) is not None:
                # One at a time: AMQP has no unbind without an answer, and new topics go first.
                self.bound.discard(unwanted)
                if not await self._change(channel.queue_unbind, queue, unwanted):
                    # Events without a subscriber come until the queue's end.
                    channel = await connection.open_channel()
                self.bindings.discard(unwanted)
            else:
                missed, self._missed = self._missed, None
                if missed is not None:
                    self._on_gap(missed)
                await self._changed.wait()

    def _next_topics(self) -> list[str]:
        """Take the next topics to bind that are still wanted, those with waiting subscribers first."""
        topics: list[str] = []
        for waiting in (self._new, self._again):
            while waiting and len(topics) < BINDINGS_AT_ONCE:
                topic = next(iter(waiting))
                del waiting[topic]
                if topic in self._topics and topic not in self.bound and not self._is_refused(topic):
                    topics.append(topic)
        return topics

    def _next_unwanted(self) -> str | None:
        """Take the next topic to unbind that has not been subscribed to again in the meantime."""
        while self._unwanted:
            topic = next(iter(self._unwanted))
            del self._unwanted[topic]
            if topic in self.bindings and topic not in self._topics:
                return topic
        return None

    async def _bind_together(self, channel: AbstractChannel, queue: str, topics: list[str]) -> bool:
        """Bind topics in one round trip: the answer to the last one confirms all, for the broker keeps their order.

        Returns False if the broker refuses one of them, and has closed the channel.
        """
        try:
            async with asyncio.timeout(TOPOLOGY_TIMEOUT):
                for topic in topics[:-1]:
                    await channel.queue_bind(queue, codec.EVENTS_EXCHANGE, topic, nowait=True)
                await channel.queue_bind(queue, codec.EVENTS_EXCHANGE, topics[-1])
        except (ChannelAccessRefused, ChannelInvalidStateError):
            return False
        for topic in topics:
            self._on_bound(topic)
        return True

    async def _bind_one_by_one(
        self, connection: Connection, queue: str, topics: list[str], known: set[str]
    ) -> AbstractChannel:
        """Bind topics of which the broker refuses some; return the channel that is open in the end.

        There may be bindings of before for the topics in ``known``.
        """
        channel = await connection.open_channel()
        for topic in topics:
            if topic not in self._topics:
                continue
            if await self._change(channel.queue_bind, queue, topic):
                self._on_bound(topic)
            else:
                # The broker has closed this channel, but no other one.
                channel = await connection.open_channel()
                self._refuse(topic, known=topic in known)
        return channel

    def _on_bound(self, topic: str) -> None:
        self._refused.pop(topic, None)
        self.bound.add(topic)
        self._call_waiting(topic)

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
