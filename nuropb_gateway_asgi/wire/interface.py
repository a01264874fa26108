"""What the gateway needs from a mesh, and what a mesh tells the gateway."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any, Literal, Protocol, runtime_checkable

from msgspec import Raw, Struct

__all__ = ["CallMessage", "EventMessage", "Mesh", "MeshReceiver", "NamedMesh", "Reply"]


class CallMessage(Struct, gc=False):
    """A request or command on its way to a service.

    ``params`` and ``context`` are JSON objects; ``deadline`` is a time of ``time.monotonic()``, in seconds, after
    which nobody waits for the answer any more. ``public_key`` (PEM) is set when the call must be encrypted.
    """

    kind: Literal["request", "command"]
    correlation_id: str
    trace_id: str
    service: str
    method: str
    params: bytes | Raw
    context: bytes
    deadline: float
    #: From the start to the deadline, in seconds.
    timeout: float
    public_key: str | None = None


class Reply(Struct, gc=False):
    """A service's answer. ``result`` is JSON; ``error`` has NuroPb's two members, ``error`` and ``description``."""

    correlation_id: str
    result: bytes | Raw = b"null"
    error: dict[str, Any] | None = None


class EventMessage(Struct, gc=False):
    """An event. ``event`` is JSON; ``target`` holds user ids, or is None for everybody who subscribed."""

    topic: str
    event: bytes | Raw
    trace_id: str | None = None
    target: list[str] | None = None
    context: bytes | Raw = b"{}"


class MeshReceiver(Protocol):
    """What a mesh tells. All of it is called on the event loop's thread; none of it waits or raises."""

    def expects(self, correlation_id: str) -> bool:
        """Whether somebody waits for this reply. If not it is late, a double or a forgery; it is counted here."""
        ...

    def on_reply(self, reply: Reply) -> None:
        """A service answered."""

    def on_unreadable(self, correlation_id: str) -> None:
        """A service answered with something that only Python takes for JSON."""

    def on_returned(self, correlation_id: str) -> None:
        """No service of that name exists; the message was not delivered."""

    def on_confirmed(self, correlation_id: str) -> None:
        """The mesh is responsible for the command now."""

    def on_rejected(self, correlation_id: str) -> None:
        """The mesh did not take the message after all; it was not delivered."""

    def on_unconfirmed(self, correlation_id: str) -> None:
        """The connection was lost before the mesh could say whether it took the command."""

    def on_event(self, event: EventMessage) -> None:
        """An event of a topic that was subscribed to."""

    def on_gap(self, reason: str) -> None:
        """Events were lost on their way: more than the broker keeps for a process that is away, or for too long."""

    def on_peer_message(self, message: bytes) -> None:
        """Another process of this gateway says something; this process's own words come back, too."""

    def on_record(self, record: bytes) -> None:
        """A record that some process of this gateway, also this one, wrote: now, or long ago."""

    def on_connection_change(self, *, connected: bool) -> None:
        """The mesh came or went."""


class Mesh(Protocol):
    """A mesh. It runs from ``__aenter__`` to ``__aexit__`` and owns whatever tasks it needs.

    Entering does not wait for a connection: a gateway may start before its broker. Sending never waits either. There
    is no way to ask whether a service exists: only a message that comes back tells.
    """

    async def __aenter__(self) -> Any:
        """Run from here on."""

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop. What a broker keeps for this process goes by itself soon after."""

    @property
    def connected(self) -> bool:
        """Whether messages are taken now."""
        ...

    @property
    def problem(self) -> str | None:
        """Why it is not connected, in words for an operator (without secrets), or None."""
        ...

    def bind(self, receiver: MeshReceiver, controller: object) -> None:
        """Say who is told and which object other services may call. Once, before entering."""

    def for_transport(self, instance_id: str) -> Mesh:
        """A mesh with the same services for another kind of connection, which is a process of this gateway more.

        It takes no calls from other services: whoever is bound here answers them.
        """
        ...

    def send(self, message: CallMessage) -> None:
        """Hand over a request or command. Raises MeshUnavailable, and then nothing was sent."""

    def publish(self, topic: str, event: bytes, *, context: bytes, trace_id: str, target: list[str] | None) -> None:
        """Publish an event. Raises MeshUnavailable."""

    @property
    def address(self) -> str:
        """Where this process can be told something by its siblings, the other processes of this gateway."""
        ...

    def broadcast(self, message: bytes) -> None:
        """Tell all siblings. Nobody hears of it more than a few seconds later. Raises MeshUnavailable."""

    def tell(self, address: str, message: bytes) -> None:
        """Tell the sibling at ``address``, in the same way. Raises MeshUnavailable."""

    async def record(self, record: bytes) -> None:
        """Write a record that every process of this gateway gets: now, and when it starts, for a month.

        Raises MeshUnavailable when it is not certain that it was written. Cancelling it does not take it back.
        """

    def forget(self, correlation_id: str) -> None:
        """Nobody waits for this reply any more: drop what is kept for it (a key, a place in a queue)."""

    def subscribe(self, topic: str, done: Callable[[], None]) -> None:
        """Receive events of this AMQP topic pattern, across reconnections too.

        ``done`` is called once, as soon as events arrive or when that has to wait for a connection. Subscribing to
        the same pattern again is allowed and changes nothing.
        """

    def unsubscribe(self, topic: str) -> None:
        """Receive them no longer."""


@runtime_checkable
class NamedMesh(Protocol):
    """A mesh that shows the instance id of its process, for example as the name of a connection."""

    def take_instance_id(self, instance_id: str) -> None:
        """Take the instance id before the start: it is another one in a process that was forked meanwhile."""
