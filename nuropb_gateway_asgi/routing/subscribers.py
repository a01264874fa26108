"""Subscribers of topics: each connection that subscribes to a topic, with the delivery of its subscription. Pure."""

from __future__ import annotations

from ..authorization.rules import Delivery
from ..handler_manager import Handler
from ..topics import TopicTree

__all__ = ["Subscribers"]


class Subscribers:
    """The subscribers of topic patterns, found by topic."""

    __slots__ = ("_lossy", "_strict")

    def __init__(self) -> None:
        self._strict: TopicTree[Handler] = TopicTree()
        #: Subscriptions whose events a slow client may lose.
        self._lossy: TopicTree[tuple[Handler, Delivery]] = TopicTree()

    def __len__(self) -> int:
        """The number of patterns, those with a delivery that loses events counted apart."""
        return len(self._strict) + len(self._lossy)

    def add(self, topic: str, handler: Handler, delivery: Delivery) -> None:
        """Add a subscription."""
        if delivery == "close":
            self._strict.add(topic, handler)
        else:
            self._lossy.add(topic, (handler, delivery))

    def remove(self, topic: str, handler: Handler, delivery: Delivery) -> None:
        """Remove a subscription, if it is there."""
        if delivery == "close":
            self._strict.remove(topic, handler)
        else:
            self._lossy.remove(topic, (handler, delivery))

    def replace(self, topic: str, handler: Handler, successor: Handler, delivery: Delivery) -> None:
        """Give a subscription to another handler."""
        self.remove(topic, handler, delivery)
        self.add(topic, successor, delivery)

    def of(self, topic: str) -> tuple[set[Handler], dict[Handler, Delivery]]:
        """Return each subscriber of an event of this topic once: those that may not lose it, and the others."""
        handlers = self._strict.match(topic)
        lossy: dict[Handler, Delivery] = {}
        for handler, delivery in self._lossy.match(topic) if len(self._lossy) else ():
            # A client that subscribed with several deliveries gets the one that loses least.
            if handler not in handlers and lossy.get(handler) != "drop_oldest":
                lossy[handler] = delivery
        return handlers, lossy
