"""The parts behind ``/mcp``, put together for one connection kind."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import AsyncIterator, Mapping

from starlette.routing import Route
from starlette.types import ASGIApp

from ..authentication.origins import OriginPolicy
from ..authorization.tool_policy import ToolPolicy
from ..connection_kind import ConnectionKind
from ..exceptions import SettingsError
from ..settings import ENV_PREFIX, Settings
from .metadata import PATH, ResourceMetadata

__all__ = ["Agents"]


class Agents:
    """Tools for agents, on a connection kind whose policy is ``policy``."""

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
        # Imported here, because the library takes as long to import as the rest of the gateway.
        from .calls import ToolCalls
        from .endpoint import AgentEndpoint, RecentCallsEndpoint, make_endpoint
        from .recent import RecentCalls
        from .serving import AgentServer
        from .tool_lists import ToolLists

        settings = kind.settings
        lists = ToolLists(kind.service_mesh_manager, policy)
        recent = RecentCalls()
        calls = ToolCalls(lists, recent, logs_arguments=settings.log_tool_arguments == "on")
        self._server = AgentServer(settings, lists, calls)
        self._metadata = ResourceMetadata(settings)
        parts = kind.handler_manager, settings, origins, self._server, self._metadata
        self._endpoints = {
            PATH: make_endpoint(AgentEndpoint(*parts), origins),
            f"{PATH}/calls": make_endpoint(RecentCallsEndpoint(*parts, recent=recent), origins),
        }

    @property
    def endpoints(self) -> Mapping[str, ASGIApp]:
        """The applications by path."""
        return self._endpoints

    def routes(self) -> list[Route]:
        """Return the routes beside the endpoints."""
        return list(self._metadata.routes())

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Answer requests for as long as the context lasts."""
        async with self._server.running():
            yield

    def on_policy_changed(self) -> None:
        """Have lists of tools made anew, and tell the agents whose tools have changed."""
        self._server.on_policy_changed()
