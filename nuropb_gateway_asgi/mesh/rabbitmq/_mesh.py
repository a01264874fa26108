"""The mesh itself: what is sent, what comes back, what is subscribed to."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from types import TracebackType
from typing import Any, Final, Literal, TypeAlias

import anyio
from aio_pika.abc import AbstractQueue
from aiormq.abc import AbstractChannel, AbstractConnection
from aiormq.exceptions import ChannelNotFoundEntity

from ...exceptions import MeshUnavailable
from ...generation_cache import GenerationCache
from ...identifiers import new_id
from ...settings import hide_password
from ...wire import codec
from ...wire.encryption import UndecryptableMessage, decrypt_reply, encrypt, load_public_key
from ...wire.interface import CallMessage, MeshReceiver
from ...wire.services import to_json
from ._connection import Connection, connect, declare_exchanges, open_channel
from ._frames import Incoming
from ._host import SERVICE_PREFETCH, ServiceHost
from ._lane import Acknowledger, LaneName, OnMessage, Publisher
from ._link import Link
from ._siblings import MESSAGE_EXPIRES, Records, Siblings
from ._statistics import RabbitMQStatistics

__all__ = ["RabbitMQMesh"]

logger = logging.getLogger(__name__)

#: Seconds without consumers after which the broker drops the queues of this process.
QUEUE_EXPIRES: Final = 60
#: Events that wait in the queue of a process while it is away; the oldest go first.
EVENT_QUEUE_LENGTH: Final = 10_000
#: A message to oneself goes out this often and has to be back within that time, in seconds: a connection that is open
#: at one end only is noticed by it, long before the heartbeat would, and a broker says that it blocks publishers only
#: to those that publish.
PING_INTERVAL: Final = 3.0
PING_TIMEOUT: Final = 6.0
#: How often it is looked whether the broker blocks, in seconds, when nothing is published.
BLOCKED_INTERVAL: Final = 0.25
#: How often it is looked whether this process has stood still, in seconds, and for how long it has to have done so.
STALL: Final = 1.0
#: How often it is made sure that the exchanges and bindings are still there, in seconds: nobody is told of their end.
REASSERT_INTERVAL: Final = 15.0
BLOCKED: Final = "the broker blocks publishers (a memory or disk alarm)"
#: Seconds for one answer of the broker to a change of the topology.
TOPOLOGY_TIMEOUT: Final = 10.0
#: Deliveries that may be on their way without acknowledgement.
PREFETCH: Final = 1000
#: Events whose ids are remembered, to drop what comes again after a loss of the connection.
REMEMBERED_EVENTS: Final = 2 * PREFETCH


#: What a process is on the mesh.
Role: TypeAlias = Literal["gateway", "sibling", "service", "observer"]


class RabbitMQMesh:
    """NuroPb's services on a RabbitMQ vhost. See :class:`~nuropb_gateway_asgi.wire.interface.Mesh` for the interface.

    ``url`` is an AMQP URL; ``amqps`` takes ``cafile``, ``certfile`` and ``keyfile`` as query parameters. ``prefetch``
    calls of the controller run at a time. Its queue gets events of ``service_topics``, each in one of the processes
    that share it. A ``sibling`` is a gateway that leaves these calls to another. A ``service`` has no queue for events
    of its own, and no siblings. An ``observer`` takes no calls either, and leaves nothing behind: it asks services, and
    reads what the processes of a gateway have recorded.
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
        self._url = url
        self._lane = lane
        self._prefetch = prefetch
        self._service_topics = tuple(service_topics)
        self._role = role
        self._is_gateway = role in ("gateway", "sibling")
        self._service_name = service_name
        self._instance_id = instance_id or new_id()
        unique = new_id()
        self.reply_queue = f"nuropb-{service_name}-{unique}-rq"
        self.event_queue = f"nuropb-{service_name}-{unique}-eq"
        self.service_queue = f"nuropb-{service_name}-sq"
        self.statistics = RabbitMQStatistics()
        self._siblings = Siblings(service_name, unique, self._on_peer_message, self._on_record, expires=QUEUE_EXPIRES)
        self._records = Records()

        self._receiver: MeshReceiver | None = None
        self._controller: object = None
        self._publisher: Publisher | None = None
        self._publishing = Link("publishing", lambda: self._connect("publish"), self._set_up_publishing, self._update)
        self._consuming = Link("consuming", lambda: self._connect("consume"), self._set_up_consuming, self._update)
        self._connected = False
        #: The event loop's, while it runs.
        self._clock: Callable[[], float]
        self._blocked = False
        #: A message to oneself came back by these connections.
        self._proven = False
        self._ping_id = new_id()
        self._ping_sent: float | None = None
        #: How long the latest messages to oneself took, in seconds; whoever reads them takes them away.
        self.round_trips: deque[float] = deque(maxlen=100)
        self._keys: dict[str, bytes] = {}
        self._topics: dict[str, list[Callable[[], None]]] = {}
        #: Topics that are bound, and all that the broker may still have from before.
        self._bound: set[str] = set()
        self._bindings: set[str] = set()
        self._topics_changed = asyncio.Event()
        #: Why events were missed that subscribers have to be told of, once all topics are bound again.
        self._missed: str | None = None
        self._recent_events: GenerationCache[str, None] = GenerationCache(REMEMBERED_EVENTS)
        #: Events that were taken since it was certain that none had been missed.
        self._uncertain_events = 0
        self._stack = contextlib.AsyncExitStack()
        self._host = ServiceHost(
            service_name,
            lambda: self._controller,
            send_reply=self._send_reply,
            publish=self._publish_for_controller,
        )
        self._stopping = False

    # --- the interface ----------------------------------------------------------------------------------------

    @property
    def connected(self) -> bool:
        """Whether messages are taken now."""
        return self._publishing.up and self._consuming.usable and self._proven and not self._blocked

    @property
    def problem(self) -> str | None:
        """Why it is not connected."""
        if self.connected:
            return None
        for link in (self._publishing, self._consuming):
            if not link.up and link.problem is not None:
                return f"{link.name} connection: {link.problem}"
        if self._blocked:
            return BLOCKED
        return "waiting for a first message to come back from the broker"

    def bind(self, receiver: MeshReceiver, controller: object) -> None:
        """Say who is told and which object other services may call."""
        self._receiver = receiver
        self._controller = controller

    def for_transport(self, instance_id: str) -> RabbitMQMesh:
        """A mesh on connections of its own."""
        return RabbitMQMesh(
            self._url, service_name=self._service_name, instance_id=instance_id, lane=self._lane, role="sibling"
        )

    async def __aenter__(self) -> RabbitMQMesh:
        self._clock = asyncio.get_running_loop().time
        self._topics_changed = asyncio.Event()  # it belongs to the event loop in which it is first waited for
        self._stopping = False
        await self._stack.enter_async_context(self._host)
        tasks = await self._stack.enter_async_context(anyio.create_task_group())
        self._stack.callback(tasks.cancel_scope.cancel)
        logger.info("mesh: connecting to %s as %s", hide_password(self._url), self._service_name)
        tasks.start_soon(self._publishing.run, name="mesh publishing")
        tasks.start_soon(self._consuming.run, name="mesh consuming")
        tasks.start_soon(self._watch, name="mesh watchdog")
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._stack.__aexit__(exc_type, exc, traceback)
        self._keys.clear()
        self._consuming.usable = False
        self._update()

    async def finish_calls(self) -> None:
        """Take no more calls from other services, and wait until those that were taken are answered.

        Cancelling it leaves the rest to the end of the context, where they are cancelled.
        """
        self._stopping = True
        await self._host.finish()

    def send(self, message: CallMessage) -> None:
        """Hand over a request or command."""
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
        confirmed = message.kind == "command"
        frames = codec.encode_publish(
            channel=(publisher.confirmed if confirmed else publisher.plain).number,
            exchange=codec.RPC_EXCHANGE,
            routing_key=message.service,
            kind=message.kind,
            correlation_id=message.correlation_id,
            trace_id=message.trace_id,
            body=body,
            frame_max=publisher.frame_max,
            reply_to=self.reply_queue,
            expiration=codec.expiration(message.deadline - self._clock()),
            mandatory=True,
            encrypted=message.public_key is not None,
        )
        publisher.put(message.deadline, message.correlation_id, frames, confirmed=confirmed)
        if key is not None and message.kind == "request":
            self._keys[message.correlation_id] = key

    @property
    def address(self) -> str:
        """The queue of what siblings tell."""
        return self._siblings.queue

    def broadcast(self, message: bytes) -> None:
        """Tell all siblings, as far as there can be any."""
        if self._siblings.can_talk:
            self._tell(self._siblings.exchange, "", message)

    def tell(self, address: str, message: bytes) -> None:
        """Tell the sibling at ``address``."""
        self._tell("", address, message)

    def _tell(self, exchange: str, routing_key: str, message: bytes) -> None:
        self._publish("event", exchange, routing_key, new_id(), message, expires=MESSAGE_EXPIRES)

    async def record(self, record: bytes) -> None:
        """Write ``record`` into the stream, and wait until the broker has it."""
        if not self._siblings.can_record:
            raise MeshUnavailable("there is no stream for records")
        publisher, correlation_id = self._take_publisher(), new_id()
        frames = codec.encode_publish(
            channel=publisher.confirmed.number,
            exchange="",
            routing_key=self._siblings.stream,
            kind="event",
            correlation_id=correlation_id,
            trace_id=None,
            body=record,
            frame_max=publisher.frame_max,
            mandatory=True,
        )
        taken = self._records.expect(correlation_id)
        try:
            publisher.put(float("inf"), correlation_id, frames, confirmed=True)
            if not await taken:
                raise MeshUnavailable("the broker did not take the record, or did not say so")
        finally:
            self._records.settle(correlation_id, taken=False)

    def forget(self, correlation_id: str) -> None:
        """Drop the key of a call that nobody waits for any more."""
        self._keys.pop(correlation_id, None)

    def publish(self, topic: str, event: bytes, *, context: bytes, trace_id: str, target: list[str] | None) -> None:
        """Publish an event. It is never encrypted: nuropb 0.1.8 marks such events and sends them in clear."""
        correlation_id = new_id()
        body = codec.encode_event(
            topic, event, context=context, trace_id=trace_id, correlation_id=correlation_id, target=target
        )
        self._publish("event", codec.EVENTS_EXCHANGE, topic, correlation_id, body, trace_id=trace_id)

    def _publish(
        self,
        kind: codec.MessageType,
        exchange: str,
        routing_key: str,
        correlation_id: str,
        body: bytes,
        *,
        trace_id: str | None = None,
        expires: float | None = None,
    ) -> None:
        publisher = self._take_publisher()
        frames = codec.encode_publish(
            channel=publisher.plain.number,
            exchange=exchange,
            routing_key=routing_key,
            kind=kind,
            correlation_id=correlation_id,
            trace_id=trace_id,
            body=body,
            frame_max=publisher.frame_max,
            expiration=None if expires is None else codec.expiration(expires),
        )
        deadline = float("inf") if expires is None else self._clock() + expires
        publisher.put(deadline, correlation_id, frames)

    def subscribe(self, topic: str, done: Callable[[], None]) -> None:
        """Bind the event queue to ``topic``; ``done`` is called when that is so, or when it has to wait."""
        if not self._is_gateway:
            raise ValueError("what is no gateway has no queue for events; see service_topics")
        waiting = self._topics.setdefault(topic, [])
        if not self._consuming.up:
            self._missed = self._missed or "disconnected"
        if topic in self._bound or not self._consuming.up:
            done()
            return
        waiting.append(done)
        self._topics_changed.set()

    def unsubscribe(self, topic: str) -> None:
        """Unbind it."""
        for done in self._topics.pop(topic, ()):
            done()
        self._topics_changed.set()

    # --- connections ------------------------------------------------------------------------------------------

    async def _connect(self, purpose: str) -> Connection:
        return await connect(self._url, f"{self._service_name} {self._instance_id} {purpose}", self._lane)

    @property
    def _told(self) -> MeshReceiver:
        if self._receiver is None:
            raise RuntimeError("bind() was not called")
        return self._receiver

    def _update(self) -> None:
        """Something about a connection has changed."""
        if not self._publishing.up:
            self._proven = False
        elif self._consuming.up and not self._proven and self._ping_sent is None:
            self._ping()
        links = (self._publishing, self._consuming)
        self.statistics.reconnects = sum(max(link.connects - 1, 0) for link in links)
        if self.connected != self._connected:
            self._connected = self.connected
            self._told.on_connection_change(connected=self._connected)

    def _take_publisher(self) -> Publisher:
        if self._publisher is not None:
            self._see_blocked(self._publisher)
        if self._publisher is None or not self.connected:
            raise MeshUnavailable(self.problem or "not connected")
        return self._publisher

    @contextlib.asynccontextmanager
    async def _set_up_publishing(
        self, raw: AbstractConnection, connection: Connection
    ) -> AsyncIterator[Sequence[AbstractChannel]]:
        await declare_exchanges(connection)
        if self._is_gateway:
            await self._siblings.declare(connection)
        plain = await open_channel(connection)
        confirmed = await open_channel(connection, confirms=True)
        lane = connection.lane
        publisher = lane.publisher(plain, confirmed, raw.connection_tune.frame_max, self.statistics)
        lane.follow(publisher, self._on_returned, self._on_confirm)
        self._blocked = False
        async with _running(publisher.run, lambda: self._watch_blocked(publisher)):
            self._publisher = publisher
            self._ping_sent = None
            try:
                yield plain, confirmed
            finally:
                self._publisher = None
                for correlation_id in publisher.unsent():
                    self._keys.pop(correlation_id, None)
                    if not self._records.settle(correlation_id, taken=False):
                        self._told.on_rejected(correlation_id)
                for correlation_id in publisher.unconfirmed():
                    if not self._records.settle(correlation_id, taken=False):
                        self._told.on_unconfirmed(correlation_id)

    @contextlib.asynccontextmanager
    async def _set_up_consuming(
        self, raw: AbstractConnection, connection: Connection
    ) -> AsyncIterator[Sequence[AbstractChannel]]:
        await declare_exchanges(connection)
        if self._is_gateway and self._consuming.connects:
            await self._see_what_was_missed(connection)
        topology = await connection.channel()
        await topology.declare_queue(self.reply_queue, durable=True, arguments=_arguments())

        async def own(queue: str, take: OnMessage, arguments: dict[str, Any] | None = None) -> AbstractChannel:
            # The newest connection has the highest priority. One that is dead at this end only would otherwise go on
            # getting its share.
            arguments = {"x-priority": self._consuming.connects} if arguments is None else arguments
            return await self._consume(connection, queue, take, arguments)

        channels = [await topology.get_underlay_channel(), await own(self.reply_queue, self._on_reply)]
        events: AbstractQueue | None = None
        if self._is_gateway:
            events = await topology.declare_queue(
                self.event_queue,
                durable=True,
                arguments=_arguments() | {"x-max-length": EVENT_QUEUE_LENGTH, "x-overflow": "drop-head"},
            )
            channels += await own(self.event_queue, self._on_event), *await self._siblings.set_up(connection, own)
        if self._role == "observer":
            channels += await self._siblings.read_records(connection, own)
        service: AbstractQueue | None = None
        if self._role in ("gateway", "service"):
            service = await topology.declare_queue(
                self.service_queue, durable=True, arguments={"x-dead-letter-exchange": codec.DEAD_LETTER_EXCHANGE}
            )
            await self._bind_service(service)
            if not self._stopping:
                channels.append(await self._take_calls(connection))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._keep_asserted, service, connection, name="mesh topology")
            if events is not None:
                tasks.start_soon(self._keep_bound, events, name="mesh bindings")
                tasks.start_soon(self._notice_stalls, connection, name="mesh stalls")
            try:
                yield channels
            finally:
                tasks.cancel_scope.cancel()
                self._release_topics()

    async def _take_calls(self, connection: Connection) -> AbstractChannel:
        """Have the messages of the service's queue given to its host."""
        channel = await open_channel(connection)
        self._host.attach(channel)
        self._host.consumer = await connection.lane.consume(
            channel,
            self.service_queue,
            self._host.on_message,
            prefetch=self._prefetch,
            arguments={},
            on_cancel=self._on_cancelled,
        )
        return channel

    async def _bind_service(self, queue: AbstractQueue) -> None:
        """Have calls of the service, and the events that it wants, come to its queue."""
        await queue.bind(codec.RPC_EXCHANGE, routing_key=self._service_name)
        for topic in self._service_topics:
            await queue.bind(codec.EVENTS_EXCHANGE, routing_key=topic)

    async def _see_what_was_missed(self, connection: Connection) -> None:
        """Tell subscribers if the event queue was full while nobody took from it, for then it has lost some."""
        try:
            async with connection.channel() as channel:
                queue = await channel.declare_queue(self.event_queue, passive=True)
        except ChannelNotFoundEntity:
            self._missed = "expired"
            return
        # What was in it then is in it still, or has been taken meanwhile.
        if (queue.declaration_result.message_count or 0) + self._uncertain_events >= EVENT_QUEUE_LENGTH:
            self._told.on_gap("overflow")  # now, for what it has lost is older than what it still has
        self._uncertain_events = 0

    async def _consume(
        self,
        connection: Connection,
        queue: str,
        take: OnMessage,
        arguments: dict[str, Any],
    ) -> AbstractChannel:
        """Have the messages of one of this process's queues given to ``take``."""
        channel = await open_channel(connection)
        lane = connection.lane
        acknowledger = Acknowledger(lane, channel)

        def on_message(message: Incoming) -> None:
            acknowledger.later(message.delivery_tag)
            take(message)

        await lane.consume(
            channel, queue, on_message, prefetch=PREFETCH, arguments=arguments, on_cancel=self._on_cancelled
        )
        return channel

    def _on_cancelled(self) -> None:
        self._consuming.abort("the broker ended a consumer: a queue was deleted")

    # --- watching ---------------------------------------------------------------------------------------------

    async def _watch_blocked(self, publisher: Publisher) -> None:
        while True:
            self._see_blocked(publisher)
            await asyncio.sleep(BLOCKED_INTERVAL)

    def _see_blocked(self, publisher: Publisher) -> None:
        blocked = publisher.blocked
        if blocked != self._blocked:
            self._blocked = blocked
            logger.warning("mesh: the broker %s", "blocks publishers" if blocked else "blocks publishers no longer")
            if blocked and self._proven:
                # What it has not read yet would be new to it when the alarm is over, its expiration notwithstanding.
                # With a reset it drops that. The next connection is blocked by its first message to itself.
                self._publishing.abort(BLOCKED)
            self._update()

    async def _notice_stalls(self, connection: Connection) -> None:
        """See what was missed while this process stood still and its connection did not end, until cancelled."""
        clock = asyncio.get_running_loop().time
        while True:
            due = clock() + STALL
            await asyncio.sleep(STALL)
            if clock() - due > STALL:
                async with asyncio.timeout(TOPOLOGY_TIMEOUT):
                    await self._see_what_was_missed(connection)
            self._uncertain_events = 0

    async def _watch(self) -> None:
        """Send a message to oneself now and then, and give the connections up when it does not come back."""
        due = 0.0
        while True:
            await asyncio.sleep(PING_INTERVAL / 6)
            now = self._clock()
            if not (self._publishing.up and self._consuming.up) or self._blocked:
                self._ping_sent = None
            elif self._ping_sent is not None:
                if now - self._ping_sent > PING_TIMEOUT:
                    self._ping_sent = None
                    for link in (self._publishing, self._consuming):
                        link.abort("a message to itself did not come back")
            elif now >= due or not self._proven:
                due = now + PING_INTERVAL
                self._ping()

    def _ping(self) -> None:
        publisher = self._publisher
        if publisher is None:
            return
        now = self._clock()
        frames = codec.encode_publish(
            channel=publisher.plain.number,
            exchange="",
            routing_key=self.reply_queue,
            kind="response",
            correlation_id=self._ping_id,
            trace_id=None,
            body=b"{}",
            frame_max=publisher.frame_max,
            expiration=codec.expiration(PING_TIMEOUT),
        )
        with contextlib.suppress(MeshUnavailable):
            publisher.put(now + PING_TIMEOUT, self._ping_id, frames)
            self._ping_sent = now

    def _on_pong(self) -> None:
        if self._ping_sent is not None:
            self.round_trips.append(self._clock() - self._ping_sent)
        self._ping_sent = None
        if not self._proven and self._publishing.up:
            self._proven = True
            self._update()

    # --- what comes back --------------------------------------------------------------------------------------

    def _on_returned(self, correlation_id: str) -> None:
        if correlation_id == self._ping_id or self._records.settle(correlation_id, taken=False):
            return
        self._keys.pop(correlation_id, None)
        self._told.on_returned(correlation_id)

    def _on_confirm(self, correlation_id: str, taken: bool) -> None:
        if self._records.settle(correlation_id, taken):
            return
        if taken:
            self._told.on_confirmed(correlation_id)
        else:
            self._told.on_rejected(correlation_id)

    def _on_reply(self, message: Incoming) -> None:
        correlation_id = message.correlation_id
        if correlation_id == self._ping_id:
            self._on_pong()
            return
        try:
            if message.kind != "response":
                raise codec.InvalidMessage("not a response")
            if correlation_id is None:
                raise codec.InvalidMessage("no correlation id")
            if not self._told.expects(correlation_id):
                return
            body = message.body
            key = self._keys.get(correlation_id)
            if key is not None:
                if not message.encrypted:
                    raise codec.InvalidMessage("the response to an encrypted call is not encrypted")
                body = decrypt_reply(body, key)
            reply = codec.decode_reply(correlation_id, body)
        except codec.NotJson:
            self._keys.pop(str(correlation_id), None)
            self._told.on_unreadable(str(correlation_id))
        except (codec.InvalidMessage, UndecryptableMessage) as error:
            self.statistics.dropped_replies += 1
            logger.debug("mesh: a message on the reply queue was dropped: %s", error)
        else:
            self._keys.pop(correlation_id, None)
            self._told.on_reply(reply)

    def _on_peer_message(self, message: bytes) -> None:
        self._told.on_peer_message(message)

    def _on_record(self, record: bytes) -> None:
        self._told.on_record(record)

    def _on_event(self, message: Incoming) -> None:
        try:
            if message.kind != "event":
                raise codec.InvalidMessage("not an event")
            event = codec.decode_event(message.body)
        except codec.InvalidMessage as error:
            self.statistics.dropped_events += 1
            logger.debug("mesh: a message on the event queue was dropped: %s", error)
            return
        self._uncertain_events += 1
        correlation_id = message.correlation_id
        if correlation_id:
            if message.redelivered and correlation_id in self._recent_events:
                self.statistics.repeated_events += 1
                return
            self._recent_events.add(correlation_id, None)
        self._told.on_event(event)

    # --- subscriptions ----------------------------------------------------------------------------------------

    async def _keep_asserted(self, service: AbstractQueue | None, connection: Connection) -> None:
        """Make sure now and then that all is there that nobody is told of, until cancelled."""
        while True:
            await asyncio.sleep(REASSERT_INTERVAL)
            # Each has a time of its own, for a process that is busy is slow to hear the broker's answers.
            async with asyncio.timeout(TOPOLOGY_TIMEOUT):
                await declare_exchanges(connection)
            if self._is_gateway:
                async with asyncio.timeout(TOPOLOGY_TIMEOUT):
                    await self._siblings.reassert(connection)
                async with asyncio.timeout(TOPOLOGY_TIMEOUT):  # events may be lost all the time
                    await self._see_what_was_missed(connection)
            if service is not None:
                async with asyncio.timeout(TOPOLOGY_TIMEOUT):
                    await self._bind_service(service)
            self._bound.clear()
            self._topics_changed.set()

    async def _keep_bound(self, queue: AbstractQueue) -> None:
        """Bind the event queue to what is wanted and to nothing else, until cancelled."""
        self._bound.clear()
        while True:
            self._topics_changed.clear()
            for topic in [topic for topic in self._topics if topic not in self._bound]:
                self._bindings.add(topic)
                async with asyncio.timeout(TOPOLOGY_TIMEOUT):
                    await queue.bind(codec.EVENTS_EXCHANGE, routing_key=topic)
                self._bound.add(topic)
                self._call_waiting(topic)
            for topic in self._bindings - self._topics.keys():
                if topic in self._topics:  # again, in the meantime
                    continue
                self._bound.discard(topic)
                async with asyncio.timeout(TOPOLOGY_TIMEOUT):
                    await queue.unbind(codec.EVENTS_EXCHANGE, routing_key=topic)
                self._bindings.discard(topic)
            if not self._bindings == self._bound == self._topics.keys():
                continue
            missed, self._missed = self._missed, None
            if missed is not None:
                self._told.on_gap(missed)
            await self._topics_changed.wait()

    def _call_waiting(self, topic: str) -> None:
        waiting = self._topics.get(topic)
        if waiting:
            self._topics[topic] = []
            for done in waiting:
                done()

    def _release_topics(self) -> None:
        self._bound.clear()
        for topic in tuple(self._topics):
            self._call_waiting(topic)

    # --- for the controller -----------------------------------------------------------------------------------

    def _send_reply(
        self, reply_to: str, *, correlation_id: str, trace_id: str | None, body: bytes, encrypted: bool
    ) -> None:
        publisher = self._publisher
        if publisher is None:
            raise MeshUnavailable(self.problem or "not connected")
        frames = codec.encode_publish(
            channel=publisher.plain.number,
            exchange="",
            routing_key=reply_to,
            kind="response",
            correlation_id=correlation_id,
            trace_id=trace_id,
            body=body,
            frame_max=publisher.frame_max,
            encrypted=encrypted,
        )
        publisher.put(float("inf"), correlation_id, frames)

    def _publish_for_controller(self, topic: str, event: Any, target: list[str] | None) -> None:
        self.publish(topic, to_json(event), context=b"{}", trace_id=new_id(), target=target)


def _arguments() -> dict[str, Any]:
    return {"x-expires": QUEUE_EXPIRES * 1000}


@contextlib.asynccontextmanager
async def _running(*functions: Callable[[], Coroutine[Any, Any, None]]) -> AsyncIterator[None]:
    """Run ``functions`` for as long as the context lasts."""
    async with anyio.create_task_group() as tasks:
        for function in functions:
            tasks.start_soon(function)
        try:
            yield
        finally:
            tasks.cancel_scope.cancel()
