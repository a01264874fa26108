"""The connection of a client: restored after a loss, and the place where frames from the gateway are handled."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final
from urllib.parse import urlsplit

from ..protocol import CloseCode
from ._calls import Call, Calls, Kind
from ._emitter import Emitter
from ._events import GatewayEvent
from ._frames import decode_frame, encode_pong
from ._link import BROKEN, Ending, Link, LinkOptions
from ._options import ClientOptions, Token
from ._state import Farewell, Goodbye, Hello, State, number, read_hello
from ._subscriptions import Subscriptions
from ._token import TokenRefresh, TokenSource
from .errors import (
    ConnectionClosed,
    ConnectionLost,
    UnexpectedFrame,
    call_failed,
    caused_by,
    is_final,
    obeyed,
    seconds,
)

__all__ = ["Connection"]

logger = logging.getLogger(__name__)

#: Seconds of silence after which the gateway is pinged, unless options or gateway name a shorter time.
MAX_PING_INTERVAL: Final = 30.0
#: Seconds for a gateway that said goodbye to close the connection.
GOODBYE_TIMEOUT: Final = 30.0
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
        self.calls = Calls(options.backoff, options.grace, options.max_queue)
        self.subscriptions = Subscriptions(self)
        self.state = State("connecting")
        self.hello: Hello | None = None
        self._loop = asyncio.get_running_loop()
        self._emitter = Emitter(CLIENT_EVENTS)
        #: Set by every change of the state.
        self._changed = asyncio.Event()
        self._link: Link | None = None
        self._attempt = 0
        #: Why the last link ended, or was never established.
        self._lost: ConnectionLost | None = None
        #: Whether another token was fetched after a refusal. That is done once.
        self._renewed = False
        self._farewell = Farewell()
        #: Ends the current link if the gateway does not close it after a goodbye.
        self._goodbye: asyncio.TimerHandle | None = None
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
        link = self._link
        if link is None or self.hello is None or self.state.name != "open":
            raise ConnectionLost(BROKEN, "not connected")
        result = await self.calls.ask("authorize", {"token": token}).future
        expires_at = number(result.get("expires_at")) if isinstance(result, dict) else None
        if self._link is link:
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
        """Run one link to its end. Returns the seconds to wait before the next attempt, or None to give up."""
        self._set_state(State("connecting"))
        self._farewell = Farewell()
        try:
            token = await self._token.fetch()
        except Exception as error:
            return self._retry(Ending(BROKEN, "no token", cause=error))
        if token is None and self._token.is_given:
            self._finish(ConnectionClosed(CloseCode.INVALID_TOKEN, "there is no token any more"))
            return None
        link = Link(self, self._link_options)
        try:
            ending = await link.run(self._url, token)
        finally:
            self._link = None
            self.subscriptions.disconnected()
            if self._goodbye is not None:
                self._goodbye.cancel()
        return self._on_ending(link, ending)

    def _on_ending(self, link: Link, ending: Ending) -> float | None:
        lost = caused_by(
            ConnectionLost(ending.code, ending.reason, status=ending.status), self._farewell.error or ending.cause
        )
        self.calls.lost(lost)
        if link.opened_at is not None and self._loop.time() - link.opened_at >= self._options.stable_after:
            self._attempt = 0
        may_renew = self._token.is_renewable and not self._renewed and self._options.reconnect
        if ending.code == CloseCode.INVALID_TOKEN and may_renew:
            self._renewed = True
            return 0.0
        if ending.final or is_final(ending.code):
            self._close_for_good(ending)
            return None
        return self._retry(ending, lost)

    def _retry(self, ending: Ending, lost: ConnectionLost | None = None) -> float | None:
        if not self._options.reconnect:
            self._close_for_good(ending)
            return None
        asked = max(ending.retry_after, self._farewell.wait(self._loop.time()))
        delay = asked + self.backoff.delay(self._attempt)
        self._attempt += 1
        error = lost or caused_by(ConnectionLost(ending.code, ending.reason), ending.cause)
        self._lost = error
        self._set_state(State("reconnecting", delay=delay, error=error))
        return delay

    def _close_for_good(self, ending: Ending) -> None:
        closed = ConnectionClosed(ending.code, ending.reason, status=ending.status)
        self._finish(caused_by(closed, self._farewell.error or ending.cause))

    def _finish(self, error: ConnectionClosed | None) -> None:
        self._set_state(State("closed", error=error))
        self.subscriptions.close(error)
        self.calls.close(self.closed_error())

    # --- frames from the gateway ------------------------------------------------------------------------------

    def on_connected(self, link: Link) -> None:
        """Use ``link`` from now on. Calls wait until the gateway has said hello."""
        self._link = link
        self.calls.connected(link.send)
        self._set_state(State("authorising"))

    def on_message(self, link: Link, data: str | bytes) -> None:
        """Handle one message from the gateway."""
        frame = decode_frame(data)
        if frame is None:
            self.tell("warning", UnexpectedFrame("the gateway sent a message that is not a JSON object"))
            return
        payload = frame.get("payload")
        members = payload if isinstance(payload, dict) else {}
        match frame.get("type"):
            case "response":
                unexpected = self.calls.answer(members)
                if unexpected is not None:
                    self.tell("warning", unexpected)
            case "event":
                self._on_event(link, members)
            case "ping":
                link.send(encode_pong(frame))
            case "pong":
                pass
            case "error":
                error = call_failed(frame)
                self._farewell.error = error
                self._farewell.not_before = self._loop.time() + obeyed(error.retry_after)
                # Before hello it is the reason why the gateway then closes the connection.
                if link.opened_at is not None:
                    self.tell("warning", error)
            case _:
                self.tell("warning", UnexpectedFrame("the gateway sent a frame of unknown type"))

    def _on_event(self, link: Link, payload: Mapping[str, Any]) -> None:
        topic, event, trace_id = payload.get("topic"), payload.get("event"), payload.get("trace_id")
        if not isinstance(topic, str):
            self.tell("warning", UnexpectedFrame("the gateway sent an event without a topic"))
        elif topic == "hello":
            self._on_hello(link, event)
        elif topic == "goodbye":
            self._on_goodbye(link, event if isinstance(event, dict) else {})
        elif not self.subscriptions.notice(topic, event):
            received = GatewayEvent(topic, event, trace_id if isinstance(trace_id, str) else None)
            self._emitter.emit("event", received)
            self.subscriptions.dispatch(received)

    def _on_hello(self, link: Link, event: object) -> None:
        self.hello = hello = read_hello(event)
        self._renewed = False
        self.calls.limits = hello.limits
        is_first = link.opened_at is None
        link.greet(self._options.ping_interval or min(hello.limits.ping_interval, MAX_PING_INTERVAL))
        self._refresh.note_expiry(hello.expires_at)
        if not is_first:
            self.calls.release()  # the limits may allow more calls now
            return
        self._set_state(State("open"))
        self.subscriptions.connected()
        self.calls.release()

    def _on_goodbye(self, link: Link, event: Mapping[str, Any]) -> None:
        self._farewell.stay_away = obeyed(seconds(event.get("retry_after_ms")))
        # The gateway closes the connection once no call is in flight, and a call that is sent now could be lost.
        self.calls.hold()
        if self._goodbye is not None:
            self._goodbye.cancel()
        self._goodbye = self._loop.call_later(GOODBYE_TIMEOUT, link.drop, "the gateway is stopping")
        self.tell("goodbye", Goodbye(str(event.get("reason", "")), self._farewell.stay_away))

    async def accompany(self, link: Link) -> None:
        """Replace the token before it expires, as long as the link lasts."""
        await self._refresh.run()

    # --- called by the subscriptions --------------------------------------------------------------------------

    def ask(self, kind: Kind, topics: Sequence[str]) -> Call:
        """Send a frame about ``topics`` to the gateway."""
        return self.calls.ask(kind, {"topics": topics})

    def tell(self, name: str, value: object) -> None:
        """Call the listeners of ``name``. A warning without a listener is logged."""
        if not self._emitter.emit(name, value) and name == "warning":
            logger.warning("%s", value)

    def _set_state(self, state: State) -> None:
        self.state = state
        self._changed.set()
        self._emitter.emit("state", state)
