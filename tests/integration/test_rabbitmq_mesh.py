"""What is particular to RabbitMQ: topology, messages as they are on the wire, poison, cuts, TLS, permissions.

The mesh is used directly here, with a receiver that writes down what it is told. The other end of the wire is played
by hand, so that it can misbehave.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import gc
import json
import logging
import re
import secrets
import ssl
import struct
import time
from base64 import b64decode, b64encode
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, Self
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import aiormq
import anyio
import pamqp.frame
import pytest
from aiormq.abc import AbstractChannel, AbstractConnection, ChannelFrame, DeliveredMessage
from cryptography import x509
from cryptography.fernet import Fernet
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.x509.oid import NameOID
from pamqp import commands
from pamqp.body import ContentBody
from pamqp.header import ContentHeader

from nuropb_gateway_asgi import HandlerManager, ServiceMeshManager, Settings
from nuropb_gateway_asgi.authorization import ExposePolicy
from nuropb_gateway_asgi.exceptions import MeshUnavailable
from nuropb_gateway_asgi.mesh.rabbitmq import RabbitMQMesh, _lane, _mesh, _self_check, _sockets
from nuropb_gateway_asgi.wire.interface import CallMessage, EventMessage, Reply
from tests.integration.conftest import Broker
from tests.kit.gateways import DEADLINE, eventually
from tests.servers.processes import call_with_nuropb
from tests.servers.rabbitmq import RabbitMQNode
from tests.unit.fakes import FakeAuthenticator, FakeHandler

RPC: Final = "nuropb-rpc-exchange"
EVENTS: Final = "nuropb-events-exchange"
DEAD_LETTERS: Final = "nuropb-dl-exchange"

Properties = commands.Basic.Properties


# --- both ends of the wire --------------------------------------------------------------------------------------


@dataclass
class Receiver:
    """Who the mesh tells. It waits for the replies in ``expected``, each once."""

    told: list[tuple[str, Any]] = field(default_factory=list)
    expected: set[str] = field(default_factory=set)
    #: Replies that nobody waits for.
    unexpected: list[str] = field(default_factory=list)
    replies: dict[str, Reply] = field(default_factory=dict)
    events: list[tuple[str, Any]] = field(default_factory=list)
    connections: list[bool] = field(default_factory=list)
    gaps: list[str] = field(default_factory=list)
    siblings: list[bytes] = field(default_factory=list)
    records: list[bytes] = field(default_factory=list)

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

    def on_unconfirmed(self, correlation_id: str) -> None:
        self._tell("lost", correlation_id)

    def on_event(self, event: EventMessage) -> None:
        self.events.append((event.topic, json.loads(bytes(event.event))))

    def on_gap(self, reason: str) -> None:
        self.gaps.append(reason)

    def on_peer_message(self, message: bytes) -> None:
        self.siblings.append(message)

    def on_record(self, record: bytes) -> None:
        self.records.append(record)

    def on_connection_change(self, *, connected: bool) -> None:
        self.connections.append(connected)

    def _tell(self, what: str, correlation_id: str) -> None:
        self.expected.discard(correlation_id)
        self.told.append((what, correlation_id))

    def result(self, message: CallMessage) -> Any:
        return json.loads(bytes(self.replies[message.correlation_id].result))


class Gateway:
    """A mesh, its receiver, and what is sent by it."""

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
        """Send a call, and wait for its reply if it is a request."""
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
        """Wait until the receiver was told this and nothing else about ``message``."""
        await eventually(lambda: [each for each in self.receiver.told if each[1] == message.correlation_id])
        assert [each for each in self.receiver.told if each[1] == message.correlation_id] == [
            (what, message.correlation_id)
        ]

    async def says(self, problem: str) -> None:
        """Wait until this is a part of the problem."""
        await eventually(lambda: problem in (self.mesh.problem or ""))

    async def subscribe(self, topic: str) -> None:
        done = asyncio.Event()
        self.mesh.subscribe(topic, done.set)
        with anyio.fail_after(DEADLINE):
            await done.wait()


@contextlib.asynccontextmanager
async def running(
    url: str, service_name: str | None = None, *, wait: bool = True, **more: Any
) -> AsyncIterator[Gateway]:
    """A mesh, connected if ``wait``, under a name of its own unless one is given."""
    name = service_name or f"gateway-{secrets.token_hex(4)}"
    gateway = Gateway(RabbitMQMesh(url, service_name=name, **more), name)
    async with gateway.mesh:
        if wait:
            await gateway.connected()
        yield gateway


class Peer:
    """Somebody else on the mesh, who does everything by hand."""

    def __init__(self, connection: AbstractConnection, channel: AbstractChannel) -> None:
        self.connection = connection
        self.channel = channel

    async def queue(self, exchange: str | None = None, key: str = "") -> str:
        """A queue of this connection; its messages are taken by :meth:`take`."""
        declared = await self.channel.queue_declare(exclusive=True)
        assert declared.queue is not None
        if exchange is not None:
            await self.channel.queue_bind(declared.queue, exchange, key)
        return declared.queue

    async def service(self) -> str:
        """A service: a queue for the requests to it, of the same name."""
        name = f"service-{secrets.token_hex(4)}"
        await self.channel.queue_declare(name, exclusive=True)
        await self.channel.queue_bind(name, RPC, name)
        return name

    async def take(self, queue: str) -> DeliveredMessage:
        """The next message of ``queue``."""
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
        """Publish what no library would: in the frames, the first of ``change`` is replaced by the second."""
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
        await channel.close()  # the broker has taken everything before it

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
        """How many messages are in a queue that nobody consumes."""
        return (await self.channel.queue_declare(queue, passive=True)).message_count


def encode(value: Any) -> bytes:
    return json.dumps(value).encode()


def response(result: Any = None, error: Any = None) -> dict[str, Any]:
    """The members of a response that do not depend on the request."""
    return {"tag": "response", "result": result, "error": error, "trace_id": "t", "context": {}, "warning": None}


def reply_properties(correlation_id: str | None, **headers: Any) -> Properties:
    return nuropb_properties("response", correlation_id, reply_to="", **headers)


def nuropb_properties(
    kind: str, correlation_id: str | None, *, reply_to: str = "", expiration: str | None = None, **headers: Any
) -> Properties:
    """The properties that nuropb 0.1.8 sets; ``headers`` are changed, or left out where they are None."""
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
    """The properties that are on the wire, an empty string being one."""
    # pamqp shows a cluster_id where there is none: AMQP 0-9-1 has it no more.
    return {name: value for name, value in properties if value is not None and name != "cluster_id"}


def sent_by(gateway: Gateway, message: DeliveredMessage) -> dict[str, Any]:
    """The properties of a message from the gateway, without the two differences that the plain lane makes."""
    properties = present(message.header.properties)
    if gateway.mesh.lane == "plain":
        assert len(properties.pop("message_id")) == 32  # aiormq gives every message one
        properties.setdefault("reply_to", "")  # pamqp leaves an empty text out
    return properties


class Link:
    """One connection through a proxy."""

    def __init__(self) -> None:
        #: What the client has sent so far.
        self.sent = bytearray()
        #: Set while bytes may pass, to the broker and to the client.
        self.to_broker, self.to_client = asyncio.Event(), asyncio.Event()
        self.to_broker.set()
        self.to_client.set()
        self.writers: list[asyncio.StreamWriter] = []

    @property
    def purpose(self) -> str:
        """What the connection is for, as it told the broker."""
        start = bytes(self.sent[:4096])
        return next((name for name in ("publish", "consume") if f" {name}".encode() in start), "")

    def cut(self) -> None:
        for writer in self.writers:
            writer.transport.abort()


class Proxy:
    """Stands between a mesh and the broker, and holds bytes back or cuts connections when it is told to."""

    def __init__(self, url: str, *, tls: ssl.SSLContext | None = None) -> None:
        self._url = urlsplit(url)
        self._tls = tls
        self._links: list[Link] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.refuses = False

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    @property
    def port(self) -> int:
        assert self._server is not None
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    def url(self, **query: str) -> str:
        netloc = f"{self._url.username}:{self._url.password}@localhost:{self.port}"
        text = "&".join(f"{name}={value}" for name, value in query.items())
        return urlunsplit(
            self._url._replace(scheme="amqp" if self._tls is None else "amqps", netloc=netloc, query=text)
        )

    def links(self, purpose: str = "") -> list[Link]:
        return [link for link in self._links if link.purpose.startswith(purpose)]

    def link(self, purpose: str) -> Link:
        """The only connection of this purpose that is open."""
        (link,) = self.links(purpose)
        return link

    def cut(self, purpose: str = "") -> None:
        for link in self.links(purpose):
            link.cut()

    def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._connect(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.refuses:
            writer.transport.abort()
            return
        broker_reader, broker_writer = await asyncio.open_connection(self._url.hostname, self._url.port or 5672)
        link = Link()
        link.writers = [writer, broker_writer]
        self._links.append(link)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._pump(reader, broker_writer, link.to_broker, link.sent))
                tasks.create_task(self._pump(broker_reader, writer, link.to_client, bytearray()))
        finally:
            link.cut()
            self._links.remove(link)

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, gate: asyncio.Event, seen: bytearray
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                await gate.wait()
                seen += data
                writer.write(data)
                await writer.drain()
        writer.transport.abort()


@pytest.fixture
async def peer(amqp_url: str) -> AsyncIterator[Peer]:
    async with peer_at(amqp_url) as peer:
        yield peer


@contextlib.asynccontextmanager
async def peer_at(url: str) -> AsyncIterator[Peer]:
    connection = await aiormq.connect(url)
    try:
        yield Peer(connection, await connection.channel())
    finally:
        await connection.close()


@pytest.fixture
async def remover(amqp_url: str) -> AsyncIterator[list[str]]:
    """The names in it are removed from the broker in the end."""
    queues: list[str] = []
    yield queues
    async with peer_at(amqp_url) as peer:
        for queue in queues:
            await peer.channel.queue_delete(queue)


@pytest.fixture
def lane() -> str | None:
    """The lane of the mesh, for the tests that say which."""
    return None


@pytest.fixture
async def gateway(amqp_url: str, remover: list[str], lane: str | None) -> AsyncIterator[Gateway]:
    more: dict[str, Any] = {} if lane is None else {"lane": lane}
    async with running(amqp_url, **more) as gateway:
        remover += queues_of(gateway)
        yield gateway


def queues_of(gateway: Gateway) -> list[str]:
    mesh = gateway.mesh
    return [mesh.reply_queue, mesh.event_queue, mesh.service_queue]


@pytest.fixture
async def proxy(amqp_url: str) -> AsyncIterator[Proxy]:
    async with Proxy(amqp_url) as proxy:
        yield proxy


@pytest.fixture
async def proxied(proxy: Proxy, remover: list[str]) -> AsyncIterator[Gateway]:
    """A mesh that is connected through ``proxy``."""
    async with running(proxy.url()) as gateway:
        remover += queues_of(gateway)
        yield gateway


@pytest.fixture
def node(rabbitmq: Broker) -> RabbitMQNode:
    if rabbitmq.node is None:
        pytest.skip("the broker is not ours: rabbitmqctl cannot be used")
    return rabbitmq.node


# --- topology ---------------------------------------------------------------------------------------------------

REPLY_ARGUMENTS: Final[dict[str, Any]] = {"x-expires": 60_000}
EVENT_ARGUMENTS: Final[dict[str, Any]] = {"x-expires": 60_000, "x-max-length": 10_000, "x-overflow": "drop-head"}
SERVICE_ARGUMENTS: Final[dict[str, Any]] = {"x-dead-letter-exchange": DEAD_LETTERS}


async def test_the_queues_are_durable_and_not_exclusive_and_have_these_arguments(gateway: Gateway, peer: Peer) -> None:
    # A declaration succeeds only where everything is the same, and an exclusive queue cannot be declared at all.
    mesh, name = gateway.mesh, gateway.service_name
    for queue, arguments in zip(queues_of(gateway), (REPLY_ARGUMENTS, EVENT_ARGUMENTS, SERVICE_ARGUMENTS), strict=True):
        same: dict[str, Any] = {"durable": True, "arguments": arguments}
        await peer.channel.queue_declare(queue, **same)
        differences: list[dict[str, Any]] = [{"durable": False}, {"auto_delete": True}, {"arguments": {}}]
        for different in differences:
            channel = await peer.connection.channel()
            with pytest.raises(aiormq.exceptions.ChannelPreconditionFailed):
                await channel.queue_declare(queue, **{**same, **different})
    assert mesh.service_queue == f"nuropb-{name}-sq"
    for queue, end in ((mesh.reply_queue, "-rq"), (mesh.event_queue, "-eq")):
        assert queue.startswith(f"nuropb-{name}-")
        unique = queue.removeprefix(f"nuropb-{name}-").removesuffix(end)
        assert len(unique) == 32
        int(unique, 16)


@pytest.mark.parametrize(("exchange", "kind"), [(RPC, "direct"), (EVENTS, "topic"), (DEAD_LETTERS, "fanout")])
async def test_the_exchanges_are_nuropbs(gateway: Gateway, peer: Peer, exchange: str, kind: str) -> None:
    same: dict[str, Any] = {"exchange_type": kind, "durable": True}
    await peer.channel.exchange_declare(exchange, **same)
    differences: list[dict[str, Any]] = [{"durable": False}, {"auto_delete": True}, {"exchange_type": "headers"}]
    for different in differences:
        channel = await peer.connection.channel()
        with pytest.raises(aiormq.exceptions.ChannelPreconditionFailed):
            await channel.exchange_declare(exchange, **{**same, **different})


async def test_processes_of_one_gateway_share_the_service_queue_and_no_other(
    amqp_url: str, gateway: Gateway, remover: list[str]
) -> None:
    async with running(amqp_url, gateway.service_name) as other:
        remover += queues_of(other)
        assert len({*queues_of(gateway), *queues_of(other)}) == 5


async def test_rabbitmq_itself_says_the_same(gateway: Gateway, peer: Peer, node: RabbitMQNode) -> None:
    await gateway.subscribe("orders.#")
    vhost = "nuropb"

    def listed(*arguments: str) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = json.loads(node.ctl(*arguments, "--vhost", vhost, "--formatter", "json"))
        return rows

    def look() -> tuple[Any, ...]:
        names = queues_of(gateway)
        queues = {row["name"]: row for row in node.list_queues(vhost) if row["name"] in names}
        bindings = listed("list_bindings", "source_name", "destination_name", "routing_key")
        consumers = listed("list_consumers", "queue_name", "ack_required", "prefetch_count")
        return queues, bindings, consumers

    queues, bindings, consumers = await anyio.to_thread.run_sync(look)
    mesh = gateway.mesh
    for queue, arguments in zip(queues_of(gateway), (REPLY_ARGUMENTS, EVENT_ARGUMENTS, SERVICE_ARGUMENTS), strict=True):
        row = queues[queue]
        assert (row["durable"], row["auto_delete"], row["exclusive"]) == (True, False, False)
        assert (row["arguments"], row["consumers"]) == (arguments, 1)
        (consumer,) = (each for each in consumers if each["queue_name"] == queue)
        assert consumer["ack_required"] is True
        assert consumer["prefetch_count"] > 1
    bound = {
        (row["source_name"], row["destination_name"], row["routing_key"])
        for row in bindings
        if row["destination_name"] in queues and row["source_name"]
    }
    assert bound == {
        (RPC, mesh.service_queue, gateway.service_name),
        (EVENTS, mesh.event_queue, "orders.#"),
    }


async def test_an_event_queue_is_bound_to_what_is_wanted_and_to_nothing_else(gateway: Gateway, peer: Peer) -> None:
    for topic in ("a.*", "b", "last"):
        await gateway.subscribe(topic)
    gateway.mesh.unsubscribe("b")
    await gateway.subscribe("c.#")  # bindings are made and removed in turn
    gateway.mesh.unsubscribe("c.#")
    await gateway.subscribe("d")
    for topic in ("a.x", "a.x.y", "b", "c", "c.x", "d", "last"):
        await peer.event(topic)
    await eventually(lambda: ("last", None) in gateway.receiver.events)
    assert [topic for topic, _ in gateway.receiver.events] == ["a.x", "d", "last"]


# --- messages on the wire ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["request", "command"])
async def test_a_call_on_the_wire_is_nuropbs(gateway: Gateway, peer: Peer, kind: Literal["request", "command"]) -> None:
    service = await peer.service()
    before = time.monotonic()
    message = gateway.send(service, kind=kind, params=b'{"a":"\xc3\xbc"}', trace_id="trace \u00fc", seconds=12.3)
    after = time.monotonic()

    arrived = await peer.take(service)
    assert isinstance(arrived.delivery, commands.Basic.GetOk)
    assert (arrived.delivery.exchange, arrived.delivery.routing_key) == (RPC, service)
    properties = sent_by(gateway, arrived)
    expiration = properties.pop("expiration")
    assert properties == {
        "content_type": "application/json",
        "correlation_id": message.correlation_id,
        "reply_to": gateway.mesh.reply_queue,
        "headers": {
            "nuropb_protocol": "0.1.1",
            "nuropb_version": "0.1.8",
            "nuropb_type": kind,
            "trace_id": "trace \u00fc",
            "encrypted": "",
        },
    }
    # What is left of the time, in whole milliseconds.
    assert int((message.deadline - after) * 1000) <= int(expiration) <= (message.deadline - before) * 1000
    assert json.loads(arrived.body) == {
        "tag": kind,
        "service": service,
        "method": "method",
        "params": {"a": "\u00fc"},
        "correlation_id": message.correlation_id,
        "context": {"user_id": "u"},
        "trace_id": "trace \u00fc",
    }


async def test_an_event_on_the_wire_is_nuropbs(gateway: Gateway, peer: Peer) -> None:
    topic = f"topic.{secrets.token_hex(4)}"
    queue = await peer.queue(EVENTS, topic)
    gateway.mesh.publish(topic, b'{"n":1}', context=b'{"user_id":"u"}', trace_id="t", target=["u"])
    arrived = await peer.take(queue)
    properties = sent_by(gateway, arrived)
    correlation_id = properties.pop("correlation_id")
    assert len(correlation_id) == 32
    assert properties == {
        "content_type": "application/json",
        "reply_to": "",
        "headers": {
            "nuropb_protocol": "0.1.1",
            "nuropb_version": "0.1.8",
            "nuropb_type": "event",
            "trace_id": "t",
            "encrypted": "",
        },
    }
    assert json.loads(arrived.body) == {
        "tag": "event",
        "topic": topic,
        "event": {"n": 1},
        "context": {"user_id": "u"},
        "trace_id": "t",
        "correlation_id": correlation_id,
        "target": ["u"],
    }


@pytest.mark.parametrize("kind", ["request", "command", "event"])
async def test_nuropbs_own_client_sends_the_same(amqp_url: str, gateway: Gateway, peer: Peer, kind: str) -> None:
    name = await peer.service()
    await peer.channel.queue_bind(name, EVENTS, name)

    def call() -> None:
        if kind == "event":
            call_with_nuropb(amqp_url, event=name, params={"a": 1})
        else:
            call_with_nuropb(amqp_url, name, "method", {"a": 1}, context={"user_id": "u"}, command=kind == "command")

    if kind == "event":
        gateway.mesh.publish(name, b'{"a":1}', context=b"{}", trace_id="t", target=None)
    else:
        gateway.send(name, kind="command" if kind == "command" else "request", params=b'{"a":1}')
    ours = await peer.take(name)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(anyio.to_thread.run_sync, call)
        theirs = await peer.take(name)
        if kind == "request":
            await peer.reply(theirs, 1)

    properties = [sent_by(gateway, ours), present(theirs.header.properties)]
    bodies = [json.loads(message.body) for message in (ours, theirs)]
    for each in properties:
        # These differ from call to call.
        each["correlation_id"] = len(each["correlation_id"])
        each["reply_to"] = bool(each["reply_to"])
        each["expiration"] = "expiration" in each
        each["headers"]["trace_id"] = type(each["headers"]["trace_id"])
    for each in bodies:
        each["correlation_id"] = len(each["correlation_id"])
        each["trace_id"] = type(each["trace_id"])
    assert properties[0] == properties[1]
    assert bodies[0] == bodies[1]


#: A body frame holds eight bytes less than the 131072 that RabbitMQ proposes for a frame.
FRAME_ROOM: Final = 131_064


@pytest.mark.parametrize("size", [FRAME_ROOM - 1, FRAME_ROOM, FRAME_ROOM + 1, 2 * FRAME_ROOM, 1_000_000])
async def test_bodies_of_every_size_arrive_whole_in_both_directions(gateway: Gateway, peer: Peer, size: int) -> None:
    service = await peer.service()
    gateway.send(service)
    empty = await peer.take(service)
    # The same call, but for what is missing to the size.
    text = b"x" * (size - len(empty.body) - len('"x":""'))
    message = gateway.send(service, params=b'{"x":"%b"}' % text)
    arrived = await peer.take(service)
    assert len(arrived.body) == size
    assert json.loads(arrived.body)["params"] == {"x": text.decode()}

    reply = encode({**response(), "correlation_id": message.correlation_id})
    result = "y" * (size - len(reply) + len("null") - len('""'))
    body = encode({**response(result), "correlation_id": message.correlation_id})
    assert len(body) == size
    await peer.publish("", gateway.mesh.reply_queue, body, reply_properties(message.correlation_id))
    await gateway.told("reply", message)
    assert gateway.receiver.result(message) == result


async def test_a_call_whose_time_is_up_is_not_sent(gateway: Gateway, peer: Peer) -> None:
    service = await peer.service()
    gateway.send(service, seconds=-1)
    message = gateway.send(service)
    assert (await peer.take(service)).header.properties.correlation_id == message.correlation_id
    assert gateway.mesh.statistics.expired_unsent == 1


@pytest.mark.parametrize(
    ("service", "trace_id"),
    [("x" * 256, "t"), ("\u00fc" * 128, "t"), ("x", "t" * 140_000)],
    ids=["service", "bytes of the service", "trace id"],
)
async def test_what_does_not_fit_is_refused_and_harms_nobody(
    gateway: Gateway, peer: Peer, service: str, trace_id: str
) -> None:
    with pytest.raises(ValueError, match="more than"):
        gateway.send(service, trace_id=trace_id)
    message = gateway.send("x" * 255)
    await gateway.told("returned", message)
    assert gateway.receiver.connections == [True]


async def test_what_is_returned_may_be_big(gateway: Gateway) -> None:
    message = gateway.send("nobody-at-all", params=b'{"x":"%b"}' % (b"x" * 300_000))
    await gateway.told("returned", message)


# --- encryption on the wire -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def private_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@pytest.fixture(scope="module")
def public_key(private_key: rsa.RSAPrivateKey) -> str:
    encoding, format_ = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    return private_key.public_key().public_bytes(encoding, format_).decode()


OAEP: Final = padding.OAEP(mgf=padding.MGF1(algorithm=hashes.SHA256()), algorithm=hashes.SHA256(), label=None)


def decrypt(body: bytes, private_key: rsa.RSAPrivateKey) -> tuple[bytes, dict[str, Any]]:
    """The K of an encrypted call and what it says, as a service reads it."""
    encrypted_key, _, encrypted = body.partition(b".")
    key = private_key.decrypt(b64decode(encrypted_key, validate=True), OAEP)
    content: dict[str, Any] = json.loads(Fernet(key).decrypt(b64decode(encrypted, validate=True)))
    return key, content


def encrypt(content: Any, key: bytes, private_key: rsa.RSAPrivateKey) -> bytes:
    """A response to an encrypted call, as a service makes it."""
    head = private_key.public_key().encrypt(key, OAEP)
    return b64encode(head) + b"." + b64encode(Fernet(key).encrypt(encode(content)))


async def test_an_encrypted_call_says_nothing_in_clear(
    gateway: Gateway, peer: Peer, private_key: rsa.RSAPrivateKey, public_key: str
) -> None:
    service = await peer.service()
    message = gateway.send(service, params=b'{"secret":"hunter2"}', public_key=public_key)
    arrived = await peer.take(service)
    headers = arrived.header.properties.headers
    assert headers is not None
    assert headers["encrypted"] == "yes"
    assert b"hunter2" not in arrived.body
    key, content = decrypt(arrived.body, private_key)
    assert content["params"] == {"secret": "hunter2"}
    assert (content["tag"], content["correlation_id"]) == ("request", message.correlation_id)

    body = encrypt(response({"kept": True}), key, private_key)
    properties = reply_properties(message.correlation_id, encrypted="yes")
    await peer.publish("", gateway.mesh.reply_queue, body, properties)
    await gateway.told("reply", message)
    assert gateway.receiver.result(message) == {"kept": True}
    assert gateway.mesh.keys == set()


async def test_only_the_reply_under_the_key_of_the_call_answers_it(
    gateway: Gateway, peer: Peer, private_key: rsa.RSAPrivateKey, public_key: str
) -> None:
    service = await peer.service()
    message = gateway.send(service, public_key=public_key)
    key, _ = decrypt((await peer.take(service)).body, private_key)
    queue = gateway.mesh.reply_queue
    forged = {**response("forged"), "correlation_id": message.correlation_id}
    yes = reply_properties(message.correlation_id, encrypted="yes")
    right = encrypt(response("right"), key, private_key)
    poison = [
        (encode(forged), reply_properties(message.correlation_id)),
        (encode(forged), yes),
        (encrypt(forged, Fernet.generate_key(), private_key), yes),
        (right[:-10], yes),
        (right.partition(b".")[0], yes),
        (b"", yes),
        (b".", yes),
        (b"\xff\xfe.\xff", yes),
        (right, reply_properties(message.correlation_id)),
        (encrypt([1], key, private_key), yes),
    ]
    for body, properties in poison:
        await peer.publish("", queue, body, properties)
    await peer.publish("", queue, right, yes)
    await gateway.told("reply", message)
    assert gateway.receiver.result(message) == "right"
    assert gateway.mesh.statistics.dropped_replies == len(poison)
    assert gateway.mesh.keys == set()


async def test_no_key_outlives_its_call(
    gateway: Gateway, peer: Peer, public_key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = await peer.service()
    mesh = gateway.mesh

    returned = gateway.send("nobody-at-all", public_key=public_key)
    await gateway.told("returned", returned)
    assert mesh.keys == set()

    gateway.send(service, kind="command", public_key=public_key)
    assert mesh.keys == set()

    forgotten = gateway.send(service, public_key=public_key)
    assert mesh.keys == {forgotten.correlation_id}
    mesh.forget(forgotten.correlation_id)
    assert mesh.keys == set()

    for name in ("x" * 256, "x"):
        with pytest.raises(ValueError, match="more than"):
            gateway.send(name, trace_id="t" * 140_000, public_key=public_key)
    assert mesh.keys == set()

    with pytest.raises(ValueError, match="key"):
        gateway.send(service, public_key="no key")
    assert mesh.keys == set()

    monkeypatch.setattr(_lane, "MAX_BUFFERED", 1000)
    with pytest.raises(MeshUnavailable):
        gateway.send(service, params=b'{"x":"%b"}' % (b"x" * 1000), public_key=public_key)
    assert mesh.keys == set()


async def test_no_key_of_a_call_that_was_not_sent_outlives_the_connection(
    proxied: Gateway, proxy: Proxy, public_key: str
) -> None:
    proxy.link("publish").to_broker.clear()
    # More than all the buffers on the way hold, so that what comes next has to wait.
    proxied.send("anybody", params=b'{"x":"%b"}' % (b"x" * 16_000_000))
    await eventually(lambda: proxied.mesh.queued == 0)
    message = proxied.send("anybody", public_key=public_key)
    assert proxied.mesh.keys == {message.correlation_id}
    proxy.cut("publish")
    await proxied.told("failed", message)
    assert proxied.mesh.keys == set()


@pytest.mark.parametrize(
    ("end", "code"),
    [("reply", None), ("timeout", "timeout"), ("cancel", "cancelled"), ("disconnect", None), ("shutdown", None)],
)
async def test_no_key_of_a_client_outlives_its_call(
    amqp_url: str,
    remover: list[str],
    peer: Peer,
    private_key: rsa.RSAPrivateKey,
    public_key: str,
    end: str,
    code: str | None,
) -> None:
    name, service = f"gateway-{secrets.token_hex(4)}", await peer.service()
    settings, policy = Settings(service_name=name), ExposePolicy(["*.*"], ["#"])
    mesh = RabbitMQMesh(amqp_url, service_name=name)
    remover += [mesh.reply_queue, mesh.event_queue, mesh.service_queue]
    handlers = HandlerManager(settings, FakeAuthenticator(), policy)
    client = FakeHandler()
    calls: list[DeliveredMessage] = []
    description = {"methods": {"secret": {"requires_encryption": True}}, "public_key": public_key}

    async def serve() -> None:
        while True:
            request = await peer.take(service)
            if present(request.header.properties)["headers"]["encrypted"]:
                calls.append(request)
            else:
                await peer.reply(request, description)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(serve)
        async with ServiceMeshManager(settings, handlers, mesh, policy) as manager:
            await eventually(lambda: mesh.connected)
            await handlers.register(client, "alice")
            timeout = {"timeout": 1.0} if end == "timeout" else {}
            payload = {"id": "1", "service": service, "method": "secret", **timeout}
            handlers.on_handler_message(client, json.dumps({"type": "request", "payload": payload}))
            if end == "timeout":
                await eventually(lambda: client.frames)
            else:
                await eventually(lambda: calls)
                assert len(mesh.keys) == 1
            if end == "reply":
                request = calls[0].header.properties
                key, _ = decrypt(calls[0].body, private_key)
                yes = reply_properties(request.correlation_id, encrypted="yes")
                await peer.publish("", mesh.reply_queue, encrypt(response(1), key, private_key), yes)
                await eventually(lambda: client.frames)
            elif end == "cancel":
                handlers.on_handler_message(client, json.dumps({"type": "cancel", "payload": {"id": "1"}}))
            elif end == "disconnect":
                handlers.unregister(client)
            if end != "shutdown":
                assert mesh.keys == set()
                assert manager.in_flight == 0
        tasks.cancel_scope.cancel()
    assert mesh.keys == set()
    if end != "disconnect":
        assert client.codes == ["mesh_unavailable" if end == "shutdown" else code]


# --- commands ---------------------------------------------------------------------------------------------------


async def test_a_command_is_taken_when_the_broker_has_confirmed_it_and_not_before(
    proxied: Gateway, proxy: Proxy, peer: Peer
) -> None:
    service = await peer.service()
    link = proxy.link("publish")
    link.to_client.clear()
    commands_ = [proxied.send(service, kind="command") for _ in range(3)]
    for command in commands_:
        assert (await peer.take(service)).header.properties.correlation_id == command.correlation_id
    # They are where they belong, and the gateway does not know.
    assert proxied.receiver.told == []
    link.to_client.set()
    for command in commands_:
        await proxied.told("taken", command)


async def test_a_command_to_nobody_is_returned_before_it_is_confirmed(gateway: Gateway, peer: Peer) -> None:
    service = await peer.service()
    returned = gateway.send("nobody-at-all", kind="command")
    taken = gateway.send(service, kind="command")
    await gateway.told("taken", taken)
    about = [what for what, correlation_id in gateway.receiver.told if correlation_id == returned.correlation_id]
    assert about[0] == "returned"


async def test_a_command_that_was_not_confirmed_before_the_cut_is_lost(
    proxied: Gateway, proxy: Proxy, peer: Peer
) -> None:
    service = await peer.service()
    proxy.link("publish").to_client.clear()
    command = proxied.send(service, kind="command")
    await peer.take(service)
    proxy.cut("publish")
    await proxied.told("lost", command)
    # Confirms of the new connection are about its own commands.
    await proxied.connected()
    again = proxied.send(service, kind="command")
    await proxied.told("taken", again)
    await proxied.told("lost", command)


async def test_a_command_that_the_broker_does_not_take_has_failed(gateway: Gateway, peer: Peer) -> None:
    name = f"service-{secrets.token_hex(4)}"
    full: dict[str, Any] = {"x-max-length": 1, "x-overflow": "reject-publish"}
    await peer.channel.queue_declare(name, exclusive=True, arguments=full)
    await peer.channel.queue_bind(name, RPC, name)
    # The queue may say a little late that it is full.
    sent = [gateway.send(name, kind="command") for _ in range(50)]
    await eventually(lambda: len(gateway.receiver.told) == len(sent))
    told = Counter(what for what, _ in gateway.receiver.told)
    assert told.keys() == {"taken", "failed"}
    assert told["taken"] == await peer.waiting(name)


async def test_a_call_that_nobody_took_in_time_is_gone(gateway: Gateway, peer: Peer) -> None:
    service = await peer.service()
    gateway.send(service, seconds=0.1)
    last = gateway.send(service, kind="command")
    await gateway.told("taken", last)
    with anyio.fail_after(DEADLINE):
        while await peer.waiting(service) != 1:
            await asyncio.sleep(0.005)
    assert (await peer.take(service)).header.properties.correlation_id == last.correlation_id


# --- poison -----------------------------------------------------------------------------------------------------

NOT_UTF8: Final = b"\xff\xfe\xff\xfe"


GOOD_REPLY: Final = encode(response(1))
POISONED_REPLIES: Final[dict[str, tuple[bytes, dict[str, Any]]]] = {
    "empty": (b"", {}),
    "half": (b"{", {}),
    "more than one": (GOOD_REPLY + b"}", {}),
    "bytes": (b"\xff\xfe", {}),
    "text that is not UTF-8": (b'{"result":"\xff"}', {}),
    "list": (b"[]", {}),
    "null": (b"null", {}),
    "text": (b'"text"', {}),
    "deep list": (b"[" * 100_000, {}),
    "deep result": (b'{"result":' * 5000 + b"1" + b"}" * 5000, {}),
    "other version": (GOOD_REPLY, {"nuropb_protocol": "0.1.0"}),
    "no version": (GOOD_REPLY, {"nuropb_protocol": None}),
    "version that is a number": (GOOD_REPLY, {"nuropb_protocol": 1}),
    "request": (GOOD_REPLY, {"nuropb_type": "request"}),
    "command": (GOOD_REPLY, {"nuropb_type": "command"}),
    "event": (GOOD_REPLY, {"nuropb_type": "event"}),
    "type in capitals": (GOOD_REPLY, {"nuropb_type": "Response"}),
    "no type": (GOOD_REPLY, {"nuropb_type": None}),
    "type that is a list": (GOOD_REPLY, {"nuropb_type": ["response"]}),
    "type that is a table": (GOOD_REPLY, {"nuropb_type": {"response": 1}}),
}


@pytest.mark.parametrize("what", POISONED_REPLIES)
async def test_poison_on_the_reply_queue_is_dropped_and_counted(gateway: Gateway, peer: Peer, what: str) -> None:
    body, headers = POISONED_REPLIES[what]
    service = await peer.service()
    message = gateway.send(service)
    request = await peer.take(service)
    properties = reply_properties(message.correlation_id, **headers)
    await peer.publish("", gateway.mesh.reply_queue, body, properties)
    await peer.reply(request, "right")
    await gateway.told("reply", message)
    assert gateway.receiver.result(message) == "right"
    assert gateway.mesh.statistics.dropped_replies == 1
    assert gateway.receiver.connections == [True]


async def test_replies_to_nobody_are_dropped_and_counted(gateway: Gateway, peer: Peer) -> None:
    service = await peer.service()
    queue = gateway.mesh.reply_queue
    message = gateway.send(service)
    request = await peer.take(service)
    no_headers = Properties(correlation_id=message.correlation_id)
    empty = Properties(correlation_id=message.correlation_id, headers={})
    for properties in (no_headers, empty, Properties(), reply_properties(None), reply_properties("")):
        await peer.publish("", queue, encode(response("forged")), properties)
    for forged in ("x", uuid4().hex, message.correlation_id.upper(), f"{message.correlation_id} "):
        await peer.publish("", queue, encode(response("forged")), reply_properties(forged))
    body = {**response("forged"), "correlation_id": message.correlation_id}
    await peer.publish("", queue, encode(body), reply_properties(uuid4().hex))
    # nuropb sends two replies to what fails: the first is the true one.
    await peer.publish(
        "", queue, encode(response(None, {"error": "E", "description": "d"})), reply_properties(message.correlation_id)
    )
    for _ in range(3):
        await peer.reply(request, "double")
    last = gateway.send(service)
    await peer.reply(await peer.take(service), "last")
    await gateway.told("reply", last)
    await gateway.told("reply", message)
    assert gateway.receiver.replies[message.correlation_id].error == {"error": "E", "description": "d"}
    assert gateway.mesh.statistics.dropped_replies == 5
    assert len(gateway.receiver.unexpected) == 5 + 3


async def test_nobody_can_pretend_to_be_the_gateways_own_ping(gateway: Gateway, peer: Peer) -> None:
    service = await peer.service()
    message = gateway.send(service)
    for correlation_id in (gateway.mesh.self_check.message_id, gateway.mesh.self_check.message_id.upper()):
        await peer.publish("", gateway.mesh.reply_queue, b"{", reply_properties(correlation_id))
    await peer.reply(await peer.take(service), 1)
    await gateway.told("reply", message)
    assert gateway.mesh.connected


GOOD_EVENT: Final = encode({"topic": "t", "event": 1})
POISONED_EVENTS: Final[dict[str, tuple[bytes, dict[str, Any]]]] = {
    "empty": (b"", {}),
    "half": (b"{", {}),
    "text that is not UTF-8": (b'{"topic":"\xff","event":1}', {}),
    "list": (b"[]", {}),
    "deep list": (b"[" * 100_000, {}),
    "topic that is a number": (encode({"topic": 1, "event": 1}), {}),
    "no topic": (encode({"event": 1}), {}),
    "no event": (encode({"topic": "t"}), {}),
    "target that is text": (encode({"topic": "t", "event": 1, "target": "u"}), {}),
    "trace id that is a number": (encode({"topic": "t", "event": 1, "trace_id": 1}), {}),
    "no JSON": (b'{"topic":"t","event":NaN}', {}),
    "other version": (GOOD_EVENT, {"nuropb_protocol": "0.1.0"}),
    "request": (GOOD_EVENT, {"nuropb_type": "request"}),
    "response": (GOOD_EVENT, {"nuropb_type": "response"}),
    "nothing of NuroPb": (GOOD_EVENT, {"nuropb_type": None, "nuropb_protocol": None}),
}


@pytest.mark.parametrize("what", POISONED_EVENTS)
async def test_poison_on_the_event_queue_is_dropped_and_counted(gateway: Gateway, peer: Peer, what: str) -> None:
    body, headers = POISONED_EVENTS[what]
    topic = f"t{secrets.token_hex(4)}"
    await gateway.subscribe(topic)
    await peer.publish(EVENTS, topic, body, nuropb_properties("event", uuid4().hex, **headers))
    await peer.publish(EVENTS, topic, body, Properties())
    await peer.event(topic, [1])
    await eventually(lambda: gateway.receiver.events)
    assert gateway.receiver.events == [(topic, [1])]
    assert gateway.mesh.statistics.dropped_events == 2
    assert gateway.receiver.connections == [True]


async def test_poison_on_the_service_queue_is_dead_lettered_and_the_next_call_answered(
    gateway: Gateway, peer: Peer
) -> None:
    dead = await peer.queue(DEAD_LETTERS)
    answers = await peer.queue()
    queue = gateway.mesh.service_queue
    body = {"tag": "request", "service": "s", "method": "nuropb_describe", "params": {}, "context": {}}
    good = nuropb_properties("request", "c", reply_to=answers)
    poison: list[tuple[bytes, Properties]] = [
        (b"{", good),
        (b"\xff", good),
        (b"[]", good),
        (b"[" * 100_000, good),
        (encode({**body, "params": []}), good),
        (encode({**body, "method": 1}), good),
        (encode({"tag": "request", "method": "nuropb_describe", "params": {}}), good),
        (encode(body), Properties()),
        (encode(body), nuropb_properties("response", "c", reply_to=answers)),
        (encode(body), nuropb_properties("request", "c", reply_to=answers, nuropb_protocol="0.2")),
        (encode(body), nuropb_properties("request", "c", reply_to=answers, encrypted="yes")),
        (b"{", nuropb_properties("event", "c")),
        (encode({"topic": "t"}), nuropb_properties("event", "c")),
    ]
    for content, properties in poison:
        await peer.publish("", queue, content, properties)
        await peer.take(dead)
    await peer.publish("", queue, encode(body), nuropb_properties("request", "last", reply_to=answers))
    assert (await peer.take(answers)).header.properties.correlation_id == "last"
    assert gateway.receiver.connections == [True]


@pytest.mark.parametrize(
    "error", ["text", [1], True, {"error": {"a": 1}}, {}], ids=["text", "list", "true", "nested", "empty"]
)
async def test_a_reply_whose_error_is_none_ends_the_call_all_the_same(gateway: Gateway, peer: Peer, error: Any) -> None:
    service = await peer.service()
    message = gateway.send(service)
    await peer.take(service)
    body = encode({"result": None, "error": error})
    await peer.publish("", gateway.mesh.reply_queue, body, reply_properties(message.correlation_id))
    await gateway.told("reply" if isinstance(error, dict) else "unreadable", message)


def deep_table() -> tuple[bytes, bytes]:
    """A header that is text, and one of the same length that is a list in a list, and so on."""
    deep = b""
    for _ in range(3000):
        deep = b"A" + struct.pack(">I", len(deep)) + deep
    size = len(deep) - 5
    return b"S" + struct.pack(">I", size) + b"@" * size, deep


TEXT_HEADER, DEEP_HEADER = deep_table()

#: Properties, a routing key, and what is replaced by what, so that no library of Python can read it.
UNREADABLE: Final = {
    "correlation id": (reply_properties("@@@@"), "key", b"@@@@", NOT_UTF8),
    "reply to": (nuropb_properties("request", "c", reply_to="@@@@"), "key", b"@@@@", NOT_UTF8),
    "name of a header": (reply_properties("c", **{"@@@@": 1}), "key", b"@@@@", NOT_UTF8),
    "timestamp": (
        Properties(timestamp=dt.datetime.fromtimestamp(0x40404040, tz=dt.UTC)),
        "key",
        b"\x00\x00\x00\x00@@@@",
        b"\x00\xff\xff\xff\xff\xff\xff\xff",
    ),
    "deep header": (reply_properties("c", text="@" * (len(TEXT_HEADER) - 5)), "key", TEXT_HEADER, DEEP_HEADER),
    "routing key": (nuropb_properties("event", "c"), "@@@@", b"@@@@", NOT_UTF8),
}


@pytest.mark.parametrize("lane", ["fast", "plain"])
@pytest.mark.parametrize("what", UNREADABLE)
async def test_a_message_that_the_library_cannot_read_costs_one_connection_at_most(
    gateway: Gateway, peer: Peer, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setattr(_sockets.Socket, "careful", False)
    mesh = gateway.mesh
    await gateway.subscribe("key")
    await gateway.subscribe("#")
    dead = await peer.queue(DEAD_LETTERS)
    properties, key, *change = UNREADABLE[what]
    for _ in range(2):
        await peer.publish_raw(EVENTS, key, encode({"topic": "key", "event": 1}), properties, *change)
        if what != "routing key":
            await peer.publish_raw("", mesh.reply_queue, b"{}", properties, *change)
            await peer.publish_raw("", mesh.service_queue, b"{}", properties, *change)
    # What is alive answers.
    service = await peer.service()
    await eventually(lambda: gateway.mesh.connected)
    message = gateway.send(service)
    await peer.reply(await peer.take(service), "right")
    await gateway.told("reply", message)
    await peer.event("key", "last")
    await eventually(lambda: ("key", "last") in gateway.receiver.events)
    answers = await peer.queue()
    body = {"tag": "request", "service": "s", "method": "nuropb_describe", "params": {}, "context": {}}
    properties = nuropb_properties("request", "c", reply_to=answers)
    await peer.publish("", mesh.service_queue, encode(body), properties)
    await peer.take(answers)
    # The library never sees it, unless it is the one that reads.
    assert mesh.statistics.reconnects == (1 if mesh.lane == "plain" else 0)
    if what == "routing key":
        # A NuroPb event says its topic in the body.
        assert gateway.receiver.events == [("key", 1), ("key", 1), ("key", "last")]
    else:
        assert gateway.receiver.events == [("key", "last")]
        assert mesh.statistics.dropped_events == 2
        # Where only the headers cannot be read, it may look like a response; and then it is one to nobody.
        assert mesh.statistics.dropped_replies + len(gateway.receiver.unexpected) == 2
        assert await peer.waiting(dead) == 2
        await peer.channel.queue_purge(dead)


# --- cuts -------------------------------------------------------------------------------------------------------


async def reconnected(gateway: Gateway, times: int = 1) -> None:
    await eventually(lambda: gateway.mesh.statistics.reconnects >= times and gateway.mesh.connected)


@pytest.mark.parametrize("purpose", ["publish", "consume", ""])
async def test_replies_arrive_although_the_connection_was_cut(
    proxied: Gateway, proxy: Proxy, peer: Peer, purpose: str
) -> None:
    service = await peer.service()
    calls = [proxied.send(service) for _ in range(50)]
    requests = [await peer.take(service) for _ in calls]
    for request in requests[:20]:
        await peer.reply(request, "before")
    proxy.cut(purpose)
    for request in requests[20:]:
        await peer.reply(request, "after")
    for message in calls:
        await proxied.told("reply", message)
    await reconnected(proxied)
    # Nothing is sent again: it may have run.
    assert len(requests) == len(calls)
    last = proxied.send(service)
    assert (await peer.take(service)).header.properties.correlation_id == last.correlation_id


async def test_more_replies_than_the_prefetch_wait_for_the_gateway_and_are_each_given_once(
    proxied: Gateway, proxy: Proxy, peer: Peer
) -> None:
    count = _mesh.PREFETCH + 200
    service = await peer.service()
    calls = [proxied.send(service) for _ in range(count)]
    requests = [await peer.take(service) for _ in calls]
    proxy.refuses = True
    proxy.cut("consume")
    await asyncio.gather(*(peer.reply(request, number) for number, request in enumerate(requests)))
    proxy.refuses = False
    await eventually(lambda: len(proxied.receiver.told) >= len(calls))
    assert [proxied.receiver.result(message) for message in calls] == list(range(count))
    assert len(proxied.receiver.told) == count


async def test_a_reply_that_comes_again_is_given_once(proxied: Gateway, proxy: Proxy, peer: Peer) -> None:
    service = await peer.service()
    message = proxied.send(service)
    proxy.link("consume").to_broker.clear()  # so that acknowledgements do not arrive
    await peer.reply(await peer.take(service), 1)
    await proxied.told("reply", message)
    proxy.cut("consume")
    await eventually(lambda: proxied.receiver.unexpected == [message.correlation_id])
    await proxied.told("reply", message)


async def test_an_event_that_comes_again_is_given_once(proxied: Gateway, proxy: Proxy, peer: Peer) -> None:
    topic = f"t{secrets.token_hex(4)}"
    await proxied.subscribe(topic)

    proxy.link("consume").to_broker.clear()
    for number in range(5):
        await peer.event(topic, number)
    await eventually(lambda: len(proxied.receiver.events) == 5)
    proxy.cut("consume")
    await peer.event(topic, "last")
    await eventually(lambda: (topic, "last") in proxied.receiver.events)
    assert [event for _, event in proxied.receiver.events] == [0, 1, 2, 3, 4, "last"]
    assert proxied.mesh.statistics.repeated_events == 5
    # The same id is no repetition where nothing was lost in between.
    for _ in range(2):
        await peer.event(topic, "same id", correlation_id="i")
    await eventually(lambda: len(proxied.receiver.events) == 8)


async def test_subscriptions_outlive_the_connection(proxied: Gateway, proxy: Proxy, peer: Peer) -> None:
    prefix = f"t{secrets.token_hex(4)}"
    for topic in ("stays", "goes"):
        await proxied.subscribe(f"{prefix}.{topic}")
    proxy.refuses = True
    proxy.cut("consume")
    await peer.event(f"{prefix}.stays")  # waits in the queue
    await eventually(lambda: not proxied.mesh.consuming.up)
    proxied.mesh.unsubscribe(f"{prefix}.goes")
    await proxied.subscribe(f"{prefix}.comes")
    proxy.refuses = False
    await reconnected(proxied)
    await proxied.subscribe(f"{prefix}.last")  # bindings are made one after the other
    for topic in ("goes", "comes", "stays", "last"):
        await peer.event(f"{prefix}.{topic}")
    await eventually(lambda: (f"{prefix}.last", None) in proxied.receiver.events)
    topics = [topic.removeprefix(f"{prefix}.") for topic, _ in proxied.receiver.events]
    assert topics == ["stays", "comes", "stays", "last"]


async def test_who_subscribes_again_while_a_binding_is_removed_is_told_when_it_is_back(
    proxied: Gateway, proxy: Proxy, peer: Peer
) -> None:
    topic = f"t{secrets.token_hex(4)}"
    for each in (topic, f"{topic}.other"):
        await proxied.subscribe(each)
    link = proxy.link("consume")
    link.to_broker.clear()
    before = len(link.sent)
    for each in (topic, f"{topic}.other"):
        proxied.mesh.unsubscribe(each)
    await anyio.wait_all_tasks_blocked()
    again = [asyncio.Event(), asyncio.Event()]
    for each, done in zip((topic, f"{topic}.other"), again, strict=True):
        proxied.mesh.subscribe(each, done.set)
    await anyio.wait_all_tasks_blocked()
    # Of the two, one is being removed now.
    assert sum(done.is_set() for done in again) <= 1
    assert len(link.sent) == before
    link.to_broker.set()
    for done in again:
        with anyio.fail_after(DEADLINE):
            await done.wait()
    for each in (topic, f"{topic}.other"):
        await peer.event(each)
    await eventually(lambda: len(proxied.receiver.events) == 2)


async def test_queues_that_were_deleted_are_made_again(gateway: Gateway, peer: Peer) -> None:
    topic = f"t{secrets.token_hex(4)}"
    await gateway.subscribe(topic)
    for number, queue in enumerate(queues_of(gateway), 1):
        await peer.channel.queue_delete(queue)
        await reconnected(gateway, number)
    service = await peer.service()
    message = gateway.send(service)
    await peer.reply(await peer.take(service), 1)
    await gateway.told("reply", message)
    await gateway.subscribe(f"{topic}.last")
    await peer.event(topic, 1)
    await eventually(lambda: gateway.receiver.events == [(topic, 1)])


async def test_nothing_is_taken_while_the_broker_is_away(proxied: Gateway, proxy: Proxy) -> None:
    proxy.refuses = True
    proxy.cut()
    await eventually(lambda: not proxied.mesh.connected)
    with pytest.raises(MeshUnavailable):
        proxied.send("anybody")
    with pytest.raises(MeshUnavailable):
        proxied.mesh.publish("topic", b"1", context=b"{}", trace_id="t", target=None)
    assert proxied.mesh.problem is not None
    proxy.refuses = False
    await reconnected(proxied)
    assert proxied.mesh.problem is None
    assert proxied.receiver.connections == [True, False, True]
    message = proxied.send("nobody-at-all")
    await proxied.told("returned", message)


async def test_a_peer_that_says_nothing_more_is_given_up(
    proxied: Gateway, proxy: Proxy, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_self_check, "PING_INTERVAL", 0.2)
    monkeypatch.setattr(_self_check, "PING_TIMEOUT", 0.5)
    for link in proxy.links():
        link.to_broker.clear()
        link.to_client.clear()
    await reconnected(proxied, 2)
    monkeypatch.undo()
    await proxied.connected()
    service = await peer.service()
    message = proxied.send(service)
    await peer.reply(await peer.take(service), 1)
    await proxied.told("reply", message)


def test_a_mesh_runs_again_in_another_event_loop(amqp_url: str) -> None:
    gateway = Gateway(RabbitMQMesh(amqp_url, service_name="again"), "again")

    async def run(topic: str) -> None:
        async with peer_at(amqp_url) as peer:
            async with gateway.mesh:
                await gateway.connected()
                await gateway.subscribe(topic)
                await peer.event(topic)
                await eventually(lambda: (topic, None) in gateway.receiver.events)
                await gateway.told("returned", gateway.send("nobody-at-all"))
            assert not gateway.mesh.connected
            for queue in queues_of(gateway):
                await peer.channel.queue_delete(queue)

    for _ in range(2):
        asyncio.run(run(f"t{secrets.token_hex(4)}"))
    assert gateway.receiver.connections == [True, False] * 2


# --- credentials, addresses, TLS --------------------------------------------------------------------------------


def changed_url(url: str, **changes: Any) -> str:
    """``url`` with another user, password, host, port, path or query."""
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


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"password": "hunter2"}, "credentials"),
        ({"username": "hunter", "password": "hunter2%40%2F%3A"}, "credentials"),
        ({"password": "hunter2", "path": "/no-such-vhost"}, "credentials"),
        ({"path": "/no-such-vhost"}, "refuses the vhost"),
        ({"password": "hunter2", "port": 1}, "[Cc]onne"),
        ({"password": "hunter2", "host": "no-such-host.invalid"}, "not known|resolution"),
    ],
    ids=["password", "user", "password and vhost", "vhost", "port", "host"],
)
async def test_why_there_is_no_connection_is_told_without_the_password(
    amqp_url: str, caplog: pytest.LogCaptureFixture, changes: dict[str, Any], said: str
) -> None:
    caplog.set_level(logging.DEBUG)
    caplog.handler.setLevel(logging.DEBUG)
    async with running(changed_url(amqp_url, **changes), wait=False) as gateway:
        await eventually(lambda: gateway.mesh.problem not in (None, "publishing connection: not connected yet"))
        problem = gateway.mesh.problem
        assert problem is not None
        assert re.search(said, problem), problem
        assert "hunter2" not in problem
        with pytest.raises(MeshUnavailable) as caught:
            gateway.send("anybody")
        assert "hunter2" not in str(caught.value)
        assert gateway.receiver.connections == []
    assert "hunter2" not in caplog.text


async def test_an_attempt_that_failed_leaves_nothing_that_closes_itself_later(amqp_url: str) -> None:
    before = asyncio.all_tasks()
    async with running(changed_url(amqp_url, port=1), wait=False) as gateway:
        await eventually(lambda: gateway.mesh.problem not in (None, "publishing connection: not connected yet"))
    gc.collect()
    assert asyncio.all_tasks() <= before


async def test_a_mesh_comes_up_when_its_broker_does(amqp_url: str, remover: list[str]) -> None:
    async with Proxy(amqp_url) as proxy:
        proxy.refuses = True
        async with running(proxy.url(), wait=False) as gateway:
            remover += queues_of(gateway)
            await eventually(lambda: gateway.mesh.problem not in (None, "publishing connection: not connected yet"))
            assert not gateway.mesh.connected
            proxy.refuses = False
            await gateway.connected()
            assert gateway.receiver.connections == [True]


@pytest.mark.parametrize(("query", "heartbeat"), [({}, 10), ({"heartbeat": "7"}, 7), ({"heartbeat": "23"}, 23)])
async def test_the_heartbeat_of_the_url_is_kept(
    proxy: Proxy, remover: list[str], query: dict[str, str], heartbeat: int
) -> None:
    async with running(proxy.url(**query)) as gateway:
        remover += queues_of(gateway)
        for purpose in ("publish", "consume"):
            assert tune_of(bytes(proxy.link(purpose).sent)).heartbeat == heartbeat


def tune_of(sent: bytes) -> commands.Connection.TuneOk:
    """What a client agreed to."""
    sent = sent.removeprefix(b"AMQP\x00\x00\x09\x01")
    while sent:
        size, _, frame = pamqp.frame.unmarshal(sent)
        if isinstance(frame, commands.Connection.TuneOk):
            return frame
        sent = sent[size:]
    raise AssertionError("nothing was agreed to")


@dataclass(frozen=True)
class Certificates:
    """Files, all in one directory: an authority, a server's and a client's of it, and another authority."""

    directory: Path

    def context(self) -> ssl.SSLContext:
        """A server's, which asks for a certificate."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.directory / "server.pem", self.directory / "server.key")
        context.load_verify_locations(self.directory / "authority.pem")
        context.verify_mode = ssl.CERT_REQUIRED
        return context

    def query(self, *, authority: str = "authority", client: str | None = "client") -> dict[str, str]:
        """As the URL names them."""
        files = {"cafile": f"{authority}.pem"}
        if client is not None:
            files.update(certfile=f"{client}.pem", keyfile=f"{client}.key")
        return {name: str(self.directory / file) for name, file in files.items()}


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    directory = tmp_path_factory.mktemp("certificates")
    keys = {
        name: ec.generate_private_key(ec.SECP256R1())
        for name in ("authority", "stranger", "server", "client", "forger")
    }
    now = dt.datetime.now(dt.UTC)
    for name, key in keys.items():
        issuer = {"server": "authority", "client": "authority", "forger": "stranger"}.get(name, name)
        names = {each: x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, each)]) for each in (name, issuer)}
        certificate = (
            x509.CertificateBuilder()
            .subject_name(names[name])
            .issuer_name(names[issuer])
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(days=1))
            .not_valid_after(now + dt.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=issuer == name, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
            .sign(keys[issuer], hashes.SHA256())
        )
        (directory / f"{name}.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        (directory / f"{name}.key").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
    return Certificates(directory)


async def test_tls_with_an_authority_and_a_client_certificate(
    amqp_url: str, certificates: Certificates, remover: list[str], peer: Peer
) -> None:
    async with (
        Proxy(amqp_url, tls=certificates.context()) as proxy,
        running(proxy.url(**certificates.query())) as gateway,
    ):
        remover += queues_of(gateway)
        service = await peer.service()
        message = gateway.send(service, params=b'{"x":"%b"}' % (b"x" * 300_000))
        await peer.reply(await peer.take(service), "y" * 300_000)
        await gateway.told("reply", message)
        proxy.cut()
        await reconnected(gateway, 2)


@pytest.mark.parametrize(
    ("files", "host", "said"),
    [
        ({"authority": "stranger"}, "localhost", "certificate verify failed"),
        ({}, "127.0.0.1", "certificate verify failed|IP address mismatch"),
        ({"client": None}, "localhost", "SSL|closed"),
        ({"client": "forger"}, "localhost", "SSL|closed"),
        ({"authority": "missing"}, "localhost", "No such file"),
        ({"client": "missing"}, "localhost", "No such file"),
    ],
    ids=["authority", "name", "no certificate", "certificate", "no authority file", "no certificate file"],
)
async def test_tls_that_does_not_hold_is_refused_and_explained(
    amqp_url: str, certificates: Certificates, files: dict[str, str | None], host: str, said: str
) -> None:
    async with Proxy(amqp_url, tls=certificates.context()) as proxy:
        query: Any = certificates.query(**files)  # type: ignore[arg-type]
        url = proxy.url(**query).replace("@localhost:", f"@{host}:")
        async with running(url, wait=False) as gateway:
            await eventually(lambda: gateway.mesh.problem not in (None, "publishing connection: not connected yet"))
            problem = gateway.mesh.problem
            assert problem is not None
            assert re.search(said, problem), problem
            assert not gateway.mesh.connected


# --- a user with few permissions, and a broker that closes connections ------------------------------------------


@dataclass(frozen=True)
class Restricted:
    """A vhost in which nothing is declared yet, and a user who may declare queues of a gateway there and no more."""

    node: RabbitMQNode
    vhost: str
    url: str
    restricted_url: str


@pytest.fixture(scope="module")
def restricted(rabbitmq: Broker) -> Iterator[Restricted]:
    if rabbitmq.node is None:
        pytest.skip("the broker is not ours: rabbitmqctl cannot be used")
    node, name = rabbitmq.node, f"restricted-{secrets.token_hex(4)}"
    url = node.add_vhost(name)
    node.ctl("add_user", name, "hunter2")
    queues = "^nuropb-gateway-.*$"
    node.ctl("set_permissions", "--vhost", name, name, queues, ".*", ".*")
    yield Restricted(node, name, url, changed_url(url, username=name, password="hunter2"))
    node.ctl("delete_user", name)
    node.delete_vhost(name)


async def test_exchanges_that_may_not_be_declared_are_found_or_named(restricted: Restricted) -> None:
    async with (
        peer_at(restricted.url) as peer,
        running(restricted.restricted_url, "gateway-x", wait=False) as gateway,
    ):
        for name, kind in ((RPC, "direct"), (EVENTS, "topic"), (DEAD_LETTERS, "fanout")):
            missing = f"exchange {name} is missing, and this user may not declare it"
            await gateway.says(missing)
            assert not gateway.mesh.connected
            await peer.channel.exchange_declare(name, exchange_type=kind, durable=True)
        await gateway.connected()
        service = await peer.service()
        message = gateway.send(service)
        await peer.reply(await peer.take(service), 1)
        await gateway.told("reply", message)

        # One that has been deleted is missed, too, when the connection is made the next time.
        await peer.channel.exchange_delete(EVENTS)
        gateway.mesh.consuming.abort("test")
        await gateway.says(f"exchange {EVENTS} is missing")
        await peer.channel.exchange_declare(EVENTS, exchange_type="topic", durable=True)
        await gateway.connected()


async def test_an_exchange_of_another_kind_is_named(restricted: Restricted) -> None:
    async with peer_at(restricted.url) as peer:
        await peer.channel.exchange_delete(EVENTS)
        await peer.channel.exchange_declare(EVENTS, exchange_type="fanout", durable=True)
        async with running(restricted.url, "gateway-x", wait=False) as gateway:
            wrong = f"exchange {EVENTS} exists, but is not a durable topic exchange"
            await gateway.says(wrong)
            await peer.channel.exchange_delete(EVENTS)
            await gateway.connected()


async def test_queues_that_may_not_be_declared_are_named(restricted: Restricted) -> None:
    async with running(restricted.url, "gateway-x"):
        pass  # all exchanges are there
    async with running(restricted.restricted_url, "other", wait=False) as gateway:
        await gateway.says("nuropb-other-")
        assert "refused" in (gateway.mesh.problem or "").lower()
        assert "hunter2" not in (gateway.mesh.problem or "")


async def test_a_service_queue_with_other_arguments_is_named(restricted: Restricted) -> None:
    async with peer_at(restricted.url) as peer:
        await peer.channel.queue_declare("nuropb-gateway-y-sq", durable=True)
        async with running(restricted.url, "gateway-y", wait=False) as gateway:
            await gateway.says("nuropb-gateway-y-sq")
            assert "x-dead-letter-exchange" in (gateway.mesh.problem or "")


async def test_connections_that_the_broker_closes_are_made_again(restricted: Restricted) -> None:
    async with running(restricted.url, "gateway-x") as gateway:
        async with peer_at(restricted.url) as peer:
            service = f"service-{secrets.token_hex(4)}"
            await peer.channel.queue_declare(service)
            await peer.channel.queue_bind(service, RPC, service)
            calls = [gateway.send(service) for _ in range(20)]
            requests = [await peer.take(service) for _ in calls]
        await gateway.subscribe("topic")
        close = ("close_all_connections", "--vhost", restricted.vhost, "maintenance")
        await anyio.to_thread.run_sync(restricted.node.ctl, *close)
        async with peer_at(restricted.url) as peer:
            for request in requests:
                await peer.reply(request, 1)
            for message in calls:
                await gateway.told("reply", message)
            await reconnected(gateway, 2)
            await gateway.subscribe("last")
            await peer.event("topic", 1)
            await eventually(lambda: gateway.receiver.events == [("topic", 1)])
            await peer.channel.queue_delete(service)
