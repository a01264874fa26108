"""A connection to a gateway that makes itself anew, with all that belongs to it."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, Literal, TypeVar, Unpack, overload
from urllib.parse import urlsplit

import msgspec

from ..exceptions import GatewayError
from ..protocol import CloseCode
from ._calls import Call, Calls, Kind
from ._emitter import Emitter
from ._link import BROKEN, Ending, Link, LinkOptions
from ._options import ClientOptions, Options, Token
from ._state import Goodbye, Hello, State, number, read_hello
from ._subscriptions import Dropped, Gap, GatewayEvent, Subscription, Subscriptions, UnsubscribedNotice
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

__all__ = ["Client", "connect"]

logger = logging.getLogger(__name__)

E = TypeVar("E", bound=BaseException)

#: Seconds; a gateway that pings less often than that is pinged.
PING_INTERVAL: Final = 30.0
#: Seconds for a gateway that said goodbye to hang up.
GOODBYE_PATIENCE: Final = 30.0
_NAMES: Final = frozenset({"state", "event", "gap", "dropped", "unsubscribed", "goodbye", "warning"})


@contextlib.asynccontextmanager
async def connect(
    url: str, *, token: Token | None = None, open_timeout: float | None = 30.0, **options: Unpack[Options]
) -> AsyncIterator[Client]:
    """A client of the gateway at ``url`` (``wss://...``), connected for as long as the context lasts.

    Entering waits until the connection is open, for ``open_timeout`` seconds at the most (None: as long as it takes;
    0: not at all, and calls wait instead). Raises ConnectionClosed when it does not come about, and ValueError or
    TypeError for arguments that can never work. ``options`` are the fields of :class:`ClientOptions`.
    """
    client = Client(url, token, ClientOptions(**options))
    try:
        await client.opened(open_timeout)
        yield client
    finally:
        await client.close()


class Client:
    """What :func:`connect` gives. All of it is for the event loop in which it was made."""

    def __init__(self, url: str, token: Token | None, options: ClientOptions) -> None:
        if urlsplit(url).scheme not in ("ws", "wss"):
            raise ValueError("the URL of a gateway begins with ws:// or wss://")
        self.url = url
        self._token = token
        self._options = options
        self.backoff = options.backoff
        self._emitter = Emitter(_NAMES)
        self._calls = Calls(options.backoff, options.grace, options.max_queue)
        self._subscriptions = Subscriptions(self)
        self._state = State("connecting")
        self._changed = asyncio.Event()
        self._hello: Hello | None = None
        self._link: Link | None = None
        self._link_options = LinkOptions(
            options.connect_timeout, options.ping_timeout, options.max_size, options.ssl, options.proxy
        )
        self._loop = asyncio.get_running_loop()
        self._attempt = 0
        #: How the last connection ended, or why it never came about.
        self._lost: ConnectionLost | None = None
        #: A token was refused and another one fetched: that is done once.
        self._renewed = False
        #: Of the connection that is there now.
        self._last_error: Exception | None = None
        self._stay_away = 0.0
        self._not_before = 0.0
        self._goodbye: asyncio.TimerHandle | None = None
        #: Set when the token's end was told anew.
        self._expiry_news = asyncio.Event()
        self._task = asyncio.create_task(self._run(), name="gateway client")

    # --- for the application ----------------------------------------------------------------------------------

    @property
    def state(self) -> State:
        """Where the client is on its way to the gateway."""
        return self._state

    @property
    def hello(self) -> Hello | None:
        """What the gateway said first on the connection that is open, or was open last."""
        return self._hello

    async def request(
        self,
        service: str,
        method: str,
        params: Mapping[str, Any] | None = None,
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - the gateway is told of it, too
        idempotent: bool = False,
        retries: int = 0,
        trace_id: str | None = None,
    ) -> Any:
        """Call a method and return what it returns. Waits for a connection if there is none.

        ``timeout`` is in seconds from now, waiting included; without it the gateway's own holds (mostly 30). An
        ``idempotent`` call may run twice without harm, so it is made again when the connection is lost; ``retries``
        says how often one that failed as ``retryable`` is made again. Raises CallFailed, ConnectionLost or
        ConnectionClosed. When it is cancelled, so is the call.
        """
        payload = {"service": service, "method": method, "params": _checked(params)}
        more = {"timeout": timeout, "idempotent": idempotent, "retries": retries, "trace_id": trace_id}
        return await self._call("request", payload, more)

    async def command(
        self,
        service: str,
        method: str,
        params: Mapping[str, Any] | None = None,
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - the gateway is told of it, too
        idempotent: bool = False,
        retries: int = 0,
        trace_id: str | None = None,
    ) -> None:
        """Call a method for its effect: returns once the mesh has taken the command, not when it has run.

        Arguments and exceptions are those of :meth:`request`. When it is cancelled, the command may run all the same.
        """
        payload = {"service": service, "method": method, "params": _checked(params)}
        more = {"timeout": timeout, "idempotent": idempotent, "retries": retries, "trace_id": trace_id}
        await self._call("command", payload, more)

    async def describe(
        self,
        service: str | None = None,
        *,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> dict[str, Any]:
        """What may be called: of one service, or of all that the gateway knows of."""
        description: dict[str, Any] = await self._call("describe", {"service": service}, {"timeout": timeout})
        return description

    def subscribe(
        self,
        topics: str | Sequence[str],
        callback: Callable[[GatewayEvent], object] | None = None,
        *,
        buffer: int = 1000,
    ) -> Subscription:
        """Receive events of some topics (``*`` stands for one word, ``#`` for any number of them).

        By a ``callback``, which is called on the event loop and must not block; or by iterating over the result, for
        which ``buffer`` events may wait. Of more the oldest are dropped, and ``dropped`` says so. A subscription lasts
        over reconnections.
        """
        wanted = [topics] if isinstance(topics, str) else list(topics)
        if not wanted:
            raise ValueError("there must be a topic to subscribe to")
        subscription = Subscription(wanted, callback, buffer, self._subscriptions.end)
        if self._state.name == "closed":
            subscription.end(self._closed_error())
        else:
            self._subscriptions.add(subscription)
        return subscription

    @overload
    def on(self, name: Literal["state"], listener: Callable[[State], object]) -> Callable[[], None]: ...
    @overload
    def on(self, name: Literal["event"], listener: Callable[[GatewayEvent], object]) -> Callable[[], None]: ...
    @overload
    def on(self, name: Literal["gap"], listener: Callable[[Gap], object]) -> Callable[[], None]: ...
    @overload
    def on(self, name: Literal["dropped"], listener: Callable[[Dropped], object]) -> Callable[[], None]: ...
    @overload
    def on(
        self, name: Literal["unsubscribed"], listener: Callable[[UnsubscribedNotice], object]
    ) -> Callable[[], None]: ...
    @overload
    def on(self, name: Literal["goodbye"], listener: Callable[[Goodbye], object]) -> Callable[[], None]: ...
    @overload
    def on(self, name: Literal["warning"], listener: Callable[[GatewayError], object]) -> Callable[[], None]: ...
    def on(self, name: str, listener: Callable[[Any], object]) -> Callable[[], None]:
        """Call ``listener`` from now on; the result ends that.

        ``event`` tells of every event of the mesh, also of those with a target, which come without a subscription;
        ``warning`` of what is wrong and belongs to no call. Warnings that nobody listens to are logged.
        """
        return self._emitter.on(name, listener)

    async def authorize(self, token: str) -> float | None:
        """Send another token on the open connection, of the same user; when it expires, in seconds since 1970."""
        link = self._link
        if link is None or self._hello is None or self._state.name != "open":
            raise ConnectionLost(BROKEN, "there is no connection")
        result = await self._calls.ask("authorize", {"token": token}).future
        expires_at = number(result.get("expires_at")) if isinstance(result, dict) else None
        if self._link is link:
            self._hello = replace(self._hello, expires_at=expires_at)
            self._expiry_news.set()
        return expires_at

    async def opened(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - what it raises is not a TimeoutError
        """Wait until the connection is open. Raises ConnectionClosed when that will never be, or not in time."""
        if timeout == 0:
            return
        try:
            async with asyncio.timeout(timeout):
                while self._state.name not in ("open", "closed"):
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise ConnectionClosed(BROKEN, f"no connection within {timeout:g} seconds") from self._lost
        if self._state.name == "closed":
            raise self._closed_error()

    async def close(self) -> None:
        """Hang up and do not come back. Calls fail with ConnectionClosed, subscriptions end."""
        if self._state.name != "closed":
            self._finish(None)
        self._task.cancel()
        await asyncio.wait([self._task])

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
            ending = await link.run(self.url, token)
        finally:
            self._link = None
            self._subscriptions.disconnected()
            if self._goodbye is not None:
                self._goodbye.cancel()
        return self._on_ending(link, ending)

    def _on_ending(self, link: Link, ending: Ending) -> float | None:
        lost = _because(
            ConnectionLost(ending.code, ending.reason, status=ending.status), self._last_error or ending.cause
        )
        self._calls.lost(lost)
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
        self._subscriptions.close(error)
        self._calls.close(self._closed_error())

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
        self._calls.connected(link.send)
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
                unexpected = self._calls.answer(members)
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
        elif not self._subscriptions.notice(topic, event):
            received = GatewayEvent(topic, event, trace_id if isinstance(trace_id, str) else None)
            self._emitter.emit("event", received)
            self._subscriptions.dispatch(received)

    def _on_hello(self, link: Link, event: object) -> None:
        self._hello = hello = read_hello(event)
        self._renewed = False
        self._calls.limits = hello.limits
        is_first = link.opened_at is None
        link.greet(self._options.ping_interval or min(hello.limits.ping_interval, PING_INTERVAL))
        self._expiry_news.set()
        if not is_first:
            self._calls.release()  # there may be room for more now
            return
        self._set_state(State("open"))
        self._subscriptions.connected()
        self._calls.release()

    def _on_goodbye(self, link: Link, event: Mapping[str, Any]) -> None:
        self._stay_away = seconds(event.get("retry_after_ms")) or 0.0
        # What is sent now could be lost when the gateway hangs up, which it does once nothing is in flight.
        self._calls.hold()
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
        if self._hello is None or self._hello.expires_at is None:
            return None
        left = self._hello.expires_at - time.time()
        if left <= 0:
            # If the clocks disagree as much as that, only the gateway knows when the token ends: it hangs up then.
            return None
        margin = min(self._options.refresh_margin, left / 4) * (0.5 + self.backoff.random() / 2)
        return left - margin

    async def _refresh(self) -> bool:
        """Try until the token has expired; False if it was of no use."""
        assert self._hello is not None  # noqa: S101 - there was an expiry
        expires_at = self._hello.expires_at or 0.0
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

    async def _call(self, kind: Kind, payload: Mapping[str, object], options: Mapping[str, Any]) -> Any:
        if self._state.name == "closed":
            raise self._closed_error()
        call = self._calls.start(kind, payload, **options)
        try:
            return await call.future
        except asyncio.CancelledError:
            self._calls.abandon(call)
            raise

    def ask(self, kind: Kind, topics: Sequence[str]) -> Call:
        """Ask the gateway for something about topics."""
        return self._calls.ask(kind, {"topics": topics})

    def tell(self, name: str, value: object) -> None:
        """Tell the listeners."""
        if not self._emitter.emit(name, value) and name == "warning":
            logger.warning("%s", value)

    def _set_state(self, state: State) -> None:
        self._state = state
        self._changed.set()
        self._emitter.emit("state", state)

    def _closed_error(self) -> ConnectionClosed:
        error = self._state.error
        return error.anew() if isinstance(error, ConnectionClosed) else ConnectionClosed(1000, "by the application")


def _because(error: E, cause: BaseException | None) -> E:
    error.__cause__ = cause
    return error


def _checked(params: Mapping[str, Any] | None) -> Mapping[str, Any]:
    if params is None:
        return {}
    if not isinstance(params, Mapping):
        raise TypeError("params must be a mapping: its members are the method's arguments")
    return dict(params)


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
