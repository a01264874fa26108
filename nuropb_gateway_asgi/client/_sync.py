"""The client for code that is not asynchronous: scripts, notebooks, a REPL.

The client itself runs on an event loop in a thread of its own; every method hands its work to that and waits. A wait is
ended by Ctrl-C, and what was waited for is cancelled then.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

from ._client import Client
from ._options import ClientOptions, Options, Token
from ._state import Hello, State
from ._subscriptions import GatewayEvent, Subscription

__all__ = ["SyncClient", "SyncSubscription", "connect_sync"]

T = TypeVar("T")


def connect_sync(
    url: str, *, token: Token | None = None, open_timeout: float | None = 30.0, **options: Unpack[Options]
) -> SyncClient:
    """:func:`connect` for code that is not asynchronous: connects, and returns the client.

    Close it, or use it as a context manager. Arguments and exceptions are those of :func:`connect`.
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
    """What :func:`connect_sync` gives: the methods of :class:`Client`, which wait here. Any thread may call them."""

    def __init__(self, client: Client, background: _Background) -> None:
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
        """Where the client is on its way to the gateway."""
        return self._client.state

    @property
    def hello(self) -> Hello | None:
        """What the gateway said first on the connection that is open, or was open last."""
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
    ) -> Any:
        """Call a method and return what it returns; see :meth:`Client.request`."""
        return self._background.run(
            self._client.request(
                service,
                method,
                params,
                timeout=timeout,
                idempotent=idempotent,
                retries=retries,
                trace_id=trace_id,
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
    ) -> None:
        """Call a method for its effect; see :meth:`Client.command`."""
        self._background.run(
            self._client.command(
                service,
                method,
                params,
                timeout=timeout,
                idempotent=idempotent,
                retries=retries,
                trace_id=trace_id,
            )
        )

    def describe(self, service: str | None = None, *, timeout: float | None = None) -> dict[str, Any]:
        """What may be called; see :meth:`Client.describe`."""
        return self._background.run(self._client.describe(service, timeout=timeout))

    def subscribe(
        self,
        topics: str | Sequence[str],
        callback: Callable[[GatewayEvent], object] | None = None,
        *,
        buffer: int = 1000,
    ) -> SyncSubscription:
        """Receive events; returns when the subscription is in force, and raises the typed error if it is refused.

        A ``callback`` is called in the thread of the client, and must not wait for the client.
        """

        async def subscribe() -> Subscription:
            return await self._client.subscribe(topics, callback, buffer=buffer).__aenter__()

        return SyncSubscription(self._background.run(subscribe()), self._background)

    def close(self) -> None:
        """Hang up. Doing it again changes nothing."""
        if self._background.is_running:
            self._background.run(self._client.close())
            self._background.stop()


class SyncSubscription:
    """Events of some topics, to be iterated over. As a context manager it ends with the block."""

    def __init__(self, subscription: Subscription, background: _Background) -> None:
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
        """The next event. Raises TimeoutError if there is none within so many seconds."""

        async def receive() -> GatewayEvent:
            async with asyncio.timeout(timeout):
                return await anext(self._subscription)

        return self._background.run(receive())

    def unsubscribe(self) -> None:
        """End it."""

        async def unsubscribe() -> None:
            self._subscription.unsubscribe()

        if self._background.is_running:
            self._background.run(unsubscribe())


class _Background:
    """An event loop in a thread of its own, which does not keep the process from ending."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="nuropb gateway client", daemon=True)
        self._thread.start()

    @property
    def is_running(self) -> bool:
        """Whether :meth:`stop` was not called yet."""
        return not self._loop.is_closed()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run ``coroutine`` there and wait for it. If the wait is interrupted, it is cancelled."""
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
        """End the loop and its thread."""
        self.run(_close_generators())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _close_generators() -> None:
    loop = asyncio.get_running_loop()
    await loop.shutdown_asyncgens()
    await loop.shutdown_default_executor()  # in which a token may have been fetched
