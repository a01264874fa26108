"""The lane within aiormq: messages are taken off the queue of a channel's frames, and put into that of its writer."""

from __future__ import annotations

import asyncio
from typing import Any

import pamqp.frame
from aiormq.abc import AbstractChannel, AbstractConnection, ChannelFrame
from pamqp import commands
from pamqp.body import ContentBody
from pamqp.header import ContentHeader

from ._frames import Content
from ._lane import Lane, Publisher
from ._statistics import RabbitMQStatistics

__all__ = ["PlainLane"]

_CONTENT = (commands.Basic.Deliver, commands.Basic.Return, commands.Basic.Ack, commands.Basic.Nack)


class PlainLane(Lane):
    """See the module."""

    def __init__(self, connection: AbstractConnection) -> None:
        self._connection = connection

    def publisher(
        self, plain: AbstractChannel, confirmed: AbstractChannel, frame_max: int, statistics: RabbitMQStatistics
    ) -> Publisher:
        return _QueuedPublisher(self._connection, plain, confirmed, frame_max, statistics)

    def take(self, channel: AbstractChannel, content: Content) -> None:
        frames: asyncio.Queue[Any] = channel.frames
        pass_on = frames.put

        async def put(item: tuple[int, Any]) -> None:
            frame = item[1]
            if isinstance(frame, ContentBody):
                taken = content.take(3, frame.value)
            elif isinstance(frame, ContentHeader):
                taken = content.take(2, frame.marshal())
            else:
                # As it came: pamqp writes what it has read in the same way.
                taken = isinstance(frame, _CONTENT) and content.take(1, pamqp.frame.marshal(frame, 0)[7:-1])
            if not taken:
                await pass_on(item)

        frames.put = put  # type: ignore[method-assign]

    def write(self, frame: bytes) -> bool:
        try:
            self._connection.write_queue.put_nowait(ChannelFrame(frame, should_close=False))
        except asyncio.QueueFull:
            return False
        return True


class _QueuedPublisher(Publisher):
    """Hands everything that there is to the connection's writer, and waits until that has written it."""

    def __init__(
        self,
        connection: AbstractConnection,
        plain: AbstractChannel,
        confirmed: AbstractChannel,
        frame_max: int,
        statistics: RabbitMQStatistics,
    ) -> None:
        super().__init__(plain, confirmed, frame_max, statistics)
        self._connection = connection
        self._event = asyncio.Event()

    def _wake(self) -> None:
        self._event.set()

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._event.wait()
            self._event.clear()
            # What comes while the broker blocks stays here, where it can expire.
            await self._connection.ready()
            frames = self._take(loop.time())
            if frames:
                drained = loop.create_future()
                frame = ChannelFrame(b"".join(frames), should_close=False, drain_future=drained)
                await self._connection.write_queue.put(frame)
                # While the broker does not read, this waits, and what comes in the meantime can expire unsent.
                await drained

    @property
    def blocked(self) -> bool:
        # aiormq tells only those who wait in ready(): so begin to wait, and see whether that is needed.
        waiting = self._connection.ready()
        try:
            waiting.send(None)
        except StopIteration:
            return False
        waiting.close()
        return True
