"""The parts behind ``/mcp``, put together for one connection kind."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib.util
from collections.abc import AsyncIterator, Callable, Mapping
from typing import TYPE_CHECKING, Final, NamedTuple

import anyio
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from ..authentication.origins import OriginPolicy
from ..authorization.tool_policy import ToolPolicy
from ..connection_kind import ConnectionKind
from ..exceptions import SettingsError
from ..settings import ENV_PREFIX, Settings
from ..tasks import TaskOwner
from .metadata import PATH, ResourceMetadata

if TYPE_CHECKING:
    from .serving import AgentServer

__all__ = ["Agents"]

#: The path of a user's latest tool calls.
CALLS_PATH: Final = f"{PATH}/calls"


class _Parts(NamedTuple):
    """The parts that need the library ``mcp``."""

    server: AgentServer
    #: By path.
    applications: Mapping[str, ASGIApp]


class Agents:
    """Tools for agents, on a connection kind whose policy is ``policy``.

    The library ``mcp`` takes twice as long to import as the rest of the gateway, and as much memory. If the settings
    ask for tools, it is imported at once; if tools are only there because the mesh is embedded, with the first agent.
    """

    @staticmethod
    def can_serve(settings: Settings) -> bool:
        """Return whether tools are served. Raises SettingsError if they are asked for, but a package is missing."""
        if not settings.serves_mcp:
            return False
        if importlib.util.find_spec("mcp") is None:
            if settings.mcp == "on":
                raise SettingsError(
                    f"{ENV_PREFIX}MCP: on, but the package mcp is not installed; expected "
                    "pip install 'nuropb-gateway-asgi[mcp]'"
                )
            return False
        return True

    def __init__(self, kind: ConnectionKind, policy: ToolPolicy, origins: OriginPolicy) -> None:
        self._metadata = ResourceMetadata(kind.settings)
        self._make: Callable[[], _Parts] = functools.partial(_make_parts, kind, policy, origins, self._metadata)
        self._parts: _Parts | None = self._make() if kind.settings.mcp == "on" else None
        #: Set when the first request has come, and when requests are answered; None while the gateway does not run.
        self._wanted: asyncio.Event | None = None
        self._ready: asyncio.Event | None = None

    @property
    def endpoints(self) -> Mapping[str, ASGIApp]:
        """The applications by path."""
        return {path: functools.partial(self._answer, path) for path in (PATH, CALLS_PATH)}

    def routes(self) -> list[Route]:
        """Return the routes beside the endpoints."""
        return list(self._metadata.routes())

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Answer requests for as long as the context lasts."""
        self._wanted, self._ready = wanted, ready = asyncio.Event(), asyncio.Event()
        try:
            async with TaskOwner() as tasks:
                tasks.start_soon(self._run, wanted, ready, name="agents")
                if self._parts is not None:
                    wanted.set()
                    await ready.wait()
                yield
        finally:
            self._wanted = self._ready = None
            ready.set()  # the admission refuses requests that still wait

    async def _run(self, wanted: asyncio.Event, ready: asyncio.Event) -> None:
        await wanted.wait()
        if self._parts is None:
            self._parts = await anyio.to_thread.run_sync(self._make)
        async with self._parts.server.running():
            ready.set()
            await anyio.sleep_forever()

    async def _answer(self, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, the first one after the library has been imported."""
        if self._wanted is not None and self._ready is not None:
            self._wanted.set()
            await self._ready.wait()
        if self._parts is None:  # the gateway does not run, which the answer says
            self._parts = self._make()
        await self._parts.applications[path](scope, receive, send)

    def on_policy_changed(self) -> None:
        """Have lists of tools made anew, and tell the agents whose tools have changed."""
        if self._parts is not None:
            self._parts.server.on_policy_changed()


def _make_parts(kind: ConnectionKind, policy: ToolPolicy, origins: OriginPolicy, metadata: ResourceMetadata) -> _Parts:
    from .calls import ToolCalls
    from .endpoint import AgentEndpoint, RecentCallsEndpoint, make_endpoint
    from .recent import RecentCalls
    from .serving import AgentServer
    from .tool_lists import ToolLists

    settings = kind.settings
    lists = ToolLists(kind.service_mesh_manager, policy)
    recent = RecentCalls()
    calls = ToolCalls(lists, recent, logs_arguments=settings.log_tool_arguments == "on")
    history = kind.service_mesh_manager.events.history
    server = AgentServer(settings, lists, calls, lambda topic: history.covering(topic) is not None)
    parts = kind.handler_manager, settings, origins, server, metadata
    applications = {
        PATH: make_endpoint(AgentEndpoint(*parts), origins),
        CALLS_PATH: make_endpoint(RecentCallsEndpoint(*parts, recent=recent), origins),
    }
    return _Parts(server, applications)
