"""Messages and records that the processes of one gateway exchange by way of the broker.

A fanout exchange of the gateway's own brings a message to a queue of every process. The exchange for events would not
do: services, and clients with a wide subscription, would get these messages, too. Records go into a stream, a queue
whose messages stay when they are read, so that a process that starts later reads them as well.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, Protocol

from aiormq.abc import AbstractChannel
from aiormq.exceptions import ChannelAccessRefused, ChannelNotFoundEntity, ChannelPreconditionFailed

from ...authentication.revocation import Revocation, encode_record
from ...identifiers import new_id
from ._connection import Connection
from ._errors import explain
from ._frames import Incoming
from ._lane import OnMessage

__all__ = ["MESSAGE_EXPIRES", "Peers"]

logger = logging.getLogger(__name__)

#: Seconds. A process that asks its peers has long given up by then, and may have asked again.
MESSAGE_EXPIRES: Final = 2.0
QUEUE_LENGTH: Final = 100_000
#: Records are kept for that long, in that many bytes. Small segments, as a stream drops whole segments.
STREAM: Final[dict[str, Any]] = {
    "x-queue-type": "stream",
    "x-max-age": "30D",
    "x-max-length-bytes": 100_000_000,
    "x-stream-max-segment-size-bytes": 1_000_000,
}

#: The broker's refusals: the user lacks a permission, the name is taken by something else, or there are no streams.
_REFUSED: Final = (ChannelAccessRefused, ChannelPreconditionFailed)


class Consume(Protocol):
    """The function that gives the messages of a queue to another function."""

    def __call__(
        self, queue: str, take: OnMessage, arguments: dict[str, Any] | None = None, /
    ) -> Awaitable[AbstractChannel]:
        """Return the channel by which the messages come. ``arguments`` are for the broker."""


class Peers:
    """The exchange, queue and stream shared with the other processes of a gateway.

    ``on_message`` and ``on_record`` are called with the bodies that arrive. ``on_records_read`` is called when the
    process's own marker, which :meth:`draw_marker` makes, is read: all that came before it in the stream is read, too.
    """

    def __init__(
        self,
        service_name: str,
        queue: str,
        on_message: Callable[[bytes], None],
        on_record: Callable[[bytes], None],
        on_records_read: Callable[[], None],
        *,
        queue_arguments: Mapping[str, Any],
    ) -> None:
        self.exchange = f"nuropb-{service_name}-fx"
        self.queue = queue
        self.stream = f"nuropb-{service_name}-records"
        #: Whether there is an exchange to send to, and a stream to write to: the user may be allowed neither.
        self.can_talk = False
        self.can_record = False
        #: Whether the broker refuses the stream for good: there are no records to read.
        self.records_refused = False
        self._on_message = on_message
        self._on_record = on_record
        self._on_records_read = on_records_read
        #: The records that this process has written to find the end of the stream; the first that is read marks it.
        self._markers: set[bytes] = set()
        self._queue_arguments = {**queue_arguments, "x-max-length": QUEUE_LENGTH}
        #: The offset in the stream of the latest record that was read.
        self.offset: int | None = None
        #: What this process does without, in words for an operator.
        self.warnings: dict[str, str] = {}

    async def declare(self, connection: Connection) -> None:
        """Declare the exchange: a message to a missing one would close its channel."""
        try:
            async with connection.channel() as channel:
                await channel.exchange_declare(self.exchange, exchange_type="fanout", durable=True)
        except _REFUSED as error:
            self.can_talk = False
            self._warn("messages to users reach this process only", self.exchange, error)
        else:
            self.can_talk = True
            self.warnings.pop(self.exchange, None)

    async def reassert(self, connection: Connection) -> None:
        """Declare exchange, queue and binding: the broker tells nobody of their end."""
        await self.declare(connection)
        if self.can_talk:
            try:
                async with connection.channel() as channel:
                    await channel.queue_declare(self.queue, durable=True, arguments=self._queue_arguments)
                    await channel.queue_bind(self.queue, self.exchange, self.queue)
            except ChannelAccessRefused as error:
                self.can_talk = False
                self._warn("messages to users reach this process only", self.exchange, error)

    async def set_up(self, connection: Connection, consume: Consume) -> list[AbstractChannel]:
        """Declare the queue and consume it; return the channels, whose end is the connection's end."""
        await self.reassert(connection)
        return [await consume(self.queue, self._take_message)] if self.can_talk else []

    async def declare_stream(self, connection: Connection) -> None:
        """Declare the stream, if the user may."""
        can_record = self.records_refused = False
        try:
            await self._declare_stream(connection)
            can_record = True
        except _REFUSED as error:
            self.records_refused = True
            self._warn("revocations reach this process only", self.stream, error)
        else:
            self.warnings.pop(self.stream, None)
        finally:
            self.can_record = can_record

    async def read_records(self, connection: Connection, consume: Consume) -> list[AbstractChannel]:
        """Consume the stream if it exists, without declaring anything; return the channels."""
        try:
            async with connection.channel() as channel:
                await channel.queue_declare(self.stream, durable=True, passive=True)
        except (ChannelNotFoundEntity, *_REFUSED):
            return []
        offset: Any = "first" if self.offset is None else self.offset + 1
        return [await consume(self.stream, self._take_record, {"x-stream-offset": offset})]

    def begin(self) -> None:
        """Forget the markers of an earlier run: records may have been written since."""
        self._markers.clear()

    def draw_marker(self) -> bytes:
        """Return a new record without effect, also for releases that know no markers: a revocation that is over."""
        marker = encode_record(Revocation(token=new_id(), until=0.0))
        self._markers.add(marker)
        return marker

    async def _declare_stream(self, connection: Connection) -> None:
        if self.offset is not None:
            try:
                async with connection.channel() as channel:
                    await channel.queue_declare(self.stream, durable=True, passive=True)
            except ChannelNotFoundEntity:
                self.offset = None  # an operator deleted the stream, and the next one counts anew
        async with connection.channel() as channel:
            await channel.queue_declare(self.stream, durable=True, arguments=STREAM)

    async def probe(self, connection: Connection) -> None:
        """Try exchange and stream, leave nothing behind that was not there, and note refusals in :attr:`warnings`."""
        try:
            async with connection.channel() as channel:
                await channel.exchange_declare(self.exchange, passive=True)
        except ChannelNotFoundEntity:
            await self.declare(connection)
            if self.can_talk:
                async with connection.channel() as channel:
                    await channel.exchange_delete(self.exchange, if_unused=True)
        else:
            await self.declare(connection)
        try:
            async with connection.channel() as channel:
                await channel.queue_declare(self.stream, durable=True, passive=True)
            there = True
        except ChannelNotFoundEntity:
            there = False
        try:
            async with connection.channel() as channel:
                if there:
                    await channel.queue_declare(self.stream, durable=True, arguments=STREAM)
                else:
                    # The permission is one for a name. A stream that a gateway has just made must not be deleted.
                    await channel.queue_declare(self.stream, exclusive=True, auto_delete=True)
                    await channel.queue_delete(self.stream)
        except _REFUSED as error:
            self._warn("revocations reach this process only", self.stream, error)

    def _take_message(self, message: Incoming) -> None:
        self._on_message(message.body)

    def _take_record(self, message: Incoming) -> None:
        offset = message.stream_offset
        if offset is not None:
            if self.offset is not None and offset <= self.offset:
                return  # the broker sends a stream from the beginning of a chunk
            self.offset = offset
        if message.body in self._markers:
            self._markers.clear()
            self._on_records_read()
        else:
            self._on_record(message.body)

    def _warn(self, effect: str, name: str, error: BaseException) -> None:
        """Log, once, the effect of a refusal that concerns the exchange or stream ``name``."""
        if name not in self.warnings:
            self.warnings[name] = f"{effect}, as {name} cannot be used: {explain(error)}"
            logger.warning("mesh: %s", self.warnings[name])
