"""The client without asyncio, for scripts, notebooks and a REPL.

The client runs on an event loop in a background thread; every method passes its work there and waits. Ctrl-C ends the
wait and cancels the work.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar, Unpack

from ._client import Client
from ._events import GatewayEvent, Position
from ._options import ClientOptions, Options, Token
from ._state import Hello, State
from ._subscription import Subscription

__all__ = ["Background", "SyncClient", "SyncSubscription", "connect_sync"]

T = TypeVar("T")


class Background(Protocol):
    """An event loop of another thread, on which a client runs."""

    @property
    def is_running(self) -> bool:
        """Whether the loop takes work."""
        ...

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run ``coroutine`` on the loop and wait for its result. An interrupted wait cancels it."""
        ...

    def stop(self) -> None:
        """Stop, after the client was closed."""


def connect_sync(
    url: str, *, token: Token | None = None, open_timeout: float | None = 30.0, **options: Unpack[Options]
) -> SyncClient:
    """Connect like :func:`connect`, without asyncio, and return the client.

    Close the client, or use it as a context manager. Arguments and exceptions are those of :func:`connect`. A client
    belongs to the process that connected it: in a fork of that process its methods raise RuntimeError.
    """
    background = _Background()

    async def connect() -> Client:
        client = Client(url, token, ClientOptions(**options))
        try:
            await client.opened(open_timeout)
        except BaseException:
            await client.close()
            raise
        return client

    try:
        return SyncClient(background.run(connect()), background)
    except BaseException:
        background.stop()
        raise


class SyncClient:
    """A client of a gateway, made by :func:`connect_sync`. Its methods block, and any thread may call them."""

    def __init__(self, client: Client, background: Background) -> None:
        self._client = client
        self._background = background

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def state(self) -> State:
        """The state of the connection."""
        return self._client.state

    @property
    def hello(self) -> Hello | None:
        """The gateway's hello on the current connection, or on the last one."""
        return self._client.hello

    def request(
        self,
        service: str,
        method: str,
        params: Mapping[str, Any] | None = None,
        *,
        timeout: float | None = None,
        idempotent: bool = False,
        retries: int = 0,
        trace_id: str | None = None,
        idempotency_key: str | None = None,
    ) -> Any:
        """Call a method and return its result; see :meth:`Client.request`."""
        return self._background.run(
            self._client.request(
                service,
                method,
                params,
                timeout=timeout,
                idempotent=idempotent,
                retries=retries,
                trace_id=trace_id,
                idempotency_key=idempotency_key,
            )
        )

    def command(
        self,
        service: str,
        method: str,
        params: Mapping[str, Any] | None = None,
        *,
        timeout: float | None = None,
        idempotent: bool = False,
        retries: int = 0,
        trace_id: str | None = None,
        idempotency_key: str | None = None,
    ) -> None:
        """Send a command; see :meth:`Client.command`."""
        self._background.run(
            self._client.command(
                service,
                method,
                params,
                timeout=timeout,
                idempotent=idempotent,
                retries=retries,
                trace_id=trace_id,
                idempotency_key=idempotency_key,
            )
        )

    def describe(self, service: str | None = None, *, timeout: float | None = None) -> dict[str, Any]:
        """Return the methods that the client may call; see :meth:`Client.describe`."""
        return self._background.run(self._client.describe(service, timeout=timeout))

    def subscribe(
        self,
        topics: str | Sequence[str],
        callback: Callable[[GatewayEvent], object] | None = None,
        *,
        buffer: int = 1000,
        since: Position | Mapping[str, object] | None = None,
    ) -> SyncSubscription:
        """Subscribe to topics, as :meth:`Client.subscribe` does.

        Returns when the subscription is in force; raises the typed error if it is refused.

        ``callback`` runs in the client's thread, and must not call methods of the client.
        """

        async def subscribe() -> Subscription:
            return await self._client.subscribe(topics, callback, buffer=buffer, since=since).__aenter__()

        return SyncSubscription(self._background.run(subscribe()), self._background)

    def close(self) -> None:
        """Close the connection for good. Repeated calls have no effect, and neither have calls in a forked process."""
        if self._background.is_running:
            self._background.run(self._client.close())
            self._background.stop()


class SyncSubscription:
    """A subscription to topics, to iterate over. As a context manager it ends with the block."""

    def __init__(self, subscription: Subscription, background: Background) -> None:
        self._subscription = subscription
        self._background = background

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.unsubscribe()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> GatewayEvent:
        try:
            return self.receive()
        except StopAsyncIteration:
            raise StopIteration from None

    def receive(self, timeout: float | None = None) -> GatewayEvent:
        """Return the next event. Raises TimeoutError if none arrives within ``timeout`` seconds."""

        async def receive() -> GatewayEvent:
            async with asyncio.timeout(timeout):
                return await anext(self._subscription)

        return self._background.run(receive())

    def unsubscribe(self) -> None:
        """End the subscription. In a forked process, the subscription of its parent stays."""

        async def unsubscribe() -> None:
            self._subscription.unsubscribe()

        if self._background.is_running:
            self._background.run(unsubscribe())

    def close(self) -> None:
        """End the subscription, for ``contextlib.closing``; a :meth:`receive` of another thread ends at once."""
        self.unsubscribe()


class _Background:
    """An event loop in a daemon thread, which does not keep the process alive."""

    def __init__(self) -> None:
        self._process = os.getpid()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="nuropb gateway client", daemon=True)
        self._thread.start()

    @property
    def is_running(self) -> bool:
        """Whether the loop runs: :meth:`stop` was not called, and this process is no fork, which lacks the thread."""
        return not self._loop.is_closed() and os.getpid() == self._process

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run ``coroutine`` on the loop and wait for its result. An interrupted wait cancels it."""
        if os.getpid() != self._process:
            coroutine.close()
            raise RuntimeError(
                f"the client was connected by process {self._process}, and this is a fork of it; connect after the fork"
            )
        if threading.current_thread() is self._thread or not self.is_running:
            coroutine.close()
            raise RuntimeError(
                "the client is closed" if not self.is_running else "a callback must not wait for its own client"
            )
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def stop(self) -> None:
        """Stop the loop and its thread."""
        self.run(_close_generators())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _close_generators() -> None:
    loop = asyncio.get_running_loop()
    await loop.shutdown_asyncgens()
    await loop.shutdown_default_executor()  # a token may have been fetched in it
