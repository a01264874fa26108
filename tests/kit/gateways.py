"""Gateways on real servers, in the event loop of the test. A server's context ends after its last task."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Generator
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

import uvicorn

from nuropb_gateway_asgi import FunctionAuthenticator, Gateway, Settings
from nuropb_gateway_asgi.server import HTTPProtocol, WebSocketProtocol

from .waiting import DEADLINE, eventually

__all__ = [
    "DEADLINE",
    "SERVERS",
    "RunningGateway",
    "Server",
    "Site",
    "authorise_from_token",
    "eventually",
    "make_gateway",
    "run_gateway",
    "serve",
]

#: uvicorn as ``nuropb-gateway serve`` runs it, uvicorn in which the gateway puts its protocols in place, uvicorn with
#: its own protocols, and another server.
Server: TypeAlias = Literal["nuropb-gateway", "uvicorn", "websockets-sansio", "wsproto", "hypercorn"]
SERVERS: Final[tuple[Server, ...]] = ("nuropb-gateway", "uvicorn", "websockets-sansio", "wsproto", "hypercorn")


@dataclass(frozen=True)
class Site:
    """The address of a server."""

    host: str
    port: int

    def http(self, path: str = "") -> str:
        return f"http://{self.host}:{self.port}{path}"

    def ws(self, path: str = "/ws") -> str:
        return f"ws://{self.host}:{self.port}{path}"


@dataclass(frozen=True)
class RunningGateway:
    """A gateway and its address."""

    gateway: Gateway
    site: Site

    @property
    def url(self) -> str:
        """The URL of the WebSocket endpoint."""
        return self.site.ws(self.gateway.settings.path)

    async def is_empty(self) -> None:
        """Wait until no connection is admitted or registered, and no call is in flight."""
        await eventually(lambda: self.occupancy == (0, 0, 0))

    @property
    def occupancy(self) -> tuple[int, int, int]:
        """Admitted connections, registered connections, and calls in flight, of all kinds of connections."""
        kinds = self.gateway.channels.values()
        registered = sum(len(kind.handler_manager) for kind in kinds)
        in_flight = sum(kind.service_mesh_manager.in_flight for kind in kinds)
        return len(self.gateway.handler_manager.admission), registered, in_flight


def authorise_from_token(token: str) -> dict[str, Any] | None:
    """Return the claims of a token: ``alice``, ``alice:anything``, or ``alice:for:0.5``, which is valid for 0.5 s.

    The seconds count from this call, so that no test depends on the time that connecting takes. ``bad...`` is invalid.
    """
    user, _, rest = token.partition(":")
    if user.startswith("bad"):
        return None
    expires_at = time.time() + (float(rest.removeprefix("for:")) if rest.startswith("for:") else 3600.0)
    return {"user_id": user, "username": user.title(), "expires_at": expires_at}


def make_gateway(settings: Settings | None = None, /, **options: Any) -> Gateway:
    """Make a gateway that accepts the tokens of :func:`authorise_from_token` instead of JSON web tokens.

    ``options`` are parts of the gateway, or settings unless ``settings`` are given. A uvicorn keeps its own protocols,
    and the texts of exceptions stay in the gateway, as they do by default with RabbitMQ; calls are not refused in an
    overload, and neither calls nor idle connections end by time, unless a setting says so.
    """
    options.setdefault("error_details", "nuropb")
    options.setdefault("server_protocols", "off")
    # Clients and services of tests share the event loop with the gateway, and make its turns long.
    options.setdefault("overload_delay", 0.0)
    # On a busy machine a test takes longer than a call or a ping may: calls would time out that it lets wait for their
    # whole time, and open the circuit of their service.
    options.setdefault("ping_interval", 3600.0)
    if "request_timeout_max" not in options:
        options.setdefault("request_timeout", 3600.0)
    parts = ("authenticator", "service_controller", "policy", "authorizer", "mesh", "handler_class")
    given = {name: options.pop(name) for name in parts if name in options}
    given.setdefault("authenticator", FunctionAuthenticator(_authorise))
    return Gateway(settings or Settings(**options), **given)


async def _authorise(token: str) -> dict[str, Any] | None:
    return authorise_from_token(token)


@contextlib.asynccontextmanager
async def run_gateway(
    gateway: Gateway | None = None,
    /,
    *,
    server: Server = "nuropb-gateway",
    send_buffer: int | None = None,
    is_open: bool = True,
    **settings: Any,
) -> AsyncIterator[RunningGateway]:
    """Run ``gateway``, or a gateway that :func:`make_gateway` makes with ``settings``, on a server of its own.

    Unless ``is_open`` is False, it lets clients in: it has read the revocations.
    """
    if server == "uvicorn":
        settings.setdefault("server_protocols", "on")
    gateway = make_gateway(**settings) if gateway is None else gateway
    max_size = 4 * gateway.settings.max_message_size
    async with serve(gateway.app, server=server, send_buffer=send_buffer, max_size=max_size) as site:
        running = RunningGateway(gateway, site)
        if is_open:
            await eventually(lambda: gateway.service_mesh_manager.revoker.problem is None)
        yield running
    assert running.occupancy == (0, 0, 0)


@contextlib.asynccontextmanager
async def serve(
    app: Any,
    *,
    server: Server = "nuropb-gateway",
    send_buffer: int | None = None,
    max_size: int = 4 * 65536,
    **options: Any,
) -> AsyncIterator[Site]:
    """Serve an ASGI application on a free port, with its lifespan.

    ``max_size`` is the server's limit for messages, in bytes: as on the command line, four times the gateway's own
    limit, which is reached first. ``send_buffer`` is the kernel's, in bytes: if it is small, writes soon block when a
    client does not read. ``options`` are uvicorn's. At the end uvicorn closes the open connections, as at the end of a
    process; hypercorn cancels their tasks, which asyncio reports as an error. Tasks that were started in between must
    end, too.
    """
    async with _leaving_no_tasks(), _serve(app, server, send_buffer, max_size, options) as site:
        yield site


@contextlib.asynccontextmanager
async def _serve(
    app: Any, server: Server, send_buffer: int | None, max_size: int, options: dict[str, Any]
) -> AsyncIterator[Site]:
    listener = socket.create_server(("127.0.0.1", 0))
    if send_buffer is not None:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)  # the connections inherit it
    site = Site(*listener.getsockname())
    started, stop = asyncio.Event(), asyncio.Event()
    run = _hypercorn(max_size) if server == "hypercorn" else _uvicorn(server, max_size, options)
    task = asyncio.create_task(_contained(run(app, listener, started, stop)), name=f"{server} server")
    waiter = asyncio.create_task(started.wait())
    try:
        await asyncio.wait((task, waiter), timeout=DEADLINE, return_when=asyncio.FIRST_COMPLETED)
        waiter.cancel()
        assert not task.done(), f"the server did not start: {task.exception()!r}"
        yield site
    finally:
        stop.set()
        await asyncio.wait((task,), timeout=DEADLINE)
        task.cancel()  # has no effect on a task that has ended
        listener.close()
    await task


_serving: list[set[asyncio.Task[Any]]] = []


@contextlib.asynccontextmanager
async def _leaving_no_tasks() -> AsyncIterator[None]:
    """Fail if tasks are left. With several servers, the last one to end checks: the others still start tasks."""
    _serving.append(_serving[0] if _serving else _tasks())
    try:
        yield
    finally:
        before = _serving.pop()
    if not _serving:
        try:
            await eventually(lambda: not _tasks() - before)
        except TimeoutError:
            raise AssertionError(f"tasks are left: {_tasks() - before}") from None


def _tasks() -> set[asyncio.Task[Any]]:
    # anyio's pytest plugin runs every step of a test in a task of its own.
    tasks = asyncio.all_tasks()
    return {task for task in tasks if not getattr(task.get_coro(), "__qualname__", "").startswith("TestRunner.")}


async def _contained(server: Coroutine[Any, Any, None]) -> None:
    # uvicorn calls sys.exit() if it cannot start, and a SystemExit in a task ends the event loop.
    try:
        await server
    except SystemExit as error:
        raise RuntimeError(f"the server exited with {error.code}") from error


_Run: TypeAlias = Callable[[Any, socket.socket, asyncio.Event, asyncio.Event], Coroutine[Any, Any, None]]


def _uvicorn(name: str, max_size: int, options: dict[str, Any]) -> _Run:
    if name == "uvicorn":
        options = {"ws": "auto", **options}
    else:
        options = {"ws_per_message_deflate": False, **options, "ws": name}
    if name == "nuropb-gateway":
        options |= {"http": HTTPProtocol, "ws": WebSocketProtocol}
    # On a busy machine clients of tests answer late; the pings of the gateway suffice, where a test has any.
    options = {"ws_ping_interval": None, **options}

    async def run(app: Any, listener: socket.socket, started: asyncio.Event, stop: asyncio.Event) -> None:
        class Server(uvicorn.Server):
            async def startup(self, sockets: list[socket.socket] | None = None) -> None:
                await super().startup(sockets)
                started.set()

            async def main_loop(self) -> None:
                while not stop.is_set():
                    await self.on_tick(0)  # updates the time in response headers
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(stop.wait(), 1.0)
                # uvicorn 0.54 fails on connections that are about to close.
                await eventually(lambda: not any(each.transport.is_closing() for each in self.server_state.connections))

            @contextlib.contextmanager
            def capture_signals(self) -> Generator[None, None, None]:
                yield  # pytest handles the signals

        config = uvicorn.Config(
            app,
            ws_max_size=max_size,
            timeout_graceful_shutdown=2,
            log_config=None,
            lifespan="on",
            **options,
        )
        await Server(config).serve([listener])

    return run


def _hypercorn(max_size: int) -> _Run:
    # The unit tests run without it.
    import hypercorn.asyncio
    import hypercorn.config

    async def run(app: Any, listener: socket.socket, started: asyncio.Event, stop: asyncio.Event) -> None:
        async def until_stopped() -> None:
            started.set()
            await stop.wait()

        config = hypercorn.config.Config()
        config.bind = [f"fd://{listener.detach()}"]
        config.errorlog = None
        config.websocket_max_message_size = max_size
        config.graceful_timeout = 2
        await hypercorn.asyncio.serve(app, config, shutdown_trigger=until_stopped, mode="asgi")

    return run
