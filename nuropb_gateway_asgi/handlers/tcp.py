"""TCP connections, with or without TLS: one frame per line, and the token in the first frame."""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
import ssl
import time
import traceback
from collections.abc import AsyncIterator, Iterator
from typing import Final

import anyio
from anyio.abc import ByteStream, SocketAttribute, SocketListener, SocketStream, TaskGroup
from anyio.streams.buffered import BufferedByteReceiveStream
from anyio.streams.tls import TLSStream

from ..exceptions import SettingsError
from ..handler_manager import HandlerManager
from ..limits.admission import Arrival, address_of
from ..protocol import CloseCode, encode_event, encode_json, on_one_line
from ..settings import ENV_PREFIX, Settings
from ..sockets import hasten_end, set_options, skip_flush
from .connection import ClientLeft, Connection
from .handshake import admitted
from .refusals import Refusal, count_refusal

__all__ = ["TCPHandler", "TCPServer"]

logger = logging.getLogger(__name__)

#: Seconds for a TLS handshake.
HANDSHAKE_TIMEOUT: Final = 10.0
#: Seconds that a client has to close its side after the gateway has closed the connection.
CLIENT_CLOSE_TIMEOUT: Final = 1.0
#: Seconds for closing all connections when the gateway stops.
STOP_TIMEOUT: Final = 2.0
#: Seconds between pings of a client that has finished sending and waits for answers.
PROBE_INTERVAL: Final = 1.0
#: Seconds until the next attempt to accept a connection after the process ran out of file descriptors or memory.
ACCEPT_RETRY_INTERVAL: Final = 1.0
_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
#: The exceptions of a broken connection. A client may leave at any moment, so these are not errors.
_BROKEN: Final = (anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.BusyResourceError, OSError)


class TCPHandler(Connection):
    """A TCP connection: a task reads lines, another writes them."""

    def __init__(self, stream: ByteStream, handler_manager: HandlerManager, settings: Settings, address: str) -> None:
        super().__init__(handler_manager, settings, address)
        self._stream = stream
        self._lines = BufferedByteReceiveStream(stream)
        self._is_too_long = self._has_finished = False
        #: Whether the client was told that the gateway closes the connection.
        self.has_sent_close = False

    async def receive_message(self) -> bytes | None:
        """Return the next line, or None at the end. The last line may lack a line break.

        Of a line that is too long, return the beginning, which already exceeds the limit.
        """
        try:
            while self._is_too_long:  # drop the rest of the line: the connection is about to be closed
                await self._stream.receive()
            return await self._lines.receive_until(b"\n", self._settings.max_message_size + 1)
        except anyio.DelimiterNotFound:
            self._is_too_long = True
            return self._lines.buffer
        except (anyio.EndOfStream, anyio.IncompleteRead):
            rest = b"" if self._has_finished else self._lines.buffer
            self._has_finished = True
            return rest or None
        except _BROKEN:
            pass
        return None

    @property
    def has_told_end(self) -> bool:
        """Whether the client was told that the gateway closes the connection."""
        return self.has_sent_close

    def on_left(self) -> None:
        """End the connection. A client that has only finished sending still gets its outstanding answers."""
        if self._has_finished:
            # A client that has gone looks the same until something is sent, so send pings.
            self._ping_interval = min(self._ping_interval, PROBE_INTERVAL)
            self._expects_pongs = self._awaits_pong = False
            self._end_if_answered()
        else:
            super().on_left()

    def send_frame(self, text: str) -> None:
        """Put a frame into the outbox."""
        super().send_frame(text)
        if self._has_finished and self._tasks is not None:  # without tasks, the reader has not started yet
            self._end_if_answered()

    def wake(self) -> None:
        """Let the client's last answer end the connection if it has finished sending."""
        if self._has_finished and self._tasks is not None:
            self._end_if_answered()

    def _end_if_answered(self) -> None:
        if not self._manager.in_flight(self):
            self._outbox.close()

    def cut(self) -> None:
        """Have the end of the connection drop all that the client has not read."""
        skip_flush(self._stream.extra(SocketAttribute.raw_socket, None))

    async def send_text(self, text: str) -> None:
        """Send a frame. Raises ClientLeft."""
        try:
            await self._stream.send(on_one_line(text).encode() + b"\n")
        except (anyio.EndOfStream, *_BROKEN) as error:
            raise ClientLeft from error

    async def send_close(self, code: int, reason: str) -> None:
        """Send code and reason in a last event. Raises ClientLeft."""
        await self.send_text(encode_event("closed", encode_json({"code": int(code), "reason": reason})))
        self.has_sent_close = True


class TCPServer:
    """A listener at the address of the settings. ``tls`` applies to all connections; None is plain TCP."""

    def __init__(self, handler_manager: HandlerManager, settings: Settings, tls: ssl.SSLContext | None) -> None:
        self._manager = handler_manager
        self._settings = settings
        self._tls = tls
        self._listeners: list[SocketListener] = []
        self._open: set[SocketStream] = set()
        #: Scopes of connections that are not authorised yet.
        self._unauthorised: set[anyio.CancelScope] = set()
        self._all_closed = anyio.Event()

    @property
    def port(self) -> int | None:
        """The port that the server listens on; None while it does not listen."""
        return self._listeners[0].extra(SocketAttribute.local_port) if self._listeners else None

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Bind the address for as long as the context lasts. Connections wait in the kernel until :meth:`serving`.

        Raises SettingsError if the address cannot be bound.
        """
        assert self._settings.tcp_address is not None  # noqa: S101 - otherwise there is no server
        host, port = self._settings.tcp_address
        try:
            # Worker processes share the port: the kernel gives each connection to one of them.
            listener = await anyio.create_tcp_listener(
                local_host=host, local_port=port, reuse_port=hasattr(socket, "SO_REUSEPORT")
            )
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise SettingsError(
                f"{ENV_PREFIX}TCP: cannot listen on {self._settings.tcp} ({reason}); expected an address of this "
                "machine and a free port"
            ) from error
        self._listeners = [each for each in listener.listeners if isinstance(each, SocketListener)]
        try:
            for each in self._listeners:
                set_options(each.extra(SocketAttribute.raw_socket))
            logger.info("listening on %s://%s:%s", "tls" if self._tls else "tcp", host, self.port)
            yield
        finally:
            await self._stop_listening()

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Serve connections. At the end close them all, each with the reason as its last line."""
        async with anyio.create_task_group() as tasks:
            for listener in self._listeners:
                tasks.start_soon(self._accept, listener, tasks, name="TCP listener")
            try:
                yield
            finally:
                with anyio.move_on_after(STOP_TIMEOUT, shield=True):
                    await self._stop_listening()
                    for scope in self._unauthorised:
                        scope.cancel()
                    self._manager.close_all(CloseCode.SERVICE_RESTART, "service restart")
                    while self._open:
                        self._all_closed = anyio.Event()
                        await self._all_closed.wait()
                tasks.cancel_scope.cancel()

    async def _stop_listening(self) -> None:
        listeners, self._listeners = self._listeners, []
        for listener in listeners:
            await listener.aclose()

    async def _accept(self, listener: SocketListener, tasks: TaskGroup) -> None:
        while True:
            try:
                stream = await listener.accept()
            except anyio.ClosedResourceError:
                return
            except OSError as error:
                if error.errno not in _EXHAUSTED:
                    logger.debug("TCP: a client left before its connection was accepted")
                    continue
                logger.error("TCP: cannot accept connections: %s; trying again", error.strerror)
                await anyio.sleep(ACCEPT_RETRY_INTERVAL)
            else:
                tasks.start_soon(self._serve, stream, name="TCP connection")

    async def _serve(self, stream: SocketStream) -> None:
        """Serve one connection until it ends. An exception ends this connection only."""
        self._open.add(stream)
        try:
            async with stream:
                try:
                    with contextlib.suppress(ClientLeft):
                        await self._admit(stream)
                finally:
                    hasten_end(stream.extra(SocketAttribute.raw_socket, None))
        except Exception as error:
            # The exception's message is left out, because it may quote the token.
            logger.error("TCP: a connection failed with %s", type(error).__name__)
            logger.debug("".join(traceback.format_tb(error.__traceback__)))
        finally:
            self._open.discard(stream)
            if not self._open:
                self._all_closed.set()

    @contextlib.contextmanager
    def _authorising(self) -> Iterator[None]:
        with anyio.CancelScope() as scope:
            self._unauthorised.add(scope)
            try:
                yield
            finally:
                self._unauthorised.discard(scope)
        if scope.cancelled_caught:
            raise ClientLeft

    async def _admit(self, stream: SocketStream) -> None:
        address = address_of(stream.extra(SocketAttribute.remote_address, None))
        closed: ByteStream | None = None
        try:
            with admitted(self._manager, address, Arrival.WITHOUT_TOKEN):
                closed = await self._handle(stream, address)
        except Refusal as refusal:
            count_refusal(self._manager, refusal, address)
            if self._tls is None:  # a TLS handshake would cost more than the refusal is worth
                handler = TCPHandler(stream, self._manager, self._settings, address)
                await handler.send_refusal(refusal)
                closed = stream
        if closed is not None:  # its place is another client's already
            await _linger(closed, stream)

    async def _handle(self, raw: SocketStream, address: str) -> ByteStream | None:
        """Serve a connection. Returns its stream if the gateway closed it and the client has not left."""
        with self._authorising():
            stream = raw if self._tls is None else await self._secure(raw, self._tls, address)
            handler = TCPHandler(stream, self._manager, self._settings, address)
            try:
                authorised = await handler.authorise_by_frame()
            except Exception:
                with contextlib.suppress(ClientLeft):
                    await handler.send_close(CloseCode.INTERNAL_ERROR, "internal error")
                raise
        try:
            if authorised:
                await handler.run()
        finally:
            self._manager.unregister(handler)
        return stream if handler.has_sent_close else None

    async def _secure(self, raw: SocketStream, tls: ssl.SSLContext, address: str) -> ByteStream:
        """Make the TLS handshake. Raises ClientLeft if it fails, or if another client needs the place."""
        admission = self._manager.admission
        with anyio.CancelScope() as scope, admission.waiting(address, scope.cancel), contextlib.suppress(ClientLeft):
            return await _shake_hands(raw, tls)
        admission.on_failure(address, Arrival.WITHOUT_TOKEN, time.monotonic())
        raise ClientLeft


async def _shake_hands(raw: SocketStream, tls: ssl.SSLContext) -> ByteStream:
    try:
        with anyio.fail_after(HANDSHAKE_TIMEOUT):
            # "Standard compatible" would raise an error if a client ends the connection without close_notify, to detect
            # truncated data. Frames need no such protection: a truncated frame is not valid JSON.
            return await TLSStream.wrap(raw, server_side=True, ssl_context=tls, standard_compatible=False)
    except (anyio.EndOfStream, *_BROKEN) as error:  # garbage, another protocol, no common cipher, no answer
        logger.debug("TCP: a TLS handshake failed: %s", type(error).__name__)
        raise ClientLeft from error


async def _linger(stream: ByteStream, raw: SocketStream) -> None:
    """Give the client time to read the last line and to close its side. Drop all that it still sends.

    To close the socket earlier would reset the connection, and a reset may overtake the last line.
    """
    with anyio.move_on_after(CLIENT_CLOSE_TIMEOUT):
        if isinstance(stream, TLSStream):
            with contextlib.suppress(anyio.EndOfStream, *_BROKEN):
                await stream.unwrap()
        with contextlib.suppress(anyio.EndOfStream, *_BROKEN):
            await raw.send_eof()
            while True:
                await raw.receive()
