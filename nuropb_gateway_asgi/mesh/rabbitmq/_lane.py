"""The way of messages on and off a connection: the parts that both lanes share.

aiormq costs a task and some futures for every message in either direction, several times the cost of the rest of the
gateway. The lane ``fast`` avoids them: it works in front of aiormq, on the bytes of the connection. The lane ``plain``
publishes and consumes by aiormq's documented interface.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from typing import Any, ClassVar, Final, Literal, TypeAlias

from aiormq.abc import AbstractChannel, AbstractConnection, DeliveredMessage
from pamqp import commands

from ...exceptions import MeshUnavailable
from ...wire.publish import on_channel
from ._event_window import EventWindow
from ._frames import Incoming
from ._sockets import SocketListener
from ._statistics import RabbitMQStatistics

__all__ = [
    "EVENT",
    "SMALL",
    "Acknowledger",
    "Lane",
    "LaneName",
    "OnConfirm",
    "OnMessage",
    "OnReturn",
    "Publisher",
    "body_size",
    "guarded",
]

logger = logging.getLogger(__name__)

#: Bytes that may wait for the connection before messages are refused.
MAX_BUFFERED: Final = 64 * 1024 * 1024
#: Received messages are acknowledged together: after this many, or this many seconds after the first of them.
ACKNOWLEDGE_AFTER: Final = 100
ACKNOWLEDGE_WITHIN: Final = 0.02
#: Written messages whose sizes are remembered, to tell which one the broker refused and which ones it then dropped:
#: more than are under way between two turns of the event loop.
REMEMBERED: Final = 10_000
#: Bytes of a message's frames from which on the size of its body matters.
SMALL: Final = 1024
#: The key of all events, whose fate is counted and not told. Calls have their correlation ids.
EVENT: Final = ""

OnMessage: TypeAlias = Callable[[Incoming], None]
#: Called with the correlation id of a message that the broker sent back.
OnReturn: TypeAlias = Callable[[str], None]
#: Called with a correlation id, and whether the broker accepted the message.
OnConfirm: TypeAlias = Callable[[str, bool], None]
LaneName: TypeAlias = Literal["fast", "plain"]


class Publisher(ABC):
    """Writes messages to one connection, in batches.

    The broker confirms messages on the channel ``confirmed_channel``: commands, replies, and, with ``confirm_events``,
    events with all messages that have an order with them. Requests go by ``plain_channel``: their reply says more than
    a confirm would. A mesh has one publisher for calls and one for events.
    """

    def __init__(
        self,
        plain_channel: int,
        confirmed_channel: int,
        frame_max: int,
        statistics: RabbitMQStatistics,
        *,
        confirm_events: bool,
    ) -> None:
        self.plain_channel = plain_channel
        self.confirmed_channel = confirmed_channel
        #: The largest frame that :meth:`put` takes, in bytes.
        self.frame_max = frame_max
        self._statistics = statistics
        #: Messages that wait: deadline, correlation id, frames, whether the broker is to confirm it.
        self._items: deque[tuple[float, str, bytes, bool]] = deque()
        self._size = 0
        self._tag = 0
        #: Messages by their tags, in the order of these.
        self._unconfirmed: dict[int, str] = {}
        self._events = EventWindow(can_confirm=confirm_events)
        #: Set once no event waits or is unconfirmed, for the one who waits for that.
        self._settled: asyncio.Event | None = None
        #: The latest messages handed to the connection: correlation id, size of the body (0 for a small one), and
        #: whether by the confirmed channel.
        self._written: deque[tuple[str, int, bool]] = deque(maxlen=REMEMBERED)

    def put(self, deadline: float, correlation_id: str, frames: bytes, *, confirmed: bool = False) -> None:
        """Queue a message. Raises MeshUnavailable if too many bytes wait already.

        A message that is still queued at ``deadline``, a time of ``time.monotonic()``, is dropped.
        """
        if self._size + len(frames) > MAX_BUFFERED:
            raise MeshUnavailable("the broker does not read published messages")
        self._items.append((deadline, correlation_id, frames, confirmed))
        self._size += len(frames)
        self._wake()

    @property
    def event_channel(self) -> int:
        """The channel by which events go."""
        return self.confirmed_channel if self._events.confirms else self.plain_channel

    def put_event(self, deadline: float, frames: bytes) -> None:
        """Queue an event, or another message that has an order with events; its frames are for :attr:`event_channel`.

        Raises MeshUnavailable if too many bytes wait already. ``deadline`` is that of :meth:`put`.
        """
        events = self._events
        if events.is_open:
            self.put(deadline, EVENT, frames, confirmed=events.confirms)
            events.admit()
        else:
            events.hold(deadline, frames)

    def look_after_events(self, now: float, *, blocked: bool = False) -> bool:
        """Have events go without a confirm if none has come for long; return whether they wait to be confirmed again.

        The caller then calls :meth:`confirm_events` once all messages of the plain channel have arrived. While the
        broker is ``blocked``, none comes.
        """
        if self._events.stands_still(now, excused=blocked):
            logger.warning(
                "mesh: the broker confirms no events, as if a history had no leader: others go without a confirm, and "
                "may be missing in histories"
            )
            self._events.give_up()
            self._release_events()
        return self._events.pause()

    def confirm_events(self) -> None:
        """Have the broker confirm events again."""
        logger.warning("mesh: the broker confirms events again")
        self._events.resume()
        self._release_events()

    async def finish_events(self) -> None:
        """Wait until the broker has confirmed all events."""
        if self.unsettled_events:
            self._settled = asyncio.Event()
            await self._settled.wait()

    def _settle_events(self, count: int, *, accepted: bool) -> None:
        """Count confirms of events."""
        if not accepted:
            # Published again, an event would come twice to all queues that have it.
            self._statistics.refused_events += count
        self._events.settle(count)
        if self._events.held:
            self._release_events()
        elif self._settled is not None and not self._events.unconfirmed:
            self._settled.set()

    def _release_events(self) -> None:
        """Queue the events that may be written by now."""
        events = self._events
        was_empty = not self._items
        while (event := events.release()) is not None:
            deadline, frames = event
            self._items.append((deadline, EVENT, on_channel(frames, self.event_channel), events.confirms))
            self._size += len(frames)
        if was_empty and self._items:
            self._wake()

    @property
    @abstractmethod
    def blocked(self) -> bool:
        """Whether the broker has said that it blocks publishers."""

    @abstractmethod
    def _wake(self) -> None:
        """Have the queued messages written soon."""

    @abstractmethod
    async def run(self) -> None:
        """Write messages until cancelled."""

    @property
    def queued(self) -> int:
        """The number of messages that were not handed to the connection."""
        return len(self._items) + self._events.held

    @property
    def unsettled_events(self) -> int:
        """The number of events that wait, or that the broker has not confirmed."""
        return self._events.unconfirmed + self._events.held

    def unsent(self) -> list[str]:
        """Return the calls that were not handed to the connection."""
        return [item[1] for item in self._items if item[1] != EVENT]

    def refused(self, size: int) -> list[str]:
        """Return the messages that were lost as the broker closed a channel for one of ``size`` bytes: that one first.

        Events are among them, by their common key. The broker takes nothing more from the channel that it closes.
        """
        written = list(self._written)
        for at, (correlation_id, each, confirmed) in enumerate(written):
            if each == size:
                later = [other for other, _, by in written[at + 1 :] if by is confirmed]
                return [correlation_id, *later]
        return []

    def unconfirmed(self) -> list[str]:
        """Return the calls that were handed to the connection, and that the broker has not confirmed."""
        return [correlation_id for correlation_id in self._unconfirmed.values() if correlation_id != EVENT]


class Lane(SocketListener, ABC):
    """The way of messages on one connection."""

    name: ClassVar[LaneName]

    @abstractmethod
    def publisher(
        self,
        connection: AbstractConnection,
        plain: AbstractChannel,
        confirmed: AbstractChannel,
        statistics: RabbitMQStatistics,
        *,
        confirm_events: bool,
        on_return: OnReturn,
        on_confirm: OnConfirm,
    ) -> Publisher:
        """Make a publisher on two channels, which report the fate of its messages to ``on_return`` and ``on_confirm``.

        The broker returns a message before it confirms it, so the confirm of a returned one finds no call.
        """

    @abstractmethod
    def acknowledge(self, channel: AbstractChannel, tag: int) -> bool:
        """Acknowledge all deliveries of ``channel`` up to ``tag``; return False if that is impossible now."""

    @abstractmethod
    def close(self) -> None:
        """End the tasks of the lane: the connection ends."""

    async def consume(
        self,
        channel: AbstractChannel,
        queue: str,
        on_message: OnMessage,
        *,
        prefetch: int,
        arguments: dict[str, Any],
        on_cancel: Callable[[], None],
    ) -> str:
        """Give the messages of ``queue`` to ``on_message``, which acknowledges them; return the consumer's tag.

        ``arguments`` are for the broker. ``on_cancel`` is called when the broker ends the consumer, as it does when the
        queue is deleted.
        """

        def on_cancelled(frame: commands.Basic.Cancel) -> None:
            on_cancel()

        channel.on_consumer_cancel_callbacks.add(on_cancelled)
        await channel.basic_qos(prefetch_count=prefetch)
        # aiormq starts a task for each delivery, in the order in which they come. This one ends without ever waiting,
        # so it also keeps their order: of two replies to a call, the first is the true one.
        consumer = await channel.basic_consume(
            queue, self._take_deliveries(channel, on_message), no_ack=False, arguments=arguments
        )
        return consumer.consumer_tag or ""

    def _take_deliveries(self, channel: AbstractChannel, on_message: OnMessage) -> Callable[[DeliveredMessage], Any]:
        """Return aiormq's callback for the deliveries of ``channel``."""

        async def on_delivery(message: DeliveredMessage) -> None:
            deliver = message.delivery
            if isinstance(deliver, commands.Basic.Deliver):
                header = message.header.marshal()
                guarded(
                    on_message, Incoming(deliver.delivery_tag or 0, bool(deliver.redelivered), header, message.body)
                )

        return on_delivery


def body_size(frames: bytes) -> int:
    """Return the size of the body that the frames of one message announce (AMQP 0-9-1, section 4.2.6.1)."""
    header = 8 + int.from_bytes(frames[3:7], "big")  # behind the method frame
    return int.from_bytes(frames[header + 11 : header + 19], "big")


class Acknowledger:
    """Acknowledges the deliveries of one channel, many together."""

    __slots__ = ("_channel", "_count", "_lane", "_loop", "_tag", "_timer")

    def __init__(self, lane: Lane, channel: AbstractChannel) -> None:
        self._lane = lane
        self._channel = channel
        self._loop = asyncio.get_running_loop()
        self._tag = 0
        self._count = 0
        self._timer: asyncio.TimerHandle | None = None

    def later(self, tag: int) -> None:
        """Acknowledge everything up to ``tag`` soon."""
        self._tag = tag
        self._count += 1
        if self._count >= ACKNOWLEDGE_AFTER:
            self._send()
        elif self._timer is None:
            self._timer = self._loop.call_later(ACKNOWLEDGE_WITHIN, self._send)

    def stop(self) -> None:
        """Acknowledge nothing more."""
        self._count = 0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _send(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._channel.is_closed or not self._count:
            return
        if self._lane.acknowledge(self._channel, self._tag):
            self._count = 0
        else:
            self._timer = self._loop.call_later(ACKNOWLEDGE_WITHIN, self._send)


def guarded(function: Callable[..., None], *args: Any) -> None:
    """Call ``function`` and log its exception, which would end the reader of the connection and all calls with it."""
    try:
        function(*args)
    except Exception:
        logger.exception("a message of the mesh could not be handled")
