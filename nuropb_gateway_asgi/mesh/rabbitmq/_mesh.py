"""The mesh on RabbitMQ: its connections for calls and for what comes in, and the messages that go out."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from types import TracebackType
from typing import Any, Final, Literal, TypeAlias

import anyio
from aiormq.abc import AbstractChannel
from aiormq.exceptions import (
    ChannelAccessRefused,
    ChannelLockedResource,
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
)

from ...exceptions import MeshUnavailable
from ...identifiers import new_id
from ...settings import hide_password
from ...wire import codec
from ...wire.encryption import encrypt, load_public_key
from ...wire.history import HistoryLog, KeptTopic
from ...wire.interface import CallMessage, MeshReceiver
from ...wire.publish import encode_publish, expiration
from ...wire.services import to_json
from . import _aiormq
from ._addresses import Addresses
from ._confirms import Confirms
from ._connection import Connection, connect
from ._dead_letters import DeadLetters
from ._errors import explain
from ._events import EventQueue
from ._exchanges import SERVICE_QUEUE, declare_exchanges
from ._frames import Incoming
from ._history import StreamLog
from ._lane import Acknowledger, LaneName, OnMessage, Publisher
from ._link import Link, running
from ._parts import Part
from ._peers import MESSAGE_EXPIRES, Peers
from ._replies import ReplyQueue
from ._self_check import SelfCheck
from ._service_host import SERVICE_PREFETCH, ServiceHost
from ._sizes import SizeLimit
from ._statistics import RabbitMQStatistics
from ._streams import BLOCKED, Streams
from ._subscriptions import TOPOLOGY_TIMEOUT, Subscriptions
from ._tls import is_verified

__all__ = ["RabbitMQMesh"]

logger = logging.getLogger(__name__)

#: Seconds without consumers after which the broker drops the queues of a process.
QUEUE_EXPIRES: Final = 60
#: Seconds between checks whether the broker blocks publishers, while nothing is published.
BLOCKED_INTERVAL: Final = 0.25
#: Seconds between declarations of exchanges and bindings: the broker tells nobody of their end.
REASSERT_INTERVAL: Final = 15.0
#: Seconds to declare and consume the queues of this process.
OWN_QUEUES_TIMEOUT: Final = 5.0
#: Seconds that calls wait for the connection of events, so that both can be used from the beginning.
STREAMS_PATIENCE: Final = 1.0
#: Messages that the broker may send ahead of an acknowledgement.
PREFETCH: Final = 1000

#: The part that a mesh plays: a gateway's process, another transport of that process, a service, or an observer.
Role: TypeAlias = Literal["gateway", "transport", "service", "observer"]


class RabbitMQMesh:
    """NuroPb's services on a RabbitMQ vhost. See :class:`~nuropb_gateway_asgi.wire.interface.Mesh` for the interface.

    ``url`` is an AMQP URL, with several hosts if the broker is a cluster; ``amqps`` takes ``cafile``, ``certfile`` and
    ``keyfile`` as query parameters. ``prefetch`` calls of the controller run at the same time. Its queue also gets
    events of ``service_topics``, each in one of the processes that share the queue. Roles: a ``transport`` is a gateway
    that leaves the calls of its controller to another mesh of its process. A ``service`` has no queue for events of its
    own, and no peer processes. An ``observer`` takes no calls either, and leaves nothing behind: it calls services, and
    reads the records of a gateway's processes.
    """

    def __init__(
        self,
        url: str,
        *,
        service_name: str = "nuropb-gateway",
        instance_id: str | None = None,
        lane: LaneName = "fast",
        prefetch: int = SERVICE_PREFETCH,
        service_topics: Sequence[str] = (),
        role: Role = "gateway",
    ) -> None:
        _aiormq.check()
        self._url = url
        self.addresses = Addresses(url)
        self.lane = lane
        self._prefetch = prefetch
        self._service_topics = tuple(service_topics)
        self._role = role
        self._is_gateway = role in ("gateway", "transport")
        self._service_name = service_name
        self._instance_id = instance_id or new_id()
        self.reply_queue, self.event_queue, peer_queue, dead_letter_queue = self._draw_queue_names()
        self.service_queue = f"nuropb-{service_name}-sq"
        self.statistics = RabbitMQStatistics()

        self._receiver: MeshReceiver | None = None
        self._controller: object = None
        self._publisher: Publisher | None = None
        self._connected = False
        self._blocked = False
        #: Whether events can be published, as it was told last.
        self._could_publish = False
        self._stopping = False
        #: Whether all present queues of this process have been there.
        self._had_queues = False
        self._stack = contextlib.AsyncExitStack()

        self.publishing = Link("publishing", lambda: self._connect("publish"), self._set_up_publishing, self._update)
        self.consuming = Link("consuming", lambda: self._connect("consume"), self._set_up_consuming, self._update)
        self.self_check = SelfCheck(
            self.reply_queue,
            self.publishing,
            self.consuming,
            self.statistics,
            drops=(self.publishing, self.consuming),
            publisher=lambda: self._publisher,
            blocked=lambda: self._blocked,
            on_change=self._update,
        )
        self.size_limit = SizeLimit()
        self.streams = Streams(
            lambda: self._connect("stream"),
            self.reply_queue,
            self.consuming,
            self.statistics,
            self.size_limit,
            self.self_check,
            writes_records=self._is_gateway,
            blocked=lambda: self._blocked,
            on_change=self._update,
        )
        self._links = (self.publishing, self.consuming, self.streams.link)
        for link in self._links:
            link.siblings = self._links
        self.subscriptions = Subscriptions(self._on_gap, self._on_topic_refused)
        self._replies = ReplyQueue(self.reply_queue, self.statistics, (self.self_check, self.streams.self_check))
        self._events = EventQueue(self.event_queue, self.statistics, self.subscriptions)
        self.peers = Peers(
            service_name,
            peer_queue,
            self._on_peer_message,
            self._on_record,
            self._on_records_read,
            queue_arguments=_own_arguments(),
        )
        self.dead_letters = DeadLetters(dead_letter_queue, self._on_dead_lettered, queue_arguments=_own_arguments())
        self._confirms = Confirms()
        self._refused_service_topics: dict[str, str] = {}
        #: Whether all records from before the start are read.
        self._records_read = False
        self._calls_part = Part(
            f"the queue {self.service_queue}",
            f"other services cannot call {'the gateway' if role == 'gateway' else service_name}",
            self._declare_service_queue,
            self._take_calls,
        )
        self._records_part = Part(
            f"the stream {self.peers.stream}",
            "tokens that other processes revoke are still accepted here, and a process that starts admits no client",
            self._declare_records,
            self._read_records,
        )
        self._parts = (self._calls_part,) if role in ("gateway", "service") else ()
        self.streams.parts = () if role == "service" else (self._records_part,)
        #: The histories of topics, by pattern.
        self.histories: dict[str, StreamLog] = {}
        self.service_host = ServiceHost(
            service_name,
            lambda: self._controller,
            send_reply=self._send_reply,
            publish=self._publish_for_controller,
        )

    # --- the interface ----------------------------------------------------------------------------------------

    @property
    def connected(self) -> bool:
        """Whether messages can be sent now."""
        return self.publishing.up and self.consuming.usable and self.self_check.proven and not self._blocked

    @property
    def can_publish(self) -> bool:
        """Whether events can be published now, and histories be read."""
        return self.streams.can_publish

    @property
    def problem(self) -> str | None:
        """The reason why the mesh is not connected."""
        if self.connected:
            return None
        for link in (self.publishing, self.consuming):
            if not link.up and link.problem is not None:
                return f"{link.name} connection: {link.problem}"
        if self._blocked:
            return BLOCKED
        return "waiting for a first message to come back from the broker"

    @property
    def blocked(self) -> bool:
        """Whether the broker blocks publishers, because of a memory or disk alarm."""
        return self._blocked

    @property
    def warnings(self) -> list[str]:
        """The parts that are missing while everything else works, in words for an operator."""
        parts = (*self._parts, *self.streams.parts)
        missing = [part.warning for part in parts if part.warning is not None]
        if self.connected and not self.streams.can_publish:
            without = "events cannot be published, histories cannot be read"
            if self._is_gateway:
                without += ", and tokens that other processes revoke are still accepted here"
            missing.append(f"{without}: {self.streams.problem}")
        others = [history.warning for history in self.histories.values() if history.warning is not None]
        return [*missing, *others, *self.peers.warnings.values(), *self._refused_service_topics.values()]

    @property
    def round_trips(self) -> deque[float]:
        """Seconds that the latest messages of the process to itself took. Their reader takes them away."""
        return self.self_check.round_trips

    @property
    def queued(self) -> int:
        """The number of messages that wait for the connection."""
        return self.streams.queued + (0 if self._publisher is None else self._publisher.queued)

    @property
    def keys(self) -> frozenset[str]:
        """The correlation ids of encrypted requests in flight, each with a key that is kept for its reply."""
        return frozenset(self._replies.keys)

    def bind(self, receiver: MeshReceiver, controller: object) -> None:
        """Set the receiver of messages, and the object that other services may call."""
        self._receiver = receiver
        self._controller = controller
        self._replies.bind(receiver)
        self._events.bind(receiver)

    def for_transport(self, instance_id: str) -> RabbitMQMesh:
        """Make the mesh of another transport of this process, on connections of its own."""
        return RabbitMQMesh(
            self._url, service_name=self._service_name, instance_id=instance_id, lane=self.lane, role="transport"
        )

    def keep_history(self, topics: Iterable[KeptTopic]) -> dict[str, HistoryLog]:
        """Keep the events of these topics in streams. Raises SettingsError for a pattern that is too long."""
        for topic in topics:
            self.histories[topic.pattern] = self._make_history(topic)
        return dict(self.histories)

    def _make_history(self, topic: KeptTopic) -> StreamLog:
        def publish(stream: str, correlation_id: str) -> None:
            self.streams.publish("", stream, correlation_id, b"{}")

        def wake() -> None:
            part.lose()

        log = StreamLog(self._service_name, topic, publish, lambda: self.streams.can_publish, wake)
        without = f"events of {topic.pattern} have no history, and no positions"
        part = Part(f"the stream {log.stream}", without, log.declare, log.consume)
        self.streams.parts = (*self.streams.parts, part)
        return log

    def _draw_queue_names(self) -> tuple[str, str, str, str]:
        stem = f"nuropb-{self._service_name}-{new_id()}"
        return f"{stem}-rq", f"{stem}-eq", f"{stem}-fq", f"{stem}-dq"

    def _name_queues(self) -> None:
        """Give the queues of this process new names, as forked processes share the former ones, or they are lost."""
        self._had_queues = False
        self.reply_queue, self.event_queue, self.peers.queue, self.dead_letters.queue = self._draw_queue_names()
        self._replies.name = self.self_check.queue = self.streams.self_check.queue = self.reply_queue
        self._events.name = self.event_queue

    def take_instance_id(self, instance_id: str) -> None:
        """Change the instance id, by which the broker's management pages name the connections."""
        self._instance_id = instance_id

    async def __aenter__(self) -> RabbitMQMesh:
        _aiormq.warn_of_missing_names()
        self._name_queues()
        self.subscriptions.open()
        self._stopping = False
        self._records_read = False
        self.peers.begin()
        if not self._is_gateway:
            self._on_records_read()  # no clients have to wait for the records
        await self._stack.enter_async_context(self.service_host)
        tasks = await self._stack.enter_async_context(anyio.create_task_group())
        self._stack.callback(tasks.cancel_scope.cancel)
        logger.info("mesh: connecting to %s as %s", hide_password(self._url), self._service_name)
        if self._role != "transport" and not is_verified(self._url):
            logger.warning(
                "mesh: the broker's certificate is not verified (no_verify_ssl in the URL): anyone on the way can read "
                "and change all messages, tokens included; name its certificate authority by cafile in its place"
            )
        tasks.start_soon(self.publishing.run, name="mesh publishing")
        tasks.start_soon(self.consuming.run, name="mesh consuming")
        tasks.start_soon(self.streams.run, name="mesh streams")
        tasks.start_soon(self.self_check.run, name="mesh self-check")
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.streams.finish()
        await self._stack.__aexit__(exc_type, exc, traceback)
        self._replies.keys.clear()
        self.consuming.usable = False
        self._update()

    async def finish_calls(self) -> None:
        """Take no more calls from other services, and wait until the running ones are answered.

        Cancelling it leaves the running calls to the end of the context, where they are cancelled.
        """
        self._stopping = True
        await self.service_host.finish()

    def send(self, message: CallMessage) -> None:
        """Send a request or command."""
        publisher = self._take_publisher()
        body = codec.encode_call(
            message.kind,
            service=message.service,
            method=message.method,
            params=message.params,
            correlation_id=message.correlation_id,
            context=message.context,
            trace_id=message.trace_id,
        )
        key: bytes | None = None
        if message.public_key is not None:
            key, body = encrypt(body, load_public_key(message.public_key))
        self.size_limit.check(body)
        confirmed = message.kind == "command"
        frames = encode_publish(
            channel=publisher.confirmed_channel if confirmed else publisher.plain_channel,
            exchange=codec.RPC_EXCHANGE,
            routing_key=message.service,
            kind=message.kind,
            correlation_id=message.correlation_id,
            trace_id=message.trace_id,
            body=body,
            frame_max=publisher.frame_max,
            reply_to=self.reply_queue,
            expiration=expiration(message.deadline - time.monotonic()),
            mandatory=True,
            encrypted=message.public_key is not None,
        )
        publisher.put(message.deadline, message.correlation_id, frames, confirmed=confirmed)
        if key is not None and message.kind == "request":
            self._replies.keys[message.correlation_id] = key

    @property
    def address(self) -> str:
        """The queue of messages from peer processes."""
        return self.peers.queue

    def broadcast(self, message: bytes) -> None:
        """Send a message to all peer processes, if the user may declare their exchange."""
        if self.peers.can_talk:
            self._tell(self.peers.exchange, "", message, expires=MESSAGE_EXPIRES)

    def tell(self, address: str, message: bytes, *, expires: float | None = None) -> None:
        """Send a message to the peer process at ``address``."""
        self._tell("", address, message, expires=MESSAGE_EXPIRES if expires is None else expires)

    def _tell(
        self, exchange: str, routing_key: str, message: bytes, *, expires: float, correlation_id: str | None = None
    ) -> None:
        publisher = self._take_publisher()
        correlation_id = correlation_id or new_id()
        self.size_limit.check(message)
        frames = encode_publish(
            channel=publisher.plain_channel,
            exchange=exchange,
            routing_key=routing_key,
            kind="event",
            correlation_id=correlation_id,
            trace_id=None,
            body=message,
            frame_max=publisher.frame_max,
            expiration=expiration(expires),
        )
        publisher.put(time.monotonic() + expires, correlation_id, frames)

    def when_events_are_in(self, done: Callable[[], None]) -> None:
        """Send a message to this process's own event queue, and call ``done`` when it arrives."""
        correlation_id = new_id()
        if self.streams.can_publish:  # behind the events of this process
            self.streams.publish("", self.event_queue, correlation_id, b"{}", expires=MESSAGE_EXPIRES)
        else:
            self._tell("", self.event_queue, b"{}", expires=MESSAGE_EXPIRES, correlation_id=correlation_id)
        self._events.expect_marker(correlation_id, done)

    async def record(self, record: bytes) -> None:
        """Write ``record`` into the stream, and wait for the broker's confirm."""
        if not self.peers.can_record or not self._records_part.is_there:
            raise MeshUnavailable("there is no stream for records")
        await self.streams.record(self.peers.stream, record)

    def when_proven(self, proven: Callable[[], None]) -> None:
        """Call ``proven`` once a message that this process sends itself now has come back."""
        self.self_check.when_proven(proven)

    def forget(self, correlation_id: str) -> None:
        """Drop the key of a call whose caller has gone or has its answer."""
        self._replies.keys.pop(correlation_id, None)

    def publish(self, topic: str, event: bytes, *, context: bytes, trace_id: str, target: list[str] | None) -> None:
        """Publish an event, never encrypted: nuropb 0.1.8 marks encrypted events so and sends them in clear."""
        correlation_id = new_id()
        body = codec.encode_event(
            topic, event, context=context, trace_id=trace_id, correlation_id=correlation_id, target=target
        )
        self.streams.publish(codec.EVENTS_EXCHANGE, topic, correlation_id, body, trace_id=trace_id)

    def subscribe(self, topic: str, done: Callable[[bool], None]) -> None:
        """Bind the event queue to ``topic``; call ``done`` once it is bound or refused, or if that has to wait."""
        if not self._is_gateway:
            raise ValueError("only a gateway has a queue for events; a service has service_topics")
        self.subscriptions.add(topic, done, connected=self.consuming.up)

    def unsubscribe(self, topic: str) -> None:
        """Unbind the event queue from ``topic``."""
        self.subscriptions.remove(topic)

    # --- the connections --------------------------------------------------------------------------------------

    async def _connect(self, purpose: str) -> Connection:
        name = f"{self._service_name} {self._instance_id} {purpose}"
        return await self.addresses.connect(purpose, lambda address: connect(address, name, self.lane))

    @property
    def _told(self) -> MeshReceiver:
        if self._receiver is None:
            raise RuntimeError("bind() was not called")
        return self._receiver

    def _update(self) -> None:
        """Take note that a connection has come up, was lost, or was proven to work."""
        if not self.publishing.up:
            self.self_check.proven = False
        elif self.consuming.up and not self.self_check.proven and not self.self_check.pending:
            self.self_check.send()
        self.statistics.reconnects = sum(max(link.connects - 1, 0) for link in self._links)
        if self.connected != self._connected:
            self._connected = self.connected
            self._told.on_connection_change(connected=self._connected)
        self._find_end_of_records()
        if self.streams.can_publish != self._could_publish:
            self._could_publish = self.streams.can_publish
            for history in self.histories.values() if self._could_publish else ():
                history.resume()

    def _find_end_of_records(self) -> None:
        """Have it told once all records from before the start are read, or if there are none for this user."""
        if self.peers.records_refused and self._connected and not self._records_read:
            self._on_records_read()
        elif self._records_part.is_there:  # the broker may have lost the marker, as at the failure of a node
            self._mark_end_of_records()

    def _mark_end_of_records(self) -> None:
        """Write a marker into the stream: when it is read, all earlier records are read, too."""
        # Clients that are let in can call at once, and ask for histories.
        if self._records_read or not self._connected or not self.streams.link.up:
            return
        with contextlib.suppress(MeshUnavailable):  # the next connection writes another one
            self.streams.publish("", self.peers.stream, new_id(), self.peers.draw_marker())

    # --- the publishing connection ----------------------------------------------------------------------------

    def _take_publisher(self) -> Publisher:
        if self._publisher is not None:
            self._check_blocked(self._publisher)
        if self._publisher is None or not self.connected:
            raise MeshUnavailable(self.problem or "not connected")
        return self._publisher

    @contextlib.asynccontextmanager
    async def _set_up_publishing(self, connection: Connection) -> AsyncIterator[Sequence[AbstractChannel]]:
        await declare_exchanges(connection)
        if self._is_gateway:
            await self.peers.declare(connection)
        publisher, channels = await connection.open_publisher(
            self.statistics, confirm_events=False, on_return=self._on_returned, on_confirm=self._on_confirm
        )
        await self.streams.wait_until_usable(STREAMS_PATIENCE)
        self._blocked = False
        async with running(publisher.run, lambda: self._watch_blocked(publisher)):
            self._publisher = publisher
            self.self_check.forget()
            try:
                yield channels
            finally:
                self._publisher = None
                refused = self._settle_refused(publisher, self.size_limit.learn(channels))
                for correlation_id in publisher.unsent():
                    self._reject(correlation_id)
                for correlation_id in publisher.unconfirmed():
                    if correlation_id not in refused and not self._confirms.settle(correlation_id):
                        self._told.on_unconfirmed(correlation_id)

    def _settle_refused(self, publisher: Publisher, size: int | None) -> list[str]:
        """Report and return the message of ``size`` bytes for which the broker closed a channel, and those after it."""
        refused = [] if size is None else publisher.refused(size)
        for correlation_id in refused[:1]:
            error = self.size_limit.error()
            self._replies.keys.pop(correlation_id, None)
            if not self._confirms.settle(correlation_id, error):
                self._told.on_too_large(correlation_id, str(error))
        for correlation_id in refused[1:]:
            self._reject(correlation_id)
        return refused

    def _reject(self, correlation_id: str) -> None:
        """Report a message that the broker did not get."""
        self._replies.keys.pop(correlation_id, None)
        if not self._confirms.settle(correlation_id):
            self._told.on_rejected(correlation_id)

    async def _watch_blocked(self, publisher: Publisher) -> None:
        while True:
            self._check_blocked(publisher)
            await asyncio.sleep(BLOCKED_INTERVAL)

    def _check_blocked(self, publisher: Publisher) -> None:
        """Take note that the broker begins or ends to block publishers."""
        blocked = publisher.blocked
        if blocked != self._blocked:
            self._blocked = blocked
            logger.warning("mesh: the broker %s", "blocks publishers" if blocked else "blocks publishers no longer")
            if blocked and self.self_check.proven:
                # The broker would read the messages on their way when the alarm is over, and count their expiration
                # from then. A reset makes it drop them. The next connection is blocked by its first message to itself.
                self.publishing.abort(BLOCKED)
            self._update()

    def _on_returned(self, correlation_id: str) -> None:
        if correlation_id == self.self_check.message_id or self._confirms.settle(correlation_id):
            return
        self._replies.keys.pop(correlation_id, None)
        self._told.on_returned(correlation_id)

    def _on_confirm(self, correlation_id: str, accepted: bool) -> None:
        if accepted:
            if self._confirms.settle(correlation_id, None):
                return
            self._told.on_confirmed(correlation_id)
        else:
            self._reject(correlation_id)

    # --- the consuming connection -----------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _set_up_consuming(self, connection: Connection) -> AsyncIterator[Sequence[AbstractChannel]]:
        await declare_exchanges(connection)
        topology, *channels = await self._take_own_queues(connection)
        # Replies wait for no part but at the start: one that is gone with its node costs an attempt its whole time.
        waits = not self.consuming.connects
        for part in self._parts if waits else ():
            await part.attempt(connection)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._keep_asserted, connection, name="mesh topology")
            for part in self._parts:
                keep = functools.partial(part.keep, connection, attempt=not waits)
                tasks.start_soon(keep, name="mesh part")
            if self._is_gateway:
                bindings = await connection.open_channel()
                tasks.start_soon(
                    self.subscriptions.keep_bound, bindings, connection, self.event_queue, name="mesh bindings"
                )
                tasks.start_soon(self._events.notice_stalls, connection, name="mesh stalls")
            try:
                yield topology, *channels
            finally:
                tasks.cancel_scope.cancel()
                self.subscriptions.release()

    async def _take_own_queues(self, connection: Connection) -> Sequence[AbstractChannel]:
        """Declare and consume the queues of this process; return the channels, the first of them for the topology.

        If the broker refuses the queues, as it does when their node is down, the next connection makes new ones.
        """
        try:
            async with asyncio.timeout(OWN_QUEUES_TIMEOUT):
                return await self._consume_own_queues(connection)
        except (ChannelNotFoundEntity, TimeoutError) as error:
            self._replace_queues(error)
            raise
        except (ChannelLockedResource, ChannelPreconditionFailed) as error:
            # New names are refused for another reason: a limit of the vhost, for example.
            if self._had_queues:
                self._replace_queues(error)
            raise

    def _replace_queues(self, error: BaseException) -> None:
        """Give up the present queues, and everything on its way to them."""
        if self._had_queues:  # and not for every attempt
            logger.warning("mesh: new queues replace %s and its like: %s", self.reply_queue, explain(error))
        # Until the new queues are there, a call would wait for a reply that cannot come.
        self.consuming.usable = False
        self._update()
        self._name_queues()
        for check in (self.self_check, self.streams.self_check):
            check.forget()  # its message has gone to the former queue
        self.subscriptions.missed("expired")
        self._told.on_replies_lost()

    async def _consume_own_queues(self, connection: Connection) -> Sequence[AbstractChannel]:
        if self._is_gateway and self.consuming.connects:
            await self._events.report_losses(connection)
        topology = await connection.open_channel()
        await topology.queue_declare(self.reply_queue, durable=True, arguments=_own_arguments())

        async def own(queue: str, take: OnMessage, arguments: dict[str, Any] | None = None) -> AbstractChannel:
            # The newest connection has the highest priority. An older one that is dead at this end only would otherwise
            # go on getting its share.
            arguments = {"x-priority": self.consuming.connects} if arguments is None else arguments
            return await self._consume(connection, queue, take, arguments, self._on_cancelled)

        channels = [topology, await own(self.reply_queue, self._replies.on_message)]
        if self._is_gateway:
            await topology.queue_declare(
                self.event_queue, durable=True, arguments=_own_arguments() | self._events.limits()
            )
            channels += await own(self.event_queue, self._events.on_message), *await self.peers.set_up(connection, own)
        if self._role == "gateway":
            channels += await self.dead_letters.set_up(connection, own)
        self._had_queues = True
        return channels

    async def _declare_records(self, connection: Connection) -> None:
        if self._is_gateway:  # an observer reads them if they are there
            await self.peers.declare_stream(connection)

    async def _read_records(self, connection: Connection) -> Sequence[AbstractChannel]:
        async def consume(queue: str, take: OnMessage, arguments: dict[str, Any] | None = None) -> AbstractChannel:
            return await self._consume(connection, queue, take, arguments or {}, self._records_part.lose)

        if self._is_gateway and not self.peers.can_record:
            self._find_end_of_records()
            return ()
        channels = await self.peers.read_records(connection, consume)
        if channels:
            self._mark_end_of_records()
        return channels

    async def _declare_service_queue(self, connection: Connection) -> None:
        """Declare the service's queue, and bind it to its calls, and to the events that it wants."""
        async with connection.channel() as channel:
            await channel.queue_declare(self.service_queue, durable=True, arguments=SERVICE_QUEUE)
            await channel.queue_bind(self.service_queue, codec.RPC_EXCHANGE, self._service_name)
        for topic in self._service_topics:
            try:
                async with connection.channel() as own:  # which the broker closes if it refuses
                    await own.queue_bind(self.service_queue, codec.EVENTS_EXCHANGE, topic)
            except ChannelAccessRefused as error:
                if topic not in self._refused_service_topics:
                    warning = f"events of the topic {topic} do not come: {explain(error)}"
                    self._refused_service_topics[topic] = warning
                    logger.warning("mesh: %s", warning)
            else:
                self._refused_service_topics.pop(topic, None)

    async def _take_calls(self, connection: Connection) -> Sequence[AbstractChannel]:
        """Consume the service's queue, unless this process stops."""
        if self._stopping:
            return ()
        channel = await connection.open_channel()
        self.service_host.attach(channel)
        self.service_host.consumer_tag = await connection.lane.consume(
            channel,
            self.service_queue,
            self.service_host.on_message,
            prefetch=self._prefetch,
            arguments={},
            on_cancel=self._calls_part.lose,
        )
        return (channel,)

    async def _consume(
        self,
        connection: Connection,
        queue: str,
        take: OnMessage,
        arguments: dict[str, Any],
        on_cancel: Callable[[], None],
    ) -> AbstractChannel:
        """Give the messages of a queue to ``take``, and acknowledge them."""
        channel = await connection.open_channel()
        lane = connection.lane
        acknowledger = Acknowledger(lane, channel)

        def on_message(message: Incoming) -> None:
            acknowledger.later(message.delivery_tag)
            take(message)

        await lane.consume(channel, queue, on_message, prefetch=PREFETCH, arguments=arguments, on_cancel=on_cancel)
        return channel

    def _on_gap(self, reason: str) -> None:
        self._told.on_gap(reason)

    def _on_topic_refused(self, topic: str) -> None:
        self._told.on_topic_refused(topic)

    def _on_peer_message(self, message: bytes) -> None:
        self._told.on_peer_message(message)

    def _on_dead_lettered(self, correlation_id: str) -> None:
        self._told.on_dead_lettered(correlation_id)

    def _on_record(self, record: bytes) -> None:
        self._told.on_record(record)

    def _on_records_read(self) -> None:
        self._records_read = True
        if self._is_gateway:
            logger.info("mesh: revocations are read")
        self._told.on_records_read()

    def _on_cancelled(self) -> None:
        self.consuming.abort("the broker ended a consumer: a queue was deleted")

    async def _keep_asserted(self, connection: Connection) -> None:
        """Declare exchanges and bindings now and then, until cancelled: the broker tells nobody of their end."""
        while True:
            await asyncio.sleep(REASSERT_INTERVAL)
            # Each step has a timeout of its own, as a busy process is slow to read the broker's answers.
            async with asyncio.timeout(TOPOLOGY_TIMEOUT):
                await declare_exchanges(connection)
            if self._is_gateway:
                async with asyncio.timeout(TOPOLOGY_TIMEOUT):
                    await self.peers.reassert(connection)
                async with asyncio.timeout(TOPOLOGY_TIMEOUT):
                    await self._events.report_losses(connection)
            if self._role == "gateway":
                async with asyncio.timeout(TOPOLOGY_TIMEOUT):
                    await self.dead_letters.reassert(connection)
            for part in self._parts:
                await part.reassert(connection)
            self.subscriptions.rebind()

    # --- for the controller -----------------------------------------------------------------------------------

    async def _send_reply(
        self, reply_to: str, *, correlation_id: str, trace_id: str | None, body: bytes, encrypted: bool
    ) -> None:
        publisher = self._publisher
        if publisher is None:
            raise MeshUnavailable(self.problem or "not connected")
        self.size_limit.check(body)
        frames = encode_publish(
            channel=publisher.confirmed_channel,
            exchange="",
            routing_key=reply_to,
            kind="response",
            correlation_id=correlation_id,
            trace_id=trace_id,
            body=body,
            frame_max=publisher.frame_max,
            encrypted=encrypted,
        )
        key, settled = self._confirms.expect()
        try:
            publisher.put(float("inf"), key, frames, confirmed=True)
            error = await settled
        finally:
            self._confirms.settle(key)
        if error is not None:
            raise error

    def _publish_for_controller(self, topic: str, event: Any, target: list[str] | None) -> None:
        self.publish(topic, to_json(event), context=b"{}", trace_id=new_id(), target=target)


def _own_arguments() -> dict[str, Any]:
    """Return the arguments of a queue of one process."""
    # Classic also where the vhost's default is quorum: each reply would be written to the disks of several nodes, for a
    # process that is answered by new queues when a node dies.
    return {"x-expires": QUEUE_EXPIRES * 1000, "x-queue-type": "classic"}
