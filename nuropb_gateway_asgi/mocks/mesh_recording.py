"""A mesh whose traffic is recorded: the calls of the gateway with their answers, and the events that it gets."""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import Any, cast

import msgspec

from ..exceptions import MeshUnavailable, MessageTooLarge
from ..wire.history import HistoryLog, HistoryMesh, KeptTopic
from ..wire.interface import CallMessage, EventMessage, Mesh, MeshReceiver, NamedMesh, Reply
from .definition import ERRORS
from .recording import ConnectionTraffic, Recording
from .traffic import REDACTED

__all__ = ["recorded_mesh"]

#: The error code of each NuroPb exception; all others are ``service_error``.
_CODES = {name: code for code, name in ERRORS.items()}


def recorded_mesh(mesh: Mesh, recording: Recording) -> Mesh:
    """Return ``mesh`` with its traffic recorded, for all transports that derive their mesh from it."""
    return cast("Mesh", _RecordedMesh(mesh, recording))


class _RecordedMesh:
    """Passes everything on to the mesh, and looks at calls. The methods that are not here are those of the mesh."""

    def __init__(self, mesh: Mesh, recording: Recording) -> None:
        self._mesh = mesh
        self._recording = recording
        self._traffic = ConnectionTraffic(recording)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._mesh, name)

    async def __aenter__(self) -> Any:
        return await self._mesh.__aenter__()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._mesh.__aexit__(exc_type, exc, traceback)

    def bind(self, receiver: MeshReceiver, controller: object) -> None:
        """Set the receiver of messages, which are recorded before it has them."""
        self._mesh.bind(cast("MeshReceiver", _RecordedReceiver(receiver, self._traffic)), controller)

    def for_transport(self, instance_id: str) -> Mesh:
        """Make the mesh of another transport, in the same recording."""
        return recorded_mesh(self._mesh.for_transport(instance_id), self._recording)

    # Both are here since isinstance() finds no method by __getattr__.

    def take_instance_id(self, instance_id: str) -> None:
        """Take the instance id, if the mesh shows it."""
        if isinstance(self._mesh, NamedMesh):
            self._mesh.take_instance_id(instance_id)

    def keep_history(self, topics: Iterable[KeptTopic]) -> dict[str, HistoryLog]:
        """Keep the events of these topics."""
        if not isinstance(self._mesh, HistoryMesh):
            raise TypeError(f"{type(self._mesh).__name__} keeps no events")
        return self._mesh.keep_history(topics)

    def send(self, message: CallMessage) -> None:
        """Send a call, and note it."""
        traffic, id_ = self._traffic, message.correlation_id
        traffic.begin(id_, message.kind, message.service, message.method, _value(message.params))
        try:
            self._mesh.send(message)
        except (MeshUnavailable, MessageTooLarge, ValueError):  # the caller is told, and no service was asked
            traffic.drop(id_)
            raise

    def forget(self, correlation_id: str) -> None:
        """Write a call without an answer."""
        self._traffic.end(correlation_id, error=_error("timeout", "No answer in time"))
        self._mesh.forget(correlation_id)


class _RecordedReceiver:
    """Passes everything on to the receiver, and looks at answers and events."""

    def __init__(self, receiver: MeshReceiver, traffic: ConnectionTraffic) -> None:
        self._receiver = receiver
        self._traffic = traffic

    def __getattr__(self, name: str) -> Any:
        return getattr(self._receiver, name)

    def on_reply(self, reply: Reply) -> None:
        """Write a call with its answer."""
        if reply.error is None:
            self._traffic.end(reply.correlation_id, _value(reply.result))
        else:
            name, text = str(reply.error.get("error", "")), str(reply.error.get("description", ""))
            error = {**_error(_CODES.get(name, "service_error"), text), "error": name}
            self._traffic.end(reply.correlation_id, error=error)
        self._receiver.on_reply(reply)

    def on_unreadable(self, correlation_id: str) -> None:
        """Write a call whose answer is not JSON."""
        self._traffic.end(correlation_id, error=_error("service_error", "The service's answer is not JSON"))
        self._receiver.on_unreadable(correlation_id)

    def on_returned(self, correlation_id: str) -> None:
        """Write a call of no service."""
        self._traffic.end(correlation_id, error=_error("service_unavailable", "The service is not available"))
        self._receiver.on_returned(correlation_id)

    def on_confirmed(self, correlation_id: str) -> None:
        """Write a command."""
        self._traffic.accept(correlation_id)
        self._receiver.on_confirmed(correlation_id)

    def on_rejected(self, correlation_id: str) -> None:
        """Write a call that the mesh did not take."""
        self._traffic.end(correlation_id, error=_error("mesh_unavailable", "The mesh did not take the call"))
        self._receiver.on_rejected(correlation_id)

    def on_too_large(self, correlation_id: str, description: str) -> None:
        """Forget a call that was not delivered."""
        self._traffic.drop(correlation_id)
        self._receiver.on_too_large(correlation_id, description)

    def on_unconfirmed(self, correlation_id: str) -> None:
        """Write a command that the mesh may have taken or not."""
        self._traffic.end(correlation_id, error=_error("timeout", "Whether the mesh took the command is unknown"))
        self._receiver.on_unconfirmed(correlation_id)

    def on_event(self, event: EventMessage) -> None:
        """Write an event."""
        self._traffic.event(event.topic, _value(event.event), event.id or event.trace_id, event.target)
        self._receiver.on_event(event)


def _error(code: str, description: str) -> dict[str, Any]:
    return {"code": code, "description": description}


def _value(text: bytes | msgspec.Raw) -> Any:
    # The receiver of a mesh must not raise, whatever a service sends.
    try:
        return msgspec.json.decode(text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return REDACTED
