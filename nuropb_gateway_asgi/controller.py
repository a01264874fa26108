"""The gateway's face on the mesh: the methods that other services may call, and the events that it hears."""

from __future__ import annotations

from collections.abc import Awaitable, Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from .authentication import Identity
from .exceptions import CallError
from .fleet import Connections, Online, Reached, Sessions
from .handler_manager import HandlerManager
from .protocol import CloseCode
from .wire.errors import NuropbTransportError, NuropbValidationError

__all__ = ["ServiceMeshManagerController"]

T = TypeVar("T")


class MeshOperations(Protocol):
    """The part of the ServiceMeshManager that a controller uses. The ServiceMeshManager documents each method."""

    async def request(
        self,
        service: str,
        method: str,
        params: Mapping[str, Any] | None = None,
        *,
        identity: Identity | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - it becomes the message's expiration, too
        trace_id: str | None = None,
    ) -> Any:
        """Call a method and return its result."""

    async def command(
        self,
        service: str,
        method: str,
        params: Mapping[str, Any] | None = None,
        *,
        identity: Identity | None = None,
        trace_id: str | None = None,
    ) -> None:
        """Call a method for its effect."""

    async def publish_event(
        self,
        topic: str,
        event: Any,
        *,
        target: Sequence[str] | None = None,
        identity: Identity | None = None,
        trace_id: str | None = None,
    ) -> None:
        """Publish an event to the mesh."""

    async def send_to_users(self, user_ids: Iterable[str], topic: str, event: Any) -> Reached:
        """Send an event to all connections of some users."""
        ...

    async def send_to_all(self, topic: str, event: Any) -> Reached:
        """Send an event to every connection."""
        ...

    async def send_to_session(self, session_id: str, topic: str, event: Any) -> Reached:
        """Send an event to one connection."""
        ...

    async def disconnect_users(self, user_ids: Iterable[str], code: int = ..., reason: str = ...) -> Reached:
        """Close all connections of some users."""
        ...

    async def disconnect_session(self, session_id: str, code: int = ..., reason: str = ...) -> Reached:
        """Close one connection."""
        ...

    async def list_sessions(self, user_id: str) -> Sessions:
        """List the connections of a user, the oldest first."""
        ...

    async def count(self) -> Connections:
        """Count the connections."""
        ...

    async def is_online(self, user_ids: Iterable[str]) -> Online:
        """Tell which of some users are connected."""
        ...

    async def revoke(
        self,
        *,
        user_id: str | None = None,
        session_id: str | None = None,
        token_id: str | None = None,
        issued_before: float | None = None,
        until: float | None = None,
    ) -> None:
        """Refuse some tokens from now on, and close the connections that they opened."""

    async def unrevoke(
        self,
        *,
        user_id: str | None = None,
        session_id: str | None = None,
        token_id: str | None = None,
        issued_before: float | None = None,
    ) -> None:
        """Take a revocation back."""


class ServiceMeshManagerController:
    """The gateway's face on the mesh, for subclassing.

    Other services call its public methods (without a leading underscore) under the gateway's ``SERVICE_NAME``; these
    may be coroutine functions. All processes of the gateway serve one queue, so a call reaches one process; the methods
    of this class then act in all processes. Events of ``event_topic_subscriptions`` (AMQP topic patterns) go to
    :meth:`_handle_event_` of every process.
    """

    #: Makes the description say that this service is a gateway, so that no other gateway's wildcard includes it.
    _is_gateway_ = True

    def __init__(
        self,
        service_name: str | None = None,
        instance_id: str | None = None,
        event_topic_subscriptions: Sequence[str] = (),
    ) -> None:
        self._service_name = service_name
        self._instance_id = instance_id
        self._has_own_instance_id = instance_id is not None
        self._event_topic_subscriptions = tuple(event_topic_subscriptions)
        self._service_mesh_manager: MeshOperations | None = None
        self._handler_manager: HandlerManager | None = None

    @property
    def service_name(self) -> str | None:
        """The gateway's name on the mesh; set from the settings unless it was given."""
        return self._service_name

    @property
    def instance_id(self) -> str | None:
        """The instance id of this process; set from the settings unless it was given."""
        return self._instance_id

    @property
    def event_topic_subscriptions(self) -> tuple[str, ...]:
        """The topic patterns of the events for :meth:`_handle_event_`."""
        return self._event_topic_subscriptions

    def _take_names(self, service_name: str, instance_id: str) -> None:
        """Take the names of the settings, unless the constructor was given others."""
        self._service_name = self._service_name or service_name
        if not self._has_own_instance_id:
            self._instance_id = instance_id

    def _bind(self, service_mesh_manager: MeshOperations, handler_manager: HandlerManager) -> None:
        """Keep both managers, for subclasses. The ServiceMeshManager calls it on construction."""
        self._service_mesh_manager = service_mesh_manager
        self._handler_manager = handler_manager

    # --- for other services ----------------------------------------------------------------------------------

    async def send_to_users(self, user_ids: list[str], topic: str, event: Any = None) -> Reached:
        """Send an event to all connections of some users, in all processes of the gateway."""
        return await _translated(self._manager.send_to_users(user_ids, topic, event))

    async def send_to_all(self, topic: str, event: Any = None) -> Reached:
        """Send an event to every connection."""
        return await _translated(self._manager.send_to_all(topic, event))

    async def send_to_session(self, session_id: str, topic: str, event: Any = None) -> Reached:
        """Send an event to one connection."""
        return await _translated(self._manager.send_to_session(session_id, topic, event))

    async def disconnect_users(
        self, user_ids: list[str], code: int = CloseCode.DISCONNECTED, reason: str = "disconnected"
    ) -> Reached:
        """Close all connections of some users."""
        return await _translated(self._manager.disconnect_users(user_ids, code, reason))

    async def disconnect_session(
        self, session_id: str, code: int = CloseCode.DISCONNECTED, reason: str = "disconnected"
    ) -> Reached:
        """Close one connection."""
        return await _translated(self._manager.disconnect_session(session_id, code, reason))

    async def list_sessions(self, user_id: str) -> Sessions:
        """List the connections of a user, the oldest first."""
        return await _translated(self._manager.list_sessions(user_id))

    async def count(self) -> Connections:
        """Count the connections."""
        return await _translated(self._manager.count())

    async def is_online(self, user_ids: list[str]) -> Online:
        """Tell which of some users are connected."""
        return await _translated(self._manager.is_online(user_ids))

    async def revoke(
        self,
        user_id: str | None = None,
        session_id: str | None = None,
        token_id: str | None = None,
        issued_before: float | None = None,
        until: float | None = None,
    ) -> None:
        """Refuse some tokens from now on, and close the connections that they opened. Times are unix seconds."""
        await _translated(
            self._manager.revoke(
                user_id=user_id, session_id=session_id, token_id=token_id, issued_before=issued_before, until=until
            )
        )

    async def unrevoke(
        self,
        user_id: str | None = None,
        session_id: str | None = None,
        token_id: str | None = None,
        issued_before: float | None = None,
    ) -> None:
        """Take a revocation back: these tokens are accepted again until they expire. Times are unix seconds."""
        await _translated(
            self._manager.unrevoke(
                user_id=user_id, session_id=session_id, token_id=token_id, issued_before=issued_before
            )
        )

    @property
    def _manager(self) -> MeshOperations:
        if self._service_mesh_manager is None:
            raise RuntimeError("the controller does not belong to a gateway yet")
        return self._service_mesh_manager

    def _handle_event_(self, topic: str, event: Any, target: list[str] | None, context: dict[str, Any]) -> Any:
        """Handle an event of the mesh. May be overridden, also by a coroutine function; events come one by one."""


async def _translated(operation: Awaitable[T]) -> T:
    """Await an operation, and translate its errors to those of NuroPb."""
    try:
        return await operation
    except (TypeError, ValueError) as error:
        raise NuropbValidationError(str(error)) from error
    except CallError as error:
        raise NuropbTransportError(error.description) from error
