"""Clients of a gateway under test: for coroutines on any event loop of asyncio, and for plain functions."""

from __future__ import annotations

from collections.abc import Coroutine, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

from anyio.from_thread import BlockingPortal

from ..client import Client, GatewayEvent, Hello, Position, Subscription
from .bridge import on_portal

__all__ = ["AsyncTestClient", "AsyncTestSubscription", "PortalBackground"]

T = TypeVar("T")


class PortalBackground:
    """The event loop of a portal, for a client without asyncio."""

    is_running = True

    def __init__(self, portal: BlockingPortal) -> None:
        self._portal = portal

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run ``coroutine`` on the loop and wait for its result. An interrupted wait cancels it."""

        async def run() -> T:
            return await coroutine

        future = self._portal.start_task_soon(run)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def stop(self) -> None:
        """Take no more work. The portal's owner stops it."""
        self.is_running = False


class AsyncTestClient:
    """A client whose connection lives on the event loop of the gateway under test.

    Its coroutines may be awaited on any event loop of asyncio, so it is the same for anyio, pytest-asyncio and
    unittest. Arguments and exceptions are those of :class:`~nuropb_gateway_asgi.client.Client`.
    """

    def __init__(self, client: Client, portal: BlockingPortal) -> None:
        self._client = client
        self._portal = portal

    @property
    def hello(self) -> Hello | None:
        """The gateway's hello."""
        return self._client.hello

    async def request(self, service: str, method: str, params: Mapping[str, Any] | None = None, **options: Any) -> Any:
        """Call a method and return its result. Cancelling cancels the call."""
        return await on_portal(self._portal, self._client.request(service, method, params, **options))

    async def command(self, service: str, method: str, params: Mapping[str, Any] | None = None, **options: Any) -> None:
        """Send a command: returns once the mesh has accepted it."""
        await on_portal(self._portal, self._client.command(service, method, params, **options))

    async def describe(self, service: str | None = None) -> dict[str, Any]:
        """Return the methods that the client may call."""
        return await on_portal(self._portal, self._client.describe(service))

    def subscribe(
        self,
        topics: str | Sequence[str],
        *,
        buffer: int = 1000,
        since: Position | Mapping[str, object] | None = None,
    ) -> AsyncTestSubscription:
        """Subscribe to topics for the duration of an ``async with``, which yields an iterator of events."""
        return AsyncTestSubscription(self._client, self._portal, topics, buffer, since)

    async def close(self) -> None:
        """Close the connection for good."""
        await on_portal(self._portal, self._client.close())


class AsyncTestSubscription:
    """A subscription of an :class:`AsyncTestClient`."""

    def __init__(
        self,
        client: Client,
        portal: BlockingPortal,
        topics: str | Sequence[str],
        buffer: int,
        since: Position | Mapping[str, object] | None,
    ) -> None:
        self._client = client
        self._portal = portal
        self._arguments = (topics, buffer, since)
        self._subscription: Subscription | None = None

    async def __aenter__(self) -> Self:
        topics, buffer, since = self._arguments

        async def subscribe() -> Subscription:
            return await self._client.subscribe(topics, buffer=buffer, since=since).__aenter__()

        self._subscription = await on_portal(self._portal, subscribe())
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        async def unsubscribe() -> None:
            self._entered.unsubscribe()

        await on_portal(self._portal, unsubscribe())

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> GatewayEvent:
        async def receive() -> GatewayEvent | None:
            # A StopAsyncIteration cannot leave a coroutine.
            return await anext(self._entered, None)

        if (event := await on_portal(self._portal, receive())) is None:
            raise StopAsyncIteration
        return event

    @property
    def _entered(self) -> Subscription:
        if self._subscription is None:
            raise RuntimeError("the subscription was not entered; use it in an async with")
        return self._subscription
