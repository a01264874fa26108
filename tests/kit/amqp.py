"""Both ends of the wire of a mesh on RabbitMQ: a mesh with its receiver, and a peer that speaks AMQP by hand."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Final, Literal
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import aiormq
import anyio
import pamqp.frame
from aiormq.abc import AbstractChannel, AbstractConnection, ChannelFrame, DeliveredMessage
from pamqp import commands
from pamqp.body import ContentBody
from pamqp.header import ContentHeader

from nuropb_gateway_asgi.mesh.rabbitmq import RabbitMQMesh
from nuropb_gateway_asgi.wire.interface import CallMessage, EventMessage, Reply
from tests.kit.gateways import DEADLINE, eventually

__all__ = [
    "DEAD_LETTERS",
    "EVENTS",
    "RPC",
    "Gateway",
    "Peer",
    "Properties",
    "Receiver",
    "changed_url",
    "encode",
    "nuropb_properties",
    "peer_at",
    "present",
    "queues_of",
    "reconnected",
    "reply_properties",
    "response",
    "running",
    "sent_by",
]

RPC: Final = "nuropb-rpc-exchange"
EVENTS: Final = "nuropb-events-exchange"
DEAD_LETTERS: Final = "nuropb-dl-exchange"

Properties = commands.Basic.Properties


@dataclass
class Receiver:
    """A receiver that keeps everything, and expects the replies in ``expected``, each once."""

    told: list[tuple[str, Any]] = field(default_factory=list)
    expected: set[str] = field(default_factory=set)
    #: Replies that were not expected.
    unexpected: list[str] = field(default_factory=list)
    replies: dict[str, Reply] = field(default_factory=dict)
    events: list[tuple[str, Any]] = field(default_factory=list)
    connections: list[bool] = field(default_factory=list)
    gaps: list[str] = field(default_factory=list)
    siblings: list[bytes] = field(default_factory=list)
    records: list[bytes] = field(default_factory=list)
    #: Calls of on_records_read.
    records_read: int = 0
    dead_letters: list[str] = field(default_factory=list)
    #: Topics that the broker refused after they had been subscribed to.
    refused: list[str] = field(default_factory=list)

    def expects(self, correlation_id: str) -> bool:
        if correlation_id in self.expected:
            return True
        self.unexpected.append(correlation_id)
        return False

    def on_reply(self, reply: Reply) -> None:
        self.replies[reply.correlation_id] = reply
        self._tell("reply", reply.correlation_id)

    def on_unreadable(self, correlation_id: str) -> None:
        self._tell("unreadable", correlation_id)

    def on_returned(self, correlation_id: str) -> None:
        self._tell("returned", correlation_id)

    def on_confirmed(self, correlation_id: str) -> None:
        self._tell("taken", correlation_id)

    def on_rejected(self, correlation_id: str) -> None:
        self._tell("failed", correlation_id)

    def on_too_large(self, correlation_id: str, description: str) -> None:
        self._tell("too large", correlation_id)

    def on_unconfirmed(self, correlation_id: str) -> None:
        self._tell("lost", correlation_id)

    def on_dead_lettered(self, correlation_id: str) -> None:
        self.dead_letters.append(correlation_id)

    def on_replies_lost(self) -> None:
        self.told.append(("replies lost", None))

    def on_event(self, event: EventMessage) -> None:
        self.events.append((event.topic, json.loads(bytes(event.event))))

    def on_gap(self, reason: str) -> None:
        self.gaps.append(reason)

    def on_topic_refused(self, topic: str) -> None:
        self.refused.append(topic)

    def on_peer_message(self, message: bytes) -> None:
        self.siblings.append(message)

    def on_record(self, record: bytes) -> None:
        self.records.append(record)

    def on_records_read(self) -> None:
        self.records_read += 1

    def on_connection_change(self, *, connected: bool) -> None:
        self.connections.append(connected)

    def _tell(self, what: str, correlation_id: str) -> None:
        self.expected.discard(correlation_id)
        self.told.append((what, correlation_id))

    def result(self, message: CallMessage) -> Any:
        return json.loads(bytes(self.replies[message.correlation_id].result))


class Gateway:
    """A mesh and its receiver."""

    def __init__(self, mesh: RabbitMQMesh, service_name: str) -> None:
        self.mesh = mesh
        self.service_name = service_name
        self.receiver = Receiver()
        mesh.bind(self.receiver, None)

    def send(
        self,
        service: str,
        *,
        kind: Literal["request", "command"] = "request",
        method: str = "method",
        params: bytes = b"{}",
        trace_id: str = "t",
        seconds: float = 60.0,
        public_key: str | None = None,
    ) -> CallMessage:
        """Send a call; a request's reply is expected from then on."""
        deadline = time.monotonic() + seconds
        message = CallMessage(
            kind, uuid4().hex, trace_id, service, method, params, b'{"user_id":"u"}', deadline, seconds, public_key
        )
        if kind == "request":
            self.receiver.expected.add(message.correlation_id)
        self.mesh.send(message)
        return message

    async def connected(self) -> None:
        await eventually(lambda: self.mesh.connected)

    async def told(self, what: str, message: CallMessage) -> None:
        """Wait until the receiver was told exactly this about ``message``."""
        await eventually(lambda: [each for each in self.receiver.told if each[1] == message.correlation_id])
        assert [each for each in self.receiver.told if each[1] == message.correlation_id] == [
            (what, message.correlation_id)
        ]

    async def says(self, problem: str) -> None:
        """Wait until the mesh's problem contains this text."""
        await eventually(lambda: problem in (self.mesh.problem or ""))

    async def subscribe(self, topic: str) -> None:
        done = asyncio.Event()
        self.mesh.subscribe(topic, lambda bound: done.set())
        with anyio.fail_after(DEADLINE):
            await done.wait()


@contextlib.asynccontextmanager
async def running(
    url: str, service_name: str | None = None, *, wait: bool = True, **more: Any
) -> AsyncIterator[Gateway]:
    """Run a mesh, connected if ``wait``, by default under a new name."""
    name = service_name or f"gateway-{secrets.token_hex(4)}"
    gateway = Gateway(RabbitMQMesh(url, service_name=name, **more), name)
    async with gateway.mesh:
        if wait:
            await gateway.connected()
        yield gateway


class Peer:
    """Another program on the mesh, which speaks AMQP by hand."""

    def __init__(self, connection: AbstractConnection, channel: AbstractChannel) -> None:
        self.connection = connection
        self.channel = channel

    async def queue(self, exchange: str | None = None, key: str = "") -> str:
        """Declare a queue; :meth:`take` takes its messages."""
        declared = await self.channel.queue_declare(exclusive=True)
        assert declared.queue is not None
        if exchange is not None:
            await self.channel.queue_bind(declared.queue, exchange, key)
        return declared.queue

    async def service(self) -> str:
        """Declare the queue of a service; both have the returned name."""
        name = f"service-{secrets.token_hex(4)}"
        await self.channel.queue_declare(name, exclusive=True)
        await self.channel.queue_bind(name, RPC, name)
        return name

    async def take(self, queue: str) -> DeliveredMessage:
        """Wait for the next message of ``queue``."""
        with anyio.fail_after(DEADLINE):
            while True:
                message = await self.channel.basic_get(queue, no_ack=True)
                if not isinstance(message.delivery, commands.Basic.GetEmpty):
                    return message
                await asyncio.sleep(0.005)

    async def publish(self, exchange: str, key: str, body: bytes, properties: Properties) -> None:
        """Publish, and wait for the broker's confirm."""
        await self.channel.basic_publish(body, exchange=exchange, routing_key=key, properties=properties)

    async def publish_raw(self, exchange: str, key: str, body: bytes, properties: Properties, *change: bytes) -> None:
        """Publish frames that no library would: in them, the first of ``change`` is replaced by the second."""
        channel = await self.connection.channel(publisher_confirms=False)
        frames = (
            commands.Basic.Publish(exchange=exchange, routing_key=key),
            ContentHeader(body_size=len(body), properties=properties),
            ContentBody(body),
        )
        data = b"".join(pamqp.frame.marshal(frame, channel.number) for frame in frames)
        old, new = change
        assert old in data
        assert len(old) == len(new)
        written = asyncio.get_running_loop().create_future()
        frame = ChannelFrame(data.replace(old, new), should_close=False, drain_future=written)
        await self.connection.write_queue.put(frame)
        await written
        await channel.close()  # the broker has read all earlier frames

    async def event(self, topic: str, event: Any = None, *, correlation_id: str | None = None) -> None:
        """Publish an event as a NuroPb service does."""
        id_ = correlation_id or uuid4().hex
        body = {"tag": "event", "topic": topic, "event": event, "context": {}, "trace_id": None, "target": None}
        await self.publish(EVENTS, topic, encode({**body, "correlation_id": id_}), nuropb_properties("event", id_))

    async def reply(self, request: DeliveredMessage, result: Any, **changes: Any) -> None:
        """Answer a request as a NuroPb service does."""
        properties = request.header.properties
        assert properties.reply_to is not None
        body = {**response(result), "correlation_id": properties.correlation_id, "reply_to": properties.reply_to}
        await self.publish(
            "", properties.reply_to, encode(body), reply_properties(properties.correlation_id, **changes)
        )

    async def waiting(self, queue: str) -> int | None:
        """Return the number of messages in a queue without a consumer."""
        return (await self.channel.queue_declare(queue, passive=True)).message_count


def encode(value: Any) -> bytes:
    return json.dumps(value).encode()


def response(result: Any = None, error: Any = None) -> dict[str, Any]:
    """Return the members of a response that do not depend on its request."""
    return {"tag": "response", "result": result, "error": error, "trace_id": "t", "context": {}, "warning": None}


def reply_properties(correlation_id: str | None, **headers: Any) -> Properties:
    return nuropb_properties("response", correlation_id, reply_to="", **headers)


def nuropb_properties(
    kind: str, correlation_id: str | None, *, reply_to: str = "", expiration: str | None = None, **headers: Any
) -> Properties:
    """Make the properties that nuropb 0.1.8 sets. ``headers`` replace its own; None leaves a header out."""
    table = {
        "nuropb_protocol": "0.1.1",
        "nuropb_version": "0.1.8",
        "nuropb_type": kind,
        "trace_id": "t",
        "encrypted": "",
        **headers,
    }
    return Properties(
        content_type="application/json",
        correlation_id=correlation_id,
        reply_to=reply_to,
        expiration=expiration,
        headers={name: value for name, value in table.items() if value is not None},
    )


def present(properties: Properties) -> dict[str, Any]:
    """Return the properties that are on the wire, including empty strings."""
    # pamqp always shows a cluster_id, which AMQP 0-9-1 no longer has.
    return {name: value for name, value in properties if value is not None and name != "cluster_id"}


def sent_by(gateway: Gateway, message: DeliveredMessage) -> dict[str, Any]:
    """Return the properties of a gateway's message, without the two differences that the plain lane makes."""
    properties = present(message.header.properties)
    if gateway.mesh.lane == "plain":
        assert len(properties.pop("message_id")) == 32  # aiormq gives every message one
        properties.setdefault("reply_to", "")  # pamqp leaves an empty text out
    return properties


@contextlib.asynccontextmanager
async def peer_at(url: str) -> AsyncIterator[Peer]:
    connection = await aiormq.connect(url)
    try:
        yield Peer(connection, await connection.channel())
    finally:
        await connection.close()


def queues_of(gateway: Gateway) -> list[str]:
    mesh = gateway.mesh
    return [mesh.reply_queue, mesh.event_queue, mesh.service_queue]


async def reconnected(gateway: Gateway, times: int = 1) -> None:
    await eventually(lambda: gateway.mesh.statistics.reconnects >= times and gateway.mesh.connected)


def changed_url(url: str, **changes: Any) -> str:
    """Return ``url`` with another user, password, host, port, path or query."""
    parts = urlsplit(url)
    values = {
        "username": parts.username,
        "password": parts.password,
        "host": parts.hostname,
        "port": parts.port,
        "path": parts.path,
        "query": parts.query,
        **changes,
    }
    netloc = "{username}:{password}@{host}:{port}".format(**values)
    return urlunsplit(parts._replace(netloc=netloc, path=values["path"], query=values["query"]))
