"""What the processes of one gateway tell each other, by way of the broker.

A fanout exchange of the gateway's own brings a message to a queue of every process. It is not the exchange for events,
because services, and clients with a wide subscription, would get these messages, too. Records go into a stream: a queue
whose messages stay when they are read, so that a process that starts later has them as well.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol

from aiormq.abc import AbstractChannel
from aiormq.exceptions import ChannelAccessRefused, ChannelNotFoundEntity, ChannelPreconditionFailed

from ._connection import Connection, explain
from ._frames import Incoming
from ._lane import OnMessage

__all__ = ["MESSAGE_EXPIRES", "Records", "Siblings"]

logger = logging.getLogger(__name__)

#: Seconds. Whoever asked has been told long before that this process did not answer, and may have asked again.
MESSAGE_EXPIRES: Final = 2.0
QUEUE_LENGTH: Final = 100_000
#: For how long records are kept, and in how many bytes. Small segments, because a stream drops whole ones.
STREAM: Final[dict[str, Any]] = {
    "x-queue-type": "stream",
    "x-max-age": "30D",
    "x-max-length-bytes": 100_000_000,
    "x-stream-max-segment-size-bytes": 1_000_000,
}

#: What the broker answers to a user who may not, and where something else has that name or there are no streams.
_REFUSED: Final = (ChannelAccessRefused, ChannelPreconditionFailed)


class Consume(Protocol):
    """Has the messages of a queue given to a function."""

    def __call__(
        self, queue: str, take: OnMessage, arguments: dict[str, Any] | None = None, /
    ) -> Awaitable[AbstractChannel]:
        """The channel by which they come. ``arguments`` are the broker's."""


class Siblings:
    """Names, topology and consumers. ``on_message`` and ``on_record`` are called with what comes."""

    def __init__(
        self,
        service_name: str,
        unique: str,
        on_message: Callable[[bytes], None],
        on_record: Callable[[bytes], None],
        *,
        expires: int,
    ) -> None:
        self.exchange = f"nuropb-{service_name}-fx"
        self.queue = f"nuropb-{service_name}-{unique}-fq"
        self.stream = f"nuropb-{service_name}-records"
        #: Whether there is anybody to talk to, and somewhere to write: the user may be allowed neither.
        self.can_talk = False
        self.can_record = False
        self._on_message = on_message
        self._on_record = on_record
        self._expires = expires
        #: Of the latest record that was read.
        self._offset: int | None = None
        self._warned: set[str] = set()

    async def declare(self, connection: Connection) -> None:
        """Make sure that the exchange is there: a message to one that is missing would close its channel."""
        try:
            async with connection.channel() as channel:
                await channel.declare_exchange(self.exchange, "fanout", durable=True)
        except _REFUSED as error:
            self.can_talk = False
            self._warn(f"messages to users reach this process only, as {self.exchange} cannot be declared", error)
        else:
            self.can_talk = True

    async def reassert(self, connection: Connection) -> None:
        """Make sure that exchange, queue and binding are there: nobody is told of their end."""
        await self.declare(connection)
        if self.can_talk:
            arguments: dict[str, Any] = {"x-expires": self._expires * 1000, "x-max-length": QUEUE_LENGTH}
            async with connection.channel() as channel:
                queue = await channel.declare_queue(self.queue, durable=True, arguments=arguments)
                await queue.bind(self.exchange)

    async def set_up(self, connection: Connection, consume: Consume) -> list[AbstractChannel]:
        """Declare what is read and read it; returns the channels, whose end is that of the connection."""
        channels = []
        await self.reassert(connection)
        if self.can_talk:
            channels.append(await consume(self.queue, self._take_message))
        try:
            await self._declare_stream(connection)
        except _REFUSED as error:
            self.can_record = False
            self._warn(f"revocations reach this process only, as the stream {self.stream} cannot be declared", error)
            return channels
        self.can_record = True
        return channels + await self.read_records(connection, consume)

    async def read_records(self, connection: Connection, consume: Consume) -> list[AbstractChannel]:
        """Read what is recorded, if anything is; what :meth:`set_up` does without making anything."""
        try:
            async with connection.channel() as channel:
                await channel.declare_queue(self.stream, durable=True, passive=True)
        except (ChannelNotFoundEntity, *_REFUSED):
            return []
        offset: Any = "first" if self._offset is None else self._offset + 1
        return [await consume(self.stream, self._take_record, {"x-stream-offset": offset})]

    async def _declare_stream(self, connection: Connection) -> None:
        if self._offset is not None:
            try:
                async with connection.channel() as channel:
                    await channel.declare_queue(self.stream, durable=True, passive=True)
            except ChannelNotFoundEntity:
                self._offset = None  # somebody deleted it, and the next one counts anew
        async with connection.channel() as channel:
            await channel.declare_queue(self.stream, durable=True, arguments=STREAM)

    def _take_message(self, message: Incoming) -> None:
        self._on_message(message.body)

    def _take_record(self, message: Incoming) -> None:
        offset = (message.headers or {}).get("x-stream-offset")
        if isinstance(offset, int):
            if self._offset is not None and offset <= self._offset:
                return  # a stream is read from the beginning of a chunk
            self._offset = offset
        self._on_record(message.body)

    def _warn(self, what: str, error: BaseException) -> None:
        if what not in self._warned:
            self._warned.add(what)
            logger.warning("mesh: %s: %s", what, explain(error))


class Records:
    """Records on their way to the stream, each with whoever waits for the broker's word."""

    def __init__(self) -> None:
        self._waiting: dict[str, asyncio.Future[bool]] = {}

    def expect(self, correlation_id: str) -> asyncio.Future[bool]:
        """Whether it was taken, once that is known."""
        future = self._waiting[correlation_id] = asyncio.get_running_loop().create_future()
        return future

    def settle(self, correlation_id: str, taken: bool) -> bool:
        """It was taken or not; False if this is not about a record."""
        future = self._waiting.pop(correlation_id, None)
        if future is None:
            return False
        if not future.done():
            future.set_result(taken)
        return True
