"""The gateway: all parts put together, as an ASGI application or within one.

What lives where, and who may import whom (downwards only; a test holds this)::

    cli                           the command line
    gateway
    ├── client                    the other end, for programs in Python
    ├── metrics, explain          what a monitoring system asks for, and what an operator does
    ├── _contracts, console       what a developer asks for: who may call what, and a page to do it
    ├── server                    uvicorn, made fit for an open network
    ├── mesh.serving              a service of one's own, on RabbitMQ
    ├── handlers.websocket        one module per kind of connection
    ├── handlers._connection      what all kinds have in common
    ├── handlers._handshake       who is let in
    ├── service_mesh_manager      what is in flight, and where its answer goes
    ├── mesh.rabbitmq, mesh.embedded (and its service, mesh.demo)
    ├── _directory, _events (whom an event is for), _host (for the application around)
    ├── _calls, _switchboard, _online (who is connected to some process), _revoker
    ├── _fleet (the other processes), _presence
    ├── controller, _guards, _interest, _policy_file
    ├── asyncapi, openapi         the contract of a caller, as documents
    ├── contract, generator       what is in it, and a client made of it
    ├── handler_manager, _admission, _outbox, mesh.service, mesh.description, mesh.encryption
    ├── revocation
    ├── authentication            who is this
    ├── key_sets, credentials, origins
    ├── keys, _documents
    ├── protocol, tokens, authorization, policy, rules, mesh.wire, mesh.base, mesh.errors, topics
    ├── _direct, _text_frames     the short way of a WebSocket's text
    ├── logs                      what gets into a log
    └── exceptions, settings, _assets, _ids, _limits, _memory, _strict
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import signal
import threading
import time
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

from ._assets import read_asset, serve_asset
from ._contracts import Contracts
from ._policy_file import PolicyFile
from .authentication import Authenticator, JWTAuthenticator
from .authorization import AuthorizedPolicy, Authorizer, ExposePolicy, Policy, completed
from .console import console_routes
from .controller import ServiceMeshManagerController
from .exceptions import PolicyError, SettingsError
from .handler_manager import GOODBYE_SPREAD, HandlerManager
from .handlers.websocket import DenialLogFilter, WebSocketHandler
from .key_sets import KeySet
from .keys import issue_token, new_secret
from .logs import configure_logging, filtered_server_logs
from .mesh.base import Mesh
from .mesh.demo import DemoService
from .mesh.embedded import EmbeddedMesh
from .mesh.rabbitmq import RabbitMQMesh
from .metrics import Metrics
from .origins import OriginPolicy
from .service_mesh_manager import ServiceMeshManager
from .settings import ENV_PREFIX, Settings

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
    """Everything that one kind of connection needs: a HandlerManager, a ServiceMeshManager, a mesh.

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
        with _naming_variables():
            self._authenticator = authenticator or self._make_authenticator()
            self._policy_file = _open_policy_file(settings) if policy is None else None
            self._policy = completed(self._make_policy() if policy is None else policy)
            origins = _make_origins(settings)
        if authorizer is not None:
            self._policy = AuthorizedPolicy(self._policy, authorizer)
        self.handler_manager = HandlerManager(settings, self._authenticator, self._policy)
        self.service_mesh_manager = ServiceMeshManager(
            settings, self.handler_manager, mesh or _make_mesh(settings), self._policy, service_controller
        )
        self._contracts = Contracts(settings, self.handler_manager, self.service_mesh_manager, self._policy, origins)
        self._metrics = Metrics.create(
            self.handler_manager, self.service_mesh_manager, policy_file=self._policy_file, key_set=self.key_set
        )
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
        """The gateway's routes: the WebSocket at ``PATH``, and the paths beside it."""
        return [
            WebSocketRoute(self.settings.path, _Endpoint(self._serve_websocket), name="websocket"),
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
        self._say_what_is_missing()
        denials = DenialLogFilter()
        server_log = logging.getLogger("uvicorn.error")
        async with contextlib.AsyncExitStack() as stack:
            server_log.addFilter(denials)
            stack.callback(server_log.removeFilter, denials)
            stack.enter_context(filtered_server_logs())
            stack.callback(self._reset)
            await stack.enter_async_context(self.authentication())
            await stack.enter_async_context(self.service_mesh_manager)
            self._tasks = await stack.enter_async_context(anyio.create_task_group())
            stack.callback(self._tasks.cancel_scope.cancel)
            self._tasks.start_soon(self.handler_manager.sweep, name="connections")
            if self._metrics is not None:
                self._tasks.start_soon(self._metrics.run, name="metrics")
            if self._policy_file is not None:
                on_change = self.service_mesh_manager.on_policy_changed
                self._tasks.start_soon(self._policy_file.watch, on_change, name="policy file")
            stack.enter_context(self._drain_on_signals())
            self.handler_manager.closed_for = None
            logger.info("gateway %s started", self.settings.instance_id)
            try:
                yield
            finally:
                self.handler_manager.closed_for = 0.0
                logger.info("gateway %s stopped", self.settings.instance_id)

    @contextlib.asynccontextmanager
    async def authentication(self) -> AsyncIterator[None]:
        """Run the authenticator alone, for as long as the context lasts: what it fetches is fetched, for example."""
        async with contextlib.AsyncExitStack() as stack:
            if isinstance(self._authenticator, contextlib.AbstractAsyncContextManager):
                await stack.enter_async_context(self._authenticator)
            yield

    def _reset(self) -> None:
        self._tasks = None
        self._draining = False

    @property
    def policy(self) -> Policy:
        """Who may call and subscribe to what."""
        return self._policy

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

        Clients are told when to come back, each another moment. Their connections stay open: the server closes them.
        A mesh that stays away is not waited for, as no answer can come, nor are clients that do not read.
        """
        self._draining = True
        self.handler_manager.closed_for = GOODBYE_SPREAD
        for handler in self.handler_manager.handlers:
            self.handler_manager.say_goodbye(handler, "draining")
        clock = asyncio.get_running_loop().time
        began = connected_at = clock()
        while (waited := clock() - began) < self.settings.drain_timeout:
            more_may_come = waited < GOODBYE_GRACE and len(self.handler_manager) > 0
            if not (self.service_mesh_manager.in_flight or more_may_come):
                break
            if self.service_mesh_manager.connected:
                connected_at = clock()
            elif clock() - connected_at > RECONNECT_TIMEOUT:
                break
            await asyncio.sleep(DRAIN_INTERVAL)
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
        return sum(handler.outbox_size for handler in self.handler_manager.handlers)

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
        warning = getattr(self._authenticator, "warning", None)
        body = {
            "ready": not reasons,
            "reasons": reasons,
            "warnings": [] if warning is None else [warning],
            "mesh": {"connected": self.service_mesh_manager.connected},
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
        if not self.service_mesh_manager.connected:
            reasons.append(f"mesh: {self.service_mesh_manager.problem or 'not connected'}")
        if (problem := getattr(self._authenticator, "problem", None)) is not None:
            reasons.append(problem)
        return reasons

    # --- parts from settings ----------------------------------------------------------------------------------

    def _make_policy(self) -> Policy:
        if self._policy_file is not None:
            return self._policy_file.policy
        expose, topics = self.settings.expose, self.settings.expose_topics
        if self.settings.embedded:
            expose = ("demo.*",) if expose is None else expose
            topics = ("demo.#",) if topics is None else topics
        return ExposePolicy(expose or (), topics or (), own_service=self.settings.service_name)

    def _make_authenticator(self) -> Authenticator:
        settings = self.settings
        algorithms = list(settings.jwt_algorithms) or None
        sources = [name for name in ("jwt_key", "jwt_jwks_url", "jwt_oidc_issuer") if getattr(settings, name)]
        if len(sources) > 1:
            first, second, *_ = (f"{ENV_PREFIX}{name.upper()}" for name in sources)
            raise SettingsError(
                f"{second}: {first} is set, too; allowed is one of JWT_KEY, JWT_JWKS_URL and JWT_OIDC_ISSUER"
            )
        key: str | KeySet = settings.jwt_key
        if settings.jwt_jwks_url:
            key = KeySet(settings.jwt_jwks_url, algorithms=algorithms)
        elif settings.jwt_oidc_issuer:
            key = KeySet(issuer=settings.jwt_oidc_issuer, algorithms=algorithms)
        elif not key:
            if not settings.embedded:
                raise SettingsError(
                    "NUROPB_GATEWAY_JWT_KEY: it is not set; allowed is a secret of at least 32 bytes (HS256), or a PEM "
                    "public key (RS256, ES256), here or in the file named by NUROPB_GATEWAY_JWT_KEY_FILE; or "
                    "NUROPB_GATEWAY_JWT_OIDC_ISSUER or NUROPB_GATEWAY_JWT_JWKS_URL in its place"
                )
            key = self._secret = new_secret()
        return JWTAuthenticator(
            key=key,
            algorithms=None if isinstance(key, KeySet) else algorithms,
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
                "for example to 'orders.*,users.me', or name a file of rules in NUROPB_GATEWAY_POLICY"
            )
        if isinstance(self._authenticator, JWTAuthenticator) and self._secret is None:
            for name in ("JWT_ISSUER", "JWT_AUDIENCE"):
                if not getattr(settings, name.lower()) and not (name == "JWT_ISSUER" and settings.jwt_oidc_issuer):
                    logger.warning("NUROPB_GATEWAY_%s is not set: tokens are not checked for it", name)

    async def _serve_websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self.service_mesh_manager.started and not self._warned:
            self._warned = True
            logger.error(_HOW_TO_START)
        await self._endpoint(scope, receive, send)


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


@contextlib.contextmanager
def _naming_variables() -> Iterator[None]:
    """Let errors of the parts, which name a setting, name its environment variable as all others do."""
    try:
        yield
    except SettingsError as error:
        if isinstance(error, PolicyError) or str(error).startswith(ENV_PREFIX):
            raise
        raise SettingsError(f"{ENV_PREFIX}{error}") from error


class _Endpoint:
    """Makes a bound method an ASGI application: Starlette takes methods for functions of a WebSocket."""

    def __init__(self, application: ASGIApp) -> None:
        self._application = application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._application(scope, receive, send)


def _open_policy_file(settings: Settings) -> PolicyFile | None:
    return PolicyFile(settings.policy, own_service=settings.service_name) if settings.policy else None


def _make_origins(settings: Settings) -> OriginPolicy:
    if settings.allowed_origins is None and settings.embedded:
        return OriginPolicy.loopback()
    return OriginPolicy(settings.allowed_origins or ())


def _make_mesh(settings: Settings) -> Mesh:
    if settings.embedded:
        return EmbeddedMesh({"demo": DemoService()}, service_name=settings.service_name)
    return RabbitMQMesh(
        settings.mesh_url,
        service_name=settings.service_name,
        instance_id=settings.instance_id,
        lane=settings.mesh_lane,
    )


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
