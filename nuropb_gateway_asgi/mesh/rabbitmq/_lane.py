"""The two short cuts: how a message gets to a connection's writer, and off a channel.

aiormq costs a task and some futures for every message in either direction, several times what the rest of the gateway
costs, and tasks make no promise of order, while the first of two replies is the true one. So publishes are marshalled
by the gateway (``mesh.wire``) and handed to the connection's writer once per turn of the event loop, and the frames of
deliveries, returns and confirms are taken off a channel before it sees them.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Any, Final, TypeAlias

import pamqp.frame
from aiormq.abc import AbstractChannel, AbstractConnection, ChannelFrame, DeliveredMessage
from pamqp import commands
from pamqp.body import ContentBody
from pamqp.header import ContentHeader

from ...exceptions import MeshUnavailable
from ._statistics import RabbitMQStatistics

__all__ = ["Acknowledger", "OnMessage", "Publisher", "Tap", "consume"]

logger = logging.getLogger(__name__)

#: Bytes that may wait for the connection's writer before messages are refused.
MAX_BUFFERED: Final = 64 * 1024 * 1024

OnMessage: TypeAlias = Callable[[commands.Basic.Deliver, ContentHeader, bytes], None]


class Tap:
    """Takes whole messages and confirms off a channel, in the order and in the turn in which they arrive.

    It stands before the queue into which the connection puts a channel's frames; what it does not know it passes on.
    """

    __slots__ = ("_body", "_header", "_missing", "_on_confirm", "_on_message", "_on_return", "_pass_on", "_start")

    def __init__(
        self,
        channel: AbstractChannel,
        *,
        on_message: OnMessage | None = None,
        on_return: Callable[[str], None] | None = None,
        on_confirm: Callable[[int, bool, bool], None] | None = None,
    ) -> None:
        self._on_message = on_message
        self._on_return = on_return
        self._on_confirm = on_confirm
        self._start: commands.Basic.Deliver | commands.Basic.Return | None = None
        self._header: ContentHeader | None = None
        self._body: list[bytes] = []
        self._missing = 0
        frames: asyncio.Queue[Any] = channel.frames
        self._pass_on = frames.put
        frames.put = self._put  # type: ignore[method-assign]

    async def _put(self, item: tuple[int, Any]) -> None:
        frame = item[1]
        kind = type(frame)
        if kind is commands.Basic.Deliver or kind is commands.Basic.Return:
            self._start = frame
        elif kind is ContentHeader and self._start is not None:
            self._header = frame
            self._body = []
            self._missing = frame.body_size
            if not self._missing:
                self._complete()
        elif kind is ContentBody and self._header is not None:
            self._body.append(frame.value)
            self._missing -= len(frame.value)
            if self._missing <= 0:
                self._complete()
        elif self._on_confirm is not None and kind in (commands.Basic.Ack, commands.Basic.Nack):
            self._on_confirm(frame.delivery_tag, frame.multiple, kind is commands.Basic.Ack)
        else:
            await self._pass_on(item)

    def _complete(self) -> None:
        start, header = self._start, self._header
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._start = self._header = None
        self._body = []
        try:
            if isinstance(start, commands.Basic.Deliver):
                if self._on_message is not None and header is not None:
                    self._on_message(start, header, body)
            elif self._on_return is not None and header is not None:
                self._on_return(str(header.properties.correlation_id))
        except Exception:
            # It would end the reader of the connection, and with it everything else.
            logger.exception("a message of the mesh could not be handled")


async def consume(
    channel: AbstractChannel,
    queue: str,
    on_message: OnMessage,
    *,
    prefetch: int,
    arguments: dict[str, Any],
    on_cancel: Callable[[], None],
) -> None:
    """Have the messages of ``queue`` given to ``on_message``, which acknowledges them.

    ``arguments`` are the broker's. ``on_cancel``: the broker ended it, as when the queue is deleted.
    """

    async def on_delivery(message: DeliveredMessage) -> None:
        # Only if a later aiormq should not use the queue that the tap stands before.
        if isinstance(message.delivery, commands.Basic.Deliver):
            on_message(message.delivery, message.header, message.body)

    def on_cancelled(frame: commands.Basic.Cancel) -> None:
        on_cancel()

    Tap(channel, on_message=on_message)
    channel.on_consumer_cancel_callbacks.add(on_cancelled)
    await channel.basic_qos(prefetch_count=prefetch)
    await channel.basic_consume(queue, on_delivery, no_ack=False, arguments=arguments)


class Acknowledger:
    """Acknowledges the deliveries of one channel, once per turn of the event loop, all together."""

    __slots__ = ("_channel", "_connection", "_scheduled", "_tag")

    def __init__(self, connection: AbstractConnection, channel: AbstractChannel) -> None:
        self._connection = connection
        self._channel = channel
        self._tag = 0
        self._scheduled = False

    def later(self, tag: int) -> None:
        """Acknowledge everything up to ``tag`` soon."""
        self._tag = tag
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._send)

    def _send(self) -> None:
        self._scheduled = False
        if self._channel.is_closed:
            return
        frame = pamqp.frame.marshal(commands.Basic.Ack(self._tag, multiple=True), self._channel.number)
        try:
            self._connection.write_queue.put_nowait(ChannelFrame(frame, should_close=False))
        except asyncio.QueueFull:
            self._scheduled = True
            asyncio.get_running_loop().call_later(0.01, self._send)


class Publisher:
    """Writes messages to one connection, as many as there are in one go.

    Messages on the channel ``confirmed`` are confirmed by the broker; requests go by ``plain``, for their reply says
    more than a confirm would.
    """

    def __init__(
        self,
        connection: AbstractConnection,
        plain: AbstractChannel,
        confirmed: AbstractChannel,
        statistics: RabbitMQStatistics,
    ) -> None:
        self.plain = plain
        self.confirmed = confirmed
        self.frame_max = connection.connection_tune.frame_max
        self._statistics = statistics
        self._connection = connection
        self._queue: asyncio.Queue[ChannelFrame] = connection.write_queue
        self._items: deque[tuple[float, str, bytes, bool]] = deque()
        self._size = 0
        self._wake = asyncio.Event()
        self._tag = 0
        self._unconfirmed: dict[int, str] = {}

    def put(self, deadline: float, correlation_id: str, frames: bytes, *, confirmed: bool = False) -> None:
        """Take a message. Raises MeshUnavailable when too much waits already."""
        if self._size + len(frames) > MAX_BUFFERED:
            raise MeshUnavailable("the broker does not read what is published")
        self._items.append((deadline, correlation_id, frames, confirmed))
        self._size += len(frames)
        self._wake.set()

    async def run(self) -> None:
        """Write, until cancelled. A message whose time is up before its turn comes is left out."""
        loop = asyncio.get_running_loop()
        while True:
            await self._wake.wait()
            self._wake.clear()
            # What comes while the broker blocks stays here, where it can expire.
            await self._connection.ready()
            frames = self._take(loop.time())
            if frames:
                drained = loop.create_future()
                await self._queue.put(ChannelFrame(b"".join(frames), should_close=False, drain_future=drained))
                # While the broker does not read, this waits, and what comes in the meantime can expire unsent.
                await drained

    @property
    def blocked(self) -> bool:
        """Whether the broker has said that it takes nothing at the moment."""
        # aiormq tells only those who wait in ready(): so begin to wait, and see whether that is needed.
        waiting = self._connection.ready()
        try:
            waiting.send(None)
        except StopIteration:
            return False
        waiting.close()
        return True

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
        """The messages that were not handed to the writer."""
        return [item[1] for item in self._items]

    def unconfirmed(self) -> list[str]:
        """The messages that were, and that the broker has not confirmed."""
        return list(self._unconfirmed.values())


def returns_and_confirms(
    publisher: Publisher, on_return: Callable[[str], None], on_confirm: Callable[[str, bool], None]
) -> None:
    """Tell of the publisher's messages that come back, and of those that the broker has taken (or not).

    The broker returns a message before it confirms it, so the confirm of a returned one finds nobody waiting.
    """

    def confirmed(tag: int, multiple: bool, taken: bool) -> None:
        for correlation_id in publisher.confirm(tag, multiple=multiple):
            on_confirm(correlation_id, taken)

    Tap(publisher.plain, on_return=on_return)
    Tap(publisher.confirmed, on_return=on_return, on_confirm=confirmed)
