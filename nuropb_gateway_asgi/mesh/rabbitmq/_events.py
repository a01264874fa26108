"""The event queue of a process: the events that it delivers, and those that it has lost."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any, Final

from aiormq.exceptions import ChannelNotFoundEntity

from ...generation_cache import GenerationCache
from ...wire import codec
from ...wire.interface import MeshReceiver
from ._connection import Connection
from ._frames import Incoming
from ._logs import Occasional
from ._statistics import RabbitMQStatistics
from ._subscriptions import TOPOLOGY_TIMEOUT, Subscriptions

__all__ = ["EventQueue"]

logger = logging.getLogger(__name__)

#: Events that wait in the queue of a process while it is away; the oldest are dropped first.
EVENT_QUEUE_LENGTH: Final = 10_000
#: Seconds between two looks at whether this process stood still, and the time that it must have stood still.
STALL: Final = 1.0
#: Events whose ids are remembered, to drop repetitions after a loss of the connection: twice as many as the broker
#: sends without an acknowledgement.
REMEMBERED_EVENTS: Final = 2000
#: Markers on their way at most.
MAX_MARKERS: Final = 10_000


class EventQueue:
    """Gives the events of a queue to the receiver, drops repetitions, and reports gaps.

    The broker drops the oldest events of a full queue without a word. So the queue's length is compared with the number
    of events taken since it was last certain that none had been dropped.
    """

    def __init__(self, name: str, statistics: RabbitMQStatistics, subscriptions: Subscriptions) -> None:
        self.name = name
        self._statistics = statistics
        self._subscriptions = subscriptions
        self._receiver: MeshReceiver
        self._recent: GenerationCache[str, None] = GenerationCache(REMEMBERED_EVENTS)
        #: Events that were taken since it was certain that none had been dropped.
        self._uncertain = 0
        self._warn = Occasional()
        #: Messages that this process sends to its own queue: they follow all events that were routed before.
        self._markers: dict[str, Callable[[], None]] = {}

    def bind(self, receiver: MeshReceiver) -> None:
        """Set the receiver of events and gaps."""
        self._receiver = receiver

    @staticmethod
    def limits() -> dict[str, Any]:
        """Return the arguments that limit the queue's length."""
        return {"x-max-length": EVENT_QUEUE_LENGTH, "x-overflow": "drop-head"}

    def expect_marker(self, correlation_id: str, done: Callable[[], None]) -> None:
        """Call ``done`` when the message with this id has come."""
        if len(self._markers) >= MAX_MARKERS:  # those of a lost connection
            self._markers.clear()
        self._markers[correlation_id] = done

    def on_message(self, message: Incoming) -> None:
        """Take a message of the queue."""
        if self._markers and (done := self._markers.pop(message.correlation_id or "", None)) is not None:
            done()
            return
        try:
            if message.kind != "event":
                raise codec.InvalidMessage("not an event")
            event = codec.decode_event(message.body)
        except codec.InvalidMessage as error:
            self._statistics.dropped_events += 1
            self._warn(logger, "mesh: a message on the event queue was dropped: %s", error)
            return
        self._uncertain += 1
        event.id = correlation_id = message.correlation_id
        if correlation_id:
            if message.redelivered and correlation_id in self._recent:
                self._statistics.repeated_events += 1
                return
            self._recent.add(correlation_id, None)
        self._receiver.on_event(event)

    async def report_losses(self, connection: Connection) -> None:
        """Report a gap if the queue expired, or overflowed while this process was not consuming."""
        try:
            async with connection.channel() as channel:
                declared = await channel.queue_declare(self.name, passive=True)
        except ChannelNotFoundEntity:
            self._subscriptions.missed("expired")
            return
        # Every event that was in the queue at its longest is in it still or has been taken since.
        if (declared.message_count or 0) + self._uncertain >= EVENT_QUEUE_LENGTH:
            self._receiver.on_gap("overflow")  # at once: the lost events are older than those in the queue
        self._uncertain = 0

    async def notice_stalls(self, connection: Connection) -> None:
        """Report losses after this process stood still without losing its connection, until cancelled."""
        while True:
            due = time.monotonic() + STALL
            await asyncio.sleep(STALL)
            if time.monotonic() - due > STALL:
                async with asyncio.timeout(TOPOLOGY_TIMEOUT):
                    await self.report_losses(connection)
            self._uncertain = 0
