"""The lane on aiormq's documented interface: ``basic_publish``, ``basic_consume``, ``basic_ack``, ``ready``.

It keeps the promises of the fast lane, at a higher cost: a task and some futures for every message, and for requests a
confirm of the broker, as aiormq reports a returned message only where it waits for a confirm. aiormq also gives every
message a ``message_id``.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import Any, ClassVar, Final, NamedTuple

import anyio
import pamqp.frame
from aiormq.abc import AbstractChannel, AbstractConnection
from aiormq.exceptions import AMQPException, ChannelInvalidStateError, DeliveryError, PublishError
from anyio.abc import TaskGroup
from pamqp import commands
from pamqp.body import ContentBody
from pamqp.header import ContentHeader

from ._aiormq import written
from ._errors import CONNECTION_ERRORS
from ._lane import EVENT, Lane, LaneName, OnConfirm, OnReturn, Publisher, guarded
from ._statistics import RabbitMQStatistics

__all__ = ["NO_FRAME_MAX", "PlainLane", "read_publish"]

logger = logging.getLogger(__name__)

#: Messages that may be with aiormq at the same time, until they are written or confirmed.
WINDOW: Final = 100
#: Seconds. aiormq's ``ready()`` waits while the broker blocks publishers; one that takes longer than this means that.
READY_WITHIN: Final = 0.01
#: Seconds between looks at ``ready()`` beside those before each batch.
READY_INTERVAL: Final = 0.25
#: aiormq splits bodies by the connection's own limit, so the frames between the mesh and this lane have none.
NO_FRAME_MAX: Final = 2**31


class PlainLane(Lane):
    """Messages by way of aiormq."""

    name: ClassVar[LaneName] = "plain"

    def __init__(self) -> None:
        self._acknowledging: dict[AbstractChannel, asyncio.Task[None]] = {}

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
        return _TaskPublisher(
            connection, plain, confirmed, statistics, on_return, on_confirm, confirm_events=confirm_events
        )

    def acknowledge(self, channel: AbstractChannel, tag: int) -> bool:
        if channel in self._acknowledging:
            return False
        task = asyncio.get_running_loop().create_task(self._acknowledge(channel, tag), name="mesh acknowledgement")
        self._acknowledging[channel] = task
        task.add_done_callback(lambda _: self._acknowledging.pop(channel, None))
        return True

    async def _acknowledge(self, channel: AbstractChannel, tag: int) -> None:
        with contextlib.suppress(
            AMQPException, ChannelInvalidStateError
        ):  # the channel was closed: the messages come again
            await channel.basic_ack(tag, multiple=True, wait=False)

    def close(self) -> None:
        for task in tuple(self._acknowledging.values()):
            task.cancel()


class _Message(NamedTuple):
    """A message as ``basic_publish`` takes it."""

    correlation_id: str
    body: bytes
    properties: commands.Basic.Properties
    exchange: str
    routing_key: str
    mandatory: bool
    #: The number of bytes that it takes up in the queue.
    size: int
    #: The key in the table of unconfirmed messages, for a message on the confirmed channel.
    tag: int | None

    @property
    def is_counted(self) -> bool:
        """Whether it is an event that the broker is to confirm: these are limited by their own number."""
        return self.tag is not None and self.correlation_id == EVENT


class _TaskPublisher(Publisher):
    """Publishes in batches, each message in a task, and each batch once the one before has been written.

    While the broker does not read, messages wait here, where they can expire unsent.
    """

    def __init__(
        self,
        connection: AbstractConnection,
        plain: AbstractChannel,
        confirmed: AbstractChannel,
        statistics: RabbitMQStatistics,
        on_return: OnReturn,
        on_confirm: OnConfirm,
        *,
        confirm_events: bool,
    ) -> None:
        super().__init__(1, 2, NO_FRAME_MAX, statistics, confirm_events=confirm_events)
        self._connection = connection
        self._plain = plain
        self._confirmed = confirmed
        self._on_return = on_return
        self._on_confirm = on_confirm
        self._event = asyncio.Event()
        self._room = asyncio.Semaphore(WINDOW)
        self._blocked = False

    def _wake(self) -> None:
        self._event.set()

    @property
    def blocked(self) -> bool:
        return self._blocked

    async def run(self) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._watch_ready)
            while True:
                await self._event.wait()
                self._event.clear()
                while self._items:
                    await self._wait_until_ready()
                    await self._publish_batch(tasks)

    async def _watch_ready(self) -> None:
        while True:
            await self._wait_until_ready()
            await asyncio.sleep(READY_INTERVAL)

    async def _wait_until_ready(self) -> None:
        """Wait while the broker blocks publishers, or for ever once the connection is lost.

        Messages that come meanwhile can expire, or are reported as unsent.
        """
        if self._plain.is_closed or self._confirmed.is_closed:
            await asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(READY_WITHIN):
                await self._connection.ready()
        except TimeoutError:
            self._blocked = True
            await self._connection.ready()
            self._blocked = False

    async def _publish_batch(self, tasks: TaskGroup) -> None:
        """Publish the queued messages, as far as the window allows, and wait until they have been written."""
        await self._room.acquire()
        self._room.release()
        while self._items and not self._room.locked():
            message = self._take(time.monotonic())
            if message is not None:
                if not message.is_counted:  # whose confirm may take long
                    await self._room.acquire()
                tasks.start_soon(self._publish, message)
        await asyncio.sleep(0)  # the tasks begin
        await written(self._plain)
        await written(self._confirmed)

    async def _publish(self, message: _Message) -> None:
        channel = self._confirmed if message.mandatory or message.tag is not None else self._plain
        try:
            await channel.basic_publish(
                message.body,
                exchange=message.exchange,
                routing_key=message.routing_key,
                properties=message.properties,
                mandatory=message.mandatory,
            )
        except PublishError:
            self._settle(message)
            guarded(self._on_return, message.correlation_id)
        except DeliveryError:
            self._settle(message, accepted=False)
        except CONNECTION_ERRORS as error:
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
                raise
            # The link hears of the end of a connection or channel by itself, and the message stays unconfirmed.
            if not channel.is_closed:
                logger.exception("mesh: a message could not be published")
        else:
            self._settle(message, accepted=True)
        finally:
            self._size -= message.size
            if not message.is_counted:
                self._room.release()

    def _settle(self, message: _Message, *, accepted: bool | None = None) -> None:
        if message.tag is None:
            return
        del self._unconfirmed[message.tag]
        if message.is_counted:
            self._settle_events(1, accepted=accepted is not False)
        elif accepted is not None:
            guarded(self._on_confirm, message.correlation_id, accepted)

    def _take(self, now: float) -> _Message | None:
        """Take the next message off the queue, unless it has expired."""
        deadline, correlation_id, frames, confirmed = self._items.popleft()
        if deadline <= now:
            self._statistics.expired_unsent += 1
            self._size -= len(frames)
            if confirmed and correlation_id == EVENT:
                self._settle_events(1, accepted=True)
            return None
        publish, header, body = read_publish(frames)
        self._statistics.published += 1
        # Requests go by the confirmed channel, too.
        self._written.append((correlation_id, len(body), confirmed or publish.mandatory))
        tag: int | None = None
        if confirmed:
            tag = self._tag = self._tag + 1
            self._unconfirmed[tag] = correlation_id
        return _Message(
            correlation_id,
            body,
            header.properties,
            publish.exchange,
            publish.routing_key,
            publish.mandatory,
            len(frames),
            tag,
        )


def read_publish(frames: bytes) -> tuple[commands.Basic.Publish, ContentHeader, bytes]:
    """Decode the frames of one message, which has one body frame at the most."""
    decoded: list[Any] = []
    while frames:
        size, _, frame = pamqp.frame.unmarshal(frames)
        decoded.append(frame)
        frames = frames[size:]
    publish, header, *bodies = decoded
    body = bodies[0].value if bodies and isinstance(bodies[0], ContentBody) else b""
    return publish, header, body
