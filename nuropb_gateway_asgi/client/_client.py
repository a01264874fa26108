"""What an application does with a gateway: calls, events, and a look at the connection."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, Literal, Unpack, overload

from ..exceptions import GatewayError
from ._calls import Kind
from ._connection import Connection
from ._options import ClientOptions, Options, Token
from ._state import Goodbye, Hello, State
from ._subscriptions import Dropped, Gap, GatewayEvent, Subscription, UnsubscribedNotice

__all__ = ["Client", "connect"]


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
        self.url = url
        self._connection = Connection(url, token, options)

    @property
    def state(self) -> State:
        """Where the client is on its way to the gateway."""
        return self._connection.state

    @property
    def hello(self) -> Hello | None:
        """What the gateway said first on the connection that is open, or was open last."""
        return self._connection.hello

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
        subscription = Subscription(wanted, callback, buffer, self._connection.subscriptions.end)
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
        """Call ``listener`` from now on; the result ends that.

        ``event`` tells of every event of the mesh, also of those with a target, which come without a subscription;
        ``warning`` of what is wrong and belongs to no call. Warnings that nobody listens to are logged.
        """
        return self._connection.on(name, listener)

    async def authorize(self, token: str) -> float | None:
        """Send another token on the open connection, of the same user; when it expires, in seconds since 1970.

        Raises CallFailed when it is refused, which leaves the connection as it was, and ConnectionLost when there is
        none.
        """
        return await self._connection.authorize(token)

    async def opened(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - what it raises is not a TimeoutError
        """Wait until the connection is open. Raises ConnectionClosed when that will never be, or not in time."""
        await self._connection.opened(timeout)

    async def close(self) -> None:
        """Hang up and do not come back. Calls fail with ConnectionClosed, subscriptions end."""
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


def _checked(params: Mapping[str, Any] | None) -> Mapping[str, Any]:
    if params is None:
        return {}
    if not isinstance(params, Mapping):
        raise TypeError("params must be a mapping: its members are the method's arguments")
    return dict(params)
