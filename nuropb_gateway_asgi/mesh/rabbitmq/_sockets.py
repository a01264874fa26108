"""The socket under a connection of aiormq, opened here: a lane sees its bytes, and a dead one is dropped at once."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable
from typing import Any, ClassVar, Final

from aiormq.exceptions import AMQPConnectionError, InvalidFrameError
from yarl import URL

from ._readable import ReadableFrames

__all__ = ["Socket", "SocketListener"]


#: Class and method at the start of the frame by which a broker closes a connection.
_CONNECTION_CLOSE: Final = b"\x00\x0a\x00\x32"


class SocketListener:
    """The events of a socket, before aiormq has them. By default, aiormq gets everything."""

    def on_connect(self, transport: asyncio.Transport) -> None:
        """Take note of the transport."""

    def feed(self, data: bytes) -> bytes:
        """Take received bytes; return those that are for aiormq."""
        return data

    def pause_writing(self) -> None:
        """Write no more for now: the transport's buffer is full."""

    def resume_writing(self) -> None:
        """Write again."""


class Socket:
    """The socket of one connection, opened when aiormq asks for it (an ``aiormq.TransportFactory``)."""

    #: Whether every frame is checked before aiormq decodes it: from the first connection on that was lost by an
    #: undecodable frame. A check costs a second decoding.
    careful: ClassVar[bool] = False

    def __init__(self, listener: SocketListener, ip: str) -> None:
        self._listener = listener
        self._ip = ip
        self._transport: asyncio.Transport | None = None
        self._protocol: _Protocol | None = None

    async def create(self, url: URL, **kwargs: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect to the numeric address, under the host name of ``url``; aiormq calls this.

        Raises AMQPConnectionError, as aiormq's own factories do.
        """
        context = await kwargs["ssl_context_provider"].get_context() if url.scheme == "amqps" else None
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(loop=loop)
        protocol = self._protocol = _Protocol(self._feed(), self._listener, reader, loop)
        try:
            transport, _ = await loop.create_connection(
                lambda: protocol,
                self._ip,
                url.port or 0,
                ssl=context,
                server_hostname=None if context is None else url.host,
            )
        except OSError as error:
            raise AMQPConnectionError(*error.args) from error
        self._transport = transport
        self._listener.on_connect(transport)
        return reader, asyncio.StreamWriter(transport, protocol, reader, loop)

    def _feed(self) -> Callable[[bytes], bytes]:
        feed = self._listener.feed
        if not self.careful:
            return feed
        readable = ReadableFrames()
        return lambda data: readable.feed(feed(data))

    def last_words(self) -> str:
        """Return the text with which the broker has just closed the connection, or "".

        aiormq drops the text of a broker that closes in the place of an expected answer (AMQP 0-9-1, section 1.4.2.10).
        """
        last = b"" if self._protocol is None else self._protocol.last
        _, found, text = last.rpartition(_CONNECTION_CLOSE)
        return text[3 : 3 + text[2]].decode(errors="replace") if found and len(text) > 2 else ""

    def abort(self) -> None:
        """Reset the connection, without the goodbyes that a dead peer would not answer."""
        if self._transport is None:
            return
        raw = self._transport.get_extra_info("socket")
        if raw is not None:
            with contextlib.suppress(OSError):
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()

    @classmethod
    def on_closed(cls, closing: asyncio.Future[Any]) -> None:
        """Be careful from now on if a connection has ended by an undecodable frame."""
        error = None if closing.cancelled() else closing.exception()
        if isinstance(error, InvalidFrameError | RecursionError):
            cls.careful = True


class _Protocol(asyncio.StreamReaderProtocol):
    """The events of the transport, by way of the listener to aiormq."""

    def __init__(
        self,
        feed: Callable[[bytes], bytes],
        listener: SocketListener,
        reader: asyncio.StreamReader,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        super().__init__(reader, loop=loop)
        self._feed = feed
        self._listener = listener
        #: The bytes that came last.
        self.last = b""

    def data_received(self, data: bytes) -> None:
        self.last = data
        rest = self._feed(data)
        if rest:
            super().data_received(rest)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._listener.pause_writing()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._listener.resume_writing()
