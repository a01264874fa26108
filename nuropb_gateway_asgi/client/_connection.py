"""The connection of a client: restored after a loss, and the place where frames from the gateway are handled."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final
from urllib.parse import urlsplit

from ..protocol import CloseCode
from ._call import Call, Kind
from ._calls import Calls
from ._continuation import Continuation
from ._emitter import Emitter
from ._frames import decode_frame, encode_pong
from ._incoming import Incoming
from ._link import BROKEN, Ending, Link, LinkOptions
from ._options import ClientOptions, Reason, Token
from ._session import Session
from ._state import Farewell, Goodbye, Hello, State, number, read_hello
from ._subscriptions import Subscriptions
from ._token import TokenRefresh, TokenSource
from .errors import (
    ConnectionClosed,
    ConnectionLost,
    UnexpectedFrame,
    caused_by,
    is_final,
    obeyed,
    seconds,
)

__all__ = ["Connection"]

logger = logging.getLogger(__name__)

#: Seconds of silence after which the gateway is pinged, unless options or gateway name a shorter time.
MAX_PING_INTERVAL: Final = 30.0
#: The names that :meth:`Connection.on` takes.
CLIENT_EVENTS: Final = frozenset({"state", "event", "gap", "dropped", "unsubscribed", "goodbye", "warning"})


class Connection:
    """The connection of a client, for its calls and subscriptions: one :class:`Link` after the other.

    A task of its own connects and reconnects, from construction until :meth:`close`.
    """

    def __init__(self, url: str, token: Token | None, options: ClientOptions) -> None:
        if urlsplit(url).scheme not in ("ws", "wss"):
            raise ValueError("the URL must begin with ws:// or wss://")
        self._url = url
        self._token = TokenSource(token)
        self._options = options
        self._link_options = LinkOptions(
            options.connect_timeout, options.ping_timeout, options.max_size, options.ssl, options.proxy
        )
        self.backoff = options.backoff
        self.calls = Calls(
            options.backoff, options.grace, options.max_queue, options.max_depth, options.binary, options.trace
        )
        self.subscriptions = Subscriptions(self)
        self.state = State("connecting")
        self.hello: Hello | None = None
        self._loop = asyncio.get_running_loop()
        self._emitter = Emitter(CLIENT_EVENTS)
        #: Set by every change of the state.
        self._changed = asyncio.Event()
        self._attempt = 0
        #: Why the last link ended, or was never established.
        self._lost: ConnectionLost | None = None
        #: Whether another token was fetched after a refusal. That is done once.
        self._renewed = False
        #: Why the next token is fetched.
        self._reason: Reason = "connect"
        self._incoming = Incoming(
            self.calls, self.subscriptions, self._emitter, self.tell, lambda: self.state.name == "open"
        )
        self._session = Session(options.connect_timeout)
        self._continuation = Continuation(self, self._session, enabled=options.resume and options.reconnect)
        self._refresh = TokenRefresh(
            self._token,
            margin=options.refresh_margin,
            backoff=options.backoff,
            authorize=self.authorize,
            warn=lambda error: self.tell("warning", error),
        )
        self._task = asyncio.create_task(self._run(), name="gateway client")

    # --- called by the client ---------------------------------------------------------------------------------

    def on(self, name: str, listener: Callable[[Any], object]) -> Callable[[], None]:
        """Call ``listener`` for every ``name`` from now on. Returns a function that removes it."""
        return self._emitter.on(name, listener)

    async def authorize(self, token: str) -> float | None:
        """Send another token of the same user. Returns when it expires, in seconds since 1970."""
        link = self._continuation.link
        if link is None or self.hello is None or self.state.name != "open":
            raise ConnectionLost(BROKEN, "not connected")
        result = await self.calls.ask("authorize", {"token": token}).future
        expires_at = number(result.get("expires_at")) if isinstance(result, dict) else None
        if self._continuation.link is link:
            self.hello = replace(self.hello, expires_at=expires_at)
            self._refresh.note_expiry(expires_at)
        return expires_at

    async def opened(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - it raises another error
        """Wait until the connection is open. Raises ConnectionClosed if the client is closed, and after ``timeout``."""
        if timeout == 0:
            return
        try:
            async with asyncio.timeout(timeout):
                while self.state.name not in ("open", "closed"):
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise ConnectionClosed(BROKEN, f"no connection within {timeout:g} seconds") from self._lost
        if self.state.name == "closed":
            raise self.closed_error()

    async def close(self) -> None:
        """Close the connection for good. Calls fail with ConnectionClosed, subscriptions end."""
        if self.state.name != "closed":
            self._finish(None)
        self._task.cancel()
        await asyncio.wait([self._task])

    def closed_error(self) -> ConnectionClosed:
        """Return the error for calls on a closed client."""
        error = self.state.error
        return error.anew() if isinstance(error, ConnectionClosed) else ConnectionClosed(1000, "by the application")

    # --- connecting -------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        try:
            while True:
                delay = await self._connect_once()
                if delay is None:
                    return
                await asyncio.sleep(delay)
        except Exception as error:
            logger.exception("the gateway client failed")
            self._finish(caused_by(ConnectionClosed(BROKEN, "the client failed"), error))

    async def _connect_once(self) -> float | None:
        """Run one link to its end, and the links that follow it without a loss.

        Returns the seconds to wait before the next attempt, or None to give up.
        """
        self._set_state(State("connecting"))
        self._incoming.farewell = Farewell()
        refreshing = asyncio.create_task(self._refresh.run(), name="token refresh")
        link = self._continuation.link = self.new_link()
        try:
            ending = await self.run_link(link)
            if ending is None:
                self._finish(ConnectionClosed(CloseCode.INVALID_TOKEN, "there is no token any more"))
                return None
            while (successor := self._continuation.after(link, ending)) is not None:
                followed = await successor
                if followed is None:
                    break
                link, ending = followed
        finally:
            self.subscriptions.disconnected()
            self._session.disconnected()
            refreshing.cancel()
            await self._continuation.end()
            await asyncio.wait([refreshing])
        return self._on_ending(link, ending)

    def _on_ending(self, link: Link, ending: Ending) -> float | None:
        cause = self._incoming.farewell.error or ending.cause
        self._lost = lost = caused_by(ConnectionLost(ending.code, ending.reason, status=ending.status), cause)
        greeted = link.opened_at is not None
        final = ending.final or is_final(ending.code)
        if (final and greeted) or ending.refused_message:
            self._session.end()
        if self._session.key:
            self.calls.suspend(lost)
        else:
            # A gateway that could not read a call would not read it the next time, either.
            self.calls.lost(lost, repeat=ending.code != CloseCode.BAD_REQUEST)
        if link.opened_at is not None and self._loop.time() - link.opened_at >= self._options.stable_after:
            self._attempt = 0
        may_renew = self._token.is_renewable and not self._renewed and self._options.reconnect
        if ending.code == CloseCode.INVALID_TOKEN and may_renew:
            self._renewed = True
            self._reason = "rejected"
            return 0.0
        if ending.code == CloseCode.TOKEN_EXPIRED and not greeted and not self._token.is_renewable:
            self._close_for_good(ending)
            return None
        if final and not (greeted and ending.code == CloseCode.BAD_REQUEST):
            self._close_for_good(ending)
            return None
        if ending.code == CloseCode.TOKEN_EXPIRED:
            self._reason = "expired"
        return self._retry(ending, lost)

    def _retry(self, ending: Ending, lost: ConnectionLost) -> float | None:
        if not self._options.reconnect:
            self._close_for_good(ending)
            return None
        asked = max(ending.retry_after, self._incoming.farewell.wait(self._loop.time()))
        self.calls.problem = lost
        delay = asked + self.backoff.delay(self._attempt)
        self._attempt += 1
        self._set_state(State("reconnecting", delay=delay, error=lost))
        return delay

    def _close_for_good(self, ending: Ending) -> None:
        closed = ConnectionClosed(ending.code, ending.reason, status=ending.status)
        self._finish(caused_by(closed, self._incoming.farewell.error or ending.cause))

    def _finish(self, error: ConnectionClosed | None) -> None:
        self._set_state(State("closed", error=error))
        self._session.end()
        self.subscriptions.close(error)
        self.calls.close(self.closed_error())

    # --- frames from the gateway ------------------------------------------------------------------------------

    def on_connected(self, link: Link) -> None:
        """Note a handshake that has succeeded. Calls wait until the gateway has said hello."""
        if link is self._continuation.link:
            self.calls.connected(link.send)
            self._set_state(State("authorising"))

    def on_message(self, link: Link, data: str | bytes) -> None:
        """Handle one message from the gateway."""
        frame = decode_frame(data, binary=self._options.binary)
        if frame is None:
            self.tell("warning", UnexpectedFrame("the gateway sent a message that is not a JSON object"))
            return
        if frame.get("type") == "ping":
            link.send(encode_pong(frame))
        elif self._concerns_connection(link, frame) or self._continuation.takes(link, frame):
            pass
        elif link is self._continuation.link:
            self.handle(frame)
            self._session.count(link, frame)
            self._continuation.settle()

    def _concerns_connection(self, link: Link, frame: Mapping[str, Any]) -> bool:
        """Handle frames that belong to a connection, not to a session. Returns False for all others."""
        payload = frame.get("payload")
        match frame.get("type"), payload.get("topic") if isinstance(payload, dict) else None:
            case "pong", _:
                return True
            case "event", "hello":
                self._on_hello(link, frame["payload"].get("event"))
                return True
            case "event", "goodbye":
                event = frame["payload"].get("event")
                self._on_goodbye(link, event if isinstance(event, dict) else {})
                return True
        return False

    def handle(self, frame: Mapping[str, Any]) -> None:
        """Handle a frame that belongs to calls, subscriptions or listeners."""
        self._incoming.handle(frame)

    def _on_hello(self, link: Link, event: object) -> None:
        hello = read_hello(event)
        is_first = link.opened_at is None
        link.greet(self._options.ping_interval or min(hello.limits.ping_interval, MAX_PING_INTERVAL))
        if is_first:
            self._continuation.on_hello(link, hello)
        elif link is self._continuation.link:
            self.note_hello(hello)
            if self.state.name == "open":
                self.calls.release()  # the limits may allow more calls now

    def _on_goodbye(self, link: Link, event: Mapping[str, Any]) -> None:
        if link is not self._continuation.link:
            return
        stay_away = obeyed(seconds(event.get("retry_after_ms")))
        if not self._continuation.on_goodbye(link, stay_away):
            self._incoming.farewell.stay_away = stay_away
        self.tell("goodbye", Goodbye(str(event.get("reason", "")), stay_away))

    # --- called by the continuation ---------------------------------------------------------------------------

    def new_link(self) -> Link:
        """Make a link that is not connected yet."""
        return Link(self, self._link_options)

    async def run_link(self, link: Link) -> Ending | None:
        """Fetch a token and run ``link`` to its end; None if the application has no token any more."""
        try:
            token = await self._token.fetch(self._reason)
        except Exception as error:
            return Ending(BROKEN, "no token", cause=error)
        if token is None and self._token.is_given:
            return None
        return await link.run(self._url, token)

    def note_hello(self, hello: Hello) -> None:
        """Take the hello of the connection in use."""
        self.hello = hello
        self._renewed = False
        self._reason = "connect"
        self._incoming.farewell = Farewell()
        self.calls.limits = hello.limits
        self._refresh.note_expiry(hello.expires_at)

    def note_open(self, *, resumed: bool | None, reason: str | None = None, session_id: str = "") -> None:
        """Tell the application that calls and events pass."""
        if session_id and self.hello is not None:
            self.hello = replace(self.hello, session_id=session_id)
        self._set_state(State("open", resumed=resumed, reason=reason))

    def note_adopted(self) -> None:
        """Tell the application that the next connection is under way."""
        self._set_state(State("authorising"))

    def note_lost(self) -> None:
        """Fail the calls of the last connection, whose outcome is unknown."""
        self.calls.lost(self._lost or ConnectionLost(BROKEN, "the session is over"))

    # --- called by the subscriptions --------------------------------------------------------------------------

    def ask(self, kind: Kind, topics: Sequence[str], since: Mapping[str, object] | None = None) -> Call:
        """Send a frame about ``topics`` to the gateway; ``since`` has those that begin in the past."""
        return self.calls.ask(kind, {"topics": topics, "since": since or None})

    def tell(self, name: str, value: object) -> None:
        """Call the listeners of ``name``. A warning without a listener is logged."""
        if not self._emitter.emit(name, value) and name == "warning":
            logger.warning("%s", value)

    def _set_state(self, state: State) -> None:
        self.state = state
        self._changed.set()
        self._emitter.emit("state", state)
