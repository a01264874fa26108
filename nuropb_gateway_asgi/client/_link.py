"""A WebSocket connection from its handshake to its end, on the websockets library."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl as ssl_module
from collections import deque
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol
from urllib.parse import urljoin, urlsplit

import anyio
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as connect_websocket
from websockets.exceptions import ConnectionClosed as WebSocketClosed
from websockets.exceptions import InvalidProxy, InvalidStatus, InvalidURI, SecurityError, WebSocketException
from websockets.typing import Subprotocol

from .._version import __version__
from ..protocol import SUBPROTOCOL, CloseCode
from ._frames import PING

__all__ = ["BROKEN", "Ending", "Link", "LinkOptions"]

#: The close code of a connection that broke, or that the client aborted.
BROKEN: Final = 1006
#: Seconds for the closing handshake.
CLOSING_TIMEOUT: Final = 2.0
#: Seconds that a connection without a token waits for the gateway's hello, which comes at once where a proxy has added
#: a token to the handshake.
TOKEN_PATIENCE: Final = 2.0
_UNAUTHORISED: Final = (
    "no token was given: pass token=, a text or a function that returns one; your sign-in or your identity provider "
    "issues it, and for development 'nuropb-gateway token --user NAME'"
)
#: Close codes for the HTTP statuses of a gateway. Other statuses below 500 are final, too, without a code of their own.
_CODES_BY_STATUS: Final = {401: 4510, 403: 4513, 400: 4505}
#: Statuses below 500 after which another attempt may succeed.
_TRANSIENT: Final = frozenset({408, 421, 425, 429})

# On level DEBUG websockets logs the headers of handshakes, which contain the token.
_wire_logger = logging.getLogger("nuropb_gateway_asgi.client.websockets")
_wire_logger.setLevel(logging.INFO)


@dataclass(frozen=True)
class Ending:
    """The end of a connection, or the reason why it was never established."""

    code: int
    reason: str
    status: int | None = None
    cause: BaseException | None = None
    #: Whether another attempt would fail in the same way.
    final: bool = False
    #: Whether this end refused a message. The gateway would send it once more in a resumed session.
    refused_message: bool = False
    #: Seconds that the gateway asked the client to wait.
    retry_after: float = 0.0


@dataclass(frozen=True)
class LinkOptions:
    """Options of a link. Times are in seconds, ``max_size`` in bytes."""

    connect_timeout: float
    ping_timeout: float
    max_size: int | None
    ssl: ssl_module.SSLContext | None
    proxy: str | Literal[True] | None


class Receiver(Protocol):
    """The owner of a link, which handles its messages."""

    def on_connected(self, link: Link) -> None:
        """Use ``link``: its handshake has succeeded. The gateway has not said hello yet."""

    def on_message(self, link: Link, data: str | bytes) -> None:
        """Handle a message. Must not raise."""


class Link:
    """A WebSocket connection. :meth:`send` and :meth:`drop` never wait."""

    def __init__(self, receiver: Receiver, options: LinkOptions) -> None:
        self._receiver = receiver
        self._options = options
        self._loop = asyncio.get_running_loop()
        self._connection: ClientConnection | None = None
        self._outgoing: deque[str] = deque()
        #: Set when there are frames to send.
        self._queued = asyncio.Event()
        self._ending: Ending | None = None
        self._greeted = asyncio.Event()
        self._ping_interval = 0.0
        self._heard_at = 0.0
        #: Set by every message from the gateway.
        self._answered = asyncio.Event()
        #: When the gateway said hello, by the clock of the event loop.
        self.opened_at: float | None = None

    @property
    def ended(self) -> bool:
        """Whether the connection has ended, or was dropped."""
        return self._ending is not None

    async def run(self, url: str, token: str | None) -> Ending:
        """Connect, and serve the connection until it ends. Cancelling closes it gracefully."""
        deadline = self._loop.time() + self._options.connect_timeout
        try:
            async with asyncio.timeout_at(deadline):
                connection = await self._connect(url, token)
        except InvalidStatus as error:
            return _refused(error, url)
        except TimeoutError as error:
            return Ending(BROKEN, "connecting timed out", cause=error)
        except (InvalidProxy, InvalidURI, ImportError) as error:
            return Ending(BROKEN, "the URL, or that of the proxy, cannot be used", cause=error, final=True)
        except (OSError, WebSocketException) as error:
            return Ending(BROKEN, "connecting failed", cause=error)
        except ValueError as error:  # such as a port beyond 65535
            return Ending(BROKEN, "the URL, or that of the proxy, cannot be used", cause=error, final=True)
        self._connection = connection
        self._heard_at = self._loop.time()
        try:
            self._receiver.on_connected(self)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._write, connection)
                if token is None:
                    tasks.start_soon(self._expect_hello)
                tasks.start_soon(self._watch, deadline)
                ending = await self._read(connection)
                tasks.cancel_scope.cancel()
            return ending
        finally:
            self._ending = self._ending or Ending(1000, "")
            await _close(connection)

    def send(self, text: str) -> None:
        """Queue a frame for sending."""
        self._outgoing.append(text)
        self._queued.set()

    def greet(self, ping_interval: float) -> None:
        """Note the gateway's hello. From now on, ``ping_interval`` seconds of silence cause a ping."""
        self._ping_interval = ping_interval
        if self.opened_at is None:
            self.opened_at = self._loop.time()
        self._greeted.set()

    def drop(self, reason: str, code: int = BROKEN) -> None:
        """Abort the connection. A graceful close would take long if the network is down."""
        if self._ending is None:
            self._ending = Ending(code, reason)
            if self._connection is not None:
                self._connection.transport.abort()

    async def _connect(self, url: str, token: str | None) -> ClientConnection:
        more: dict[str, Any] = {} if self._options.ssl is None else {"ssl": self._options.ssl}
        return await _Connect(
            url,
            create_connection=_only_once(),
            additional_headers={} if token is None else {"Authorization": f"Bearer {token}"},
            subprotocols=[Subprotocol(SUBPROTOCOL)],
            compression=None,
            # The client pings with frames of the gateway's protocol instead.
            ping_interval=None,
            user_agent_header=f"nuropb-gateway-asgi/{__version__}",
            open_timeout=None,
            close_timeout=CLOSING_TIMEOUT,
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
        with contextlib.suppress(WebSocketClosed):  # _read() handles it
            while True:
                while self._outgoing:
                    await connection.send(self._outgoing.popleft())
                self._queued.clear()
                await self._queued.wait()

    async def _expect_hello(self) -> None:
        """End a connection without a token soon: unless a proxy has added one, the gateway waits for it."""
        try:
            async with asyncio.timeout(TOKEN_PATIENCE):
                await self._greeted.wait()
        except TimeoutError:
            self.drop(_UNAUTHORISED, code=CloseCode.AUTHORISATION_TIMEOUT)

    async def _watch(self, deadline: float) -> None:
        """Drop the connection if there is no hello in time, or later no answer to a ping."""
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
            self.send(PING)
            try:
                async with asyncio.timeout(self._options.ping_timeout):
                    await self._answered.wait()
            except TimeoutError:
                self.drop("the gateway does not answer")


class _Connect(connect_websocket):
    """A handshake that follows no redirects: the token is for the gateway alone.

    websockets before 16.1 would send the token to any server that an answer names. Browsers follow no redirects of
    WebSockets either.
    """

    def process_redirect(self, exc: Exception) -> Exception | str:
        """Raise ``exc``, which is the answer with the redirect."""
        return exc


def _only_once() -> Any:
    """Return a factory of one usable connection, so that a release that redirects in another way gets no second one."""
    classes = iter((ClientConnection,))

    def make(*args: Any, **kwargs: Any) -> ClientConnection:
        return next(classes, _Unusable)(*args, **kwargs)

    return make


class _Unusable(ClientConnection):
    async def handshake(self, *args: Any, **kwargs: Any) -> None:
        raise SecurityError("redirects are not followed")


async def _close(connection: ClientConnection) -> None:
    """Close the connection gracefully. Messages are discarded: unread, they would hide the gateway's close frame."""

    async def discard() -> None:
        with contextlib.suppress(WebSocketClosed):
            while True:
                await connection.recv()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(discard)
        await connection.close()
        tasks.cancel_scope.cancel()


def _closed(error: WebSocketClosed) -> Ending:
    if error.rcvd is not None and error.rcvd_then_sent:
        return Ending(error.rcvd.code, error.rcvd.reason, cause=error)
    # This end closed, for example because of a message that is too big. The gateway only echoed the code.
    reason = error.sent.reason if error.sent is not None else ""
    refused = error.sent is not None and error.sent.code in (1002, 1003, 1007, 1009) and not error.rcvd_then_sent
    return Ending(BROKEN, reason or "the connection broke", cause=error, refused_message=refused)


def _refused(error: InvalidStatus, url: str) -> Ending:
    status = error.response.status_code
    challenges = error.response.headers.get_all("WWW-Authenticate")
    if status == 401 and any("expired" in each for each in challenges):
        return Ending(CloseCode.TOKEN_EXPIRED, "the token has expired", status=status, cause=error)
    reason = f"the handshake was refused with HTTP status {status}"
    location = error.response.headers.get_all("Location")
    if 300 <= status < 400 and location:
        reason = (
            f"the server redirects (HTTP status {status}) to {_origin(urljoin(url, location[0]))}; redirects are not "
            "followed, because the token is for the gateway alone: use the gateway's own URL"
        )
    return Ending(
        _CODES_BY_STATUS.get(status, BROKEN),
        reason,
        status=status,
        cause=error,
        final=status < 500 and status not in _TRANSIENT,
        retry_after=_seconds(error.response.headers.get("Retry-After", "")),
    )


def _origin(url: str) -> str:
    """Return scheme, host and port of a URL. Its path may contain a secret, and its user may look like the host."""
    try:
        parts = urlsplit(url)
        shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
    except ValueError:
        return "an invalid URL"
    return shown if shown.isascii() and shown.isprintable() and len(shown) <= 300 else "an invalid URL"


def _seconds(text: str) -> float:
    """Parse a Retry-After in seconds. A date gives 0, as it depends on the server's clock."""
    return float(text) if text.isascii() and text.isdigit() else 0.0
