"""The gateway: all parts put together, as an ASGI application or within one.

What lives where, and who may import whom (downwards only; a test holds this)::

    cli                           the command line
    gateway
    ├── metrics                   what a monitoring system asks for
    ├── server                    uvicorn, made fit for an open network
    ├── handlers.websocket        one module per kind of connection
    ├── service_mesh_manager      what is in flight, and where its answer goes
    ├── mesh.rabbitmq, mesh.embedded (and its service, mesh.demo)
    ├── controller, _calls, _directory, _guards
    ├── handler_manager, _outbox, mesh.service, mesh.description, mesh.encryption
    ├── protocol, authentication, authorization, mesh.wire, mesh.base, topics
    ├── logs                      what gets into a log
    └── exceptions, settings
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import random
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from types import FrameType
from typing import Any, Final, Protocol

import anyio
from anyio.abc import TaskGroup
from starlette.applications import Starlette
from starlette.requests import Request as HTTPRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from .authentication import Authenticator, JWTAuthenticator, OriginPolicy, issue_token, new_secret
from .authorization import ExposePolicy, Policy
from .controller import ServiceMeshManagerController
from .exceptions import SettingsError
from .handler_manager import HandlerManager
from .handlers.websocket import DenialLogFilter, WebSocketHandler
from .logs import configure_logging, filtered_server_logs
from .mesh.base import Mesh
from .mesh.demo import DemoService
from .mesh.embedded import EmbeddedMesh
from .mesh.rabbitmq import RabbitMQMesh
from .metrics import Metrics
from .protocol import encode_json
from .service_mesh_manager import ServiceMeshManager
from .settings import ENV_PREFIX, Settings

__all__ = ["Gateway", "combine_lifespans", "configure_logging", "create_app"]

logger = logging.getLogger(__name__)

#: What ``retry_after_ms`` of a goodbye is spread over, in seconds: clients must not all come back in one moment.
GOODBYE_SPREAD: Final = 5.0
#: Seconds without a mesh after which a drain is over.
RECONNECT_TIMEOUT: Final = 2.0
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
    """Everything that one kind of connection needs: a HandlerManager, a ServiceMeshManager, a mesh.

    ``settings`` come from the environment unless given. The other parts are made from them unless given; an
    ``authenticator`` takes the place of ``JWT_KEY``, a ``policy`` that of ``EXPOSE`` and ``EXPOSE_TOPICS``, a
    ``mesh`` that of ``MESH_URL``. Raises SettingsError where something is missing. An application may hold several
    gateways; they share nothing.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        authenticator: Authenticator | None = None,
        service_controller: ServiceMeshManagerController | None = None,
        policy: Policy | None = None,
        mesh: Mesh | None = None,
        handler_class: type[WebSocketHandler] = WebSocketHandler,
    ) -> None:
        self.settings = settings = Settings.from_env() if settings is None else settings
        self._secret: str | None = None
        with _naming_variables():
            self._authenticator = authenticator or self._make_authenticator()
            self._policy = policy or _make_policy(settings)
            origins = _make_origins(settings)
        self.handler_manager = HandlerManager(settings, self._authenticator, self._policy)
        self.service_mesh_manager = ServiceMeshManager(
            settings, self.handler_manager, mesh or _make_mesh(settings), self._policy, service_controller
        )
        self._metrics = Metrics.create(self.handler_manager, self.service_mesh_manager)
        # Until the lifespan is entered, everybody is sent away.
        self.handler_manager.closed_for = 0.0
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
        """The gateway's routes: the WebSocket at ``PATH``, ``/livez`` and ``/readyz``."""
        return [
            WebSocketRoute(self.settings.path, _Endpoint(self._serve_websocket), name="websocket"),
            Route("/livez", self._livez, methods=["GET"]),
            Route("/readyz", self._readyz, methods=["GET"]),
            *([] if self._metrics is None else [Route("/metrics", self._serve_metrics, methods=["GET"])]),
        ]

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
        self._say_what_is_missing()
        denials = DenialLogFilter()
        server_log = logging.getLogger("uvicorn.error")
        async with contextlib.AsyncExitStack() as stack:
            server_log.addFilter(denials)
            stack.callback(server_log.removeFilter, denials)
            stack.enter_context(filtered_server_logs())
            stack.callback(self._reset)
            await stack.enter_async_context(self.service_mesh_manager)
            self._tasks = await stack.enter_async_context(anyio.create_task_group())
            stack.callback(self._tasks.cancel_scope.cancel)
            self._tasks.start_soon(self.handler_manager.sweep, name="connections")
            if self._metrics is not None:
                self._tasks.start_soon(self._metrics.run, name="metrics")
            stack.enter_context(self._drain_on_signals())
            self.handler_manager.closed_for = None
            logger.info("gateway %s started", self.settings.instance_id)
            try:
                yield
            finally:
                self.handler_manager.closed_for = 0.0
                logger.info("gateway %s stopped", self.settings.instance_id)

    def _reset(self) -> None:
        self._tasks = None
        self._draining = False

    @property
    def policy(self) -> Policy:
        """What clients may do."""
        return self._policy

    @property
    def development_token(self) -> str | None:
        """A token for a day, signed with the secret of this run; None unless the gateway made one for itself."""
        if self._secret is None:
            return None
        return issue_token(self._secret, "dev", username="Developer", lifetime=DEVELOPMENT_TOKEN_LIFETIME)

    # --- stopping ---------------------------------------------------------------------------------------------

    async def drain(self) -> None:
        """Let nobody in, say goodbye, and wait until nothing is in flight or DRAIN_TIMEOUT is over.

        Clients are told when to come back, each another moment. Their connections stay open: the server closes them.
        A mesh that stays away is not waited for, as no answer can come.
        """
        self._draining = True
        self.handler_manager.closed_for = GOODBYE_SPREAD
        for handler in self.handler_manager.handlers:
            retry_after = random.randrange(int(GOODBYE_SPREAD * 1000))  # noqa: S311 - jitter
            goodbye = {"topic": "goodbye", "event": {"reason": "draining", "retry_after_ms": retry_after}}
            handler.send_frame(encode_json({"type": "event", "payload": goodbye}).decode())
        clock = asyncio.get_running_loop().time
        began = connected_at = clock()
        while self.service_mesh_manager.in_flight and clock() - began < self.settings.drain_timeout:
            if self.service_mesh_manager.connected:
                connected_at = clock()
            elif clock() - connected_at > RECONNECT_TIMEOUT:
                break
            await asyncio.sleep(0.02)

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
            logger.info("draining: %d requests in flight", self.service_mesh_manager.in_flight)
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
        body = {"ready": not reasons, "reasons": reasons, "mesh": {"connected": self.service_mesh_manager.connected}}
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
        if not self.service_mesh_manager.connected:
            reasons.append(f"mesh: {self.service_mesh_manager.problem or 'not connected'}")
        return reasons

    # --- parts from settings ----------------------------------------------------------------------------------

    def _make_authenticator(self) -> Authenticator:
        settings = self.settings
        key = settings.jwt_key
        if settings.jwt_jwks_url or settings.jwt_oidc_issuer:
            raise SettingsError(
                "NUROPB_GATEWAY_JWT_JWKS_URL and NUROPB_GATEWAY_JWT_OIDC_ISSUER are not supported by this version; "
                "allowed is a key in NUROPB_GATEWAY_JWT_KEY, or an authenticator of your own"
            )
        if not key:
            if not settings.embedded:
                raise SettingsError(
                    "NUROPB_GATEWAY_JWT_KEY: it is not set; allowed is a secret of at least 32 bytes (HS256), or a PEM "
                    "public key (RS256, ES256), here or in the file named by NUROPB_GATEWAY_JWT_KEY_FILE"
                )
            key = self._secret = new_secret()
        return JWTAuthenticator(
            key=key,
            algorithms=list(settings.jwt_algorithms) or None,
            issuer=settings.jwt_issuer or None,
            audience=settings.jwt_audience or None,
            leeway=settings.jwt_leeway,
            user_claim=settings.jwt_user_claim,
            username_claim=settings.jwt_username_claim,
        )

    def _say_what_is_missing(self) -> None:
        settings = self.settings
        if not self._policy.exposes_anything:
            logger.warning(
                "nothing is exposed: clients can connect, but may call no service; set NUROPB_GATEWAY_EXPOSE, "
                "for example to 'orders.*,users.me'"
            )
        if isinstance(self._authenticator, JWTAuthenticator) and self._secret is None:
            for name in ("JWT_ISSUER", "JWT_AUDIENCE"):
                if not getattr(settings, name.lower()):
                    logger.warning("NUROPB_GATEWAY_%s is not set: tokens are not checked for it", name)

    async def _serve_websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self.service_mesh_manager.started and not self._warned:
            self._warned = True
            logger.error(_HOW_TO_START)
        await self._endpoint(scope, receive, send)


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


@contextlib.contextmanager
def _naming_variables() -> Iterator[None]:
    """Let errors of the parts, which name a setting, name its environment variable as all others do."""
    try:
        yield
    except SettingsError as error:
        if str(error).startswith(ENV_PREFIX):
            raise
        raise SettingsError(f"{ENV_PREFIX}{error}") from error


class _Endpoint:
    """Makes a bound method an ASGI application: Starlette takes methods for functions of a WebSocket."""

    def __init__(self, application: ASGIApp) -> None:
        self._application = application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._application(scope, receive, send)


def _make_policy(settings: Settings) -> Policy:
    expose, topics = settings.expose, settings.expose_topics
    if settings.embedded:
        expose = ("demo.*",) if expose is None else expose
        topics = ("demo.#",) if topics is None else topics
    return ExposePolicy(expose or (), topics or (), own_service=settings.service_name)


def _make_origins(settings: Settings) -> OriginPolicy:
    if settings.allowed_origins is None and settings.embedded:
        return OriginPolicy.loopback()
    return OriginPolicy(settings.allowed_origins or ())


def _make_mesh(settings: Settings) -> Mesh:
    if settings.embedded:
        return EmbeddedMesh({"demo": DemoService()}, service_name=settings.service_name)
    return RabbitMQMesh(settings.mesh_url, service_name=settings.service_name, instance_id=settings.instance_id)


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
