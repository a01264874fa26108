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
from ._frames import Incoming
from ._sockets import SocketListener
from ._statistics import RabbitMQStatistics

__all__ = [
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

OnMessage: TypeAlias = Callable[[Incoming], None]
#: Called with the correlation id of a message that the broker sent back.
OnReturn: TypeAlias = Callable[[str], None]
#: Called with a correlation id, and whether the broker accepted the message.
OnConfirm: TypeAlias = Callable[[str, bool], None]
LaneName: TypeAlias = Literal["fast", "plain"]


class Publisher(ABC):
    """Writes messages to one connection, in batches.

    The broker confirms messages on the channel ``confirmed_channel``. Requests go by ``plain_channel``: their reply
    says more than a confirm would.
    """

    def __init__(
        self, plain_channel: int, confirmed_channel: int, frame_max: int, statistics: RabbitMQStatistics
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
        self._unconfirmed: dict[int, str] = {}
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
    @abstractmethod
    def blocked(self) -> bool:
        """Whether the broker has said that it blocks publishers."""

    @abstractmethod
    def _wake(self) -> None:
        """Have the queued messages written soon."""

    @abstractmethod
    async def run(self) -> None:
        """Write messages until cancelled."""

    def unsent(self) -> list[str]:
        """Return the messages that were not handed to the connection."""
        return [item[1] for item in self._items]

    def refused(self, size: int) -> list[str]:
        """Return the messages that were lost as the broker closed a channel for one of ``size`` bytes: that one first.

        The broker takes nothing more from the channel that it closes.
        """
        written = list(self._written)
        for at, (correlation_id, each, confirmed) in enumerate(written):
            if each == size:
                later = [other for other, _, by in written[at + 1 :] if by is confirmed]
                return [correlation_id, *later]
        return []

    def unconfirmed(self) -> list[str]:
        """Return the messages that were handed to the connection, and that the broker has not confirmed."""
        return list(self._unconfirmed.values())


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
