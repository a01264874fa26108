"""The gateway: all parts put together, as an ASGI application or within one.

The rooms of the package, and which may import which (only downwards; a test holds this)::

    cli, testing                      the command line; fixtures for tests of programs that call services
    gateway                           wires the parts
    ├── admin                         actions of operators on a running gateway
    ├── assembly, drain, server       parts from settings; from SIGTERM to the end; uvicorn for an open network
    ├── agents                        services as tools for agents
    ├── contracts, console            documents of what a caller may do, and a page to do it
    ├── mocks                         answers in the place of services
    ├── mesh, observability           RabbitMQ and the embedded mesh; logs and metrics
    ├── connection_kind, handlers     both managers and the mesh of a transport; WebSocket, HTTP, TCP
    ├── service_mesh_manager          calls in flight, and the clients that wait for them
    ├── sessions                      sessions that survive their connections
    ├── routing                       brings each answer and event to its receiver
    ├── controller                    the gateway's face on the mesh
    ├── fleet                         the other processes of the gateway
    ├── handler_manager               the connected clients
    ├── limits, authorization         how much clients may do, and which calls they may make
    ├── tracing                       spans, and the trace context of callers
    ├── journal                       lines about connections, calls and operators
    ├── wire, static, client          NuroPb's messages; files for pages; the Python client
    ├── authentication                the identity behind a token
    └── protocol, topics, settings, rates, exceptions, generation_cache, identifiers, loopback, sockets, tasks
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, Protocol

import anyio
from starlette.applications import Starlette
from starlette.requests import Request as HTTPRequest
from starlette.responses import Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from .agents import PATH as AGENTS_PATH
from .agents import Agents
from .assembly import (
    make_authenticator,
    make_history,
    make_mesh,
    make_origins,
    make_policy,
    make_tls,
    naming_variables,
    open_policy_file,
    warn_of_settings,
)
from .authentication import Authenticator, IssuersAuthenticator
from .authentication.key_sets import KeySet
from .authentication.keys import issue_token
from .authorization import AuthorizedPolicy, Authorizer, Policy, completed
from .authorization.tool_policy import ToolPolicy
from .connection_kind import WEBSOCKET, ConnectionKind
from .console import console_routes
from .contracts.endpoints import Contracts
from .controller import ServiceMeshManagerController
from .drain import Drain
from .handlers.absent import explaining_not_found
from .handlers.application import GatewayApplication
from .handlers.http import make_endpoints
from .handlers.refusals import DenialLogFilter
from .handlers.tcp import TCPServer
from .handlers.websocket import WebSocketHandler
from .limits.shared import SharedLimits
from .observability.audit_file import journal_of, written_audit
from .observability.health import Health
from .observability.logs import configure_logging, filtered_server_logs
from .observability.metrics import Metrics
from .server import protocols_in_place
from .settings import Settings
from .static.assets import read_asset, serve_asset
from .tasks import in_own_task, on_hangup
from .wire.interface import Mesh

if TYPE_CHECKING:
    from .admin import Admin

__all__ = ["Gateway", "combine_lifespans", "configure_logging", "create_app"]

logger = logging.getLogger(__name__)

#: Lifetime of the token for development, in seconds.
DEVELOPMENT_TOKEN_LIFETIME: Final = 24 * 3600
_HOW_TO_START: Final = (
    "the gateway was not started: the server did not run the lifespan. Use a server that does: uvicorn without "
    "--lifespan off, gunicorn, hypercorn, granian with --interface asgi; daphne never does"
)
_HOW_TO_START_MOUNTED: Final = (
    "the gateway was not started: a mounted application's lifespan is not run by Starlette. Use "
    'gateway.mount(app, "/gateway") or FastAPI(lifespan=gateway.lifespan), and a server that runs the lifespan '
    "(daphne does not, nor does granian's asginl)"
)


class Lifespan(Protocol):
    """A lifespan as Starlette and FastAPI take it."""

    def __call__(self, app: Any, /) -> contextlib.AbstractAsyncContextManager[Any]: ...


def combine_lifespans(
    *lifespans: Lifespan,
) -> Callable[[Any], contextlib.AbstractAsyncContextManager[Mapping[str, Any]]]:
    """Combine lifespans into one: entered in this order, left in reverse, with their states merged."""

    @in_own_task
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
    """A HandlerManager, a ServiceMeshManager and a mesh for each connection kind, and the parts that they share.

    ``handler_manager`` and ``service_mesh_manager`` are those of the WebSockets; ``connection_kinds`` has all by name:
    "websocket", and by the settings "http", "tcp" and "mcp". A message sent to users through one kind reaches their
    connections of every kind.

    ``settings`` come from the environment by default, and so do the parts: an ``authenticator`` takes the place of
    ``JWT_KEY`` and the other settings of tokens, a ``policy`` that of ``POLICY``, ``EXPOSE`` and ``EXPOSE_TOPICS``, a
    ``mesh`` that of ``MESH_URL``. An ``authorizer`` is asked last, with the policy's decision. Raises SettingsError for
    a missing or invalid setting. An application may hold several gateways; they share only the parts that it gives to
    both.
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
            kept_topics = make_history(settings, self._policy_file)
        if authorizer is not None:
            self._policy = AuthorizedPolicy(self._policy, authorizer)
        mesh, limits = mesh or make_mesh(settings), SharedLimits.of(settings)

        def add_kind(
            name: str, controller: ServiceMeshManagerController | None = None, policy: Policy | None = None
        ) -> ConnectionKind:
            policy = policy or self._policy
            kind = ConnectionKind(name, settings, self._authenticator, policy, mesh, limits, controller, kept_topics)
            self.connection_kinds[name] = kind
            return kind

        self.connection_kinds: dict[str, ConnectionKind] = {}
        websocket = add_kind(WEBSOCKET, service_controller)
        self.handler_manager = websocket.handler_manager
        self.service_mesh_manager = websocket.service_mesh_manager
        self._contracts = Contracts(settings, self.handler_manager, self.service_mesh_manager, self._policy, origins)
        self._http: Mapping[str, ASGIApp] = {}
        if settings.serves_http:
            http = add_kind("http")
            self._http = make_endpoints(http.handler_manager, http.settings, origins)
        self._tcp: TCPServer | None = None
        if settings.tcp:
            tcp = add_kind("tcp")
            self._tcp = TCPServer(tcp.handler_manager, tcp.settings, make_tls(settings))
        self._agents: Agents | None = None
        if Agents.can_serve(settings):
            tools = ToolPolicy(self._policy)
            self._agents = Agents(add_kind("mcp", policy=tools), tools, origins)
        kinds = self.connection_kinds.values()
        self._journal = journal_of(settings)
        for kind in kinds:
            kind.write_to(self._journal)
        self._metrics = Metrics.create(kinds, policy_file=self._policy_file, key_sets=self.key_sets)
        self._drain = Drain(kinds, settings.drain_timeout, settings.shutdown_delay)
        self._health = Health(
            kinds, self._authenticator, self._policy_file, self._metrics, lambda: self._drain.draining
        )
        self._warned = False
        self._running = False
        self._endpoint = functools.partial(
            handler_class,
            handler_manager=self.handler_manager,
            settings=settings,
            origins=origins,
        )
        not_found = explaining_not_found(
            settings, has_tools=self._agents is not None, has_metrics=self._metrics is not None
        )
        self.app: Starlette = GatewayApplication(
            path=settings.path,
            websocket=self._serve_websocket if handler_class is WebSocketHandler else None,
            routes=self.routes(),
            lifespan=self.lifespan,
            exception_handlers={404: not_found},
        )
        self.app.state.gateway = self  # where an application mounts it, tests find it by this
        # Behind a proxy that ends TLS the redirect would lead to http, and a client might send its token along.
        self.app.router.redirect_slashes = False

    @property
    def channels(self) -> Mapping[str, ConnectionKind]:
        """The former name of ``connection_kinds``."""
        return self.connection_kinds

    # --- putting it into an application -----------------------------------------------------------------------

    def routes(self) -> list[BaseRoute]:
        """Return the gateway's routes: the WebSocket at ``PATH``, and the paths beside it."""
        return [
            WebSocketRoute(self.settings.path, self._reminding(self._endpoint), name="websocket"),
            *(Route(path, self._reminding(endpoint)) for path, endpoint in self._http.items()),
            *self._agent_routes(),
            Route("/client.js", _serve_client, methods=["GET"]),
            Route("/client-worker.js", _serve_client, methods=["GET"]),
            *self._contracts.routes(),
            *self._health.routes(),
            *self._console_routes(),
        ]

    def _agent_routes(self) -> list[BaseRoute]:
        if self._agents is None:
            return []
        endpoints = self._agents.endpoints.items()
        return [*(Route(path, self._reminding(endpoint)) for path, endpoint in endpoints), *self._agents.routes()]

    def _console_routes(self) -> list[BaseRoute]:
        if not self.settings.has_console:
            return []
        agents = None if self._agents is None else AGENTS_PATH
        return console_routes(self.settings.path, agents, development=self._secret is not None)

    def mount(self, app: Starlette, path: str = "/gateway") -> None:
        """Mount the gateway into a Starlette or FastAPI application, and run its lifespan around the application's.

        ``app`` must not be running yet.
        """
        app.mount(path, self.app)
        app.router.lifespan_context = combine_lifespans(self.lifespan, app.router.lifespan_context)

    @in_own_task
    @contextlib.asynccontextmanager
    async def lifespan(self, app: Any = None) -> AsyncIterator[None]:
        """Run the gateway for as long as the context lasts.

        Entering does not wait for the broker. Raises RuntimeError if the gateway runs already.
        """
        if self._running:
            raise RuntimeError("this gateway runs already; it needs one lifespan, not two")
        self.settings.renew_instance_id()
        warn_of_settings(self.settings, self._policy, self._authenticator, self._secret)
        denials = DenialLogFilter()
        server_log = logging.getLogger("uvicorn.error")
        async with contextlib.AsyncExitStack() as stack:
            self._running = True
            stack.callback(self._reset)
            stack.callback(self._journal.close)
            stack.enter_context(written_audit(self.settings, self._journal.audit))
            if self.key_sets or self._journal.audit is not None:
                stack.enter_context(on_hangup(self.reload))
            if self.settings.server_protocols == "on":
                stack.enter_context(protocols_in_place(self.settings.max_connections))
            server_log.addFilter(denials)
            stack.callback(server_log.removeFilter, denials)
            stack.enter_context(filtered_server_logs())
            if self._tcp is not None:  # first of all: from here on only a port in use can fail the start
                await stack.enter_async_context(self._tcp.listening())
            await stack.enter_async_context(self.authentication())
            if self._metrics is not None:  # the sums of several processes keep the counts of one that has ended
                stack.callback(self._metrics.collect)
            for kind in self.connection_kinds.values():
                await stack.enter_async_context(kind.running())
            if self._agents is not None:
                await stack.enter_async_context(self._agents.running())
            tasks = await stack.enter_async_context(anyio.create_task_group())
            stack.callback(tasks.cancel_scope.cancel)
            if self._metrics is not None:
                tasks.start_soon(self._metrics.run, name="metrics")
            if self._policy_file is not None:
                tasks.start_soon(self._policy_file.watch, self._on_policy_changed, name="policy file")
            stack.enter_context(self._drain.on_signals(tasks))
            if self.settings.admin_listen:
                await stack.enter_async_context(self._make_admin().running(tasks))
            if self._tcp is not None:
                await stack.enter_async_context(self._tcp.serving())
            for kind in self.connection_kinds.values():
                kind.open()
            logger.info("gateway %s started", self.settings.instance_id)
            try:
                yield
            finally:
                for kind in self.connection_kinds.values():
                    kind.close()
                logger.info("gateway %s stopped", self.settings.instance_id)

    @contextlib.asynccontextmanager
    async def authentication(self) -> AsyncIterator[None]:
        """Run the authenticator alone, for as long as the context lasts; a key set, for example, fetches its keys."""
        async with contextlib.AsyncExitStack() as stack:
            if isinstance(self._authenticator, contextlib.AbstractAsyncContextManager):
                await stack.enter_async_context(self._authenticator)
            yield

    def _make_admin(self) -> Admin:
        from .admin import Admin, Parts  # a gateway without the admin API does not have its code

        return Admin(
            Parts(
                self.settings,
                self.connection_kinds,
                self._policy_file,
                self.key_sets,
                self._metrics,
                self._journal,
                self.not_ready,
                self._health.warnings,
                self.reload,
            )
        )

    def reload(self) -> None:
        """Read the policy file again, fetch the keys, and open the audit log again, as on SIGHUP; returns at once."""
        if self._policy_file is not None:
            self._policy_file.reload()
        for key_set in self.key_sets.values():
            key_set.renew()
        if self._journal.audit is not None:
            self._journal.audit.reopen()

    async def _on_policy_changed(self) -> None:
        for kind in self.connection_kinds.values():
            await kind.service_mesh_manager.on_policy_changed()
        if self._agents is not None:
            self._agents.on_policy_changed()

    def _reset(self) -> None:
        self._running = self._drain.draining = False

    async def drain(self) -> None:
        """Admit no clients, say goodbye, wait until no calls are in flight or DRAIN_TIMEOUT is over, and close.

        Each client gets its own time to reconnect, and the close code 1012. The drain does not wait for a mesh that
        stays away, since no answer can come, nor for clients that do not read.
        """
        await self._drain.run()

    def restart_connections(self, seconds: float) -> None:
        """Say goodbye to all clients, close their connections after ``seconds``, and then admit clients again.

        For development: clients see the drain of a process, and the process stays.
        """
        kinds = list(self.connection_kinds.values())
        for kind in kinds:
            kind.say_goodbye()

        def again() -> None:
            for kind in kinds if self._running and not self._drain.draining else ():
                kind.close_connections()
                kind.open()

        asyncio.get_running_loop().call_later(seconds, again)

    def not_ready(self) -> list[str]:
        """Return the reasons why new clients should go elsewhere; none when all is well."""
        return self._health.not_ready()

    @property
    def policy(self) -> Policy:
        """The policy of calls and subscriptions."""
        return self._policy

    @property
    def tcp_port(self) -> int | None:
        """The TCP port while the lifespan lasts; None without TCP."""
        return None if self._tcp is None else self._tcp.port

    @property
    def key_set(self) -> KeySet | None:
        """The fetched keys of a provider; None if the authenticator has none, or has those of several issuers."""
        return getattr(self._authenticator, "key_set", None)

    @property
    def key_sets(self) -> Mapping[str, KeySet]:
        """The fetched keys of all issuers, by issuer; the name of a single one may be empty."""
        if isinstance(self._authenticator, IssuersAuthenticator):
            return self._authenticator.key_sets
        return {} if self.key_set is None else {self.key_set.issuer or "": self.key_set}

    @property
    def development_token(self) -> str | None:
        """A token for a day, signed with the secret of this run; None unless the gateway made that secret itself."""
        if self._secret is None:
            return None
        return issue_token(self._secret, "dev", username="Developer", lifetime=DEVELOPMENT_TOKEN_LIFETIME)

    @property
    def development_secret(self) -> str | None:
        """The secret of this run; None unless the gateway made it itself. It signs tokens of any user."""
        return self._secret

    def _reminding(self, application: ASGIApp) -> ASGIApp:
        """Wrap ``application`` so that its first use without a started gateway logs how to start it."""

        async def serve(scope: Scope, receive: Receive, send: Send) -> None:
            self._remind(scope)
            await application(scope, receive, send)

        return _Application(serve)

    def _remind(self, scope: Scope) -> None:
        if not self.service_mesh_manager.started and not self._warned:
            self._warned = True
            # Starlette keeps the outermost router in the scope.
            is_mounted = scope.get("router") is not self.app.router
            logger.error(_HOW_TO_START_MOUNTED if is_mounted else _HOW_TO_START)

    def _serve_websocket(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        self._remind(scope)
        return self._endpoint(scope, receive, send).dispatch()


async def _serve_client(request: HTTPRequest) -> Response:
    """Serve the client for browsers, or the script of its worker, built from ``clients/js``."""
    # Pages of other origins may import the client: it holds no secret.
    headers = {"Access-Control-Allow-Origin": "*", "Cross-Origin-Resource-Policy": "cross-origin"}
    file = "client-worker.js" if request.url.path.endswith("/client-worker.js") else "client.js"
    return serve_asset(request, read_asset(f"static/{file}"), headers)


class _Application:
    """An ASGI application made of a function, which Starlette would take for an endpoint of its own kind."""

    def __init__(self, application: ASGIApp) -> None:
        self._application = application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._application(scope, receive, send)


# --- as a server --------------------------------------------------------------------------------------------------


def create_app(settings: Settings | None = None, *, announce: bool = True, mesh: Mesh | None = None) -> Starlette:
    """Make the application of ``uvicorn nuropb_gateway_asgi:app``: a gateway from the environment, with its logging.

    ``app.state.gateway`` is the gateway. With ``announce`` its token for development is printed, if it has one. A
    ``mesh`` takes the place of ``MESH_URL``.
    """
    settings = Settings.from_env() if settings is None else settings
    configure_logging(settings)
    gateway = Gateway(settings, mesh=mesh)
    if gateway.development_token is not None and announce:
        print(f"The mesh is embedded. A token for this run:\n\n{gateway.development_token}\n", flush=True)  # noqa: T201
    return gateway.app
