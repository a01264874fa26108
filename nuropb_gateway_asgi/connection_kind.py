"""One kind of connection of a gateway, with all that belongs to it alone."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import AsyncIterator
from typing import Final

import anyio

from .authentication import Authenticator
from .authorization import Policy
from .controller import ServiceMeshManagerController
from .handler_manager import GOODBYE_SPREAD, HandlerManager
from .limits.shared import SharedLimits
from .protocol import CloseCode
from .service_mesh_manager import ServiceMeshManager
from .settings import Settings
from .wire.interface import Mesh

__all__ = ["WEBSOCKET", "ConnectionKind"]

#: The kind that the gateway itself is: it has its instance id, and takes the calls of other services.
WEBSOCKET: Final = "websocket"
#: Characters of a gateway's instance id that those of its other kinds begin with: no id has more than 100.
_STEM: Final = 90


class ConnectionKind:
    """Who is connected in one way, what they have in flight, and their place on the mesh.

    On the mesh each is a process of the gateway like any other, with an instance id of its own: what is sent to users
    reaches their connections of every kind. ``mesh`` is the first kind's; the others get a sibling of it.
    """

    def __init__(
        self,
        name: str,
        settings: Settings,
        authenticator: Authenticator,
        policy: Policy,
        mesh: Mesh,
        process: SharedLimits,
        controller: ServiceMeshManagerController | None = None,
    ) -> None:
        self.name = name
        if name != WEBSOCKET:
            settings = dataclasses.replace(settings, instance_id=f"{settings.instance_id[:_STEM]}-{name}")
            mesh = mesh.for_transport(settings.instance_id)
        self.settings = settings
        self.handler_manager = HandlerManager(settings, authenticator, policy, process)
        self.service_mesh_manager = ServiceMeshManager(
            settings, self.handler_manager, mesh, policy, controller, name="" if name == WEBSOCKET else name
        )
        # Until it runs, everybody is sent away.
        self.close()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run its place on the mesh, and look after its connections, for as long as the context lasts.

        Nobody is let in before :meth:`open`.
        """
        async with self.service_mesh_manager, anyio.create_task_group() as tasks:
            tasks.start_soon(self.handler_manager.sweep, name=f"{self.name} connections")
            try:
                yield
            finally:
                tasks.cancel_scope.cancel()

    def open(self) -> None:
        """Let clients in."""
        self.handler_manager.closed_for = None

    def close(self) -> None:
        """Let nobody in any more."""
        self.handler_manager.closed_for = 0.0

    def say_goodbye(self) -> None:
        """Let nobody in, and tell who is there to come back later, each at another moment."""
        self.handler_manager.closed_for = GOODBYE_SPREAD
        for handler in self.handler_manager.handlers:
            self.handler_manager.say_goodbye(handler, "draining")

    def hang_up(self) -> None:
        """End its connections, as the server does that is about to stop: of WebSockets it is the one who says so."""
        if self.name != WEBSOCKET:
            self.handler_manager.close_all(CloseCode.SERVICE_RESTART, "service restart")

    @property
    def outbox_size(self) -> int:
        """Bytes that wait for its clients."""
        return sum(handler.outbox_size for handler in self.handler_manager.handlers)

    @property
    def problem(self) -> str | None:
        """Why its mesh takes no messages, in words for an operator, or None."""
        if self.service_mesh_manager.connected:
            return None
        where = "mesh" if self.name == WEBSOCKET else f"mesh ({self.name})"
        return f"{where}: {self.service_mesh_manager.problem or 'not connected'}"
