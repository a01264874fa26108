"""The history of a topic pattern: a stream, bound to the exchange of events.

Events go into it at the broker, whether a gateway runs or not. A process consumes it while it has subscribers, and
reads its past for single ones (:mod:`._stream_reader`). The gateway writes two kinds of messages into it that are no
events, both tiny: marks, by which a reader finds the end, and stamps with the epoch of the stream.

The broker has no name for one life of a stream: an operator may delete it, and offsets then begin anew. So the process
that makes a stream, or finds no stamp in it, draws an epoch, and while a process consumes the stream, it repeats the
stamp, before the broker drops the older one. If two processes draw at the same time, the smaller epoch counts, for
both. A position whose epoch is another one is never taken for recovered.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from aiormq.abc import AbstractChannel
from aiormq.exceptions import ChannelAccessRefused, ChannelNotFoundEntity, ChannelPreconditionFailed

from ...exceptions import MeshUnavailable, SettingsError
from ...identifiers import new_id
from ...wire import codec
from ...wire.history import Follower, KeptTopic, Read, Start
from ...wire.interface import EventMessage
from ._connection import Connection
from ._errors import explain
from ._frames import Incoming
from ._stream_reader import MARK, StreamConsumer, as_event, collect, read

__all__ = ["StreamLog", "read_stamp"]

logger = logging.getLogger(__name__)

#: Seconds between two marks in a stream, whatever clients do.
MARK_INTERVAL: Final = 0.2
#: Messages after which a stamp is repeated, with as many again at random: one of several processes comes first, and the
#: others need not.
STAMP_AFTER: Final = 1000
#: Messages that are read from the beginning to find a stamp.
SEARCHED_FOR_STAMP: Final = 3 * STAMP_AFTER
#: Stamps in the time, and in the bytes, that the stream keeps.
STAMPS_KEPT: Final = 4
#: A stream drops whole segments: so many make up its bytes.
SEGMENTS: Final = 8
MAX_NAME_BYTES: Final = 255
#: In RabbitMQ's words for a queue that exists, and cannot be reached.
HOME_NODE: Final = "home node"
_STAMP: Final = f"{MARK}epoch-"


def stream_name(service_name: str, pattern: str) -> str:
    """Return the name of the stream of a pattern."""
    return f"nuropb-{service_name}-history-{pattern}"


def stream_arguments(topic: KeptTopic) -> dict[str, Any]:
    """Return the arguments with which the gateway declares a stream."""
    arguments: dict[str, Any] = {
        "x-queue-type": "stream",
        "x-max-length-bytes": topic.size,
        "x-stream-max-segment-size-bytes": max(topic.size // SEGMENTS, 65536),
    }
    if topic.seconds is not None:
        arguments["x-max-age"] = f"{topic.seconds}s"
    return arguments


def _ignore(offset: int, message: Incoming) -> None:
    """Take no note of a message."""


class StreamLog:
    """One history. See :class:`~nuropb_gateway_asgi.wire.history.HistoryLog` for the interface.

    ``publish`` writes a message with a correlation id into a queue, if ``can_publish`` returns True. ``wake`` has
    :meth:`consume` called soon.
    """

    def __init__(
        self,
        service_name: str,
        topic: KeptTopic,
        publish: Callable[[str, str], None],
        can_publish: Callable[[], bool],
        wake: Callable[[], None],
    ) -> None:
        self.pattern = topic.pattern
        self.stream = stream_name(service_name, topic.pattern)
        if len(self.stream.encode()) > MAX_NAME_BYTES:
            raise SettingsError(
                f"HISTORY: the queue of {topic.pattern!r} would have a name of more than {MAX_NAME_BYTES} bytes; "
                "expected a shorter pattern, or a shorter SERVICE_NAME"
            )
        self._topic = topic
        self._publish = publish
        self._can_publish = can_publish
        self._wake = wake
        self.available = True
        #: The reason why the stream keeps events in another way than the settings say, or None.
        self.warning: str | None = None
        #: The connection on which the arguments were checked last.
        self._checked: Connection | None = None
        #: Whether this process has made the stream, and has still to write its first stamp.
        self._is_new = False
        self._epoch: str | None = None
        self._follower: Follower | None = None
        self._connection: Connection | None = None
        self._consumer: StreamConsumer | None = None
        #: The offset of the latest message; None before the first one.
        self._offset: int | None = None
        #: The epoch to which that offset belongs.
        self._offset_epoch: str | None = None
        #: Whether the message at that offset is still to come, which proves that none is missing since.
        self._resumes = False
        #: The correlation id of the mark behind which live events begin.
        self._beginning: str | None = None
        self._marks: dict[str, list[Callable[[int], None]]] = {}
        self._waiting: list[Callable[[int], None]] = []
        self._marked_at = 0.0
        self._mark_timer: asyncio.TimerHandle | None = None
        self._stamps = _Stamps(topic)

    @property
    def epoch(self) -> str | None:
        """The epoch of the stream, once it is followed."""
        return self._epoch

    # --- its part of the consuming connection -----------------------------------------------------------------

    async def declare(self, connection: Connection) -> None:
        """Declare the stream and its binding."""
        try:
            is_there = await self._is_there(connection)
            if not is_there or self._checked is not connection:
                await self._make_or_check(connection, is_there=is_there)
            async with connection.channel() as channel:
                await channel.queue_bind(self.stream, codec.EVENTS_EXCHANGE, self.pattern)
            if self._checked is not connection:
                # The operator learns now that the user may not read it, and not from the first client.
                consumer = await StreamConsumer.open(connection, self.stream, "next", _ignore, lambda: None)
                await consumer.close()
                self._checked = connection
        except (ChannelAccessRefused, ChannelPreconditionFailed):
            self._give_up()
            raise
        self.available = True
        self._is_new = self._is_new or not is_there
        self._stamp_new()

    async def _make_or_check(self, connection: Connection, *, is_there: bool) -> None:
        """Declare the stream, which compares its arguments if it is there."""
        try:
            async with connection.channel() as channel:
                await channel.queue_declare(self.stream, durable=True, arguments=stream_arguments(self._topic))
            self.warning = None
        except ChannelPreconditionFailed as error:
            await self._check_other(connection, error)
        except ChannelAccessRefused:  # a stream that the operator has made is used as it is
            if not is_there:
                raise

    async def _is_there(self, connection: Connection) -> bool:
        """Tell whether the stream exists, however it was made: the broker logs each declaration that differs."""
        try:
            async with connection.channel() as channel:
                await channel.queue_declare(self.stream, durable=True, passive=True)
        except ChannelNotFoundEntity as error:
            if HOME_NODE in str(error):  # it exists, and its leader is down, or not elected yet
                raise
            return False
        return True

    async def _check_other(self, connection: Connection, error: ChannelPreconditionFailed) -> None:
        """Use a stream that was made with other arguments. Raises ChannelPreconditionFailed if it is no stream."""
        try:
            async with connection.channel() as channel:
                await channel.queue_declare(self.stream, durable=True, arguments={"x-queue-type": "stream"})
        except ChannelPreconditionFailed as other:
            if "x-queue-type" in str(other) or "durable" in str(other):
                raise
        if self.warning is None:
            self.warning = (
                f"the stream {self.stream} was made with other arguments than HISTORY says, and keeps events as it was "
                f"made ({explain(error)}); delete it, and the gateway makes it anew"
            )
            logger.warning("mesh: %s", self.warning)

    def _give_up(self) -> None:
        """Note that there is no history for this user."""
        self.available = False
        self._checked = None
        self._stop()
        if self._follower is not None:
            self._follower.on_unavailable()

    async def consume(self, connection: Connection) -> Sequence[AbstractChannel]:
        """Consume the stream from where the process was, if it has subscribers; return the channel."""
        self._connection = connection
        self._stop()
        if self._follower is None or not self._can_publish():
            return ()
        try:
            return await self._begin(connection, self._follower)
        except ChannelAccessRefused:
            self._give_up()
            raise
        except MeshUnavailable as error:
            raise TimeoutError(str(error)) from error

    def resume(self) -> None:
        """Consume the stream, if it has subscribers, because messages can be published again."""
        self._stamp_new()
        if self._follower is not None and self._consumer is None:
            self._wake()

    async def _begin(self, connection: Connection, follower: Follower) -> Sequence[AbstractChannel]:
        epoch = await self._find_epoch(connection)
        if self._follower is not follower:  # it has left meanwhile
            return ()
        resumes = self._offset is not None and epoch is not None and epoch == self._offset_epoch
        if self._offset is not None and not resumes:
            self._offset = None
            follower.on_missed()
        start = "next" if self._offset is None else self._offset
        # Messages come before the answer of the broker to the consumer is read: all of this has to be known by then.
        self._resumes = resumes
        self._epoch = self._offset_epoch = epoch or new_id()
        if not resumes:
            self._beginning = self._mark_id() if epoch is not None else self._stamp_id()  # a stamp is a mark, too
        beginning = self._beginning
        try:
            consumer = await StreamConsumer.open(connection, self.stream, start, self._take, self._on_cancelled)
        except BaseException:
            self._stop()
            raise
        if self._epoch is None:  # the follower has left meanwhile; maybe it came back, and has it begin again
            consumer.stop()
            return (consumer.channel,)
        self._consumer = consumer
        if beginning is None:
            self._on_begun(follower)
        else:
            self._publish(self.stream, beginning)
        return (consumer.channel,)

    def _on_begun(self, follower: Follower) -> None:
        follower.on_started(-1 if self._offset is None else self._offset)
        self._send_marks_soon()

    async def _find_epoch(self, connection: Connection) -> str | None:
        """Read the first stamp of the stream. Returns None if there is none, or if it lies too far from the beginning.

        Raises MeshUnavailable, and ChannelAccessRefused.
        """
        found: list[str] = []
        end = self._mark_id()
        searched = 0

        def take(offset: int, message: Incoming) -> bool:
            nonlocal searched
            searched += 1
            epoch = read_stamp(message.correlation_id, offset)
            if epoch is not None:
                found.append(epoch)
            return epoch is not None or message.correlation_id == end or searched > SEARCHED_FOR_STAMP

        self._publish(self.stream, end)
        try:
            await collect(connection, self.stream, "first", take)
        except MeshUnavailable as error:
            if isinstance(error.__cause__, ChannelAccessRefused):
                raise error.__cause__ from None
            raise
        return found[0] if found else None

    def _on_cancelled(self) -> None:
        """Begin again, because the broker has ended the consumer: the stream was deleted, or its node has stopped."""
        self._stop()
        self._wake()

    def _stop(self) -> None:
        """Take no more messages from the present consumer, whose channel its owner closes."""
        if self._consumer is not None:
            self._consumer.stop()
            self._consumer = None
        self._epoch = self._beginning = None
        self._marks.clear()

    # --- live messages ----------------------------------------------------------------------------------------

    def follow(self, follower: Follower) -> None:
        """Bring live events to ``follower`` from now on."""
        self._follower = follower
        self._wake()

    def leave(self) -> None:
        """Bring no more events."""
        if self._follower is None:
            return
        if self._epoch is not None and self._stamps.has_old:
            self._try_to_stamp()
        self._follower = self._offset = None
        self._stop()
        self._waiting.clear()
        if self._mark_timer is not None:
            self._mark_timer.cancel()
            self._mark_timer = None
        self._wake()

    def _take(self, offset: int, message: Incoming) -> None:
        """Take a live message."""
        follower = self._follower
        if follower is None or self._epoch is None:
            return
        if self._resumes:
            if self._offset is not None and offset < self._offset:
                return  # the broker may send a stream from the beginning of a chunk
            self._resumes = False
            if offset != self._offset:  # the broker has dropped the latest one, and maybe later ones
                follower.on_missed()
                self._offset = None
        if self._offset is not None and offset <= self._offset:
            return
        self._offset = offset
        correlation_id = message.correlation_id or ""
        if correlation_id.startswith(MARK):
            self._take_mark(follower, offset, correlation_id)
        elif self._beginning is None:
            self._take_event(follower, offset, message)
        if self._beginning is None and self._stamps.is_due(len(message.body)):
            self._try_to_stamp()

    def _take_mark(self, follower: Follower, offset: int, correlation_id: str) -> None:
        epoch = read_stamp(correlation_id, offset)
        if epoch is not None and self._epoch is not None:
            if epoch <= self._epoch:
                self._stamps.reset()
            if epoch < self._epoch:
                self._epoch = self._offset_epoch = epoch
            elif epoch > self._epoch:
                self._stamps.hurry()  # the other process reads this one's
        if correlation_id == self._beginning:
            self._beginning = None
            self._on_begun(follower)
        for done in self._marks.pop(correlation_id, ()):
            done(offset)

    def _take_event(self, follower: Follower, offset: int, message: Incoming) -> None:
        event: EventMessage
        try:
            event = as_event(message)
        except codec.InvalidMessage:  # the event queue counts and logs it
            return
        follower.on_kept(offset, event)

    # --- marks and stamps -------------------------------------------------------------------------------------

    def mark(self, done: Callable[[int], None]) -> None:
        """Call ``done`` with the offset of a message that is written now, once it has come."""
        self._waiting.append(done)
        self._send_marks_soon()

    def _send_marks_soon(self) -> None:
        """Write one mark for all that wait, but not too often."""
        if self._mark_timer is not None or not self._waiting:
            return
        wait = self._marked_at + MARK_INTERVAL - time.monotonic()
        if wait <= 0:
            self._send_mark()
        else:
            self._mark_timer = asyncio.get_running_loop().call_later(wait, self._on_mark_timer)

    def _on_mark_timer(self) -> None:
        self._mark_timer = None
        try:
            self._send_mark()
        except MeshUnavailable as error:  # those that wait give up after a while
            logger.debug("mesh: a mark for %s could not be written: %s", self.stream, error)

    def _send_mark(self) -> None:
        mark = self._mark_id()
        waiting, self._waiting = self._waiting, []
        self._marked_at = time.monotonic()
        self._publish(self.stream, mark)
        self._marks[mark] = waiting

    @staticmethod
    def _mark_id() -> str:
        return f"{MARK}mark-{new_id()}"

    def _stamp(self) -> None:
        """Write the epoch, with the latest offset that is known."""
        self._publish(self.stream, self._stamp_id())
        self._stamps.reset()

    def _stamp_id(self) -> str:
        return f"{_STAMP}{self._epoch}-{-1 if self._offset is None else self._offset}"

    def _stamp_new(self) -> None:
        """Begin a new stream with a stamp, once messages can be published."""
        if self._is_new and self._can_publish():
            self._is_new = False
            self._publish(self.stream, f"{_STAMP}{new_id()}--1")

    def _try_to_stamp(self) -> None:
        try:
            self._stamp()
        except MeshUnavailable as error:
            logger.debug("mesh: a stamp for %s could not be written: %s", self.stream, error)

    # --- the past ---------------------------------------------------------------------------------------------

    async def read(self, start: Start, end: int, wanted: Callable[[EventMessage], bool], limit: int, size: int) -> Read:
        """Read the wanted events from ``start`` to the offset ``end``."""
        connection = self._connection
        if connection is None or connection.closing.done():
            raise MeshUnavailable("not connected")
        return await read(connection, self.stream, start, end, wanted, limit, size)


class _Stamps:
    """Tells when the stamp of a stream has to be repeated, before the broker drops the latest one."""

    def __init__(self, topic: KeptTopic) -> None:
        self._seconds = float("inf") if topic.seconds is None else topic.seconds / STAMPS_KEPT
        self._size = topic.size // STAMPS_KEPT
        self.reset()

    def reset(self) -> None:
        """Take note of a stamp."""
        self._count = self._bytes = 0
        self._at = time.monotonic()
        self._limit = STAMP_AFTER + random.randrange(STAMP_AFTER)  # noqa: S311 - not for secrets

    def hurry(self) -> None:
        """Have the next message be one after which a stamp is due."""
        self._count = self._limit

    @property
    def has_old(self) -> bool:
        """Whether messages came since the latest stamp."""
        return self._count > 0

    def is_due(self, size: int) -> bool:
        """Count a message of ``size`` bytes; tell whether a stamp is due."""
        self._count += 1
        self._bytes += size
        return self._count > self._limit or self._bytes > self._size or time.monotonic() - self._at > self._seconds


def read_stamp(correlation_id: str | None, offset: int) -> str | None:
    """Return the epoch of a stamp at ``offset``, or None if the message is no stamp of this stream.

    A process that has not heard yet that the stream was deleted may write a stamp of the former one: it knows of
    offsets that the new stream has not reached.
    """
    if correlation_id is None or not correlation_id.startswith(_STAMP):
        return None
    epoch, _, known = correlation_id.removeprefix(_STAMP).partition("-")
    return epoch if known.lstrip("-").isdigit() and int(known) < offset else None
