"""A gateway under test: in this process, on the event loop of a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Generator, Iterator, Mapping
from typing import Any, Final

import anyio
import uvicorn
from anyio.from_thread import BlockingPortal, start_blocking_portal
from starlette.applications import Starlette
from starlette.types import ASGIApp

from ..authentication import issue_token
from ..client import Client, ClientOptions, SyncClient
from ..exceptions import SettingsError
from ..gateway import Gateway
from ..mesh.embedded import EmbeddedMesh
from ..mocks import CallLog
from ..mocks.faults import Faults, connection_faults
from ..server import HTTPProtocol, WebSocketProtocol
from ..settings import Settings
from .bridge import BridgedApp
from .clients import AsyncTestClient, PortalBackground
from .mesh import TestMesh

__all__ = ["TestGateway", "running_gateway"]

#: The settings of a gateway that the caller does not make: everything is exposed to everybody.
DEFAULTS: Final[Mapping[str, Any]] = {
    "jwt_key": "the key of gateways under test, no secret at all",
    "jwt_issuer": "nuropb-gateway-testing",
    "jwt_audience": ("nuropb-gateway-testing",),
    "expose": ("*.*",),
    "expose_topics": ("#",),
    # The tools of agents need a library that is slow to import.
    "mcp": "off",
    "http": "on",
    "server_protocols": "off",
}
#: Seconds for the start of the server, and for a client to connect.
START_TIMEOUT: Final = 10.0
#: Seconds for connections to end when the gateway stops.
STOP_TIMEOUT: Final = 2.0
#: Arguments of Gateway that are no settings.
_PARTS: Final = frozenset({"authenticator", "service_controller", "policy", "authorizer", "handler_class"})


class TestGateway:
    """A running gateway under test."""

    __test__ = False  # pytest takes classes with this name for tests

    def __init__(
        self,
        gateway: Gateway,
        app: ASGIApp,
        mount: str,
        port: int,
        portal: BlockingPortal,
        log: CallLog,
        faults: Faults,
    ) -> None:
        self.gateway = gateway
        #: The services behind the gateway.
        self.mesh = TestMesh(_embedded(gateway), portal, log, faults)
        #: The application, for clients that need no socket. Any event loop of asyncio may call it.
        self.asgi = BridgedApp(app, portal)
        self.port = port
        self._mount = mount
        self._portal = portal
        self._clients: list[Client] = []

    @property
    def url(self) -> str:
        """The URL of the WebSocket."""
        return f"ws://127.0.0.1:{self.port}{self._mount}{self.gateway.settings.path}"

    @property
    def http_url(self) -> str:
        """The URL of the application, without a slash at its end."""
        return f"http://127.0.0.1:{self.port}"

    def token(self, user: str = "alice", *, lifetime: float = 3600.0, **claims: Any) -> str:
        """Make a token of ``user``, valid for ``lifetime`` seconds, with these claims."""
        settings = self.gateway.settings
        key = settings.jwt_key or self.gateway.development_secret
        if not key or "-----BEGIN" in key:
            raise SettingsError(
                "the gateway has no secret for tokens; pass JWT_KEY with a secret, or take tokens of your own"
            )
        own: dict[str, Any] = {"iss": settings.jwt_issuer, "aud": list(settings.jwt_audience)}
        own |= {"client_id": next(iter(settings.jwt_client_id), "")}
        own |= {settings.jwt_user_claim: user, settings.jwt_username_claim: user.title()}
        return issue_token(key, user, lifetime=lifetime, **({k: v for k, v in own.items() if v} | claims))

    def client(self, user: str = "alice", *, token: str | None = None, **claims: Any) -> SyncClient:
        """Connect a client of ``user``, or with a ``token``. It is closed with the gateway at the latest."""
        return SyncClient(self._connect(user, token, claims), PortalBackground(self._portal))

    def async_client(self, user: str = "alice", *, token: str | None = None, **claims: Any) -> AsyncTestClient:
        """Connect a client of ``user``, or with a ``token``, for coroutines."""
        return AsyncTestClient(self._connect(user, token, claims), self._portal)

    def close_clients(self) -> None:
        """Close all clients."""
        for client in self._clients:
            self._portal.call(client.close)
        self._clients.clear()

    def _connect(self, user: str, token: str | None, claims: dict[str, Any]) -> Client:
        token = self.token(user, **claims) if token is None else token

        async def connect() -> Client:
            client = Client(self.url, token, ClientOptions(proxy=None))
            self._clients.append(client)
            await client.opened(START_TIMEOUT)
            return client

        return self._portal.call(connect)


@contextlib.contextmanager
def running_gateway(
    app: Starlette | None = None,
    *,
    gateway: Gateway | None = None,
    services: Mapping[str, object] | None = None,
    portal: BlockingPortal | None = None,
    **settings: Any,
) -> Iterator[TestGateway]:
    """Run a gateway on a free port of this machine, in a thread of its own, for as long as the context lasts.

    It is a new gateway with ``settings``, or ``gateway``, or the one that is mounted in ``app``, a Starlette or FastAPI
    application, whose own pages are served, too. The mesh must be an embedded one. ``services`` (name to object) are
    added to it, and at the end it has the services of before. A ``portal`` on asyncio has a thread already. Raises
    SettingsError for a gateway that cannot be tested.
    """
    mount = ""
    if app is not None and gateway is None:
        mount, gateway = _mounted(app)
    if gateway is None:
        parts = {name: settings.pop(name) for name in _PARTS & settings.keys()}
        gateway = Gateway(Settings(**{**DEFAULTS, **settings}), mesh=EmbeddedMesh({}), **parts)
    elif settings:
        raise TypeError("settings and a gateway cannot be combined; the gateway has its own")
    host = _embedded(gateway).host
    before, interceptor = host.services, host.interceptor
    faults = Faults(interceptor)
    faults.mesh, faults.connections = _embedded(gateway), connection_faults(gateway)
    log = CallLog(faults)
    host.interceptor = log
    for name, service in (services or {}).items():
        host.add(name, service)
    try:
        with (
            contextlib.nullcontext(portal) if portal else start_blocking_portal("asyncio") as here,
            here.wrap_async_context_manager(_serving(app or gateway.app)) as port,
        ):
            running = TestGateway(gateway, app or gateway.app, mount, port, here, log, faults)
            try:
                yield running
            finally:
                running.close_clients()
    finally:
        host.interceptor = interceptor
        host.switch(on=True)
        for name in host.services.keys() - before.keys():
            host.remove(name)
        for name, service in before.items():
            host.add(name, service)


def _embedded(gateway: Gateway) -> EmbeddedMesh:
    mesh = gateway.service_mesh_manager.mesh
    if not isinstance(mesh, EmbeddedMesh):
        raise SettingsError(
            "the gateway is on another mesh than an embedded one; make it with mesh=EmbeddedMesh({...}), or with "
            "NUROPB_GATEWAY_MESH_URL=embedded://demo, for the tests"
        )
    return mesh


def _mounted(app: Starlette) -> tuple[str, Gateway]:
    """Return the path and the gateway of an application that is a gateway's own, or in which one is mounted."""
    if (own := getattr(app.state, "gateway", None)) is not None and own.app is app:
        return "", own
    for route in app.routes:
        found = getattr(getattr(getattr(route, "app", None), "state", None), "gateway", None)
        if isinstance(found, Gateway):
            return str(getattr(route, "path", "")), found
    raise SettingsError(
        'no gateway is mounted in the application; call gateway.mount(app, "/gateway"), or pass gateway='
    )


@contextlib.asynccontextmanager
async def _serving(app: ASGIApp) -> AsyncIterator[int]:
    """Serve ``app`` on a free port, with its lifespan, and yield the port."""
    config = uvicorn.Config(
        app,
        http=HTTPProtocol,
        ws=WebSocketProtocol,
        ws_per_message_deflate=False,
        log_config=None,
        access_log=False,
        lifespan="on",
    )
    server = _Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(server.serve, [listener], name="gateway under test")
            with anyio.fail_after(START_TIMEOUT):
                await server.began.wait()
            if not server.started:
                raise SettingsError("the application did not start; its log has the reason")
            try:
                yield listener.getsockname()[1]
            finally:
                server.stop.set()
                # An exception of the test would cancel the server, whose lifespan has to end first.
                with anyio.move_on_after(2 * STOP_TIMEOUT, shield=True):
                    await server.ended.wait()


class _Server(uvicorn.Server):
    """A server that starts and stops without polling, and leaves signals to the test runner."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.began = asyncio.Event()
        self.stop = asyncio.Event()
        self.ended = asyncio.Event()

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().serve(sockets)
        finally:
            self.began.set()
            self.ended.set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.began.set()

    async def main_loop(self) -> None:
        while not self.stop.is_set():
            await self.on_tick(0)  # updates the time in response headers
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.stop.wait(), 1.0)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # As uvicorn does, without its pause of 0.1 s.
        for each in self.servers:
            each.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        with anyio.move_on_after(STOP_TIMEOUT):
            while self.server_state.connections:  # noqa: ASYNC110 - uvicorn tells nobody
                await anyio.sleep(0.001)
        for task in list(self.server_state.tasks):
            task.cancel()
        await self.lifespan.shutdown()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield
