"""The stream of a history as a queue of the broker: its name, arguments, binding, and the permissions of the user."""

from __future__ import annotations

import logging
from typing import Any, Final

from aiormq.exceptions import ChannelAccessRefused, ChannelNotFoundEntity, ChannelPreconditionFailed

from ...exceptions import SettingsError
from ...wire import codec
from ...wire.history import KeptTopic
from ._connection import Connection
from ._errors import explain
from ._frames import Incoming
from ._stream_reader import StreamConsumer

__all__ = ["HOME_NODE", "HistoryQueue", "is_away"]

logger = logging.getLogger(__name__)

#: A stream drops whole segments: so many make up its bytes.
SEGMENTS: Final = 8
MAX_NAME_BYTES: Final = 255
#: In RabbitMQ's words for a queue that exists, and cannot be reached.
HOME_NODE: Final = "home node"
#: In its words for a stream of which this node has no copy that runs, as for a moment after a change of the leader.
NO_REPLICA: Final = "replica on the local node"


class HistoryQueue:
    """The stream of one pattern. Raises SettingsError for a pattern that is too long."""

    def __init__(self, service_name: str, topic: KeptTopic) -> None:
        self.name = f"nuropb-{service_name}-history-{topic.pattern}"
        if len(self.name.encode()) > MAX_NAME_BYTES:
            raise SettingsError(
                f"HISTORY: the queue of {topic.pattern!r} would have a name of more than {MAX_NAME_BYTES} bytes; "
                "expected a shorter pattern, or a shorter SERVICE_NAME"
            )
        self._topic = topic
        #: The reason why the stream keeps events in another way than the settings say, or None.
        self.warning: str | None = None
        #: The connection on which arguments and permissions were checked last.
        self._checked: Connection | None = None

    async def declare(self, connection: Connection) -> bool:
        """Declare the stream and its binding; return whether it is a new one.

        Raises ChannelAccessRefused without a permission, and ChannelPreconditionFailed for a queue of another kind, or
        for a stream that :func:`is_away`.
        """
        try:
            is_there = await self._is_there(connection)
            if not is_there or self._checked is not connection:
                await self._make_or_check(connection, is_there=is_there)
            async with connection.channel() as channel:
                await channel.queue_bind(self.name, codec.EVENTS_EXCHANGE, self._topic.pattern)
            if self._checked is not connection:
                # The operator learns now that the user may not read it, and not from the first client.
                consumer = await StreamConsumer.open(connection, self.name, "next", _ignore, lambda: None)
                await consumer.close()
                self._checked = connection
        except (ChannelAccessRefused, ChannelPreconditionFailed):
            self.distrust()
            raise
        return not is_there

    def distrust(self) -> None:
        """Have the next declaration check everything again, as a permission is missing."""
        self._checked = None

    async def _make_or_check(self, connection: Connection, *, is_there: bool) -> None:
        """Declare the stream, which compares its arguments if it is there."""
        try:
            async with connection.channel() as channel:
                await channel.queue_declare(self.name, durable=True, arguments=self._arguments())
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
                await channel.queue_declare(self.name, durable=True, passive=True)
        except ChannelNotFoundEntity as error:
            if HOME_NODE in str(error):  # it exists, and its leader is down, or not elected yet
                raise
            return False
        return True

    async def _check_other(self, connection: Connection, error: ChannelPreconditionFailed) -> None:
        """Use a stream that was made with other arguments. Raises ChannelPreconditionFailed if it is no stream."""
        try:
            async with connection.channel() as channel:
                await channel.queue_declare(self.name, durable=True, arguments={"x-queue-type": "stream"})
        except ChannelPreconditionFailed as other:
            if "x-queue-type" in str(other) or "durable" in str(other):
                raise
        if self.warning is None:
            self.warning = (
                f"the stream {self.name} was made with other arguments than HISTORY says, and keeps events as it was "
                f"made ({explain(error)}); delete it, and the gateway makes it anew"
            )
            logger.warning("mesh: %s", self.warning)

    def _arguments(self) -> dict[str, Any]:
        """Return the arguments with which the gateway declares it."""
        topic = self._topic
        arguments: dict[str, Any] = {
            "x-queue-type": "stream",
            "x-max-length-bytes": topic.size,
            "x-stream-max-segment-size-bytes": max(topic.size // SEGMENTS, 65536),
        }
        if topic.seconds is not None:
            arguments["x-max-age"] = f"{topic.seconds}s"
        return arguments


def is_away(error: BaseException) -> bool:
    """Tell whether a stream is refused because this node has no copy that runs, which will come back."""
    return isinstance(error, ChannelPreconditionFailed) and NO_REPLICA in str(error)


def _ignore(offset: int, message: Incoming) -> None:
    """Take no note of a message."""
