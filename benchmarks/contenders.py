"""The servers that are compared, one per process: ``python -m benchmarks.contenders NAME --port PORT``.

``gateway-asyncio`` and ``gateway-uvloop`` are ``python -m nuropb_gateway_asgi serve``, which takes uvloop when it finds
it; its settings come from the environment. ``nuropb_gw`` is the Tornado gateway that this one takes the place of.
``echo`` answers every WebSocket message with itself, on the same server, framework and event loop as
``gateway-uvloop``: nothing that is built on these can cost less.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import os
import sys
from typing import Any
from uuid import uuid4

from benchmarks.process import end_with_parent

HOST = "127.0.0.1"


def serve_gateway(port: int) -> None:
    from nuropb_gateway_asgi.__main__ import main

    sys.exit(main(["serve", "--host", HOST, "--port", str(port)]))


def serve_gateway_on_asyncio(port: int) -> None:
    sys.modules["uvloop"] = None  # type: ignore[assignment]  # as if it were not installed
    serve_gateway(port)


def serve_echo(port: int) -> None:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route, WebSocketRoute
    from starlette.websockets import WebSocket

    async def echo(websocket: WebSocket) -> None:
        await websocket.accept()
        async for text in websocket.iter_text():
            await websocket.send_text(text)

    async def ready(request: Request) -> PlainTextResponse:
        return PlainTextResponse("ready")

    app = Starlette(routes=[WebSocketRoute("/ws", echo), Route("/readyz", ready)])
    uvicorn.run(
        app,
        host=HOST,
        port=port,
        ws="websockets-sansio",
        ws_per_message_deflate=False,
        lifespan="off",
        server_header=False,
    )


def serve_nuropb_gw(port: int) -> None:
    asyncio.run(_serve_nuropb_gw(port, os.environ["NUROPB_GATEWAY_MESH_URL"]))


async def _serve_nuropb_gw(port: int, url: str) -> None:
    # Not installed on every Python, and without types.
    gateway: Any = importlib.import_module("nuropb_gw.service_mesh_manager")
    handlers: Any = importlib.import_module("nuropb_gw.handler_manager")
    ws_handler: Any = importlib.import_module("nuropb_gw.handlers.ws_handler")
    web: Any = importlib.import_module("tornado.web")

    names = {"service_name": "bench-nuropb-gw", "instance_id": uuid4().hex}
    handler_manager = handlers.HandlerManager(**names)
    service_mesh_manager = gateway.ServiceMeshManager(
        **names,
        handler_manager=handler_manager,
        amqp_url=url,
        service_controller=gateway.ServiceMeshManagerController(**names),
    )
    service_mesh_manager.connect()

    def authorise_from_token(token: str) -> dict[str, Any]:
        return {"user_id": token, "username": token, "bearer_token": token}

    class Ready(web.RequestHandler):  # type: ignore[misc]
        def get(self) -> None:
            self.set_status(200 if service_mesh_manager.connected else 503)

    application = web.Application(
        [(r"/ws", ws_handler.WsHandler), (r"/readyz", Ready)],
        session_cookie_name="session",
        cookie_secret=uuid4().hex,
        allow_authorisation_cookie=True,
        authentication_timeout=15,
        authorise_from_token=authorise_from_token,
        handler_manager=handler_manager,
        service_mesh_manager=service_mesh_manager,
        allowed_origins=["*"],
    )
    application.listen(port, HOST, backlog=2048)
    await asyncio.Event().wait()


SERVERS = {
    "gateway-asyncio": serve_gateway_on_asyncio,
    "gateway-uvloop": serve_gateway,
    "nuropb_gw": serve_nuropb_gw,
    "echo": serve_echo,
}


def main() -> None:
    parser = argparse.ArgumentParser(description="One of the servers that are compared.")
    parser.add_argument("name", choices=SERVERS)
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args()
    end_with_parent()
    SERVERS[options.name](options.port)


if __name__ == "__main__":
    main()
