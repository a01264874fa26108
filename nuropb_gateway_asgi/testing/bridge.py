"""An ASGI application that runs on the event loop of another thread."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from anyio.from_thread import BlockingPortal
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["BridgedApp", "on_portal"]

T = TypeVar("T")


async def on_portal(portal: BlockingPortal, coroutine: Coroutine[Any, Any, T]) -> T:
    """Run ``coroutine`` on the event loop of ``portal`` and return its result. Cancelling cancels it."""

    async def run() -> T:
        return await coroutine

    return await asyncio.wrap_future(portal.start_task_soon(run))


class BridgedApp:
    """An application whose calls run on another event loop; messages cross in both directions.

    For clients without a socket, such as httpx's ``ASGITransport`` and Starlette's ``TestClient``. The application is
    started already, so its lifespan answers and does nothing.
    """

    def __init__(self, app: ASGIApp, portal: BlockingPortal) -> None:
        self._app = app
        self._portal = portal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request or a connection."""
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
            return
        loop = asyncio.get_running_loop()

        async def receive_there() -> Message:
            return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(_awaited(receive), loop))

        async def send_there(message: Message) -> None:
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(_awaited(send, message), loop))

        async def run() -> None:
            await self._app(scope, receive_there, send_there)

        await on_portal(self._portal, run())


async def _awaited(function: Any, *args: Any) -> Any:
    return await function(*args)
