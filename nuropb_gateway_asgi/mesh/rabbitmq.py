"""The mesh on RabbitMQ, spoken natively: nuropb's own client cannot be left alone with a network.

Two connections: one publishes, one consumes, because a broker in a memory or disk alarm stops reading from those
that publish. Each is looked after by a :class:`_Link`, which connects, sets up what it needs, waits for the end and
begins again. The queues of this process are named anew for each process, are durable and outlive a short loss of the
connection (``x-expires``), so that a reply which is sent while the gateway reconnects is still there afterwards.

aio-pika owns connections, channels and topology. What is done thousands of times a second goes by two short cuts:
publishes are marshalled here and handed to the connection's writer once per turn of the event loop, and the frames of
deliveries, returns and confirms are taken off a channel before aiormq makes a task of each (:class:`_Tap`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from types import TracebackType
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import aio_pika
import aiormq
import anyio
import msgspec
import pamqp.frame
from aio_pika.exceptions import AMQPError
from aiormq.abc import AbstractChannel, AbstractConnection, ChannelFrame, DeliveredMessage
from aiormq.exceptions import (
    AuthenticationError,
    ChannelAccessRefused,
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
    ProbableAuthenticationError,
)
from anyio.abc import TaskGroup
from pamqp import commands
from pamqp.body import ContentBody
from pamqp.header import ContentHeader

from ..exceptions import MeshUnavailable
from ..settings import hide_password
from . import wire
from .base import CallMessage, MeshReceiver
from .encryption import UndecryptableMessage, decrypt_call, decrypt_reply, encrypt, load_public_key
from .service import Outcome, call_service, deliver_event

__all__ = ["RabbitMQMesh", "RabbitMQStatistics"]

logger = logging.getLogger(__name__)

#: Seconds without consumers after which the broker drops the queues of this process.
QUEUE_EXPIRES: Final = 60
#: Events that wait in the queue of a process while it is away; the oldest go first.
EVENT_QUEUE_LENGTH: Final = 10_000
#: Seconds. aiormq notices a dead peer after three and a half of them at the latest.
HEARTBEAT: Final = 10
CONNECT_TIMEOUT: Final = 10.0
CLOSE_TIMEOUT: Final = 3.0
#: Seconds between attempts to connect, from the first to the last, each with jitter.
FIRST_RETRY: Final = 0.1
LAST_RETRY: Final = 1.0
#: A message to oneself goes out this often and has to be back within that time, in seconds; a connection that is
#: open at one end only is noticed by it, long before the heartbeat would.
PING_INTERVAL: Final = 3.0
PING_TIMEOUT: Final = 6.0
#: Bytes that may wait for the connection's writer before messages are refused.
MAX_BUFFERED: Final = 64 * 1024 * 1024
#: Deliveries that may be on their way without acknowledgement.
REPLY_PREFETCH: Final = 1000
SERVICE_PREFETCH: Final = 32

_CONNECTION_ERRORS: Final = (AMQPError, aiormq.exceptions.AMQPError, OSError, TimeoutError, asyncio.CancelledError)


class RabbitMQStatistics(msgspec.Struct):
    """Counters since the start."""

    connects: int = 0
    reconnects: int = 0
    published: int = 0
    #: Messages whose time was up before they could be published.
    expired_unsent: int = 0
    #: Replies and events that are not what the wire protocol says.
    dropped_replies: int = 0
    dropped_events: int = 0
    #: Events that came again after a loss of the connection.
    repeated_events: int = 0


class _Tap:
    """Takes whole messages and confirms off a channel, in the order and in the turn in which they arrive.

    aiormq starts a task per delivery. That costs more than all else that is done for a reply, and tasks make no
    promise of order, while the first of two replies is the true one. So this stands before the queue into which the
    connection puts a channel's frames; what it does not know it passes on. Were a later aiormq not to use that queue,
    deliveries would come by the consumer's callback.
    """

    __slots__ = ("_body", "_header", "_missing", "_on_confirm", "_on_message", "_on_return", "_pass_on", "_start")

    def __init__(
        self,
        channel: AbstractChannel,
        *,
        on_message: Callable[[commands.Basic.Deliver, ContentHeader, bytes], None] | None = None,
        on_return: Callable[[str], None] | None = None,
        on_confirm: Callable[[int, bool, bool], None] | None = None,
    ) -> None:
        self._on_message = on_message
        self._on_return = on_return
        self._on_confirm = on_confirm
        self._start: commands.Basic.Deliver | commands.Basic.Return | None = None
        self._header: ContentHeader | None = None
        self._body: list[bytes] = []
        self._missing = 0
        frames: asyncio.Queue[Any] = channel.frames
        self._pass_on = frames.put
        frames.put = self._put  # type: ignore[method-assign]

    async def _put(self, item: tuple[int, Any]) -> None:
        frame = item[1]
        kind = type(frame)
        if kind is commands.Basic.Deliver or kind is commands.Basic.Return:
            self._start = frame
        elif kind is ContentHeader and self._start is not None:
            self._header = frame
            self._body = []
            self._missing = frame.body_size
            if not self._missing:
                self._complete()
        elif kind is ContentBody and self._header is not None:
            self._body.append(frame.value)
            self._missing -= len(frame.value)
            if self._missing <= 0:
                self._complete()
        elif self._on_confirm is not None and kind in (commands.Basic.Ack, commands.Basic.Nack):
            self._on_confirm(frame.delivery_tag, frame.multiple, kind is commands.Basic.Ack)
        else:
            await self._pass_on(item)

    def _complete(self) -> None:
        start, header = self._start, self._header
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._start = self._header = None
        self._body = []
        try:
            if isinstance(start, commands.Basic.Deliver):
                if self._on_message is not None and header is not None:
                    self._on_message(start, header, body)
            elif self._on_return is not None and header is not None:
                self._on_return(str(header.properties.correlation_id))
        except Exception:
            # It would end the reader of the connection, and with it everything else.
            logger.exception("a message of the mesh could not be handled")


class _Link:
    """One connection to the broker, made again whenever it is lost."""

    def __init__(
        self,
        name: str,
        connect: Callable[[], Awaitable[aio_pika.abc.AbstractConnection]],
        setup: Callable[
            [AbstractConnection, aio_pika.abc.AbstractConnection],
            contextlib.AbstractAsyncContextManager[list[AbstractChannel]],
        ],
        on_change: Callable[[], None],
    ) -> None:
        self.name = name
        self._connect = connect
        self._setup = setup
        self._on_change = on_change
        self.up = False
        #: Whether it is up, or was until a moment ago and has not failed to come back since.
        self.usable = False
        self.problem: str | None = "not connected yet"
        self.connects = 0
        self._lost: asyncio.Event | None = None

    def abort(self, problem: str) -> None:
        """Give the connection up; it is made anew."""
        self.problem = problem
        if self._lost is not None:
            self._lost.set()

    async def run(self) -> None:
        """Keep the connection, until cancelled."""
        delay = FIRST_RETRY
        while True:
            started = time.monotonic()
            try:
                await self._live()
            except _CONNECTION_ERRORS as error:
                task = asyncio.current_task()
                if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
                    raise
                self._set(up=False, usable=False, problem=_explain(error))
            except BaseExceptionGroup as group:
                errors, rest = group.split(_CONNECTION_ERRORS)
                if rest is not None or errors is None:
                    raise
                self._set(up=False, usable=False, problem=_explain(errors))
            else:
                self._set(up=False, usable=True, problem=self.problem or "the connection was lost")
            if time.monotonic() - started > LAST_RETRY:
                delay = FIRST_RETRY
            await asyncio.sleep(delay * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
            delay = min(delay * 2, LAST_RETRY)

    async def _live(self) -> None:
        """Connect, set up, and return when the connection is lost; raises what keeps it from coming up."""
        self._lost = asyncio.Event()
        async with asyncio.timeout(CONNECT_TIMEOUT):
            connection = await self._connect()
        try:
            transport = connection.transport
            if transport is None:
                raise ConnectionError("the connection was lost at once")
            async with asyncio.timeout(CONNECT_TIMEOUT) as setting_up:
                async with self._setup(transport.connection, connection) as channels:
                    setting_up.reschedule(None)
                    for closing in (transport.connection.closing, *(channel.closing for channel in channels)):
                        closing.add_done_callback(self._on_closed)
                    self.connects += 1
                    self._set(up=True, usable=True, problem=None)
                    await self._lost.wait()
                    self._set(up=False, usable=True, problem=self.problem or "the connection was lost")
        finally:
            self.up = False
            with contextlib.suppress(*_CONNECTION_ERRORS, RuntimeError):
                async with asyncio.timeout(CLOSE_TIMEOUT):
                    await connection.close()

    def _on_closed(self, closing: asyncio.Future[Any]) -> None:
        if self._lost is not None and not self._lost.is_set():
            error = None if closing.cancelled() else closing.exception()
            self.problem = _explain(error) if error is not None else "the connection was closed"
            self._lost.set()

    def _set(self, *, up: bool, usable: bool, problem: str | None) -> None:
        changed = problem != self.problem or up != self.up
        self.up, self.usable, self.problem = up, usable, problem
        if changed and problem is not None:
            logger.warning("mesh: %s connection: %s", self.name, problem)
        self._on_change()


class _Publisher:
    """Writes messages to one connection, as many as there are in one go."""

    def __init__(self, connection: AbstractConnection, plain: AbstractChannel, confirmed: AbstractChannel) -> None:
        self.plain = plain
        self.confirmed = confirmed
        self.frame_max = connection.connection_tune.frame_max
        self._queue = connection.write_queue
        self._items: deque[tuple[float, str, bytes, bool]] = deque()
        self._size = 0
        self._wake = asyncio.Event()
        #: Delivery tags of the confirmed channel that the broker has not confirmed yet, with their messages.
        self.unconfirmed: dict[int, str] = {}
        self._tag = 0
        self.expired = 0

    def put(self, deadline: float, correlation_id: str, frames: bytes, *, confirmed: bool = False) -> None:
        """Take a message. Raises MeshUnavailable when too much waits already."""
        if self._size + len(frames) > MAX_BUFFERED:
            raise MeshUnavailable("the broker does not read")
        self._items.append((deadline, correlation_id, frames, confirmed))
        self._size += len(frames)
        self._wake.set()

    def put_control(self, frames: bytes) -> bool:
        """Hand frames that are no message to the writer now; False if its queue is full."""
        try:
            self._queue.put_nowait(ChannelFrame(frames, should_close=False))
        except asyncio.QueueFull:
            return False
        return True

    async def run(self) -> None:
        """Write, until cancelled. A message whose time is up is left out."""
        loop = asyncio.get_running_loop()
        while True:
            await self._wake.wait()
            self._wake.clear()
            now = loop.time()
            frames = []
            while self._items:
                deadline, correlation_id, data, confirmed = self._items.popleft()
                if deadline <= now:
                    self.expired += 1
                    continue
                if confirmed:
                    self._tag += 1
                    self.unconfirmed[self._tag] = correlation_id
                frames.append(data)
            self._size = 0
            if not frames:
                continue
            drained = loop.create_future()
            await self._queue.put(ChannelFrame(b"".join(frames), should_close=False, drain_future=drained))
            # While the broker does not read, this waits, and what comes in the meantime can still expire unsent.
            await drained

    def confirm(self, tag: int, multiple: bool) -> list[str]:
        """The messages that a confirm is about."""
        if not multiple:
            correlation_id = self.unconfirmed.pop(tag, None)
            return [] if correlation_id is None else [correlation_id]
        tags = [each for each in self.unconfirmed if each <= tag]
        return [self.unconfirmed.pop(each) for each in tags]

    def unsent(self) -> list[str]:
        """What was not written, and what was not confirmed."""
        return [item[1] for item in self._items] + list(self.unconfirmed.values())


class RabbitMQMesh:
    """NuroPb's services on a RabbitMQ vhost. See :class:`~.base.Mesh` for the interface.

    ``url`` is an AMQP URL; ``amqps`` takes ``cafile``, ``certfile`` and ``keyfile`` as query parameters.
    """

    def __init__(self, url: str, *, service_name: str = "nuropb-gateway", instance_id: str | None = None) -> None:
        self._url = _with_heartbeat(url)
        self._service_name = service_name
        self._instance_id = instance_id or uuid4().hex
        unique = uuid4().hex
        self.reply_queue = f"nuropb-{service_name}-{unique}-rq"
        self.event_queue = f"nuropb-{service_name}-{unique}-eq"
        self.service_queue = f"nuropb-{service_name}-sq"
        self.statistics = RabbitMQStatistics()

        self._receiver: MeshReceiver | None = None
        self._controller: object = None
        self._publisher: _Publisher | None = None
        self._blocked = False
        self._connected = False
        self._keys: dict[str, bytes] = {}
        self._topics: dict[str, list[Callable[[], None]]] = {}
        self._bound: set[str] = set()
        self._topics_changed = asyncio.Event()
        self._recent_events: dict[str, None] = {}
        self._ping_id = uuid4().hex
        self._ping_sent: float | None = None
        self._stack = contextlib.AsyncExitStack()
        self._publishing = _Link("publishing", lambda: self._open("publish"), self._set_up_publishing, self._update)
        self._consuming = _Link("consuming", lambda: self._open("consume"), self._set_up_consuming, self._update)

    # --- the interface ----------------------------------------------------------------------------------------

    @property
    def connected(self) -> bool:
        """Whether messages are taken now."""
        return self._publishing.up and self._consuming.usable and not self._blocked

    @property
    def problem(self) -> str | None:
        """Why it is not connected."""
        if self.connected:
            return None
        if self._blocked and self._publishing.up:
            return "the broker blocks publishers (memory or disk alarm)"
        for link in (self._publishing, self._consuming):
            if not link.up and link.problem is not None:
                return f"{link.name} connection: {link.problem}"
        return "not connected"

    def bind(self, receiver: MeshReceiver, controller: object) -> None:
        """Say who is told and which object other services may call."""
        self._receiver = receiver
        self._controller = controller

    async def __aenter__(self) -> RabbitMQMesh:
        tasks = await self._stack.enter_async_context(anyio.create_task_group())
        logger.info("mesh: connecting to %s as %s", hide_password(self._url), self._service_name)
        tasks.start_soon(self._publishing.run, name="mesh publishing")
        tasks.start_soon(self._consuming.run, name="mesh consuming")
        tasks.start_soon(self._watch, name="mesh watchdog")
        self._stack.callback(tasks.cancel_scope.cancel)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._stack.__aexit__(exc_type, exc, traceback)

    def send(self, message: CallMessage) -> None:
        """Hand over a request or command."""
        publisher = self._take_publisher()
        body = wire.encode_call(
            message.kind,
            service=message.service,
            method=message.method,
            params=message.params,
            correlation_id=message.correlation_id,
            context=message.context,
            trace_id=message.trace_id,
        )
        if message.public_key is not None:
            key, body = encrypt(body, load_public_key(message.public_key))
            if message.kind == "request":
                self._keys[message.correlation_id] = key
        confirmed = message.kind == "command"
        channel = publisher.confirmed if confirmed else publisher.plain
        now = asyncio.get_running_loop().time()
        frames = wire.encode_publish(
            channel=channel.number,
            exchange=wire.RPC_EXCHANGE,
            routing_key=message.service,
            kind=message.kind,
            correlation_id=message.correlation_id,
            trace_id=message.trace_id,
            body=body,
            frame_max=publisher.frame_max,
            reply_to=self.reply_queue,
            expiration=wire.expiration(message.deadline - now),
            mandatory=True,
            encrypted=message.public_key is not None,
        )
        publisher.put(message.deadline, message.correlation_id, frames, confirmed=confirmed)

    def forget(self, correlation_id: str) -> None:
        """Drop the key of a call that nobody waits for any more."""
        self._keys.pop(correlation_id, None)

    def publish(self, topic: str, event: bytes, *, context: bytes, trace_id: str, target: list[str] | None) -> None:
        """Publish an event. It is never encrypted: nuropb 0.1.8 marks such events and sends them in clear."""
        publisher = self._take_publisher()
        correlation_id = uuid4().hex
        body = wire.encode_event(
            topic, event, context=context, trace_id=trace_id, correlation_id=correlation_id, target=target
        )
        frames = wire.encode_publish(
            channel=publisher.plain.number,
            exchange=wire.EVENTS_EXCHANGE,
            routing_key=topic,
            kind="event",
            correlation_id=correlation_id,
            trace_id=trace_id,
            body=body,
            frame_max=publisher.frame_max,
        )
        publisher.put(float("inf"), correlation_id, frames)

    def subscribe(self, topic: str, done: Callable[[], None]) -> None:
        """Bind the event queue to ``topic``; ``done`` is called when that is so, or the connection was lost."""
        waiting = self._topics.setdefault(topic, [])
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

    async def _open(self, purpose: str) -> aio_pika.abc.AbstractConnection:
        name = f"{self._service_name} {self._instance_id} {purpose}"
        return await aio_pika.connect(self._url, client_properties={"connection_name": name})

    def _update(self) -> None:
        connected = self.connected
        self.statistics.connects = self._publishing.connects + self._consuming.connects
        self.statistics.reconnects = max(self._publishing.connects - 1, 0) + max(self._consuming.connects - 1, 0)
        if connected != self._connected:
            self._connected = connected
            self._told.on_connection_change(connected=connected)

    @property
    def _told(self) -> MeshReceiver:
        if self._receiver is None:
            raise RuntimeError("bind() was not called")
        return self._receiver

    def _take_publisher(self) -> _Publisher:
        if self._publisher is None or not self.connected:
            raise MeshUnavailable(self.problem or "not connected")
        return self._publisher

    @contextlib.asynccontextmanager
    async def _set_up_publishing(
        self, raw: AbstractConnection, connection: aio_pika.abc.AbstractConnection
    ) -> AsyncIterator[list[AbstractChannel]]:
        await _declare_exchanges(connection)
        plain = await _open_channel(connection, publisher_confirms=False)
        confirmed = await _open_channel(connection, publisher_confirms=True)
        publisher = _Publisher(raw, plain, confirmed)
        _Tap(plain, on_return=self._on_returned)
        # The broker sends a return before the confirm of the same message, so the confirm finds nobody waiting.
        _Tap(
            confirmed,
            on_return=self._on_returned,
            on_confirm=lambda tag, multiple, taken: self._on_confirm(publisher, tag, multiple, taken),
        )
        self._blocked = False
        async with _running(publisher.run, lambda: self._watch_blocked(raw)):
            self._publisher = publisher
            try:
                yield [plain, confirmed]
            finally:
                self._publisher = None
                self.statistics.expired_unsent += publisher.expired
                for correlation_id in publisher.unsent():
                    self._told.on_failed(correlation_id)

    @contextlib.asynccontextmanager
    async def _set_up_consuming(
        self, raw: AbstractConnection, connection: aio_pika.abc.AbstractConnection
    ) -> AsyncIterator[list[AbstractChannel]]:
        await _declare_exchanges(connection)
        topology = await connection.channel()
        expires = {"x-expires": QUEUE_EXPIRES * 1000}
        await topology.declare_queue(self.reply_queue, durable=True, arguments=dict(expires))
        events = await topology.declare_queue(
            self.event_queue,
            durable=True,
            arguments={**expires, "x-max-length": EVENT_QUEUE_LENGTH, "x-overflow": "drop-head"},
        )
        service = await topology.declare_queue(
            self.service_queue, durable=True, arguments={"x-dead-letter-exchange": wire.DEAD_LETTER_EXCHANGE}
        )
        await service.bind(wire.RPC_EXCHANGE, routing_key=self._service_name)

        async with anyio.create_task_group() as tasks:
            replies = await self._consume(connection, raw, self.reply_queue, self._on_reply, REPLY_PREFETCH)
            taken_events = await self._consume(connection, raw, self.event_queue, self._on_event, REPLY_PREFETCH)
            calls = await self._serve(connection, raw, tasks)
            tasks.start_soon(self._keep_bound, events, name="mesh bindings")
            try:
                yield [await topology.get_underlay_channel(), replies, taken_events, calls]
            finally:
                tasks.cancel_scope.cancel()
                self._release_topics()

    async def _consume(
        self,
        connection: aio_pika.abc.AbstractConnection,
        raw: AbstractConnection,
        queue: str,
        take: Callable[[commands.Basic.Deliver, ContentHeader, bytes], None],
        prefetch: int,
    ) -> AbstractChannel:
        """Take the messages of a queue; they are acknowledged once per turn of the loop, all together."""
        channel = await _open_channel(connection, publisher_confirms=False)
        acknowledge = _Acknowledger(raw, channel)

        def on_message(deliver: commands.Basic.Deliver, header: ContentHeader, body: bytes) -> None:
            acknowledge.later(deliver.delivery_tag or 0)
            take(deliver, header, body)

        _Tap(channel, on_message=on_message)
        await channel.basic_qos(prefetch_count=prefetch)
        await channel.basic_consume(queue, _callback(on_message), no_ack=False)
        return channel

    # --- watching ---------------------------------------------------------------------------------------------

    async def _watch_blocked(self, raw: AbstractConnection) -> None:
        # aiormq tells that a connection is blocked only by waiting in ready().
        while True:
            try:
                async with asyncio.timeout(0.05):
                    await raw.ready()
            except TimeoutError:
                blocked = True
            else:
                blocked = False
            if blocked != self._blocked:
                self._blocked = blocked
                logger.warning("mesh: %s", "the broker blocks publishers" if blocked else "publishers are unblocked")
                self._update()
            await asyncio.sleep(0.25)

    async def _watch(self) -> None:
        """Send a message to oneself now and then, and give the connections up when it does not come back."""
        loop = asyncio.get_running_loop()
        due = 0.0
        while True:
            await asyncio.sleep(PING_INTERVAL / 6)
            now = loop.time()
            if not (self._publishing.up and self._consuming.up) or self._blocked:
                self._ping_sent = None
            elif self._ping_sent is not None:
                if now - self._ping_sent > PING_TIMEOUT:
                    self._ping_sent = None
                    for link in (self._publishing, self._consuming):
                        link.abort("a message to itself did not come back")
            elif now >= due:
                due = now + PING_INTERVAL
                self._ping(now)

    def _ping(self, now: float) -> None:
        publisher = self._publisher
        if publisher is None:
            return
        frames = wire.encode_publish(
            channel=publisher.plain.number,
            exchange="",
            routing_key=self.reply_queue,
            kind="response",
            correlation_id=self._ping_id,
            trace_id=None,
            body=b"{}",
            frame_max=publisher.frame_max,
            expiration=wire.expiration(PING_TIMEOUT),
        )
        with contextlib.suppress(MeshUnavailable):
            publisher.put(now + PING_TIMEOUT, self._ping_id, frames)
            self._ping_sent = now

    # --- what comes back --------------------------------------------------------------------------------------

    def _on_returned(self, correlation_id: str) -> None:
        self._keys.pop(correlation_id, None)
        self._told.on_returned(correlation_id)

    def _on_confirm(self, publisher: _Publisher, tag: int, multiple: bool, taken: bool) -> None:
        for correlation_id in publisher.confirm(tag, multiple):
            if taken:
                self._told.on_taken(correlation_id)
            else:
                self._told.on_failed(correlation_id)

    def _on_reply(self, deliver: commands.Basic.Deliver, header: ContentHeader, body: bytes) -> None:
        properties = header.properties
        correlation_id = properties.correlation_id
        if correlation_id == self._ping_id:
            self._ping_sent = None
            return
        if not isinstance(correlation_id, str) or not self._told.expects(correlation_id):
            return
        try:
            if wire.message_type(properties.headers) != "response":
                raise wire.InvalidMessage("not a response")
            key = self._keys.get(correlation_id)
            if key is not None:
                if not _is_encrypted(properties.headers):
                    raise wire.InvalidMessage("the response to an encrypted call is not encrypted")
                body = decrypt_reply(body, key)
            reply = wire.decode_reply(correlation_id, body)
        except wire.NotJson:
            self._keys.pop(correlation_id, None)
            self._told.on_unreadable(correlation_id)
        except (wire.InvalidMessage, UndecryptableMessage) as error:
            self.statistics.dropped_replies += 1
            logger.warning("mesh: a message on the reply queue was dropped: %s", error)
        else:
            self._keys.pop(correlation_id, None)
            self._told.on_reply(reply)

    def _on_event(self, deliver: commands.Basic.Deliver, header: ContentHeader, body: bytes) -> None:
        try:
            if wire.message_type(header.properties.headers) != "event":
                raise wire.InvalidMessage("not an event")
            event = wire.decode_event(body)
        except wire.InvalidMessage as error:
            self.statistics.dropped_events += 1
            logger.warning("mesh: a message on the event queue was dropped: %s", error)
            return
        correlation_id = header.properties.correlation_id
        if isinstance(correlation_id, str) and correlation_id:
            if deliver.redelivered and correlation_id in self._recent_events:
                self.statistics.repeated_events += 1
                return
            self._recent_events[correlation_id] = None
            if len(self._recent_events) > REPLY_PREFETCH:
                del self._recent_events[next(iter(self._recent_events))]
        self._told.on_event(event)

    # --- subscriptions ----------------------------------------------------------------------------------------

    async def _keep_bound(self, queue: aio_pika.abc.AbstractQueue) -> None:
        """Bind the event queue to what is wanted and to nothing else, until cancelled."""
        self._bound.clear()
        while True:
            self._topics_changed.clear()
            for topic in [topic for topic in self._topics if topic not in self._bound]:
                async with asyncio.timeout(CONNECT_TIMEOUT):
                    await queue.bind(wire.EVENTS_EXCHANGE, routing_key=topic)
                self._bound.add(topic)
                self._call_waiting(topic)
            for topic in [topic for topic in self._bound if topic not in self._topics]:
                async with asyncio.timeout(CONNECT_TIMEOUT):
                    await queue.unbind(wire.EVENTS_EXCHANGE, routing_key=topic)
                self._bound.discard(topic)
            if self._bound == self._topics.keys():
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

    # --- the gateway as a service -----------------------------------------------------------------------------

    async def _serve(
        self, connection: aio_pika.abc.AbstractConnection, raw: AbstractConnection, tasks: TaskGroup
    ) -> AbstractChannel:
        """Let other services call the controller."""
        channel = await _open_channel(connection, publisher_confirms=False)

        def on_message(deliver: commands.Basic.Deliver, header: ContentHeader, body: bytes) -> None:
            tasks.start_soon(self._handle, channel, deliver, header, body, name="mesh call")

        _Tap(channel, on_message=on_message)
        await channel.basic_qos(prefetch_count=SERVICE_PREFETCH)
        await channel.basic_consume(self.service_queue, _callback(on_message), no_ack=False)
        return channel

    async def _handle(
        self, channel: AbstractChannel, deliver: commands.Basic.Deliver, header: ContentHeader, body: bytes
    ) -> None:
        tag = deliver.delivery_tag or 0
        properties = header.properties
        key: bytes | None = None
        try:
            kind = wire.message_type(properties.headers)
            if _is_encrypted(properties.headers):
                private_key = getattr(self._controller, "_private_key", None)
                if private_key is None:
                    raise UndecryptableMessage("encrypted, and the controller has no key")
                key, body = decrypt_call(body, private_key)
            if kind == "event":
                event = wire.decode_event(body)
                await self._handle_event(event.topic, event.event, event.target, event.context)
                await channel.basic_ack(tag, wait=False)
                return
            if kind == "response":
                raise wire.InvalidMessage("a response")
            call = wire.decode_service_call(body)
        except (wire.InvalidMessage, UndecryptableMessage, msgspec.MsgspecError) as error:
            logger.warning("mesh: a message to the gateway was refused: %s", error)
            await channel.basic_reject(tag, requeue=False, wait=False)
            return
        outcome = await self._run(call, encrypted=key is not None, redelivered=bool(deliver.redelivered))
        if outcome.action == "requeue":
            await channel.basic_nack(tag, requeue=True, wait=False)
            return
        if kind == "request" and properties.reply_to:
            self._reply(call, outcome, str(properties.correlation_id), properties.reply_to, key)
        for topic, payload, target in outcome.events:
            with contextlib.suppress(MeshUnavailable):
                data = msgspec.json.encode(payload)
                self.publish(topic, data, context=b"{}", trace_id=call.trace_id or uuid4().hex, target=target)
        if outcome.action == "ack":
            await channel.basic_ack(tag, wait=False)
        else:
            await channel.basic_reject(tag, requeue=False, wait=False)

    async def _handle_event(self, topic: str, event: Any, target: list[str] | None, context: Any) -> None:
        decoded = msgspec.json.decode(bytes(context))
        await deliver_event(
            self._controller,
            topic,
            msgspec.json.decode(bytes(event)),
            target,
            decoded if isinstance(decoded, dict) else {},
        )

    async def _run(self, call: wire.ServiceCall, *, encrypted: bool, redelivered: bool) -> Outcome:
        method = getattr(self._controller, call.method, None)
        if getattr(method, "__nuropb_requires_encryption__", False) and not encrypted:
            description = f"{call.method} has to be called encrypted"
            return Outcome("reject", error={"error": "NuropbAuthorizationError", "description": description})
        return await call_service(
            self._controller,
            service=self._service_name,
            method=call.method,
            params=call.params,
            context=call.context,
            redelivered=redelivered,
        )

    def _reply(
        self, call: wire.ServiceCall, outcome: Outcome, correlation_id: str, reply_to: str, key: bytes | None
    ) -> None:
        publisher = self._publisher
        call.correlation_id = correlation_id
        body = wire.encode_reply(call, result=outcome.result, error=outcome.error, reply_to=reply_to)
        if key is not None:
            private_key = self._controller._private_key  # type: ignore[attr-defined]  # noqa: SLF001
            _, body = encrypt(body, private_key.public_key(), key)
        try:
            if publisher is None:
                raise MeshUnavailable("not connected")
            frames = wire.encode_publish(
                channel=publisher.plain.number,
                exchange="",
                routing_key=reply_to,
                kind="response",
                correlation_id=correlation_id,
                trace_id=call.trace_id,
                body=body,
                frame_max=publisher.frame_max,
                encrypted=key is not None,
            )
            publisher.put(float("inf"), correlation_id, frames)
        except (MeshUnavailable, wire.InvalidMessage) as error:
            logger.warning("mesh: the reply to trace %s was lost: %s", call.trace_id, error)


class _Acknowledger:
    """Acknowledges the deliveries of one channel, once per turn of the event loop."""

    __slots__ = ("_channel", "_connection", "_scheduled", "_tag")

    def __init__(self, connection: AbstractConnection, channel: AbstractChannel) -> None:
        self._connection = connection
        self._channel = channel
        self._tag = 0
        self._scheduled = False

    def later(self, tag: int) -> None:
        """Acknowledge everything up to ``tag`` soon."""
        self._tag = tag
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._send)

    def _send(self) -> None:
        self._scheduled = False
        if self._channel.is_closed:
            return
        frame = pamqp.frame.marshal(commands.Basic.Ack(self._tag, multiple=True), self._channel.number)
        try:
            self._connection.write_queue.put_nowait(ChannelFrame(frame, should_close=False))
        except asyncio.QueueFull:
            self._scheduled = True
            asyncio.get_running_loop().call_later(0.01, self._send)


# --- small things that know aio-pika ----------------------------------------------------------------------------


async def _open_channel(connection: aio_pika.abc.AbstractConnection, *, publisher_confirms: bool) -> AbstractChannel:
    channel = await connection.channel(publisher_confirms=publisher_confirms)
    return await channel.get_underlay_channel()


def _callback(
    on_message: Callable[[commands.Basic.Deliver, ContentHeader, bytes], None],
) -> Callable[[DeliveredMessage], Coroutine[Any, Any, None]]:
    async def consumer(message: DeliveredMessage) -> None:
        if isinstance(message.delivery, commands.Basic.Deliver):
            on_message(message.delivery, message.header, message.body)

    return consumer


async def _declare_exchanges(connection: aio_pika.abc.AbstractConnection) -> None:
    """Declare NuroPb's exchanges, or find them there where this user may not declare any.

    A failed declaration closes its channel, so each has one of its own.
    """
    for name, kind in (
        (wire.RPC_EXCHANGE, "direct"),
        (wire.EVENTS_EXCHANGE, "topic"),
        (wire.DEAD_LETTER_EXCHANGE, "fanout"),
    ):
        try:
            async with connection.channel() as channel:
                await channel.declare_exchange(name, kind, durable=True)
        except ChannelAccessRefused:
            try:
                async with connection.channel() as channel:
                    await channel.declare_exchange(name, kind, passive=True)
            except ChannelNotFoundEntity as error:
                raise ConnectionError(f"exchange {name} is missing, and this user may not declare it") from error
        except ChannelPreconditionFailed as error:
            raise ConnectionError(f"exchange {name} exists, but is not a durable {kind} exchange") from error


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


def _is_encrypted(headers: Any) -> bool:
    return bool(headers) and headers.get("encrypted") == "yes"


def _with_heartbeat(url: str) -> str:
    parts = urlsplit(url)
    if "heartbeat=" in parts.query:
        return url
    query = f"{parts.query}&heartbeat={HEARTBEAT}" if parts.query else f"heartbeat={HEARTBEAT}"
    return urlunsplit(parts._replace(query=query))


def _explain(error: BaseException) -> str:
    """What went wrong, for an operator; these libraries put addresses into their messages, but no passwords."""
    if isinstance(error, BaseExceptionGroup):
        return _explain(error.exceptions[0])
    if isinstance(error, AuthenticationError | ProbableAuthenticationError):
        return f"the broker refuses the credentials or the vhost ({error})"
    if isinstance(error, TimeoutError):
        return "no answer from the broker in time"
    if isinstance(error, asyncio.CancelledError):
        return "the connection was lost"
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
