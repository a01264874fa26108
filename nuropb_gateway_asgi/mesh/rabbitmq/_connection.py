"""What has to be known of aio-pika's connections."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import struct
from contextvars import ContextVar
from typing import Any, ClassVar, Final, cast
from urllib.parse import urlsplit, urlunsplit

import aio_pika
import pamqp.frame
from aiormq.abc import AbstractChannel, TimeoutType
from aiormq.connection import TCPTransportFactory, TLSTransportFactory, TransportFactory
from aiormq.exceptions import (
    AMQPConnectionError,
    AuthenticationError,
    ChannelAccessRefused,
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
    InvalidFrameError,
    ProbableAuthenticationError,
)
from pamqp.exceptions import PAMQPException
from yarl import URL

from ...wire import codec
from ._fast import FastLane
from ._lane import Lane, LaneName
from ._plain import PlainLane

__all__ = [
    "CONNECTION_ERRORS",
    "Connection",
    "connect",
    "declare_exchanges",
    "explain",
    "open_channel",
    "quiet_libraries",
]

logger = logging.getLogger(__name__)

#: Seconds. aiormq notices a dead peer after (heartbeat + 1) * 3 at the latest.
HEARTBEAT: Final = 10
#: What an attempt or a connection can end with. A CancelledError is among them: aiormq cancels what waits for an
#: answer of the broker when the connection is lost. A RecursionError comes of a table that is nested too deep.
#: Beyond their own, aiormq raises a bare RuntimeError or Exception for a connection lost at the wrong moment.
CONNECTION_ERRORS: Final = (Exception, asyncio.CancelledError)


# Set in the tasks of a link, and so in those that aiormq starts for its connection.
_lane_name: ContextVar[LaneName] = ContextVar("nuropb_gateway_lane", default="fast")
_within_link: ContextVar[bool] = ContextVar("nuropb_gateway_within_link", default=False)
_LIBRARY_LOGGERS: Final = ("aiormq.connection", "aiormq.channel", "aio_pika.connection", "aio_pika.channel")


class _LibraryLogFilter(logging.Filter):
    """Turns what the libraries log about this package's connections into debug messages of its own.

    The link tells the operator once what is wrong. aiormq logs an error for each attempt to connect and a traceback
    for each loss. Other connections of a host application are left alone.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is to be logged as it is."""
        if not _within_link.get():
            return True
        if record.levelno > logging.DEBUG:  # at that they show every frame, with bodies and the password
            logger.debug("%s: %s", record.name, record.getMessage())
        return False


_library_log_filter = _LibraryLogFilter()


def quiet_libraries() -> None:
    """Have the current task's connections logged about by this package only."""
    _within_link.set(True)
    for name in _LIBRARY_LOGGERS:
        logging.getLogger(name).addFilter(_library_log_filter)


class _ReadableFrames:
    """The frames of a connection, but for the names and properties that pamqp cannot decode.

    A name that is not UTF-8, a date after the year 9999 or a table nested too deep ends a connection of aiormq. Nobody
    has acknowledged the message then, so it comes again and ends the next one, and so on. Without its properties it is
    a message like any other that is not NuroPb's.
    """

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader
        self._start = b""
        self.at_eof = reader.at_eof
        self.read = reader.read

    async def readexactly(self, size: int) -> bytes:
        """The next bytes. aiormq asks for a frame in three parts: its type, then channel and size, then the rest."""
        data = await self._reader.readexactly(size)
        if len(self._start) < _FRAME_START:
            self._start += data
            return data
        start, self._start = self._start, b""
        try:
            pamqp.frame.unmarshal(start + data)
        except (PAMQPException, RecursionError) as error:
            logger.debug("mesh: the properties of a message cannot be read: %s", explain(error))
            return _made_readable(start, data)
        return data


_FRAME_START: Final = 7
_METHOD_FRAME, _HEADER_FRAME, _DELIVER = 1, 2, b"\x00\x3c\x00\x3c"


def _made_readable(start: bytes, data: bytes) -> bytes:
    """The rest of a frame, as long as before."""
    if start[0] == _HEADER_FRAME:  # class (2 bytes), weight (2) and size of the body (8), then which properties follow
        return data[:12] + b"\x00\x00" + data[14:]
    if start[0] == _METHOD_FRAME and data.startswith(_DELIVER):
        names = 4 + 1 + data[4] + 8 + 1  # behind the consumer's tag, the delivery's tag and a flag
        key = names + 1 + data[names]
        return data[:names] + b"".join(_made_ascii(data[at : at + 1 + data[at]]) for at in (names, key)) + data[-1:]
    return data


def _made_ascii(short_string: bytes) -> bytes:
    return short_string[:1] + bytes(byte if byte < 0x80 else 0x3F for byte in short_string[1:])


class _Sockets(TransportFactory):
    """Makes a connection's socket and keeps it, for aiormq has no way to give a dead one up."""

    #: A connection was lost by a frame that could not be read: from then on every frame is looked at first. That costs
    #: a second decoding, which nobody pays before it is needed.
    careful: ClassVar[bool] = False

    def __init__(self, lane: FastLane | None) -> None:
        self._lane = lane
        self.writer: asyncio.StreamWriter | None = None

    async def create(self, url: URL, **kwargs: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._lane is None:
            factory = TLSTransportFactory() if url.scheme == "amqps" else TCPTransportFactory()
            reader, self.writer = await factory.create(url, **kwargs)
        else:
            context = await kwargs["ssl_context_provider"].get_context() if url.scheme == "amqps" else None
            try:
                reader, self.writer = await self._lane.open(url.host or "", url.port or 0, context=context)
            except OSError as error:
                raise AMQPConnectionError(*error.args) from error
        return cast("asyncio.StreamReader", _ReadableFrames(reader)) if self.careful else reader, self.writer

    @classmethod
    def on_closed(cls, closing: asyncio.Future[Any]) -> None:
        """A connection has ended."""
        error = None if closing.cancelled() else closing.exception()
        if isinstance(error, InvalidFrameError | RecursionError):
            cls.careful = True


class Connection(aio_pika.Connection):
    """A connection of aio-pika that can be dropped at once."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._fast = FastLane() if _lane_name.get() == "fast" else None
        self._sockets = _Sockets(self._fast)
        self.kwargs = {**self.kwargs, "transport_factory": self._sockets}

    async def connect(self, timeout: TimeoutType = None) -> None:  # noqa: ASYNC109 - as in the base class
        """Connect. An attempt that failed is over then: collected as garbage, it would start a task to close itself."""
        try:
            await super().connect(timeout)
        except BaseException:
            await self.close()
            raise

    @property
    def lane(self) -> Lane:
        """The way of messages on this connection, once it is there. Raises ConnectionError if it is gone."""
        if self._fast is not None:
            return self._fast
        if self.transport is None:
            raise ConnectionError("the connection was lost at once")
        return PlainLane(self.transport.connection)

    def abort(self) -> None:
        """Drop the connection without a word to a peer that does not listen."""
        writer = self._sockets.writer
        if writer is None:
            return
        raw = writer.get_extra_info("socket")
        if raw is not None:
            with contextlib.suppress(OSError):
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()


async def connect(url: str, name: str, lane: LaneName = "fast") -> Connection:
    """Connect; ``name`` is what the broker's operator sees."""
    _lane_name.set(lane)  # aio-pika makes the object, of the class alone
    connection = await aio_pika.connect(
        with_heartbeat(url), client_properties={"connection_name": name}, connection_class=Connection
    )
    if connection.transport is not None:
        connection.transport.connection.closing.add_done_callback(_Sockets.on_closed)
    return connection


def with_heartbeat(url: str) -> str:
    """``url`` with a heartbeat, unless it has one."""
    parts = urlsplit(url)
    if "heartbeat=" in parts.query:
        return url
    query = f"{parts.query}&heartbeat={HEARTBEAT}" if parts.query else f"heartbeat={HEARTBEAT}"
    return urlunsplit(parts._replace(query=query))


async def open_channel(connection: aio_pika.abc.AbstractConnection, *, confirms: bool = False) -> AbstractChannel:
    """A channel, as aiormq has it."""
    channel = await connection.channel(publisher_confirms=confirms)
    return await channel.get_underlay_channel()


async def declare_exchanges(connection: aio_pika.abc.AbstractConnection) -> None:
    """Declare NuroPb's exchanges, or find them there where this user may not declare any.

    Raises ConnectionError, which says what is missing. A failed declaration closes its channel, so each has its own.
    """
    for name, kind in (
        (codec.RPC_EXCHANGE, "direct"),
        (codec.EVENTS_EXCHANGE, "topic"),
        (codec.DEAD_LETTER_EXCHANGE, "fanout"),
    ):
        try:
            async with connection.channel() as channel:
                await channel.declare_exchange(name, kind, durable=True)
        except ChannelAccessRefused:
            try:
                async with connection.channel() as channel:
                    await channel.declare_exchange(name, kind, passive=True)
            except ChannelNotFoundEntity as error:
                raise ConnectionError(f"exchange {name} is missing, and this user may not declare it") from error
        except ChannelPreconditionFailed as error:
            raise ConnectionError(f"exchange {name} exists, but is not a durable {kind} exchange") from error


def explain(error: BaseException) -> str:
    """What went wrong, for an operator; these libraries put addresses into their messages, but no passwords."""
    if isinstance(error, BaseExceptionGroup):
        return explain(error.exceptions[0])
    if isinstance(error, AuthenticationError | ProbableAuthenticationError):
        return f"the broker refuses the credentials or the vhost ({error})"
    if isinstance(error, InvalidFrameError) and "got <Connection.Close " in str(error):
        # aiormq does not expect to be refused here, and the broker's own words are lost.
        return "the broker refuses the vhost: there is none of that name, or not for this user"
    if isinstance(error, TimeoutError):
        return "no answer from the broker in time"
    if isinstance(error, asyncio.CancelledError):
        return "the connection was lost"
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
