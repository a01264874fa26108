"""The gateway: all parts put together, as an ASGI application or within one.

The rooms of the package, and which may import which (only downwards; a test holds this)::

    cli                               the command line
    gateway                           wires the parts
    ├── assembly, server              parts from settings; uvicorn for an open network
    ├── contracts, console            documents of what a caller may do, and a page to do it
    ├── mesh, observability           RabbitMQ and the embedded mesh; logs and metrics
    ├── connection_kind               both managers and the mesh of one transport
    ├── handlers                      the transports: WebSocket, HTTP, TCP
    ├── service_mesh_manager          what is in flight, and for whom
    ├── routing                       where each answer and event goes
    ├── controller                    the gateway's face on the mesh
    ├── fleet                         the other processes of the gateway
    ├── handler_manager               who is connected
    ├── limits, authorization         how much, and may they
    ├── wire, static, client          NuroPb's messages; files for pages; the Python client
    ├── authentication                who is this
    └── protocol, topics, settings, rates, exceptions, generation_cache, identifiers, loopback, sockets
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from types import FrameType
from typing import Any, Final, Protocol

import anyio
from anyio.abc import TaskGroup
from starlette.applications import Starlette
from starlette.requests import Request as HTTPRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from .assembly import (
    make_authenticator,
    make_mesh,
    make_origins,
    make_policy,
    make_tls,
    naming_variables,
    open_policy_file,
    say_what_is_missing,
)
from .authentication import Authenticator
from .authentication.key_sets import KeySet
from .authentication.keys import issue_token
from .authorization import AuthorizedPolicy, Authorizer, Policy, completed
from .connection_kind import WEBSOCKET, ConnectionKind
from .console import console_routes
from .contracts.endpoints import Contracts
from .controller import ServiceMeshManagerController
from .handlers.http import make_endpoints
from .handlers.tcp import TCPServer
from .handlers.websocket import DenialLogFilter, WebSocketHandler
from .limits.shared import SharedLimits
from .observability.logs import configure_logging, filtered_server_logs
from .observability.metrics import Metrics
from .service_mesh_manager import ServiceMeshManager
from .settings import Settings
from .static.assets import read_asset, serve_asset
from .wire.interface import Mesh

__all__ = ["Gateway", "combine_lifespans", "configure_logging", "create_app"]

logger = logging.getLogger(__name__)

#: Seconds without a mesh after which a drain is over.
RECONNECT_TIMEOUT: Final = 2.0
#: Seconds that a drain takes at the least, as long as there are connections: calls that were on their way when clients
#: were told to make no more are still answered.
GOODBYE_GRACE: Final = 0.5
#: Seconds between two looks at what a drain waits for.
DRAIN_INTERVAL: Final = 0.02
#: Seconds for clients to read what they were sent last.
FLUSH_TIMEOUT: Final = 1.0
#: Looks in a row that find nobody reading what was sent last, after which it is not waited for.
FLUSH_LOOKS: Final = 5
#: Seconds for a server to close its connections once the gateway is drained.
SHUTDOWN_TIMEOUT: Final = 1
#: How long the token for development holds, in seconds.
DEVELOPMENT_TOKEN_LIFETIME: Final = 24 * 3600
_HOW_TO_START: Final = (
    "the gateway was not started: a mounted application's lifespan is not run by Starlette. Use "
    'gateway.mount(app, "/gateway") or FastAPI(lifespan=gateway.lifespan)'
)


class Lifespan(Protocol):
    """A lifespan as Starlette and FastAPI take it."""

    def __call__(self, app: Any, /) -> contextlib.AbstractAsyncContextManager[Any]: ...


def combine_lifespans(
    *lifespans: Lifespan,
) -> Callable[[Any], contextlib.AbstractAsyncContextManager[Mapping[str, Any]]]:
    """One lifespan made of several: entered in this order, left in the opposite one; their states are merged."""

    @contextlib.asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[Mapping[str, Any]]:
        state: dict[str, Any] = {}
        async with contextlib.AsyncExitStack() as stack:
            for each in lifespans:
                more: Mapping[str, Any] | None = await stack.enter_async_context(each(app))
                state.update(more or {})
            yield state

    return lifespan


class Gateway:
    """A HandlerManager, a ServiceMeshManager and a mesh for each kind of connection, and all that these have in common.

    ``handler_manager`` and ``service_mesh_manager`` are those of the WebSockets; ``channels`` has all by name:
    "websocket", and as the settings say "http" and "tcp". What is sent to users through any reaches them in all.

    ``settings`` come from the environment unless given. The other parts are made from them unless given; an
    ``authenticator`` takes the place of ``JWT_KEY`` and its like, a ``policy`` that of ``POLICY``, ``EXPOSE`` and
    ``EXPOSE_TOPICS``, a ``mesh`` that of ``MESH_URL``. An ``authorizer`` has the last word on what the policy says.
    Raises SettingsError where something is missing. An application may hold several gateways; they share nothing but
    what they are both given.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        authenticator: Authenticator | None = None,
        service_controller: ServiceMeshManagerController | None = None,
        policy: Policy | None = None,
        authorizer: Authorizer | None = None,
        mesh: Mesh | None = None,
        handler_class: type[WebSocketHandler] = WebSocketHandler,
    ) -> None:
        self.settings = settings = Settings.from_env() if settings is None else settings
        self._secret: str | None = None
        with naming_variables():
            if authenticator is None:
                authenticator, self._secret = make_authenticator(settings)
            self._authenticator = authenticator
            self._policy_file = open_policy_file(settings) if policy is None else None
            self._policy = completed(make_policy(settings, self._policy_file) if policy is None else policy)
            origins = make_origins(settings)
        if authorizer is not None:
            self._policy = AuthorizedPolicy(self._policy, authorizer)
        mesh, process = mesh or make_mesh(settings), SharedLimits.of(settings)

        def channel(name: str, controller: ServiceMeshManagerController | None = None) -> ConnectionKind:
            made = ConnectionKind(name, settings, self._authenticator, self._policy, mesh, process, controller)
            self.channels[name] = made
            return made

        self.channels: dict[str, ConnectionKind] = {}
        websocket = channel(WEBSOCKET, service_controller)
        self.handler_manager = websocket.handler_manager
        self.service_mesh_manager = websocket.service_mesh_manager
        self._contracts = Contracts(settings, self.handler_manager, self.service_mesh_manager, self._policy, origins)
        self._http: Mapping[str, ASGIApp] = {}
        if settings.serves_http:
            http = channel("http")
            self._http = make_endpoints(http.handler_manager, http.settings, origins)
        self._tcp: TCPServer | None = None
        if settings.tcp:
            tcp = channel("tcp")
            self._tcp = TCPServer(tcp.handler_manager, tcp.settings, make_tls(settings))
        self._metrics = Metrics.create(self.channels.values(), policy_file=self._policy_file, key_set=self.key_set)
        self._warned = False
        self._draining = False
        self._tasks: TaskGroup | None = None
        self._endpoint = functools.partial(
            handler_class,
            handler_manager=self.handler_manager,
            settings=settings,
            origins=origins,
        )
        self.app = Starlette(routes=self.routes(), lifespan=self.lifespan)

    # --- putting it into an application -----------------------------------------------------------------------

    def routes(self) -> list[BaseRoute]:
        """The gateway's routes: the WebSocket at ``PATH``, and the paths beside it."""
        return [
            WebSocketRoute(self.settings.path, self._reminding(self._endpoint), name="websocket"),
            *(Route(path, self._reminding(endpoint)) for path, endpoint in self._http.items()),
            Route("/client.js", _serve_client, methods=["GET"]),
            *self._contracts.routes(),
            Route("/livez", self._livez, methods=["GET"]),
            Route("/readyz", self._readyz, methods=["GET"]),
            *self._console_routes(),
            *([] if self._metrics is None else [Route("/metrics", self._serve_metrics, methods=["GET"])]),
        ]

    def _console_routes(self) -> list[BaseRoute]:
        if not self.settings.has_console:
            return []
        return console_routes(self.settings.path, development=self._secret is not None)

    def mount(self, app: Starlette, path: str = "/gateway") -> None:
        """Mount the gateway into a Starlette or FastAPI application, and run its lifespan around the application's.

        ``app`` must not be running yet.
        """
        app.mount(path, self.app)
        app.router.lifespan_context = combine_lifespans(self.lifespan, app.router.lifespan_context)

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Any = None) -> AsyncIterator[None]:
        """Run the gateway for as long as the context lasts.

        Entering does not wait for the broker. Raises RuntimeError when it is entered twice at a time.
        """
        if self._tasks is not None:
            raise RuntimeError("this gateway runs already; it needs one lifespan, not two")
        say_what_is_missing(self.settings, self._policy, self._authenticator, self._secret)
        denials = DenialLogFilter()
        server_log = logging.getLogger("uvicorn.error")
        async with contextlib.AsyncExitStack() as stack:
            server_log.addFilter(denials)
            stack.callback(server_log.removeFilter, denials)
            stack.enter_context(filtered_server_logs())
            stack.callback(self._reset)
            if self._tcp is not None:  # first of all: a port that is taken is the one thing that stops the start here
                await stack.enter_async_context(self._tcp.listening())
            await stack.enter_async_context(self.authentication())
            for channel in self.channels.values():
                await stack.enter_async_context(channel.running())
            self._tasks = await stack.enter_async_context(anyio.create_task_group())
            stack.callback(self._tasks.cancel_scope.cancel)
            if self._metrics is not None:
                self._tasks.start_soon(self._metrics.run, name="metrics")
            if self._policy_file is not None:
                self._tasks.start_soon(self._policy_file.watch, self._on_policy_changed, name="policy file")
            stack.enter_context(self._drain_on_signals())
            if self._tcp is not None:
                await stack.enter_async_context(self._tcp.serving())
            for channel in self.channels.values():
                channel.open()
            logger.info("gateway %s started", self.settings.instance_id)
            try:
                yield
            finally:
                for channel in self.channels.values():
                    channel.close()
                logger.info("gateway %s stopped", self.settings.instance_id)

    @contextlib.asynccontextmanager
    async def authentication(self) -> AsyncIterator[None]:
        """Run the authenticator alone, for as long as the context lasts: what it fetches is fetched, for example."""
        async with contextlib.AsyncExitStack() as stack:
            if isinstance(self._authenticator, contextlib.AbstractAsyncContextManager):
                await stack.enter_async_context(self._authenticator)
            yield

    async def _on_policy_changed(self) -> None:
        for channel in self.channels.values():
            await channel.service_mesh_manager.on_policy_changed()

    def _reset(self) -> None:
        self._tasks = None
        self._draining = False

    @property
    def policy(self) -> Policy:
        """Who may call and subscribe to what."""
        return self._policy

    @property
    def tcp_port(self) -> int | None:
        """The port of TCP, while the lifespan lasts; None without."""
        return None if self._tcp is None else self._tcp.port

    @property
    def key_set(self) -> KeySet | None:
        """The keys of a provider that tokens are checked with, if they are fetched."""
        return getattr(self._authenticator, "key_set", None)

    @property
    def development_token(self) -> str | None:
        """A token for a day, signed with the secret of this run; None unless the gateway made one for itself."""
        if self._secret is None:
            return None
        return issue_token(self._secret, "dev", username="Developer", lifetime=DEVELOPMENT_TOKEN_LIFETIME)

    # --- stopping ---------------------------------------------------------------------------------------------

    async def drain(self) -> None:
        """Let nobody in, say goodbye, and wait until nothing is in flight or DRAIN_TIMEOUT is over.

        Clients are told when to come back, each another moment. WebSockets stay open: the server closes them. A mesh
        that stays away is not waited for, as no answer can come, nor are clients that do not read.
        """
        self._draining = True
        for channel in self.channels.values():
            channel.say_goodbye()
        clock = asyncio.get_running_loop().time
        began = connected_at = clock()
        while (waited := clock() - began) < self.settings.drain_timeout:
            busy = self._busy()
            more_may_come = waited < GOODBYE_GRACE and any(len(each.handler_manager) for each in self.channels.values())
            if not (busy or more_may_come):
                break
            if not busy or any(manager.connected for manager in busy):
                connected_at = clock()
            elif clock() - connected_at > RECONNECT_TIMEOUT:
                break
            await asyncio.sleep(DRAIN_INTERVAL)
        for channel in self.channels.values():
            channel.hang_up()
        await self._flush()

    async def _flush(self) -> None:
        """Wait until what was sent last is on its way: the server may hang up at once."""
        await asyncio.sleep(DRAIN_INTERVAL)
        waiting, looks, end = self._unsent(), 0, time.monotonic() + FLUSH_TIMEOUT
        while waiting and looks < FLUSH_LOOKS and time.monotonic() < end:
            await asyncio.sleep(DRAIN_INTERVAL)
            left = self._unsent()
            looks = 0 if left < waiting else looks + 1
            waiting = left

    def _unsent(self) -> int:
        return sum(channel.outbox_size for channel in self.channels.values())

    def _busy(self) -> list[ServiceMeshManager]:
        """Those who still wait for answers."""
        managers = (channel.service_mesh_manager for channel in self.channels.values())
        return [manager for manager in managers if manager.in_flight]

    @contextlib.contextmanager
    def _drain_on_signals(self) -> Any:
        """Drain before the server's own signal handlers act.

        uvicorn closes every connection before it ends the lifespan, so a drain there would come too late; but it
        installs its signal handlers before the lifespan begins, so they can be wrapped here. A second signal goes
        straight to the server.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()
        saved: dict[int, Any] = {}

        def on_signal(number: int, frame: FrameType | None) -> None:
            handler = saved[number]
            if self._draining or self._tasks is None:
                loop.call_soon_threadsafe(_bound_shutdown, handler)
                handler(number, frame)
            else:
                self._draining = True
                loop.call_soon_threadsafe(self._start_drain, number, handler)

        for number in map(int, (signal.SIGTERM, signal.SIGINT)):
            handler = signal.getsignal(number)
            # Python's own handler raises KeyboardInterrupt wherever it is: that is a program, not a server.
            if callable(handler) and handler is not signal.default_int_handler:
                saved[number] = handler
                signal.signal(number, on_signal)
        try:
            yield
        finally:
            for number, handler in saved.items():
                if signal.getsignal(number) is on_signal:
                    signal.signal(number, handler)

    def _start_drain(self, number: int, handler: Callable[[int, FrameType | None], Any]) -> None:
        async def drain() -> None:
            logger.info("draining: %d requests in flight", sum(manager.in_flight for manager in self._busy()))
            try:
                await self.drain()
            finally:
                _bound_shutdown(handler)
                handler(number, None)

        if self._tasks is None:
            handler(number, None)
        else:
            self._tasks.start_soon(drain, name="drain")

    # --- endpoints --------------------------------------------------------------------------------------------

    async def _livez(self, request: HTTPRequest) -> JSONResponse:
        return JSONResponse({"alive": True})

    async def _readyz(self, request: HTTPRequest) -> JSONResponse:
        reasons = self.not_ready()
        warning = getattr(self._authenticator, "warning", None)
        body = {
            "ready": not reasons,
            "reasons": reasons,
            "warnings": [] if warning is None else [warning],
            "mesh": {"connected": all(channel.problem is None for channel in self.channels.values())},
        }
        if self._policy_file is not None:  # with a broken file the last good rules hold, so clients are welcome
            body["policy"] = {"rules": len(self._policy_file.policy.rules), "problem": self._policy_file.problem}
        return JSONResponse(body, status_code=503 if reasons else 200, headers={"Cache-Control": "no-store"})

    async def _serve_metrics(self, request: HTTPRequest) -> Response:
        metrics = self._metrics
        assert metrics is not None  # noqa: S101 - else there would be no such route
        metrics.collect()
        body, content_type = metrics.render()
        return Response(body, headers={"Content-Type": content_type, "Cache-Control": "no-store"})

    def not_ready(self) -> list[str]:
        """Why no new clients should be sent here; empty when all is well."""
        if not self.service_mesh_manager.started:
            return ["the gateway was not started"]
        reasons = []
        if self._draining:
            reasons.append("draining")
        reasons += [channel.problem for channel in self.channels.values() if channel.problem is not None]
        if (problem := getattr(self._authenticator, "problem", None)) is not None:
            reasons.append(problem)
        return reasons

    def _reminding(self, application: ASGIApp) -> ASGIApp:
        """``application``, for which somebody forgot to start the gateway if it is not started: the log says how."""

        async def serve(scope: Scope, receive: Receive, send: Send) -> None:
            if not self.service_mesh_manager.started and not self._warned:
                self._warned = True
                logger.error(_HOW_TO_START)
            await application(scope, receive, send)

        return _Application(serve)


async def _serve_client(request: HTTPRequest) -> Response:
    """The client for browsers, which ``clients/js`` is built into."""
    # Pages of other origins may import it: there is nothing secret in it.
    headers = {"Access-Control-Allow-Origin": "*", "Cross-Origin-Resource-Policy": "cross-origin"}
    return serve_asset(request, read_asset("static/client.js"), headers)


def _bound_shutdown(signal_handler: object) -> None:
    """Have uvicorn wait only so long for its connections.

    By default it waits for ever, and a client that does not read never goes: its transport cannot be closed before
    its buffer is empty. The signal handler that was found in place is a method of the server, if it is uvicorn's.
    """
    server = getattr(signal_handler, "__self__", None)
    config = getattr(server, "config", None)
    if getattr(config, "timeout_graceful_shutdown", 0) is None:
        config.timeout_graceful_shutdown = SHUTDOWN_TIMEOUT  # type: ignore[union-attr]
    # If such a client has said goodbye itself, the shutdown of uvicorn 0.54 fails with InvalidState, and the lifespan
    # does not end at all.
    for connection in tuple(getattr(getattr(server, "server_state", None), "connections", ())):
        if connection.transport.is_closing():
            connection.transport.abort()


class _Application:
    """Makes a function an ASGI application: Starlette takes functions for endpoints of its own kind."""

    def __init__(self, application: ASGIApp) -> None:
        self._application = application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._application(scope, receive, send)


# --- as a server --------------------------------------------------------------------------------------------------


def create_app(settings: Settings | None = None, *, announce: bool = True) -> Starlette:
    """The application of ``uvicorn nuropb_gateway_asgi:app``: a gateway from the environment, with its logging.

    Its gateway is ``app.state.gateway``. A token that the gateway made for this run is printed if ``announce``.
    """
    settings = Settings.from_env() if settings is None else settings
    configure_logging(settings)
    gateway = Gateway(settings)
    gateway.app.state.gateway = gateway
    if gateway.development_token is not None and announce:
        print(f"The mesh is embedded. A token for this run:\n\n{gateway.development_token}\n", flush=True)  # noqa: T201
    return gateway.app
