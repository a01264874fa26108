"""A mesh within one process: for a start with nothing installed, for tests, and for trying things out.

Service objects are called by the rules of nuropb 0.1.8, with the results that a client would see with RabbitMQ in
between: calls to unknown services are returned, failing methods reply once (nuropb sends two replies, and the first is
the true one), events go to the subscribers.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import logging
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping
from types import TracebackType
from typing import Any

from ..exceptions import MeshUnavailable
from ..identifiers import new_id
from ..tasks import TaskOwner
from ..topics import TopicTree
from ..wire.codec import InvalidMessage, NotJson, decode_event, decode_reply, encode_event
from ..wire.history import HistoryLog, KeptTopic
from ..wire.interface import CallMessage, MeshReceiver
from ..wire.services import Outcome, as_target, call_service, deliver_event, to_json
from .embedded_history import EmbeddedHistory, KeptEvents
from .embedded_host import EmbeddedHost, Interceptor, Running

__all__ = ["EmbeddedMesh"]

logger = logging.getLogger(__name__)


class EmbeddedMesh:
    """Runs ``services`` (name to object) in this process. See :class:`~.base.Mesh` for the interface.

    The meshes of other transports (:meth:`for_transport`) have the same services, which run as long as this mesh does.
    An ``interceptor`` stands between the mesh and its services: to keep calls for a test, or to disturb them.
    """

    def __init__(
        self,
        services: Mapping[str, object],
        *,
        service_name: str = "nuropb-gateway",
        interceptor: Interceptor | None = None,
    ) -> None:
        #: The services of the meshes of all transports, which can be changed while these run.
        self.host = EmbeddedHost(dict(services), service_name, interceptor)
        self._receiver: MeshReceiver | None = None
        self._subscriptions: TopicTree[str] = TopicTree()
        self._tasks: TaskOwner | None = None
        self._stack = contextlib.AsyncExitStack()
        self._address = new_id()

    @property
    def connected(self) -> bool:
        """Whether the mesh runs."""
        return self._tasks is not None and not self.host.away

    @property
    def can_publish(self) -> bool:
        """Whether events can be published now."""
        return self.connected

    @property
    def problem(self) -> str | None:
        """The reason why the mesh is not connected."""
        if self._tasks is None:
            return "the mesh is not running"
        return "the embedded mesh was switched off" if self.host.away else None

    @property
    def hosted(self) -> list[str]:
        """The names of the services, without the gateway's own."""
        return [name for name in self.host.all if name != self.host.own_name]

    @property
    def warnings(self) -> list[str]:
        """None: there are no permissions."""
        return []

    def bind(self, receiver: MeshReceiver, controller: object) -> None:
        """Set the receiver of messages, and let services call ``controller`` under the gateway's own name."""
        self._receiver = receiver
        self.host.all[self.host.own_name] = controller

    def for_transport(self, instance_id: str) -> EmbeddedMesh:
        """Make the mesh of another transport, with the very same services."""
        return _TransportMesh(self.host)

    def keep_history(self, topics: Iterable[KeptTopic]) -> dict[str, HistoryLog]:
        """Keep the events of these topics in memory, for all transports."""
        kept = self.host.kept
        return {topic.pattern: EmbeddedHistory(kept.setdefault(topic.pattern, KeptEvents(topic))) for topic in topics}

    async def __aenter__(self) -> EmbeddedMesh:
        self._tasks = await self._stack.enter_async_context(TaskOwner())
        self.host.running[self._address] = Running(self._told, self._subscriptions)
        self._start_services(self._tasks)
        self._told.on_connection_change(connected=not self.host.away)
        self._told.on_records_read()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._tasks = None
        self._stop_services()
        self.host.running.pop(self._address, None)
        self._told.on_connection_change(connected=False)
        await self._stack.aclose()

    def _start_services(self, tasks: TaskOwner) -> None:
        self.host.start(tasks, self.emit)

    def _stop_services(self) -> None:
        self.host.stop()

    def send(self, message: CallMessage) -> None:
        """Start the call, or return it if there is no such service."""
        tasks = self._group()
        service = self.host.all.get(message.service)
        loop = asyncio.get_running_loop()
        interceptor = self.host.interceptor
        if interceptor is not None and not interceptor.admits(message, is_known=service is not None):
            service = None
        if service is None:
            loop.call_soon(self._told.on_returned, message.correlation_id)
            return
        if message.kind == "command":
            loop.call_soon(self._told.on_confirmed, message.correlation_id)
        tasks.start_soon(self._call, service, message, name=f"embedded {message.service}.{message.method}")

    @property
    def address(self) -> str:
        """The address of this mesh among those of the other transports."""
        return self._address

    def broadcast(self, message: bytes) -> None:
        """Send a message to the meshes of all transports."""
        for address in self.host.running:
            self.tell(address, message)

    def tell(self, address: str, message: bytes, *, expires: float | None = None) -> None:
        """Send a message to one of them."""
        self._group()
        if (peer := self.host.running.get(address)) is not None:
            asyncio.get_running_loop().call_soon(peer.receiver.on_peer_message, message)

    async def record(self, record: bytes) -> None:
        """Give the record to all transports. It is not kept: tokens of this process are invalid in the next one."""
        self._group()
        for each in tuple(self.host.running.values()):
            each.receiver.on_record(record)

    def when_proven(self, proven: Callable[[], None]) -> None:
        """Call ``proven``: this mesh is never in doubt."""
        proven()

    def forget(self, correlation_id: str) -> None:
        """Let the call run on, as with a service behind a broker, which cannot be interrupted."""

    def publish(self, topic: str, event: bytes, *, context: bytes, trace_id: str, target: list[str] | None) -> None:
        """Give the event to the subscribed transports, and to every other service that handles events."""
        tasks = self._group()
        subscribed = [each.receiver for each in self.host.running.values() if each.subscriptions.match(topic)]
        if subscribed or self.host.kept:
            correlation_id = new_id()
            body = encode_event(
                topic, event, context=context, trace_id=trace_id, correlation_id=correlation_id, target=target
            )
            try:
                message = decode_event(body)
                message.id = correlation_id
            except InvalidMessage as error:
                logger.warning("embedded mesh: an event was dropped: %s", error)
            else:
                for receiver in subscribed:
                    asyncio.get_running_loop().call_soon(receiver.on_event, message)
                for kept in self.host.kept.values():
                    kept.take(message)
        for name, service in self.host.services.items():
            if hasattr(service, "_handle_event_"):
                tasks.start_soon(
                    deliver_event,
                    service,
                    topic,
                    json.loads(event),
                    target,
                    json.loads(context),
                    trace_id,
                    name=f"embedded {name} event",
                )

    def when_events_are_in(self, done: Callable[[], None]) -> None:
        """Call ``done`` after the events that are on their way."""
        self._group()
        asyncio.get_running_loop().call_soon(done)

    def subscribe(self, topic: str, done: Callable[[bool], None]) -> None:
        """Receive events of this topic pattern."""
        self._subscriptions.add(topic, topic)
        done(True)

    def unsubscribe(self, topic: str) -> None:
        """Receive events of this topic pattern no longer."""
        self._subscriptions.remove(topic, topic)

    @property
    def _told(self) -> MeshReceiver:
        if self._receiver is None:
            raise RuntimeError("bind() was not called")
        return self._receiver

    def _group(self) -> TaskOwner:
        if self._tasks is None:
            raise MeshUnavailable("the embedded mesh is not running")
        if self.host.away:
            raise MeshUnavailable("the embedded mesh was switched off")
        return self._tasks

    def emit(self, topic: str, event: Any, target: list[str] | None = None) -> None:
        """Publish an event that is any JSON value, as a service does. It is lost while the mesh does not run."""
        with contextlib.suppress(MeshUnavailable):  # a tick that is due while the mesh stops
            self.publish(topic, to_json(event), context=b"{}", trace_id=new_id(), target=as_target(target))

    async def _call(self, service: object, message: CallMessage) -> None:
        if time.monotonic() >= message.deadline:
            return  # expired in the queue
        call = functools.partial(
            call_service,
            service,
            service=message.service,
            method=message.method,
            # Of bytes, json would guess the encoding.
            params=json.loads(str(message.params, "utf-8", "surrogatepass")),
            context=json.loads(str(message.context, "utf-8", "surrogatepass")),
            trace_id=message.trace_id,
        )
        replies = 1
        if (interceptor := self.host.interceptor) is None:
            outcome = await call()
            if outcome.action == "requeue":
                outcome = await call(redelivered=True)
        else:
            outcome, replies = await interceptor.answer(message, functools.partial(_outcome, call))
        if self.host.away:
            return
        for topic, payload, target in outcome.events:
            self.emit(topic, payload, target)
        told = self._told
        if message.kind == "command" and outcome.action != "ack":
            told.on_dead_lettered(message.correlation_id)
        if message.kind != "request" or replies == 0 or not told.expects(message.correlation_id):
            return
        try:
            error = b"null" if outcome.error is None else to_json(outcome.error)
            body = b'{"result":%b,"error":%b}' % (outcome.result, error)
            reply = decode_reply(message.correlation_id, body)
        except NotJson:
            told.on_unreadable(message.correlation_id)
        else:
            told.on_reply(reply)
            for _ in range(replies - 1):
                told.expects(message.correlation_id)  # counts a double


async def _outcome(call: Callable[..., Coroutine[Any, Any, Outcome]]) -> Outcome:
    outcome = await call()
    return await call(redelivered=True) if outcome.action == "requeue" else outcome


class _TransportMesh(EmbeddedMesh):
    """The mesh of another transport, with the services of the first mesh, which also takes the controller's calls."""

    def __init__(self, host: EmbeddedHost) -> None:
        super().__init__({})
        self.host = host

    def bind(self, receiver: MeshReceiver, controller: object) -> None:
        """Set the receiver of messages."""
        self._receiver = receiver

    def _start_services(self, tasks: TaskOwner) -> None:
        """Do nothing: the first mesh runs them."""

    def _stop_services(self) -> None:
        """Do nothing: the first mesh stops them."""
