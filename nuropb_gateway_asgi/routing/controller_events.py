"""Events for the controller: a bounded queue, emptied one by one."""

from __future__ import annotations

import asyncio
from typing import Final

import msgspec

from ..controller import ServiceMeshManagerController
from ..topics import TopicTree
from ..wire.interface import EventMessage
from ..wire.services import deliver_event
from .statistics import MeshStatistics

__all__ = ["ControllerEvents"]

#: Events queued for the controller; more are dropped and counted.
MAX_CONTROLLER_EVENTS: Final = 1000


class ControllerEvents:
    """Queues the events of the controller's topics, and delivers them one by one."""

    def __init__(self, controller: ServiceMeshManagerController, statistics: MeshStatistics) -> None:
        self._controller = controller
        self._statistics = statistics
        self._topics: TopicTree[None] = TopicTree()
        self.queue: asyncio.Queue[EventMessage] = asyncio.Queue(MAX_CONTROLLER_EVENTS)

    def start(self) -> tuple[str, ...]:
        """Begin with an empty queue; return the topic patterns to bind."""
        self.queue = asyncio.Queue(MAX_CONTROLLER_EVENTS)  # a queue belongs to the event loop that first waits for it
        topics = self._controller.event_topic_subscriptions
        for topic in topics:
            self._topics.add(topic, None)
        return topics

    def offer(self, event: EventMessage) -> None:
        """Queue an event if its topic is one of the controller's; drop it if the queue is full."""
        if self._topics.match(event.topic):
            try:
                self.queue.put_nowait(event)
            except asyncio.QueueFull:
                self._statistics.dropped_controller_events += 1

    async def feed(self) -> None:
        """Deliver the queued events, until cancelled."""
        while True:
            event = await self.queue.get()
            try:
                payload = msgspec.json.decode(event.event)
                context = msgspec.json.decode(event.context)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                self._statistics.dropped_controller_events += 1
                continue
            context = context if isinstance(context, dict) else {}
            await deliver_event(self._controller, event.topic, payload, event.target, context, event.trace_id)
