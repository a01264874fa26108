"""The client for asyncio: calls, subscriptions, and the state of the connection."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, Literal, Unpack, overload

from ..exceptions import GatewayError
from ..protocol import MAX_ID_LENGTH, MAX_TRACE_ID_LENGTH, is_method, is_service
from ..topics import check_pattern
from ._call import Kind
from ._connection import Connection
from ._events import Dropped, Gap, GatewayEvent, Position, UnsubscribedNotice
from ._options import ClientOptions, Options, Token
from ._state import Goodbye, Hello, State
from ._subscription import Subscription

__all__ = ["Client", "connect"]


@contextlib.asynccontextmanager
async def connect(
    url: str, *, token: Token | None = None, open_timeout: float | None = 30.0, **options: Unpack[Options]
) -> AsyncIterator[Client]:
    """Connect to the gateway at ``url`` (``wss://...``) for the duration of the context.

    Entering waits until the connection is open, for ``open_timeout`` seconds at most (None: without limit; 0: not at
    all, calls wait instead). Raises ConnectionClosed if the connection fails, and ValueError or TypeError for invalid
    arguments. ``options`` are the fields of :class:`ClientOptions`.
    """
    client = Client(url, token, ClientOptions(**options))
    try:
        await client.opened(open_timeout)
        yield client
    finally:
        await client.close()


class Client:
    """A client of a gateway, made by :func:`connect`. It may only be used on the event loop that made it."""

    def __init__(self, url: str, token: Token | None, options: ClientOptions) -> None:
        try:
            asyncio.get_running_loop()
        except RuntimeError as error:
            raise RuntimeError(
                "the client needs a running event loop of asyncio; without one, and with trio, use connect_sync, in "
                "trio by trio.to_thread.run_sync"
            ) from error
        self.url = url
        self._connection = Connection(url, token, options)

    @property
    def state(self) -> State:
        """The state of the connection."""
        return self._connection.state

    @property
    def hello(self) -> Hello | None:
        """The gateway's hello on the current connection, or on the last one."""
        return self._connection.hello

    async def request(
        self,
        service: str,
        method: str,
        params: Mapping[str, Any] | None = None,
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - it is sent to the gateway
        idempotent: bool = False,
        retries: int = 0,
        trace_id: str | None = None,
        idempotency_key: str | None = None,
    ) -> Any:
        """Call a method and return its result. Waits for a connection if there is none.

        ``timeout`` is in seconds from now, including the waiting; the default is the gateway's (mostly 30). An
        ``idempotent`` call may run twice without harm, so it is repeated when its session is lost, with the same
        idempotency key: a random one, or ``idempotency_key``; ``retries`` is
        how often a ``retryable`` failure is repeated. Raises CallFailed, ConnectionLost or ConnectionClosed; TypeError
        or ValueError, which name the argument, for a call that no gateway would accept. Cancelling the task cancels the
        call.
        """
        payload = _checked_call(service, method, params)
        more = {"timeout": timeout, "idempotent": idempotent, "retries": retries}
        more |= _checked_ids(trace_id, idempotency_key)
        return await self._call("request", payload, more)

    async def command(
        self,
        service: str,
        method: str,
        params: Mapping[str, Any] | None = None,
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - it is sent to the gateway
        idempotent: bool = False,
        retries: int = 0,
        trace_id: str | None = None,
        idempotency_key: str | None = None,
    ) -> None:
        """Send a command: returns once the mesh has accepted it, before it has run.

        Arguments and exceptions are those of :meth:`request`. Cancelling the task does not stop a command.
        """
        payload = _checked_call(service, method, params)
        more = {"timeout": timeout, "idempotent": idempotent, "retries": retries}
        more |= _checked_ids(trace_id, idempotency_key)
        await self._call("command", payload, more)

    async def describe(
        self,
        service: str | None = None,
        *,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> dict[str, Any]:
        """Return the methods that the client may call, of one service or of all that the gateway knows."""
        description: dict[str, Any] = await self._call("describe", {"service": service}, {"timeout": timeout})
        return description

    def subscribe(
        self,
        topics: str | Sequence[str],
        callback: Callable[[GatewayEvent], object] | None = None,
        *,
        buffer: int = 1000,
        since: Position | Mapping[str, object] | None = None,
    ) -> Subscription:
        """Subscribe to topics (``*`` matches one word, ``#`` any number of words).

        Topics with history may begin in the past: ``since`` is the position of the last known event, ``{"last": 10}``
        (at most 1000), or ``{"seconds": 300}``. The event ``recovered`` of the subscription tells the result.

        Events go to ``callback``, which runs on the event loop and must not block. Without one, iterate over the
        result: ``buffer`` events may wait, then the oldest are dropped and ``dropped`` reports it. Reconnections do
        not end a subscription. Raises TypeError or ValueError for a topic that no gateway accepts.
        """
        wanted = [topics] if isinstance(topics, str) else list(topics)
        if not wanted:
            raise ValueError("topics is empty: name at least one topic")
        for topic in wanted:
            reason = check_pattern(_text("topics", topic))
            if reason is not None:
                raise ValueError(f"topics: {reason}")
        start = {"epoch": since.epoch, "offset": since.offset} if isinstance(since, Position) else since
        subscription = Subscription(wanted, callback, buffer, self._connection.subscriptions.end, start)
        if self._connection.state.name == "closed":
            subscription.end(self._connection.closed_error())
        else:
            self._connection.subscriptions.add(subscription)
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
        """Call ``listener`` for every ``name`` from now on. Returns a function that removes it.

        ``event`` is every event of the mesh, including events with a target, which need no subscription. ``warning`` is
        an error that belongs to no call; without a listener it is logged.
        """
        return self._connection.on(name, listener)

    async def authorize(self, token: str) -> float | None:
        """Send another token of the same user on the open connection.

        Returns when it expires, in seconds since 1970. Raises CallFailed if it is refused, which leaves the connection
        unchanged, and ConnectionLost without an open connection.
        """
        return await self._connection.authorize(token)

    async def opened(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - it raises another error
        """Wait until the connection is open. Raises ConnectionClosed if the client is closed, and after ``timeout``."""
        await self._connection.opened(timeout)

    async def close(self) -> None:
        """Close the connection for good. Calls fail with ConnectionClosed, subscriptions end."""
        await self._connection.close()

    async def _call(self, kind: Kind, payload: Mapping[str, object], options: Mapping[str, Any]) -> Any:
        if self._connection.state.name == "closed":
            raise self._connection.closed_error()
        calls = self._connection.calls
        call = calls.start(kind, payload, **options)
        try:
            return await call.future
        except asyncio.CancelledError:
            calls.abandon(call)
            raise


def _checked_call(service: str, method: str, params: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the payload of a call. Raises TypeError or ValueError for one that no gateway accepts."""
    if not is_service(_text("service", service)):
        raise ValueError("service: expected 1 to 255 printable ASCII characters without spaces")
    if not is_method(_text("method", method)):
        raise ValueError("method: expected a name of at most 255 ASCII letters, digits and underscores")
    return {"service": service, "method": method, "params": _checked(params)}


def _checked_ids(trace_id: str | None, key: str | None) -> dict[str, Any]:
    """Return the ids of a call. Raises TypeError or ValueError for those that no gateway accepts."""
    if trace_id is not None and not (
        len(_text("trace_id", trace_id)) <= MAX_TRACE_ID_LENGTH and trace_id.isprintable()
    ):
        raise ValueError(f"trace_id: expected at most {MAX_TRACE_ID_LENGTH} printable characters")
    if key is not None and not (
        0 < len(_text("idempotency_key", key)) <= MAX_ID_LENGTH and key.isascii() and key.isprintable()
    ):
        raise ValueError(f"idempotency_key: expected 1 to {MAX_ID_LENGTH} printable ASCII characters")
    return {"trace_id": trace_id, "idempotency_key": key}


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name}: a value of type {type(value).__name__}; expected str")
    return value


def _checked(params: Mapping[str, Any] | None) -> Mapping[str, Any]:
    if params is None:
        return {}
    if not isinstance(params, Mapping):
        raise TypeError("params must be a mapping: its members are the method's arguments")
    return dict(params)
