"""The interface between the gateway and a mesh: ``Mesh`` for the gateway's calls, ``MeshReceiver`` for the mesh's."""

from __future__ import annotations

from collections.abc import Callable, Collection
from types import TracebackType
from typing import Any, Literal, Protocol, runtime_checkable

from msgspec import Raw, Struct

__all__ = ["CallMessage", "EventMessage", "Mesh", "MeshReceiver", "NamedMesh", "Reply"]


class CallMessage(Struct, gc=False):
    """A request or command on its way to a service.

    ``params`` and ``context`` are JSON objects. ``deadline`` is a time of ``time.monotonic()``, in seconds, after which
    the caller waits no longer. ``public_key`` (PEM) is set when the call must be encrypted.
    """

    kind: Literal["request", "command"]
    correlation_id: str
    trace_id: str
    service: str
    method: str
    params: bytes | Raw
    context: bytes
    deadline: float
    #: Seconds from the start to the deadline.
    timeout: float
    public_key: str | None = None


class Reply(Struct, gc=False):
    """A service's reply. ``result`` is JSON; ``error`` has NuroPb's two members, ``error`` and ``description``."""

    correlation_id: str
    result: bytes | Raw = b"null"
    error: dict[str, Any] | None = None


class EventMessage(Struct, gc=False):
    """An event. ``event`` is JSON; ``target`` holds user ids, or is None for all subscribers."""

    topic: str
    event: bytes | Raw
    trace_id: str | None = None
    target: list[str] | None = None
    context: bytes | Raw = b"{}"
    #: The publisher's id of the event, the same in every process.
    id: str | None = None


class MeshReceiver(Protocol):
    """The receiver of a mesh's messages. A mesh calls it on the event loop's thread; no method waits or raises."""

    def expects(self, correlation_id: str) -> bool:
        """Return whether a caller waits for this reply. If not, count it: it is late, a double or a forgery."""
        ...

    def on_reply(self, reply: Reply) -> None:
        """Take a service's reply."""

    def on_unreadable(self, correlation_id: str) -> None:
        """Take note that a service's reply was not valid JSON (NaN, Infinity)."""

    def on_returned(self, correlation_id: str) -> None:
        """Take note that no service of that name exists; the message was not delivered."""

    def on_confirmed(self, correlation_id: str) -> None:
        """Take note that the mesh has accepted the command."""

    def on_rejected(self, correlation_id: str) -> None:
        """Take note that the mesh has not accepted the message: it was not delivered."""

    def on_too_large(self, correlation_id: str, description: str) -> None:
        """Take note that the message was not delivered, as it is above the size that the mesh takes."""

    def on_unconfirmed(self, correlation_id: str) -> None:
        """Take note that the connection ended before the command was confirmed: it may have run."""

    def on_dead_lettered(self, correlation_id: str) -> None:
        """Take note that a message has been dead-lettered, of this process or of any other."""

    def on_replies_lost(self) -> None:
        """Take note that no reply can come to the requests sent so far, and that the address may be another one."""

    def on_event(self, event: EventMessage) -> None:
        """Take an event of a subscribed topic."""

    def on_gap(self, reason: str) -> None:
        """Take note that events were lost.

        ``reason`` is ``overflow`` (more than the broker keeps for a process that is away), ``expired`` (the process was
        away for too long), or ``disconnected`` (the broker did not know of the subscription yet).
        """

    def on_topic_refused(self, topic: str) -> None:
        """Take note that the broker refuses a subscribed topic from now on."""

    def on_peer_message(self, message: bytes) -> None:
        """Take a message from a process of this gateway; a process also gets its own broadcasts."""

    def on_record(self, record: bytes) -> None:
        """Take a record that a process of this gateway, possibly this one, wrote: just now, or long ago."""

    def on_records_read(self) -> None:
        """Take note that all records from before the start of this mesh were taken. May be called more than once."""

    def on_connection_change(self, *, connected: bool) -> None:
        """Take note that the mesh was connected or disconnected."""


class Mesh(Protocol):
    """A mesh. It runs from ``__aenter__`` to ``__aexit__`` and owns the tasks that it needs.

    Entering does not wait for a connection: a gateway may start before its broker. Sending never waits either. A mesh
    cannot say whether a service exists: a message to a missing service is returned. No client is let in before the mesh
    has called ``on_records_read``; a mesh that keeps no records calls it when it is entered.
    """

    async def __aenter__(self) -> Any:
        """Start."""

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop. The broker drops the queues of this process soon after."""

    @property
    def connected(self) -> bool:
        """Whether messages can be sent now."""
        ...

    @property
    def can_publish(self) -> bool:
        """Whether events can be published now, and histories be read. Calls may go on without."""
        ...

    @property
    def problem(self) -> str | None:
        """The reason why the mesh is not connected, in words for an operator (without secrets), or None."""
        ...

    @property
    def warnings(self) -> list[str]:
        """The parts that are missing while clients are served, in words for an operator (without secrets)."""
        ...

    def bind(self, receiver: MeshReceiver, controller: object) -> None:
        """Set the receiver of messages, and the object that other services may call. Once, before entering."""

    def for_transport(self, instance_id: str) -> Mesh:
        """Make a mesh with the same services for another transport of this process.

        It counts as a further process of the gateway, but takes no calls from other services: this mesh takes them.
        """
        ...

    def send(self, message: CallMessage) -> None:
        """Send a request or command. Raises MeshUnavailable or MessageTooLarge if it was not sent."""

    def publish(self, topic: str, event: bytes, *, context: bytes, trace_id: str, target: list[str] | None) -> None:
        """Publish an event. Raises MeshUnavailable or MessageTooLarge."""

    @property
    def address(self) -> str:
        """The address of this process among its peers, the other processes of this gateway."""
        ...

    def broadcast(self, message: bytes) -> None:
        """Send a message to all peer processes. It expires within a few seconds. Raises as :meth:`send`."""

    def tell(self, address: str, message: bytes, *, expires: float | None = None) -> None:
        """Send a message to the peer process at ``address``. Raises as :meth:`send`.

        It expires likewise, or, where a mesh keeps messages, after ``expires`` seconds.
        """

    async def record(self, record: bytes) -> None:
        """Write a record for every process of this gateway: those that run now, and those that start within a month.

        Raises MeshUnavailable if the broker did not confirm it. Cancelling does not take the record back.
        """

    def when_proven(self, proven: Callable[[], None]) -> None:
        """Call ``proven`` once it is certain that the mesh carries messages now; never, if it proves not to.

        Silence of a service says something about the service only then.
        """

    def forget(self, correlation_id: str) -> None:
        """Drop everything that is kept for a reply (a key, a place in a queue): its caller waits no longer."""

    def when_events_are_in(self, done: Callable[[], None]) -> None:
        """Call ``done`` once all events that were routed to this process before have been received.

        Raises MeshUnavailable. ``done`` is not called if the connection is lost before.
        """

    def subscribe(self, topic: str, done: Callable[[bool], None]) -> None:
        """Receive events of this AMQP topic pattern, across reconnections too.

        ``done`` is called once: with True when events arrive from then on, or when that has to wait for a connection;
        with False when the broker refuses the topic to this user. Subscribing to the same pattern again is allowed and
        changes nothing.
        """

    def unsubscribe(self, topic: str) -> None:
        """Receive events of this topic pattern no longer."""


@runtime_checkable
class HostingMesh(Protocol):
    """A mesh that runs services itself, and so knows their names before anybody calls them."""

    @property
    def hosted(self) -> Collection[str]:
        """The names of the services, without the gateway's own."""
        ...


@runtime_checkable
class NamedMesh(Protocol):
    """A mesh that shows the instance id of its process, for example as the name of a connection."""

    def take_instance_id(self, instance_id: str) -> None:
        """Take the instance id before the start: it is another one in a process that was forked meanwhile."""
