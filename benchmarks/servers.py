"""Servers in Python, one per process: ``python -m benchmarks.servers NAME --port PORT``.

``gateway`` and ``gateway-asyncio`` are ``nuropb-gateway serve``, the former on uvloop if it is installed, with
``--workers`` processes; their settings come from the environment. ``nuropb_gw`` is the Tornado gateway that this
gateway replaces, in an application that checks tokens. ``gateway-uvicorn`` is the same application by uvicorn's own
command. ``echo`` sends every WebSocket message and every parameter of a call back, by Starlette on uvicorn and the
event loop of ``gateway``: the lowest cost of an ordinary application on both. ``fastapi`` is the way to a service on
RabbitMQ that a FastAPI application would take, ``sse-starlette`` the way to Server-Sent Events.

Each server imports its packages only when it starts, because it has to run where the others cannot be installed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib
import json
import os
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any, Literal
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


def serve_gateway_by_uvicorn(options: argparse.Namespace) -> None:
    from uvicorn.main import main

    main(["nuropb_gateway_asgi:app", "--host", HOST, "--port", str(options.port), "--log-level", "warning"])


def serve_echo(options: argparse.Namespace) -> None:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import PlainTextResponse, Response
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

    async def call(request: Request) -> Response:
        return Response(await request.body(), media_type="application/json")

    app = Starlette(
        routes=[
            WebSocketRoute("/ws", echo),
            Route("/rpc/{service}/{method}", call, methods=["POST"]),
            Route("/readyz", ready),
        ]
    )
    _run_uvicorn(app, options.port, lifespan="off")


def serve_fastapi(options: argparse.Namespace) -> None:
    import aio_pika
    from fastapi import Body, FastAPI, Header, HTTPException

    waiting: dict[str, asyncio.Future[Any]] = {}
    exchange: aio_pika.abc.AbstractExchange
    replies: aio_pika.abc.AbstractQueue
    authorise = _authorise_from_token()

    async def on_reply(message: aio_pika.abc.AbstractIncomingMessage) -> None:
        answer = waiting.pop(message.correlation_id or "", None)
        if answer is not None:
            answer.set_result(json.loads(message.body))

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        nonlocal exchange, replies
        connection = await aio_pika.connect_robust(os.environ["NUROPB_GATEWAY_MESH_URL"])
        async with connection:
            channel = await connection.channel()
            exchange = await channel.get_exchange("nuropb-rpc-exchange")
            replies = await channel.declare_queue(exclusive=True)
            await replies.consume(on_reply, no_ack=True)
            yield

    app = FastAPI(lifespan=lifespan)

    @app.post("/rpc/{service}/{method}")
    async def call(service: str, method: str, params: Any = Body(), authorization: str = Header()) -> Any:  # noqa: B008
        user = authorise(authorization.removeprefix("Bearer "))
        if user is None:
            raise HTTPException(401)
        id_ = uuid4().hex
        context = {"user_id": user["user_id"], "Authorization": authorization, "trace_id": id_, "session_id": id_}
        body = {"tag": "request", "service": service, "method": method, "params": params, "context": context}
        message = aio_pika.Message(
            json.dumps({**body, "trace_id": id_, "correlation_id": id_, "reply_to": replies.name}).encode(),
            content_type="application/json",
            correlation_id=id_,
            reply_to=replies.name,
            headers={"nuropb_type": "request", "nuropb_version": "0.1.8", "nuropb_protocol": "0.1.1", "trace_id": id_},
        )
        waiting[id_] = asyncio.get_running_loop().create_future()
        await exchange.publish(message, service)
        answer = await asyncio.wait_for(waiting[id_], 30)
        if answer["error"] is not None:
            raise HTTPException(502, answer["error"])
        return answer["result"]

    @app.get("/readyz")
    async def ready() -> str:
        return "ready"

    _run_uvicorn(app, options.port, lifespan="on")


def serve_sse_starlette(options: argparse.Namespace) -> None:
    from sse_starlette import EventSourceResponse
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse, PlainTextResponse, Response
    from starlette.routing import Route

    streams: set[asyncio.Queue[str]] = set()
    authorise = _authorise_from_token()

    async def events(request: Request) -> Response:
        if authorise(request.headers["authorization"].removeprefix("Bearer ")) is None:
            return PlainTextResponse("who?", 401)
        stream: asyncio.Queue[str] = asyncio.Queue()

        async def waiting() -> AsyncIterator[dict[str, str]]:
            streams.add(stream)
            try:
                number = 0
                while True:
                    number += 1
                    yield {"id": str(number), "data": await stream.get()}
            finally:
                streams.discard(stream)

        return EventSourceResponse(waiting())

    async def publish(request: Request) -> Response:
        text = json.dumps(await request.json())
        for stream in streams:
            stream.put_nowait(text)
        return JSONResponse(None)

    async def ready(request: Request) -> Response:
        return PlainTextResponse("ready")

    routes = [Route("/events", events), Route("/readyz", ready)]
    app = Starlette(routes=[*routes, Route("/rpc/{service}/publish", publish, methods=["POST"])])
    _run_uvicorn(app, options.port, lifespan="off")


def _run_uvicorn(app: Any, port: int, lifespan: Literal["on", "off"]) -> None:
    import uvicorn

    uvicorn.run(
        app,
        host=HOST,
        port=port,
        http="h11",
        ws="websockets-sansio",
        ws_per_message_deflate=False,
        lifespan=lifespan,
        server_header=False,
        access_log=False,
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
    "gateway-uvicorn": serve_gateway_by_uvicorn,
    "nuropb_gw": serve_nuropb_gw,
    "echo": serve_echo,
    "fastapi": serve_fastapi,
    "sse-starlette": serve_sse_starlette,
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
