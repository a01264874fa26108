"""One connection, from its handshake to its end, on the websockets library."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl as ssl_module
from collections import deque
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

import anyio
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as connect_websocket
from websockets.exceptions import ConnectionClosed as WebSocketClosed
from websockets.exceptions import InvalidStatus, WebSocketException
from websockets.typing import Subprotocol

from .._version import __version__
from ..protocol import SUBPROTOCOL

__all__ = ["BROKEN", "Ending", "Link", "LinkOptions"]

#: The close code of a connection that just went, or that the client gave up.
BROKEN: Final = 1006
#: Seconds for the two ends to agree that it is over.
CLOSE_TIMEOUT: Final = 2.0
#: What a gateway means by a status, in close codes; all others below 500 are final, too, but say nothing more.
_CODES: Final = {401: 4510, 403: 4513, 400: 4505}
#: These are below 500 and may heal.
_TRANSIENT: Final = frozenset({408, 421, 425, 429})

# At its debug level websockets logs the headers of handshakes, and the token in them.
_wire_logger = logging.getLogger("nuropb_gateway_asgi.client.websockets")
_wire_logger.setLevel(logging.INFO)


@dataclass(frozen=True)
class Ending:
    """How a connection ended, or why it never came about."""

    code: int
    reason: str
    status: int | None = None
    cause: BaseException | None = None
    #: Trying again would not help.
    final: bool = False
    #: Seconds that the gateway asked to wait.
    retry_after: float = 0.0


@dataclass(frozen=True)
class LinkOptions:
    """Times are in seconds, ``max_size`` in bytes."""

    connect_timeout: float
    ping_timeout: float
    max_size: int | None
    ssl: ssl_module.SSLContext | None
    proxy: str | Literal[True] | None


class Receiver(Protocol):
    """Who gets what comes in."""

    def on_connected(self, link: Link) -> None:
        """There is a connection; the gateway has not said hello yet."""

    def on_message(self, link: Link, data: str | bytes) -> None:
        """A message. Must not raise."""

    async def accompany(self, link: Link) -> None:
        """Run as long as the connection lasts; it may end before."""


class Link:
    """A connection. :meth:`send` and :meth:`drop` never wait."""

    def __init__(self, receiver: Receiver, options: LinkOptions) -> None:
        self._receiver = receiver
        self._options = options
        self._loop = asyncio.get_running_loop()
        self._connection: ClientConnection | None = None
        self._outgoing: deque[str] = deque()
        self._news = asyncio.Event()
        self._ending: Ending | None = None
        self._greeted = asyncio.Event()
        self._ping_interval = 0.0
        self._heard_at = 0.0
        #: Set by whatever comes in.
        self._answered = asyncio.Event()
        #: When the gateway said hello, by the loop's clock.
        self.opened_at: float | None = None

    @property
    def ended(self) -> bool:
        """Whether it was given up, or has ended."""
        return self._ending is not None

    async def run(self, url: str, token: str | None) -> Ending:
        """Connect, and stay connected until the end. When it is cancelled, the connection is closed in good order."""
        deadline = self._loop.time() + self._options.connect_timeout
        try:
            async with asyncio.timeout_at(deadline):
                connection = await self._connect(url, token)
        except InvalidStatus as error:
            return _refused(error)
        except TimeoutError as error:
            return Ending(BROKEN, "no connection in time", cause=error)
        except (OSError, WebSocketException) as error:
            return Ending(BROKEN, "no connection", cause=error)
        self._connection = connection
        self._heard_at = self._loop.time()
        try:
            self._receiver.on_connected(self)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._write, connection)
                tasks.start_soon(self._watch, deadline)
                tasks.start_soon(self._receiver.accompany, self)
                ending = await self._read(connection)
                tasks.cancel_scope.cancel()
            return ending
        finally:
            self._ending = self._ending or Ending(1000, "")
            await _close(connection)

    def send(self, text: str) -> None:
        """Send a frame, as soon as the connection takes it."""
        self._outgoing.append(text)
        self._news.set()

    def greet(self, ping_interval: float) -> None:
        """The gateway has said hello; after so much silence (in seconds) it is asked whether it is still there."""
        self._ping_interval = ping_interval
        if self.opened_at is None:
            self.opened_at = self._loop.time()
        self._greeted.set()

    def drop(self, reason: str) -> None:
        """Give the connection up: to close it in good order would take long if the network is gone."""
        if self._ending is None:
            self._ending = Ending(BROKEN, reason)
            if self._connection is not None:
                self._connection.transport.abort()

    async def _connect(self, url: str, token: str | None) -> ClientConnection:
        more: dict[str, Any] = {} if self._options.ssl is None else {"ssl": self._options.ssl}
        return await connect_websocket(
            url,
            additional_headers={} if token is None else {"Authorization": f"Bearer {token}"},
            subprotocols=[Subprotocol(SUBPROTOCOL)],
            compression=None,
            # The protocol has pings of its own, which the gateway answers with what it is asked for.
            ping_interval=None,
            user_agent_header=f"nuropb-gateway-asgi/{__version__}",
            open_timeout=None,
            close_timeout=CLOSE_TIMEOUT,
            max_size=self._options.max_size,
            proxy=self._options.proxy,
            logger=_wire_logger,
            **more,
        )

    async def _read(self, connection: ClientConnection) -> Ending:
        try:
            while True:
                data = await connection.recv()
                self._heard_at = self._loop.time()
                self._answered.set()
                self._receiver.on_message(self, data)
        except WebSocketClosed as error:
            if self._ending is None:
                self._ending = _closed(error)
            return self._ending

    async def _write(self, connection: ClientConnection) -> None:
        with contextlib.suppress(WebSocketClosed):  # the reader learns of it, too
            while True:
                while self._outgoing:
                    await connection.send(self._outgoing.popleft())
                self._news.clear()
                await self._news.wait()

    async def _watch(self, deadline: float) -> None:
        """Is the gateway still there?"""
        try:
            async with asyncio.timeout_at(deadline):
                await self._greeted.wait()
        except TimeoutError:
            self.drop("no hello in time")
            return
        while not self.ended:
            silence = self._loop.time() - self._heard_at
            if silence < self._ping_interval:
                await asyncio.sleep(self._ping_interval - silence)
                continue
            self._answered.clear()
            self.send('{"type":"ping"}')
            try:
                async with asyncio.timeout(self._options.ping_timeout):
                    await self._answered.wait()
            except TimeoutError:
                self.drop("the gateway does not answer")


async def _close(connection: ClientConnection) -> None:
    """Close it in good order. What still comes is passed over: unread, it would hide that the other end agrees."""

    async def pass_over() -> None:
        with contextlib.suppress(WebSocketClosed):
            while True:
                await connection.recv()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(pass_over)
        await connection.close()
        tasks.cancel_scope.cancel()


def _closed(error: WebSocketClosed) -> Ending:
    if error.rcvd is not None and error.rcvd_then_sent:
        return Ending(error.rcvd.code, error.rcvd.reason, cause=error)
    # This end hung up, for example over a message that is too big. If the gateway says the same code, it is an echo.
    reason = error.sent.reason if error.sent is not None else ""
    return Ending(BROKEN, reason or "the connection broke", cause=error)


def _refused(error: InvalidStatus) -> Ending:
    status = error.response.status_code
    return Ending(
        _CODES.get(status, BROKEN),
        f"the handshake was refused with HTTP status {status}",
        status=status,
        cause=error,
        final=status < 500 and status not in _TRANSIENT,
        retry_after=_seconds(error.response.headers.get("Retry-After", "")),
    )


def _seconds(text: str) -> float:
    """A Retry-After; a date is of no use without the server's clock."""
    return float(text) if text.isascii() and text.isdigit() else 0.0
