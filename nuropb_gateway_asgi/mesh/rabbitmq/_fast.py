"""The lane in front of aiormq: it sees a connection's bytes first, and writes its own to the same transport.

aiormq owns the connection: its handshake, heartbeats, channels and end. What the lane takes off a channel never reaches
it, and what the lane writes are whole frames on channels that nobody else publishes on, so neither disturbs the other.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import Final

from aiormq.abc import AbstractChannel

from ._frames import HEARTBEAT, Content, Splitter
from ._lane import Lane, Publisher
from ._statistics import RabbitMQStatistics

__all__ = ["FastLane"]

#: Seconds. aiormq gives a connection up on which it has seen no frame for long, and a broker that sends messages sends
#: no heartbeats; so it is told at this interval that something came.
SIGN_OF_LIFE: Final = 1.0


class _Protocol(asyncio.StreamReaderProtocol):
    """What the transport tells, by way of the lane."""

    def __init__(self, lane: FastLane, reader: asyncio.StreamReader, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(reader, loop=loop)
        self._lane = lane

    def data_received(self, data: bytes) -> None:
        rest = self._lane.feed(data)
        if rest:
            super().data_received(rest)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._lane.paused = True

    def resume_writing(self) -> None:
        super().resume_writing()
        self._lane.paused = False
        self._lane.flush()


class FastLane(Lane):
    """See the module. It has a connection once :meth:`open` has returned."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._splitter = Splitter(self._on_blocked)
        self._transport: asyncio.Transport | None = None
        self._told_at = 0.0
        self._publisher: _DirectPublisher | None = None
        #: The transport has more than it can send for now.
        self.paused = False
        #: The broker has said that it does not read what is published.
        self.blocked = False

    async def open(
        self, host: str, port: int, *, context: ssl.SSLContext | None
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect; what :func:`asyncio.open_connection` would return. Raises OSError."""
        reader = asyncio.StreamReader(loop=self._loop)
        protocol = _Protocol(self, reader, self._loop)
        transport, _ = await self._loop.create_connection(lambda: protocol, host, port, ssl=context)
        self._transport = transport
        return reader, asyncio.StreamWriter(transport, protocol, reader, self._loop)

    # --- what comes -------------------------------------------------------------------------------------------

    def feed(self, data: bytes) -> bytes:
        """Take what is the lane's; the rest is aiormq's."""
        rest = self._splitter.feed(data)
        if self._splitter.took and not rest:
            now = self._loop.time()
            if now - self._told_at > SIGN_OF_LIFE:
                self._told_at = now
                return HEARTBEAT
        return rest

    def take(self, channel: AbstractChannel, content: Content) -> None:
        self._splitter.add(channel.number, content)

    # --- what goes --------------------------------------------------------------------------------------------

    def publisher(
        self, plain: AbstractChannel, confirmed: AbstractChannel, frame_max: int, statistics: RabbitMQStatistics
    ) -> Publisher:
        self._publisher = _DirectPublisher(self, plain, confirmed, frame_max, statistics)
        return self._publisher

    def write(self, frame: bytes) -> bool:
        if self._transport is None or self._transport.is_closing():
            return True  # it is as good as lost on the way, and whoever notices makes everything anew
        if self.paused:
            return False
        self._transport.write(frame)
        return True

    @property
    def ready(self) -> bool:
        """Whether a message is on its way when it is written."""
        return not (self.paused or self.blocked or self._transport is None or self._transport.is_closing())

    def flush(self) -> None:
        """Write what waited until it is possible."""
        if self._publisher is not None:
            self._publisher.flush()

    def _on_blocked(self, blocked: bool) -> None:
        self.blocked = blocked
        if not blocked:
            self.flush()


class _DirectPublisher(Publisher):
    """Writes to the transport, once per turn of the event loop, all that was put in that turn.

    While the broker does not read, messages wait here, where they can expire unsent.
    """

    def __init__(
        self,
        lane: FastLane,
        plain: AbstractChannel,
        confirmed: AbstractChannel,
        frame_max: int,
        statistics: RabbitMQStatistics,
    ) -> None:
        super().__init__(plain, confirmed, frame_max, statistics)
        self._lane = lane
        self._loop = asyncio.get_running_loop()
        self._scheduled = False
        self._soon: Callable[[Callable[[], None]], object] = self._loop.call_soon

    def _wake(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._soon(self.flush)

    async def run(self) -> None:
        # It needs no task; the connection's end is told to others.
        await self._loop.create_future()

    @property
    def blocked(self) -> bool:
        return self._lane.blocked

    def flush(self) -> None:
        """Write what there is, if that is possible now."""
        self._scheduled = False
        if self._items and self._lane.ready:
            frames = self._take(self._loop.time())
            if frames:
                self._lane.write(b"".join(frames))
