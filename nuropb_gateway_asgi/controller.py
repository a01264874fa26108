"""The gateway's own face on the mesh."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .handler_manager import HandlerManager
    from .service_mesh_manager import ServiceMeshManager

__all__ = ["ServiceMeshManagerController"]


class ServiceMeshManagerController:
    """The gateway's own face on the mesh, to be subclassed.

    Public methods (no leading underscore) can be called by other services under the gateway's ``SERVICE_NAME``; they
    may be coroutine functions. Every process of the gateway serves the same queue, so a call reaches one of them.
    Events of ``event_topic_subscriptions`` (AMQP topic patterns) come to :meth:`_handle_event_` of every process.
    """

    def __init__(
        self,
        service_name: str | None = None,
        instance_id: str | None = None,
        event_topic_subscriptions: Sequence[str] = (),
    ) -> None:
        self._service_name = service_name
        self._instance_id = instance_id
        self._event_topic_subscriptions = tuple(event_topic_subscriptions)
        self._service_mesh_manager: ServiceMeshManager | None = None
        self._handler_manager: HandlerManager | None = None

    @property
    def service_name(self) -> str | None:
        """The gateway's name on the mesh; set from the settings unless it was given."""
        return self._service_name

    @property
    def instance_id(self) -> str | None:
        """This process's id; set from the settings unless it was given."""
        return self._instance_id

    @property
    def event_topic_subscriptions(self) -> tuple[str, ...]:
        """The topic patterns whose events come here."""
        return self._event_topic_subscriptions

    def _bind(self, service_mesh_manager: ServiceMeshManager, handler_manager: HandlerManager) -> None:
        """Called by the ServiceMeshManager on construction; subclasses find both managers on themselves after."""
        self._service_mesh_manager = service_mesh_manager
        self._handler_manager = handler_manager

    def _handle_event_(self, topic: str, event: Any, target: list[str] | None, context: dict[str, Any]) -> Any:
        """An event of the mesh. May be overridden by a coroutine function; events are handled one by one."""
