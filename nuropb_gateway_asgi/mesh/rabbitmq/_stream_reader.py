"""Consumers of streams, and readings of their past.

The broker sends a stream from an offset on, and says nothing at its end. So a reading ends at the offset of a message
that is known to be there. Offsets grow, with gaps: segments of a stream begin with records of the broker.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from aiormq.abc import AbstractChannel

from ...exceptions import MeshUnavailable
from ...wire import codec
from ...wire.history import After, Last, Read, Start
from ...wire.interface import EventMessage
from ._connection import Connection, close
from ._errors import CONNECTION_ERRORS, explain
from ._frames import Incoming
from ._lane import Acknowledger

__all__ = ["MARK", "StreamConsumer", "as_event", "collect", "read"]

#: The beginning of the correlation ids of messages that are no events: the gateway writes them into the stream.
MARK: Final = "nuropb-history-"
#: Messages that the broker may send ahead of an acknowledgement.
PREFETCH: Final = 500
#: Seconds for one reading.
READ_TIMEOUT: Final = 10.0
#: Messages that are read for one topic at most: a narrow pattern matches few of them.
MAX_SEARCHED: Final = 20_000


class StreamConsumer:
    """A consumer of a stream. ``take`` gets the offset of each message, and the message."""

    def __init__(
        self, channel: AbstractChannel, acknowledger: Acknowledger, take: Callable[[int, Incoming], None]
    ) -> None:
        self.channel = channel
        self._acknowledger = acknowledger
        self._take = take
        self._tag = ""
        self._is_open = True

    @classmethod
    async def open(
        cls,
        connection: Connection,
        stream: str,
        start: Any,
        take: Callable[[int, Incoming], None],
        on_cancel: Callable[[], None],
    ) -> StreamConsumer:
        """Consume ``stream`` from the offset, the time or the word ``start`` on."""
        channel = await connection.open_channel()
        consumer = cls(channel, Acknowledger(connection.lane, channel), take)
        consumer._tag = await connection.lane.consume(
            channel,
            stream,
            consumer._on_message,
            prefetch=PREFETCH,
            arguments={"x-stream-offset": start},
            on_cancel=on_cancel,
        )
        return consumer

    def _on_message(self, message: Incoming) -> None:
        offset = message.stream_offset
        if self._is_open and offset is not None:  # without an offset it is a message of a queue, which keeps it
            self._acknowledger.later(message.delivery_tag)
            self._take(offset, message)

    def stop(self) -> None:
        """Take no more messages. The broker would close the connection for an acknowledgement on a closed channel."""
        self._is_open = False
        self._acknowledger.stop()

    async def close(self) -> None:
        """End the consumer and its channel."""
        self.stop()
        if not self.channel.is_closed:
            await self.channel.basic_cancel(self._tag)
            await close(self.channel)


async def collect(connection: Connection, stream: str, start: Any, take: Callable[[int, Incoming], bool]) -> None:
    """Give messages from ``start`` on to ``take``, until it returns True.

    Raises MeshUnavailable, also after READ_TIMEOUT seconds.
    """
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def on_message(offset: int, message: Incoming) -> None:
        if not done.done() and take(offset, message):
            done.set_result(None)

    def on_lost(_: object = None) -> None:
        if not done.done():
            done.set_exception(MeshUnavailable("the history was lost"))

    try:
        async with asyncio.timeout(READ_TIMEOUT):
            consumer = await StreamConsumer.open(connection, stream, start, on_message, on_lost)
            consumer.channel.closing.add_done_callback(on_lost)
            try:
                await done
            finally:
                await consumer.close()
    except MeshUnavailable:
        raise
    except CONNECTION_ERRORS as error:
        task = asyncio.current_task()
        if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
            raise
        raise MeshUnavailable(f"the history cannot be read: {explain(error)}") from error


def as_event(message: Incoming) -> EventMessage:
    """Decode an event. Raises InvalidMessage."""
    if message.kind != "event":
        raise codec.InvalidMessage("not an event")
    event = codec.decode_event(message.body)
    event.id = message.correlation_id
    return event


class _Reading:
    """The events of one reading, up to the offset ``end``; the last ``keep`` of them, if that is a number."""

    def __init__(
        self, end: int, wanted: Callable[[EventMessage], bool], limit: int, size: int, keep: int | None = None
    ) -> None:
        self.end = end
        self._wanted = wanted
        self._limit = limit
        self._room = size
        self._keep = keep
        self.events: deque[tuple[int, EventMessage]] = deque()
        #: The offsets of the first message, and of the last event, wanted or not.
        self.first: int | None = None
        self.last: int | None = None
        self.searched = 0
        self.is_too_much = False

    def take(self, offset: int, message: Incoming) -> bool:
        """Take a message; return whether it is the last one."""
        if self.first is None:
            self.first = offset
        self.searched += 1
        self.is_too_much = self.searched > MAX_SEARCHED
        if offset <= self.end and not (message.correlation_id or "").startswith(MARK):
            self._take_event(offset, message)
        return offset >= self.end or self.is_too_much

    def _take_event(self, offset: int, message: Incoming) -> None:
        try:
            event = as_event(message)
        except codec.InvalidMessage:  # the event queue counts and logs it
            return
        self.last = offset
        if not self._wanted(event):
            return
        self.events.append((offset, event))
        self._room -= len(memoryview(event.event))
        while self._keep is not None and len(self.events) > self._keep:
            _, dropped = self.events.popleft()
            self._room += len(memoryview(dropped.event))
        # The last ones may be small: only the end tells whether they fit.
        if self._keep is None:
            self.is_too_much = self.is_too_much or len(self.events) > self._limit or self._room < 0

    def result(self, *, complete: bool) -> Read:
        """Return the events, if they are complete and not too many."""
        complete = complete and not self.is_too_much and len(self.events) <= self._limit and self._room >= 0
        return Read(list(self.events) if complete else [], complete, self.last, self.searched)


async def read(
    connection: Connection,
    stream: str,
    start: Start,
    end: int,
    wanted: Callable[[EventMessage], bool],
    limit: int,
    size: int,
) -> Read:
    """Read the wanted events of a stream from ``start`` to the offset ``end``. Raises MeshUnavailable."""
    if isinstance(start, After):
        return await _read_after(connection, stream, start.offset, _Reading(end, wanted, limit, size))
    if isinstance(start, Last):
        return await _read_last(connection, stream, start.number, end, wanted, limit, size)
    reading = _Reading(end, wanted, limit, size)
    since = datetime.now(UTC) - timedelta(seconds=start.seconds)
    await collect(connection, stream, since, reading.take)
    # Nothing is missing if the stream begins with its very first message, or before that time.
    complete = reading.first == 0 or (reading.first or 0) > await _first_offset(connection, stream)
    return reading.result(complete=complete)


async def _read_after(connection: Connection, stream: str, offset: int, reading: _Reading) -> Read:
    """Read the events behind ``offset``, whose own message has to be there still: it proves that none is missing."""
    found = False

    def take(at: int, message: Incoming) -> bool:
        nonlocal found
        if at < offset:  # the broker may send a stream from the beginning of a chunk
            return False
        if at == offset:
            found = True
            return at >= reading.end
        return not found or reading.take(at, message)

    await collect(connection, stream, offset, take)
    return reading.result(complete=found)


async def _read_last(
    connection: Connection,
    stream: str,
    number: int,
    end: int,
    wanted: Callable[[EventMessage], bool],
    limit: int,
    size: int,
) -> Read:
    """Read the last events: a little more than that many messages, then ever more, as others are among them."""
    distance = number + 32
    while True:
        begin = max(end - distance, 0)
        reading = _Reading(end, wanted, limit, size, keep=number)
        await collect(connection, stream, begin, reading.take)
        first = reading.first or 0
        # One offset may be missing without a loss.
        if len(reading.events) == number or begin == 0 or first > begin + 1:
            return reading.result(complete=len(reading.events) == number or first == 0)
        if reading.is_too_much:
            return reading.result(complete=False)
        distance *= 8


async def _first_offset(connection: Connection, stream: str) -> int:
    """Return the offset of the first message of a stream that is not empty."""
    first = 0

    def take(offset: int, message: Incoming) -> bool:
        nonlocal first
        first = offset
        return True

    await collect(connection, stream, "first", take)
    return first
