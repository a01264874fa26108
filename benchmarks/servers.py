"""Servers in Python, one per process: ``python -m benchmarks.servers NAME --port PORT``.

``gateway`` and ``gateway-asyncio`` are ``nuropb-gateway serve``, the former on uvloop if it is installed, with
``--workers`` processes; their settings come from the environment. ``nuropb_gw`` is the Tornado gateway that this
gateway replaces, in an application that checks tokens. ``echo`` sends every WebSocket message back, by Starlette on
uvicorn and the event loop of ``gateway``: the lowest cost of an ordinary application on both.

Each server imports its packages only when it starts, because it has to run where the others cannot be installed.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import os
import sys
from collections.abc import Callable
from typing import Any
from uuid import uuid4

from benchmarks.process import end_with_parent

HOST = "127.0.0.1"
#: Connections that may wait to be accepted.
BACKLOG = 2048


def serve_gateway(options: argparse.Namespace) -> None:
    from nuropb_gateway_asgi.cli import main

    where = ("--host", HOST, "--port", str(options.port))
    sys.exit(main(["serve", *where, "--workers", str(options.workers)]))


def serve_gateway_on_asyncio(options: argparse.Namespace) -> None:
    sys.modules["uvloop"] = None  # type: ignore[assignment]  # as if it were not installed
    serve_gateway(options)


def serve_echo(options: argparse.Namespace) -> None:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route, WebSocketRoute
    from starlette.websockets import WebSocket

    connections: set[WebSocket] = set()

    async def echo(websocket: WebSocket) -> None:
        await websocket.accept()
        connections.add(websocket)
        try:
            async for text in websocket.iter_text():
                if text.startswith('{"type": "broadcast"'):
                    for connection in tuple(connections):
                        await connection.send_text(text)
                else:
                    await websocket.send_text(text)
        finally:
            connections.discard(websocket)

    async def ready(request: Request) -> PlainTextResponse:
        return PlainTextResponse("ready")

    app = Starlette(routes=[WebSocketRoute("/ws", echo), Route("/readyz", ready)])
    uvicorn.run(
        app,
        host=HOST,
        port=options.port,
        ws="websockets-sansio",
        ws_per_message_deflate=False,
        lifespan="off",
        server_header=False,
    )


def serve_nuropb_gw(options: argparse.Namespace) -> None:
    asyncio.run(_serve_nuropb_gw(options.port, os.environ["NUROPB_GATEWAY_SERVICE_NAME"]))


async def _serve_nuropb_gw(port: int, service_name: str) -> None:
    # These packages are not installed on every Python, and have no types.
    gateway: Any = importlib.import_module("nuropb_gw.service_mesh_manager")
    handlers: Any = importlib.import_module("nuropb_gw.handler_manager")
    ws_handler: Any = importlib.import_module("nuropb_gw.handlers.ws_handler")
    web: Any = importlib.import_module("tornado.web")

    names = {"service_name": service_name, "instance_id": uuid4().hex}
    handler_manager = handlers.HandlerManager(**names)

    class Controller(gateway.ServiceMeshManagerController):  # type: ignore[misc]
        async def broadcast(self, topic: str, event: Any) -> None:
            message = {"type": "event", "payload": {"topic": topic, "event": event}}
            await handler_manager.send_message_to_all(message)

    service_mesh_manager = gateway.ServiceMeshManager(
        **names,
        handler_manager=handler_manager,
        amqp_url=os.environ["NUROPB_GATEWAY_MESH_URL"],
        service_controller=Controller(**names),
    )
    service_mesh_manager.connect()

    class Ready(web.RequestHandler):  # type: ignore[misc]
        def get(self) -> None:
            self.set_status(200 if service_mesh_manager.connected else 503)

    application = web.Application(
        [(r"/ws", ws_handler.WsHandler), (r"/readyz", Ready)],
        session_cookie_name="session",
        cookie_secret=uuid4().hex,
        allow_authorisation_cookie=True,
        authentication_timeout=15,
        authorise_from_token=_authorise_from_token(),
        handler_manager=handler_manager,
        service_mesh_manager=service_mesh_manager,
        allowed_origins=["*"],
    )
    application.listen(port, HOST, backlog=BACKLOG)
    await asyncio.Event().wait()


def _authorise_from_token() -> Callable[[str], dict[str, Any] | None]:
    """Return the function that an application must provide: nuropb_gw itself checks no tokens."""
    from jose import JWTError, jwt

    key, algorithms = os.environ["NUROPB_GATEWAY_JWT_KEY"], [os.environ["NUROPB_GATEWAY_JWT_ALGORITHMS"]]

    def authorise(token: str) -> dict[str, Any] | None:
        try:
            user = jwt.decode(token, key, algorithms=algorithms)["sub"]
        except JWTError:
            return None
        return {"user_id": user, "username": user, "bearer_token": token}

    return authorise


SERVERS: dict[str, Callable[[argparse.Namespace], None]] = {
    "gateway": serve_gateway,
    "gateway-asyncio": serve_gateway_on_asyncio,
    "nuropb_gw": serve_nuropb_gw,
    "echo": serve_echo,
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Run one of the compared servers.")
    parser.add_argument("name", choices=SERVERS)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    end_with_parent()
    SERVERS[options.name](options)


if __name__ == "__main__":
    main()
