"""Connection kinds: both managers and the mesh of one transport."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import AsyncIterator, Iterable
from typing import Final

import anyio

from .authentication import Authenticator
from .authorization import Policy
from .controller import ServiceMeshManagerController
from .handler_manager import GOODBYE_SPREAD, HandlerManager
from .journal import Journal
from .limits.shared import SharedLimits
from .protocol import CloseCode
from .routing.summaries import CallSummaries
from .service_mesh_manager import ServiceMeshManager
from .settings import Settings
from .wire.history import KeptTopic
from .wire.interface import Mesh

__all__ = ["WEBSOCKET", "ConnectionKind"]

#: The first connection kind: it has the gateway's own instance id, and takes the calls of other services.
WEBSOCKET: Final = "websocket"
#: Characters of the gateway's instance id at the start of those of its other kinds; an id has at most 100.
_STEM: Final = 90


class ConnectionKind:
    """The connections of one transport, their calls in flight, and their place on the mesh.

    On the mesh each kind is a process of the gateway like any other, with an instance id of its own: a message to users
    reaches their connections of every kind. ``mesh`` is the mesh of the first kind, from which the other kinds derive
    theirs.
    """

    def __init__(
        self,
        name: str,
        settings: Settings,
        authenticator: Authenticator,
        policy: Policy,
        mesh: Mesh,
        limits: SharedLimits,
        controller: ServiceMeshManagerController | None = None,
        kept_topics: Iterable[KeptTopic] = (),
    ) -> None:
        self.name = name
        self._gateway_settings = settings
        if name != WEBSOCKET:
            settings = dataclasses.replace(settings, instance_id=self._derived_id())
            mesh = mesh.for_transport(settings.instance_id)
        self.settings = settings
        self.handler_manager = HandlerManager(settings, authenticator, policy, limits)
        self.service_mesh_manager = ServiceMeshManager(
            settings,
            self.handler_manager,
            mesh,
            policy,
            controller,
            kept_topics=kept_topics,
            name="" if name == WEBSOCKET else name,
        )
        self.handler_manager.closed_for = math.inf  # until it runs

    def write_to(self, journal: Journal) -> None:
        """Write the lines of its connections and calls to the logs of the process. To be called before it runs."""
        self.handler_manager.journal = journal.for_transport(self.name)
        if journal.access is not None and journal.access.has_calls:
            summaries = CallSummaries(journal.access, self.name, time.monotonic)
            self.service_mesh_manager.calls.summarise = summaries.write

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Connect to the mesh, and enforce the time limits of connections, for as long as the context lasts.

        No client is admitted before :meth:`open`.
        """
        if self.name != WEBSOCKET:
            self.settings.take_instance_id(self._derived_id())
        async with self.service_mesh_manager, anyio.create_task_group() as tasks:
            tasks.start_soon(self.handler_manager.sweep, name=f"{self.name} connections")
            try:
                yield
            finally:
                tasks.cancel_scope.cancel()

    def _derived_id(self) -> str:
        return f"{self._gateway_settings.instance_id[:_STEM]}-{self.name}"

    def open(self) -> None:
        """Admit clients."""
        self.handler_manager.closed_for = None

    def close(self) -> None:
        """Admit no more clients."""
        self.handler_manager.closed_for = GOODBYE_SPREAD

    def say_goodbye(self) -> None:
        """Admit no more clients, and tell each of those connected when to reconnect."""
        self.handler_manager.closed_for = GOODBYE_SPREAD
        may_move = self.may_hand_over
        for handler in self.handler_manager.handlers:
            self.handler_manager.say_goodbye(handler, "draining")
            if may_move and self.name == "http":  # an event stream comes back by itself, but only after its end
                handler.close(CloseCode.SERVICE_RESTART, "service restart")

    @property
    def may_hand_over(self) -> bool:
        """Whether there are sessions, and other processes that clients may take them to."""
        manager, own = self.service_mesh_manager, self._gateway_settings.instance_id
        # The other kinds of connections of this process end with it.
        others = (
            each.instance_id
            for each in manager.fleet.members.values()
            if each.instance_id != own and not each.instance_id.startswith(f"{own[:_STEM]}-")
        )
        return len(manager.resumption.store) > 0 and any(others)

    def close_connections(self) -> None:
        """Close the connections. Not every server closes WebSockets itself when it stops; some wait for them."""
        self.handler_manager.close_all(CloseCode.SERVICE_RESTART, "service restart")

    @property
    def outbox_size(self) -> int:
        """Bytes queued for the clients."""
        return sum(handler.outbox_size for handler in self.handler_manager.handlers)

    @property
    def problem(self) -> str | None:
        """The reason why its mesh takes no messages, in words for an operator, or None."""
        if self.service_mesh_manager.connected:
            return None
        where = "mesh" if self.name == WEBSOCKET else f"mesh ({self.name})"
        return f"{where}: {self.service_mesh_manager.problem or 'not connected'}"

    @property
    def warnings(self) -> list[str]:
        """What is missing on its mesh while clients are served, in words for an operator."""
        return [f"mesh: {warning}" for warning in self.service_mesh_manager.warnings]
