"""The gateway's application, with a shorter way for its WebSockets than Starlette's."""

from __future__ import annotations

from typing import Any

from starlette.applications import Starlette
from starlette.types import ASGIApp, Receive, Scope, Send

__all__ = ["GatewayApplication"]


class GatewayApplication(Starlette):
    """A Starlette application that hands connections at its WebSocket's path to ``websocket`` itself.

    Each layer of Starlette would stay in memory for as long as the connection, half a KiB of it or more. A connection
    takes Starlette's way where the application is mounted into another one, or has middleware, or ``websocket`` is
    None: the handler's class is then somebody else's, and may raise what Starlette turns into a close code.
    """

    def __init__(self, *, path: str, websocket: ASGIApp | None, **options: Any) -> None:
        super().__init__(**options)
        self._path = path
        self._websocket = websocket

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a connection, a request or the lifespan."""
        websocket = self._websocket
        if (
            websocket is None
            or scope["type"] != "websocket"
            or scope["path"] != self._path
            or scope.get("root_path")
            or "app" in scope
            or self.user_middleware
        ):
            await super().__call__(scope, receive, send)
            return
        scope.update(app=self, router=self.router, path_params={})
        await websocket(scope, receive, send)
