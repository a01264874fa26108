"""How messages get on and off a connection: what both lanes have in common.

aiormq costs a task and some futures for every message in either direction, several times what the rest of the gateway
costs, and tasks make no promise of order, while the first of two replies is the true one. So publishes are marshalled
by the gateway (``mesh.wire``), and deliveries, returns and confirms are taken off a channel before aiormq makes tasks
of them. The lane ``fast`` does so in front of aiormq, on the bytes of the connection; ``plain`` with its own queues.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Literal, TypeAlias

import pamqp.frame
from aiormq.abc import AbstractChannel, DeliveredMessage
from pamqp import commands
from pamqp.header import ContentHeader

from ...exceptions import MeshUnavailable
from ._frames import Content, Incoming
from ._statistics import RabbitMQStatistics

__all__ = ["Acknowledger", "Lane", "LaneName", "OnMessage", "Publisher"]

logger = logging.getLogger(__name__)

#: Bytes that may wait for the connection before messages are refused.
MAX_BUFFERED: Final = 64 * 1024 * 1024
#: Deliveries after which, and seconds after the first of them, what was received is acknowledged, all together.
ACKNOWLEDGE_AFTER: Final = 100
ACKNOWLEDGE_WITHIN: Final = 0.02

OnMessage: TypeAlias = Callable[[Incoming], None]
LaneName: TypeAlias = Literal["fast", "plain"]


class Publisher(ABC):
    """Writes messages to one connection, as many as there are in one go.

    Messages on the channel ``confirmed`` are confirmed by the broker; requests go by ``plain``, for their reply says
    more than a confirm would.
    """

    def __init__(
        self, plain: AbstractChannel, confirmed: AbstractChannel, frame_max: int, statistics: RabbitMQStatistics
    ) -> None:
        self.plain = plain
        self.confirmed = confirmed
        self.frame_max = frame_max
        self._statistics = statistics
        self._items: deque[tuple[float, str, bytes, bool]] = deque()
        self._size = 0
        self._tag = 0
        self._unconfirmed: dict[int, str] = {}

    def put(self, deadline: float, correlation_id: str, frames: bytes, *, confirmed: bool = False) -> None:
        """Take a message. Raises MeshUnavailable when too much waits already."""
        if self._size + len(frames) > MAX_BUFFERED:
            raise MeshUnavailable("the broker does not read what is published")
        self._items.append((deadline, correlation_id, frames, confirmed))
        self._size += len(frames)
        self._wake()

    @property
    @abstractmethod
    def blocked(self) -> bool:
        """Whether the broker has said that it takes nothing at the moment."""

    @abstractmethod
    def _wake(self) -> None:
        """There is something to write."""

    @abstractmethod
    async def run(self) -> None:
        """Write, until cancelled. A message whose time is up before its turn comes is left out."""

    def _take(self, now: float) -> list[bytes]:
        frames = []
        while self._items:
            deadline, correlation_id, data, confirmed = self._items.popleft()
            if deadline <= now:
                self._statistics.expired_unsent += 1
                continue
            if confirmed:
                self._tag += 1
                self._unconfirmed[self._tag] = correlation_id
            frames.append(data)
        self._size = 0
        self._statistics.published += len(frames)
        return frames

    def confirm(self, tag: int, *, multiple: bool) -> list[str]:
        """The messages that a confirm is about."""
        if not multiple:
            correlation_id = self._unconfirmed.pop(tag, None)
            return [] if correlation_id is None else [correlation_id]
        tags = [each for each in self._unconfirmed if each <= tag]
        return [self._unconfirmed.pop(each) for each in tags]

    def unsent(self) -> list[str]:
        """The messages that were not handed to the connection."""
        return [item[1] for item in self._items]

    def unconfirmed(self) -> list[str]:
        """The messages that were, and that the broker has not confirmed."""
        return list(self._unconfirmed.values())


class Lane(ABC):
    """The way of messages on one connection, beside aiormq's own."""

    @abstractmethod
    def publisher(
        self, plain: AbstractChannel, confirmed: AbstractChannel, frame_max: int, statistics: RabbitMQStatistics
    ) -> Publisher:
        """A publisher on two channels of the connection."""

    @abstractmethod
    def take(self, channel: AbstractChannel, content: Content) -> None:
        """Have the messages and confirms of ``channel`` taken by ``content``, in the turn in which they arrive."""

    @abstractmethod
    def write(self, frame: bytes) -> bool:
        """Write a small frame, or answer False if that is not possible now."""

    def follow(
        self, publisher: Publisher, on_return: Callable[[str], None], on_confirm: Callable[[str, bool], None]
    ) -> None:
        """Tell of the publisher's messages that come back, and of those that the broker has taken (or not).

        The broker returns a message before it confirms it, so the confirm of a returned one finds nobody waiting.
        """

        def confirmed(tag: int, multiple: bool, taken: bool) -> None:
            for correlation_id in publisher.confirm(tag, multiple=multiple):
                _guarded(on_confirm, correlation_id, taken)

        def returned(correlation_id: str) -> None:
            _guarded(on_return, correlation_id)

        self.take(publisher.plain, Content(on_return=returned))
        self.take(publisher.confirmed, Content(on_return=returned, on_confirm=confirmed))

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
        """Have the messages of ``queue`` given to ``on_message``, which acknowledges them; the consumer's tag.

        ``arguments`` are the broker's. ``on_cancel``: the broker ended it, as when the queue is deleted.
        """

        async def on_delivery(message: DeliveredMessage) -> None:
            # Only if a later aiormq should go around what is taken.
            if isinstance(message.delivery, commands.Basic.Deliver):
                on_message(incoming(message.delivery, message.header, message.body))

        def on_cancelled(frame: commands.Basic.Cancel) -> None:
            on_cancel()

        self.take(channel, Content(on_message=lambda message: _guarded(on_message, message)))
        channel.on_consumer_cancel_callbacks.add(on_cancelled)
        await channel.basic_qos(prefetch_count=prefetch)
        consumer = await channel.basic_consume(queue, on_delivery, no_ack=False, arguments=arguments)
        return consumer.consumer_tag or ""


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

    def _send(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._channel.is_closed or not self._count:
            return
        frame = pamqp.frame.marshal(commands.Basic.Ack(self._tag, multiple=True), self._channel.number)
        if self._lane.write(frame):
            self._count = 0
        else:
            self._timer = self._loop.call_later(ACKNOWLEDGE_WITHIN, self._send)


def incoming(deliver: commands.Basic.Deliver, header: ContentHeader, body: bytes) -> Incoming:
    """What pamqp has read, as the lanes have it."""
    payload = header.marshal()
    return Incoming(deliver.delivery_tag or 0, bool(deliver.redelivered), payload, body)


def _guarded(function: Callable[..., None], *args: Any) -> None:
    """Call ``function``. What it raises would end the reader of the connection, and with it everything else."""
    try:
        function(*args)
    except Exception:
        logger.exception("a message of the mesh could not be handled")
