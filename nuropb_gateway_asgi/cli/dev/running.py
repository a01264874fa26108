"""The gateway on mocked services: made, served, and changed with its files."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any, Final

import anyio

from ...exceptions import SettingsError
from ...settings import ENV_PREFIX, Settings
from .._development import with_kept_key
from .._output import say
from ..serve.announcement import console_url
from ..serve.listener import choose_port, listening, shown_url
from ..serve.options import Options
from ..serve.processes import run_here
from .announcement import announce

if TYPE_CHECKING:
    from ...gateway import Gateway
    from ...mocks.faults import Faults
    from ...mocks.sources import Mocked, Sources

__all__ = ["run"]

#: Seconds that a printed token is valid.
TOKEN_LIFETIME: Final = 24 * 3600
#: The options of ``serve`` that ``dev`` does not have.
_OPTIONS: Final[dict[str, Any]] = {
    "uds": None,
    "fd": None,
    "workers": 1,
    "reload": False,
    "proxy_headers": False,
    "forwarded_allow_ips": None,
    "ssl_certfile": None,
    "ssl_keyfile": None,
    "deflate": False,
    "root_path": "",
    "shutdown_delay": None,
    "log_level": None,
    "log_config": None,
    "record": None,
    "redact": (),
}


def run(sources: Sources, users: Sequence[str], host: str, port: int) -> int:
    """Serve the mocked services until a signal stops the server, and return the exit code."""
    # Imported here, as these are slow and other commands do without them.
    from starlette.applications import Starlette

    from ...agents import PATH as AGENTS_PATH
    from ...agents import Agents
    from ...console import console_routes
    from ...gateway import combine_lifespans
    from ...observability.logs import configure_logging
    from ...server import make_config
    from .faults_api import PATH, faults_route

    sys.dont_write_bytecode = True  # a change within a second, of the same size, would leave a stale file behind
    settings = development_settings(Settings.from_env())
    configure_logging(settings)
    mocked = sources.load()
    gateway, faults, in_use = make_gateway(settings, mocked)

    @contextlib.asynccontextmanager
    async def watching(app: Any) -> AsyncIterator[None]:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(sources.watch, _mesh(gateway).host, mocked, say, name="mock files")
            tasks.start_soon(sources.play, _mesh(gateway).emit, in_use, say, name="recordings")
            yield
            tasks.cancel_scope.cancel()

    agents = AGENTS_PATH if Agents.can_serve(settings) else None
    console = console_routes(settings.path, agents, development=gateway.development_secret is not None, faults=PATH)
    routes = [faults_route(gateway, faults), *(console if settings.has_console else ()), *gateway.routes()]
    app = Starlette(routes=routes, lifespan=combine_lifespans(gateway.lifespan, watching))
    app.router.redirect_slashes = False
    options = Options(host=host, port=port, **_OPTIONS)
    port = choose_port(options, may_move=False)
    config = make_config(app, settings, host=host, port=port, proxy_headers=False)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))  # until uvicorn has its handlers
    with listening(config, options) as listener:
        url = shown_url(listener, settings.path, tls=False)
        tokens = {user: _token(gateway, user) for user in users}
        try:
            return run_here(config, listener, lambda: announce(url, console_url(url, settings), tokens, mocked))
        finally:  # a signal ends the server by an exception
            for line in (line for replay in sources.replayed for line in replay.report()):
                say(line)


def development_settings(settings: Settings) -> Settings:
    """Return ``settings`` with everything exposed where they say nothing, and with the key for development."""
    if not settings.embedded:
        raise SettingsError(
            f"{ENV_PREFIX}MESH_URL: a broker, and 'dev' runs on mocked services alone; expected none, or use 'serve'"
        )
    if not settings.policy and settings.expose is None and settings.expose_topics is None:
        settings = dataclasses.replace(settings, expose=("*.*",), expose_topics=("#",), expose_tools=("*.*",))
    return with_kept_key(settings, make=True)


def make_gateway(settings: Settings, mocked: dict[str, Mocked]) -> tuple[Gateway, Faults, asyncio.Event]:
    """Make the gateway on an embedded mesh with these services, and its faults on demand.

    The event is set by each call and subscription of a client. Raises SettingsError for a service with the gateway's
    own name.
    """
    from ...gateway import Gateway
    from ...mesh.embedded import EmbeddedMesh
    from ...mocks.faults import Faults, connection_faults
    from ...mocks.unknown import UnknownCalls

    if settings.service_name in mocked:
        source = mocked[settings.service_name].source
        raise SettingsError(
            f"{source}: {settings.service_name} is the name of the gateway itself; expected another one"
        )
    services = {name: each.service for name, each in mocked.items()}
    faults = Faults()
    unknown = UnknownCalls(say, faults)
    faults.mesh = mesh = EmbeddedMesh(services, service_name=settings.service_name, interceptor=unknown)
    unknown.host = mesh.host
    gateway = Gateway(settings, mesh=mesh, authorizer=unknown)
    faults.connections = connection_faults(gateway)
    return gateway, faults, unknown.in_use


def _mesh(gateway: Gateway) -> Any:
    return gateway.service_mesh_manager.mesh


def _token(gateway: Gateway, user: str) -> str:
    from ...authentication import issue_token

    secret = gateway.development_secret or gateway.settings.jwt_key
    if not secret or "-----BEGIN" in secret:
        return "(the settings name the issuer of tokens: get one there)"
    own = {"iss": gateway.settings.jwt_issuer, "aud": list(gateway.settings.jwt_audience)}
    claims = {name: value for name, value in own.items() if value}
    return issue_token(secret, user, username=user.title(), lifetime=TOKEN_LIFETIME, **claims)
