"""A connection to a gateway that makes itself anew: what keeps it up, and what comes by it."""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

import msgspec

from ..protocol import CloseCode
from ._calls import Call, Calls, Kind
from ._emitter import Emitter
from ._link import BROKEN, Ending, Link, LinkOptions
from ._options import ClientOptions, Token
from ._state import Goodbye, Hello, State, number, read_hello
from ._subscriptions import GatewayEvent, Subscriptions
from .errors import (
    ConnectionClosed,
    ConnectionLost,
    PermissionDenied,
    TokenRefreshFailed,
    Unauthenticated,
    UnexpectedFrame,
    call_failed,
    is_final,
    seconds,
)

__all__ = ["Connection"]

logger = logging.getLogger(__name__)

E = TypeVar("E", bound=BaseException)

#: Seconds; a gateway that pings less often than that is pinged.
PING_INTERVAL: Final = 30.0
#: Seconds for a gateway that said goodbye to hang up.
GOODBYE_PATIENCE: Final = 30.0
_NAMES: Final = frozenset({"state", "event", "gap", "dropped", "unsubscribed", "goodbye", "warning"})


class Connection:
    """One link to the gateway after the other, for the calls and subscriptions of a client.

    It begins when it is made, in a task of its own, and ends with :meth:`close`.
    """

    def __init__(self, url: str, token: Token | None, options: ClientOptions) -> None:
        if urlsplit(url).scheme not in ("ws", "wss"):
            raise ValueError("the URL of a gateway begins with ws:// or wss://")
        self._url = url
        self._token = token
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
        self._emitter = Emitter(_NAMES)
        self._changed = asyncio.Event()
        self._link: Link | None = None
        self._attempt = 0
        #: How the last link ended, or why it never came about.
        self._lost: ConnectionLost | None = None
        #: A token was refused and another one fetched: that is done once.
        self._renewed = False
        #: Of the link that is there now: what the gateway complained of, and when it wants to be left alone.
        self._last_error: Exception | None = None
        self._stay_away = 0.0
        self._not_before = 0.0
        self._goodbye: asyncio.TimerHandle | None = None
        #: Set when the token's end was told anew.
        self._expiry_news = asyncio.Event()
        self._task = asyncio.create_task(self._run(), name="gateway client")

    # --- for the client ---------------------------------------------------------------------------------------

    def on(self, name: str, listener: Callable[[Any], object]) -> Callable[[], None]:
        """Call ``listener`` from now on; the result ends that."""
        return self._emitter.on(name, listener)

    async def authorize(self, token: str) -> float | None:
        """Send another token on the open connection, of the same user; when it expires, in seconds since 1970."""
        link = self._link
        if link is None or self.hello is None or self.state.name != "open":
            raise ConnectionLost(BROKEN, "there is no connection")
        result = await self.calls.ask("authorize", {"token": token}).future
        expires_at = number(result.get("expires_at")) if isinstance(result, dict) else None
        if self._link is link:
            self.hello = replace(self.hello, expires_at=expires_at)
            self._expiry_news.set()
        return expires_at

    async def opened(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - what it raises is not a TimeoutError
        """Wait until the connection is open. Raises ConnectionClosed when that will never be, or not in time."""
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
        """Hang up and do not come back. Calls fail with ConnectionClosed, subscriptions end."""
        if self.state.name != "closed":
            self._finish(None)
        self._task.cancel()
        await asyncio.wait([self._task])

    def closed_error(self) -> ConnectionClosed:
        """Why nothing can be done any more."""
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
            self._finish(_because(ConnectionClosed(BROKEN, "the client failed"), error))

    async def _connect_once(self) -> float | None:
        """Connect, and stay connected; how long to wait before the next time, in seconds, or None for never."""
        self._set_state(State("connecting"))
        self._last_error, self._stay_away, self._not_before = None, 0.0, 0.0
        try:
            token = await self._get_token()
        except Exception as error:
            return self._retry(Ending(BROKEN, "no token", cause=error))
        if token is None and self._token is not None:
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
        lost = _because(
            ConnectionLost(ending.code, ending.reason, status=ending.status), self._last_error or ending.cause
        )
        self.calls.lost(lost)
        if link.opened_at is not None and self._loop.time() - link.opened_at >= self._options.stable_after:
            self._attempt = 0
        may_renew = callable(self._token) and not self._renewed and self._options.reconnect
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
        asked = max(self._stay_away, ending.retry_after, self._not_before - self._loop.time(), 0.0)
        delay = asked + self.backoff.delay(self._attempt)
        self._attempt += 1
        error = lost or _because(ConnectionLost(ending.code, ending.reason), ending.cause)
        self._lost = error
        self._set_state(State("reconnecting", delay=delay, error=error))
        return delay

    def _close_for_good(self, ending: Ending) -> None:
        closed = ConnectionClosed(ending.code, ending.reason, status=ending.status)
        self._finish(_because(closed, self._last_error or ending.cause))

    def _finish(self, error: ConnectionClosed | None) -> None:
        self._set_state(State("closed", error=error))
        self.subscriptions.close(error)
        self.calls.close(self.closed_error())

    async def _get_token(self) -> str | None:
        if self._token is None or isinstance(self._token, str):
            return self._token
        # A plain function may block, for example to ask a server.
        asynchronous = inspect.iscoroutinefunction(self._token)
        token = self._token() if asynchronous else await asyncio.to_thread(self._token)
        return await token if inspect.isawaitable(token) else token

    # --- what comes from the gateway --------------------------------------------------------------------------

    def on_connected(self, link: Link) -> None:
        """There is a connection; the gateway has not said hello yet."""
        self._link = link
        self.calls.connected(link.send)
        self._set_state(State("authorising"))

    def on_message(self, link: Link, data: str | bytes) -> None:
        """Take a message."""
        frame = _parse(data)
        if frame is None:
            self.tell("warning", UnexpectedFrame("a message that is not a JSON object"))
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
                link.send(_encode_pong(frame))
            case "pong":
                pass
            case "error":
                error = call_failed(frame)
                self._last_error = error
                self._not_before = self._loop.time() + (error.retry_after or 0.0)
                # Before hello it is the reason for the end of the connection, which follows.
                if link.opened_at is not None:
                    self.tell("warning", error)
            case _:
                self.tell("warning", UnexpectedFrame("a frame of an unknown type"))

    def _on_event(self, link: Link, payload: Mapping[str, Any]) -> None:
        topic, event, trace_id = payload.get("topic"), payload.get("event"), payload.get("trace_id")
        if not isinstance(topic, str):
            self.tell("warning", UnexpectedFrame("an event without a topic"))
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
        link.greet(self._options.ping_interval or min(hello.limits.ping_interval, PING_INTERVAL))
        self._expiry_news.set()
        if not is_first:
            self.calls.release()  # there may be room for more now
            return
        self._set_state(State("open"))
        self.subscriptions.connected()
        self.calls.release()

    def _on_goodbye(self, link: Link, event: Mapping[str, Any]) -> None:
        self._stay_away = seconds(event.get("retry_after_ms")) or 0.0
        # What is sent now could be lost when the gateway hangs up, which it does once nothing is in flight.
        self.calls.hold()
        if self._goodbye is not None:
            self._goodbye.cancel()
        self._goodbye = self._loop.call_later(GOODBYE_PATIENCE, link.drop, "the gateway is stopping")
        self.tell("goodbye", Goodbye(str(event.get("reason", "")), self._stay_away))

    # --- the token's end --------------------------------------------------------------------------------------

    async def accompany(self, link: Link) -> None:
        """Replace the token before it expires, as long as the connection lasts."""
        if not callable(self._token):
            return
        while True:
            self._expiry_news.clear()
            delay = self._refresh_delay()
            try:
                async with asyncio.timeout(delay):
                    await self._expiry_news.wait()
            except TimeoutError:
                if not await self._refresh():
                    return

    def _refresh_delay(self) -> float | None:
        """Seconds until the token has to be replaced; None if it does not expire."""
        if self.hello is None or self.hello.expires_at is None:
            return None
        left = self.hello.expires_at - time.time()
        if left <= 0:
            # If the clocks disagree as much as that, only the gateway knows when the token ends: it hangs up then.
            return None
        margin = min(self._options.refresh_margin, left / 4) * (0.5 + self.backoff.random() / 2)
        return left - margin

    async def _refresh(self) -> bool:
        """Try until the token has expired; False if it was of no use."""
        assert self.hello is not None  # noqa: S101 - there was an expiry
        expires_at = self.hello.expires_at or 0.0
        attempt = 0
        while True:
            try:
                token = await self._get_token()
                if token is None:
                    raise Unauthenticated("unauthenticated", "there is no token any more")
                await self.authorize(token)
            except Exception as error:
                self.tell("warning", _because(TokenRefreshFailed("the token could not be replaced"), error))
                # Another user's token is for another connection, which there is when this one has ended.
                wait = self.backoff.delay(attempt)
                if isinstance(error, PermissionDenied) or time.time() + wait >= expires_at:
                    return False
                attempt += 1
                await asyncio.sleep(wait)
            else:
                return True

    # --- parts ------------------------------------------------------------------------------------------------

    def ask(self, kind: Kind, topics: Sequence[str]) -> Call:
        """Ask the gateway for something about topics."""
        return self.calls.ask(kind, {"topics": topics})

    def tell(self, name: str, value: object) -> None:
        """Tell the listeners. Warnings that nobody listens to are logged."""
        if not self._emitter.emit(name, value) and name == "warning":
            logger.warning("%s", value)

    def _set_state(self, state: State) -> None:
        self.state = state
        self._changed.set()
        self._emitter.emit("state", state)


def _because(error: E, cause: BaseException | None) -> E:
    error.__cause__ = cause
    return error


def _parse(data: str | bytes) -> dict[str, Any] | None:
    """The frame in a message, or None if it is none."""
    if isinstance(data, bytes):
        return None
    try:
        frame = msgspec.json.decode(data)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return None
    return frame if isinstance(frame, dict) else None


def _encode_pong(ping: Mapping[str, Any]) -> str:
    payload = {"payload": ping["payload"]} if "payload" in ping else {}
    return msgspec.json.encode({"type": "pong", **payload}).decode()
