"""A connection to the broker: made by aio-pika, with the socket under it and the lane of its messages.

aio-pika connects; channels, topology and messages go by the aiormq connection within.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

import aio_pika
from aiormq.abc import AbstractChannel, AbstractConnection
from aiormq.exceptions import ConnectionClosed, InvalidFrameError
from yarl import URL

from . import _aiormq
from ._addresses import Address
from ._errors import BrokerRefused, ending
from ._fast import FastLane
from ._lane import Lane, LaneName, OnConfirm, OnReturn, Publisher
from ._plain import PlainLane
from ._sockets import Socket
from ._statistics import RabbitMQStatistics
from ._tls import check_files

__all__ = ["Connection", "close", "connect"]

#: Seconds. aiormq notices a dead peer after (heartbeat + 1) * 3 at the latest.
HEARTBEAT: Final = 10
#: Seconds to close a channel.
CHANNEL_CLOSE_TIMEOUT: Final = 3.0
#: Connections that are closed in the background; the event loop itself keeps no reference to a task.
_closing: set[asyncio.Task[None]] = set()


class Connection:
    """One connection, until it is closed or lost; a :class:`~._link.Link` makes the next one."""

    def __init__(self, pika: aio_pika.Connection, raw: AbstractConnection, lane: Lane, socket: Socket | None) -> None:
        self._pika = pika
        #: aiormq's connection.
        self.raw = raw
        self.lane = lane
        self._socket = socket
        #: An open channel that nobody uses, or none.
        self._spare: list[AbstractChannel] = []

    @property
    def closing(self) -> asyncio.Future[Any]:
        """The end of the connection, with the exception that it ended by."""
        return self.raw.closing

    @property
    def end(self) -> BaseException | None:
        """The exception that the connection has ended by, or None."""
        return ending(self.closing)

    async def open_channel(self, *, confirms: bool = False) -> AbstractChannel:
        """Open a channel; with ``confirms``, the broker confirms the messages that are published on it."""
        await self.raw.ready()
        return await self.raw.channel(publisher_confirms=confirms)

    async def open_publisher(
        self, statistics: RabbitMQStatistics, *, confirm_events: bool, on_return: OnReturn, on_confirm: OnConfirm
    ) -> tuple[Publisher, Sequence[AbstractChannel]]:
        """Open a plain and a confirmed channel, and make a publisher on them (:meth:`Lane.publisher`); return all."""
        plain, confirmed = await self.open_channel(), await self.open_channel(confirms=True)
        publisher = self.lane.publisher(
            self.raw,
            plain,
            confirmed,
            statistics,
            confirm_events=confirm_events,
            on_return=on_return,
            on_confirm=on_confirm,
        )
        return publisher, (plain, confirmed)

    @contextlib.asynccontextmanager
    async def channel(self) -> AsyncIterator[AbstractChannel]:
        """Return a channel for one change of the topology: the broker closes a channel for a change that it refuses.

        The channel of a change that succeeded serves the next one: every process declares its topology again and again,
        and a channel costs the broker more than what is done on it.
        """
        channel = self._spare.pop() if self._spare else await self.open_channel()
        if channel.is_closed:
            channel = await self.open_channel()
        try:
            yield channel
        except BaseException:
            await close(channel)
            raise
        if self._spare or channel.is_closed:
            await close(channel)
        else:
            self._spare.append(channel)

    async def close(self) -> None:
        """Close in good order."""
        self.lane.close()
        await self._pika.close(ConnectionClosed)

    def abort(self) -> None:
        """Drop the connection at once, without a word to a peer that may be dead."""
        self.lane.close()
        if self._socket is not None:
            self._socket.abort()
            return
        task = asyncio.get_running_loop().create_task(self._pika.close(ConnectionClosed), name="mesh abort")
        _closing.add(task)
        task.add_done_callback(_closing.discard)


async def close(channel: AbstractChannel) -> None:
    """Close a channel. Raises TimeoutError: on a cluster, a channel can wait for a node that does not answer."""
    async with asyncio.timeout(CHANNEL_CLOSE_TIMEOUT):
        await channel.close()


async def connect(address: Address, name: str, lane: LaneName = "fast") -> Connection:
    """Connect. ``name`` is for the broker's operator; ``lane`` is the preferred one."""
    lane_: Lane = FastLane() if lane == "fast" and _aiormq.FAST_LANE else PlainLane()
    socket = Socket(lane_, address.ip) if _aiormq.OWN_SOCKETS else None
    pika = aio_pika.Connection(URL(with_heartbeat(address.endpoint)), client_properties={"connection_name": name})
    if socket is not None:
        pika.kwargs["transport_factory"] = socket
    try:
        await asyncio.to_thread(check_files, address.endpoint)
        await pika.connect()
        transport = pika.transport
        if transport is None:
            raise ConnectionError("the connection was lost at once")
        raw = transport.connection
        await raw.ready()
    except BaseException as error:
        words = socket.last_words() if socket is not None and isinstance(error, InvalidFrameError) else ""
        if socket is not None:
            socket.abort()
        await pika.close()  # else, collected as garbage, it would start a task to close itself
        if words:
            raise BrokerRefused(words) from error
        raise
    raw.closing.add_done_callback(Socket.on_closed)
    return Connection(pika, raw, lane_, socket)


def with_heartbeat(url: str) -> str:
    """Return ``url`` with a heartbeat, unless it has one."""
    parts = urlsplit(url)
    if "heartbeat=" in parts.query:
        return url
    query = f"{parts.query}&heartbeat={HEARTBEAT}" if parts.query else f"heartbeat={HEARTBEAT}"
    return urlunsplit(parts._replace(query=query))
