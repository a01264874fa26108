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

import logging
from collections.abc import Callable, Sequence
from typing import Final

from aiormq.abc import AbstractChannel
from aiormq.exceptions import ChannelAccessRefused, ChannelPreconditionFailed

from ...exceptions import MeshUnavailable
from ...identifiers import new_id
from ...wire import codec
from ...wire.history import Follower, KeptTopic, Read, Start
from ...wire.interface import EventMessage
from ._connection import Connection
from ._frames import Incoming
from ._history_queue import HistoryQueue, is_away
from ._marks import Marks, mark_id
from ._stamps import STAMP_AFTER, Stamps, read_stamp, stamp_id
from ._stream_reader import MARK, StreamConsumer, as_event, collect, read

__all__ = ["StreamLog"]

logger = logging.getLogger(__name__)

#: Messages that are read from the beginning to find a stamp.
SEARCHED_FOR_STAMP: Final = 3 * STAMP_AFTER


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
        self._queue = HistoryQueue(service_name, topic)
        self.stream = self._queue.name
        self._publish = publish
        self._can_publish = can_publish
        self._wake = wake
        self.available = True
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
        #: Whether events are lost that the follower has not been told of.
        self._has_missed = False
        #: The correlation id of the mark behind which live events begin.
        self._beginning: str | None = None
        self._marks = Marks(self.stream, publish)
        self._stamps = Stamps(topic)

    @property
    def warning(self) -> str | None:
        """The reason why the stream keeps events in another way than the settings say, or None."""
        return self._queue.warning

    @property
    def epoch(self) -> str | None:
        """The epoch of the stream, once it is followed."""
        return self._epoch if self._beginning is None else None

    # --- its part of the connection of streams --------------------------------------------------------------------

    async def declare(self, connection: Connection) -> None:
        """Declare the stream and its binding."""
        try:
            is_new = await self._queue.declare(connection)
        except (ChannelAccessRefused, ChannelPreconditionFailed) as error:
            if not is_away(error):
                self._give_up()
            raise
        self.available = True
        self._is_new = self._is_new or is_new
        self._stamp_new()

    def _give_up(self) -> None:
        """Note that there is no history for this user."""
        self.available = False
        self._queue.distrust()
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
            self._has_missed = True
        start = "next" if self._offset is None else self._offset
        # Messages come before the answer of the broker to the consumer is read: all of this has to be known by then.
        self._resumes = resumes
        self._epoch = self._offset_epoch = epoch or new_id()
        if not resumes:
            # A stamp is a mark, too.
            self._beginning = mark_id() if epoch is not None else stamp_id(self._epoch, self._offset)
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
        if self._has_missed:  # told now, so that whatever comes after the client has loaded its state anew comes to it
            self._has_missed = False
            follower.on_missed()
        follower.on_started(-1 if self._offset is None else self._offset)
        self._marks.send_soon()

    async def _find_epoch(self, connection: Connection) -> str | None:
        """Read the first stamp of the stream. Returns None if there is none, or if it lies too far from the beginning.

        Raises MeshUnavailable, and ChannelAccessRefused.
        """
        found: list[str] = []
        end = mark_id()
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
        self._marks.forget_sent()

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
        self._has_missed = False
        self._stop()
        self._marks.clear()
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
        self._marks.take(correlation_id, offset)

    def _take_event(self, follower: Follower, offset: int, message: Incoming) -> None:
        event: EventMessage
        try:
            event = as_event(message)
        except codec.InvalidMessage:  # the event queue counts and logs it
            return
        follower.on_kept(offset, event)

    # --- marks and stamps -------------------------------------------------------------------------------------

    def mark(self, done: Callable[[int], None]) -> None:
        """Call ``done`` with the offset of a message that is written now, once it has come. Raises MeshUnavailable."""
        if self._consumer is None:  # a message into a stream that is away could cost the connection
            raise MeshUnavailable("the history is not read at the moment")
        self._marks.ask(done)

    def _stamp(self) -> None:
        """Write the epoch, with the latest offset that is known."""
        self._publish(self.stream, stamp_id(self._epoch, self._offset))
        self._stamps.reset()

    def _stamp_new(self) -> None:
        """Begin a new stream with a stamp, once messages can be published."""
        if self._is_new and self._can_publish():
            self._is_new = False
            self._publish(self.stream, stamp_id(new_id(), None))

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
