"""Fakes for the tests of the managers: a connection without a socket, a mesh without a broker, and both put together.

The fakes answer nothing by themselves. A test plays the replies, and reads the messages that were sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any
from uuid import uuid4

import anyio

from nuropb_gateway_asgi.authentication import Identity
from nuropb_gateway_asgi.authorization import ExposePolicy, Policy
from nuropb_gateway_asgi.authorization.rules import Delivery
from nuropb_gateway_asgi.exceptions import MeshUnavailable
from nuropb_gateway_asgi.handler_manager import Handler, HandlerManager
from nuropb_gateway_asgi.limits.shared import SharedLimits
from nuropb_gateway_asgi.protocol import ClientFrame
from nuropb_gateway_asgi.service_mesh_manager import ServiceMeshManager, ServiceMeshManagerController
from nuropb_gateway_asgi.settings import Settings
from nuropb_gateway_asgi.wire.history import (
    After,
    Follower,
    HistoryLog,
    KeptTopic,
    Last,
    Read,
    Start,
    parse_kept_topics,
)
from nuropb_gateway_asgi.wire.interface import CallMessage, EventMessage, MeshReceiver, Reply
from tests.kit.waiting import DEADLINE

#: Seconds after which a wait fails; code that works needs far less.
PATIENCE = DEADLINE

KEY = "-----BEGIN PUBLIC KEY-----\none\n-----END PUBLIC KEY-----\n"
OTHER_KEY = KEY.replace("one", "two")
#: The described methods of a service: one that needs no encryption, and one that does.
SECRET = {"get": {}, "secret": {"requires_encryption": True}}
#: A correlation id that belongs to no call.
UNKNOWN_ID = "f" * 32


def strict_json(text: str | bytes) -> Any:
    """Decode JSON as a browser does: NaN and Infinity are errors."""
    return json.loads(text, parse_constant=_no_json)


def _no_json(constant: str) -> Any:
    raise AssertionError(f"{constant} is not JSON")


async def until(condition: Callable[[], object]) -> None:
    """Let other tasks run until ``condition`` holds."""
    with anyio.fail_after(PATIENCE):
        while not condition():
            await asyncio.sleep(0.001)


class Clock:
    """A clock that only a test moves."""

    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class FakeAuthenticator:
    """An authenticator of readable tokens: ``alice`` and ``alice/2`` are tokens of one user; ``bad`` is invalid."""

    def __init__(self) -> None:
        self.tokens: list[str] = []
        self.expires_at: dict[str, float] = {}
        self.leeway = 0.0
        #: Awaited by every check of a token, once it is set.
        self.gate: asyncio.Event | None = None
        self.error: Exception | None = None

    async def __call__(self, token: str) -> Identity | None:
        self.tokens.append(token)
        if self.gate is not None:
            await self.gate.wait()
        if self.error is not None:
            raise self.error
        user_id = token.partition("/")[0]
        if user_id == "bad":
            return None
        return Identity(
            user_id=user_id,
            username=user_id.title(),
            token=token,
            claims={"roles": ["admin"]},
            expires_at=self.expires_at.get(token),
            leeway=self.leeway,
        )


class FakeHandler:
    """A connection that keeps all frames and closes."""

    def __init__(self, session_id: str | None = None) -> None:
        self.session_id = session_id or uuid4().hex
        self.address = ""
        self.identity: Identity | None = None
        self.connected_at = 0.0
        self.registered: list[Identity] = []
        self.texts: list[str] = []
        self.frames: list[dict[str, Any]] = []
        self.closes: list[tuple[int, str]] = []
        #: Topic and delivery of the events that a slow client may lose.
        self.lossy: list[tuple[str, Delivery]] = []
        self.checks: list[float] = []
        self.tasks: list[asyncio.Task[None]] = []
        #: Called at every frame and every close.
        self.on_send: Callable[[], object] | None = None

    def on_registered(self, identity: Identity) -> None:
        self.registered.append(identity)

    def send_frame(self, text: str) -> None:
        self.texts.append(text)
        self.frames.append(strict_json(text))
        if self.on_send is not None:
            self.on_send()

    def send_event(self, text: str, topic: str, delivery: Delivery) -> None:
        self.lossy.append((topic, delivery))
        self.send_frame(text)

    def close(self, code: int, reason: str = "") -> None:
        self.closes.append((code, reason))
        if self.on_send is not None:
            self.on_send()

    def start_soon(self, function: Callable[..., Coroutine[Any, Any, None]], *args: Any) -> None:
        self.tasks.append(asyncio.get_running_loop().create_task(function(*args)))

    @property
    def outbox_size(self) -> int:
        return 0

    def check(self, now: float) -> None:
        self.checks.append(now)

    async def finish(self) -> None:
        """Wait for the tasks started on this connection."""
        with anyio.fail_after(PATIENCE):
            await asyncio.gather(*self.tasks)
        self.tasks.clear()

    @property
    def codes(self) -> list[str | None]:
        """The error code of every answer; None for a result."""
        return [_code(frame) for frame in self.frames]

    def take(self) -> list[dict[str, Any]]:
        """Return the frames since the last call, and forget them."""
        frames, self.frames, self.texts = self.frames, [], []
        return frames


def answers(handler: FakeHandler) -> list[tuple[Any, Any, str | None]]:
    """Return the id, result and error code of every answer."""
    return [
        (frame["payload"].get("id"), frame["payload"]["result"], code)
        for frame, code in zip(handler.frames, handler.codes, strict=True)
    ]


def _code(frame: Mapping[str, Any]) -> str | None:
    error = frame if frame["type"] == "error" else frame["payload"]["error"]
    code: str | None = None if error is None else error["code"]
    return code


@dataclass
class Published:
    """An event published to the mesh."""

    topic: str
    event: Any
    context: dict[str, Any]
    trace_id: str
    target: list[str] | None


@dataclass
class FakeLog:
    """The history of one pattern, played by the test. Each mark takes an offset of its own, as on RabbitMQ."""

    pattern: str
    available: bool = True
    epoch: str | None = "first"
    #: Whether following and marks are answered at once.
    answers: bool = True
    events: list[tuple[int, EventMessage]] = field(default_factory=list)
    offset: int = -1
    #: The offset of the latest event that is lost.
    lost: int = -1
    followers: list[Follower] = field(default_factory=list)
    marks: list[Callable[[int], None]] = field(default_factory=list)
    #: Awaited by every reading, once it is set.
    gate: asyncio.Event | None = None
    #: Raised by every mark and every reading, once it is set.
    error: Exception | None = None
    readings: list[Start] = field(default_factory=list)

    def follow(self, follower: Follower) -> None:
        self.followers.append(follower)
        if self.answers:
            self.start()

    def leave(self) -> None:
        self.followers.clear()

    def mark(self, done: Callable[[int], None]) -> None:
        self._check()
        self.marks.append(done)
        if self.answers:
            self.reach_marks()

    async def read(self, start: Start, end: int, wanted: Callable[[EventMessage], bool], limit: int, size: int) -> Read:
        self.readings.append(start)
        if self.gate is not None:
            await self.gate.wait()
        self._check()
        kept = [(offset, event) for offset, event in self.events if self.lost < offset <= end]
        if isinstance(start, After):
            kept = [each for each in kept if each[0] > start.offset]
        last = kept[-1][0] if kept else None
        kept = [each for each in kept if wanted(each[1])]
        complete = self.lost <= (start.offset if isinstance(start, After) else -1)
        if isinstance(start, Last):
            kept = kept[-start.number :]
            complete = complete or len(kept) == start.number
        complete = complete and len(kept) <= limit and sum(len(bytes(event.event)) for _, event in kept) <= size
        return Read(kept, complete, last)

    def _check(self) -> None:
        if self.error is not None:
            raise self.error

    # The mesh, played by the test

    def start(self) -> None:
        """Tell the followers that live events come."""
        for follower in self.followers:
            follower.on_started(self.offset)

    def reach_marks(self) -> None:
        """Answer the marks."""
        marks, self.marks = self.marks, []
        for done in marks:
            self.offset += 1
            done(self.offset)

    def event(self, topic: str, event: Any = None, **more: Any) -> None:
        """Keep an event, and bring it to the followers."""
        self.offset += 1
        message = EventMessage(topic, json.dumps(event).encode(), **more)
        self.events.append((self.offset, message))
        for follower in self.followers:
            follower.on_kept(self.offset, message)


@dataclass
class FakeMesh:
    """A mesh whose broker and services are played by the test."""

    connected: bool = True
    #: Whether events can be published while it is connected.
    publishes: bool = True
    problem: str | None = None
    sent: list[CallMessage] = field(default_factory=list)
    published: list[Published] = field(default_factory=list)
    forgotten: list[str] = field(default_factory=list)
    #: Bindings made and removed, in order: ``("+", topic)`` and ``("-", topic)``.
    bindings: list[tuple[str, str]] = field(default_factory=list)
    #: Callbacks of bindings that are not made yet, by topic; empty while ``binds_at_once``.
    waiting: dict[str, list[Callable[[bool], None]]] = field(default_factory=dict)
    binds_at_once: bool = True
    #: Whether it is certain that the mesh carries messages; else, the callbacks for when it is.
    proves: bool = True
    unproven: list[Callable[[], None]] = field(default_factory=list)
    #: Topics that the broker refuses, and warnings for the operator.
    refused: set[str] = field(default_factory=set)
    warnings: list[str] = field(default_factory=list)
    #: Raised by sending, entering, publishing and recording.
    error: Exception | None = None
    runs: bool = False
    #: Whether the records from before the start are read when the mesh is entered.
    has_read: bool = True
    receiver: MeshReceiver | None = None
    controller: object = None
    address: str = "here"
    #: Messages to peer processes, with the address ("" for all processes).
    told_peers: list[tuple[str, Any]] = field(default_factory=list)
    records: list[Any] = field(default_factory=list)
    #: The broker between the processes of one gateway; None for a single process.
    network: Network | None = None
    logs: dict[str, FakeLog] = field(default_factory=dict)

    # The methods of a mesh

    async def __aenter__(self) -> FakeMesh:
        if self.error is not None:
            raise self.error
        self.runs = True
        if self.has_read:
            self.told.on_records_read()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.runs = False

    def bind(self, receiver: MeshReceiver, controller: object) -> None:
        self.receiver, self.controller = receiver, controller

    @property
    def can_publish(self) -> bool:
        return self.connected and self.publishes

    def for_transport(self, instance_id: str) -> FakeMesh:
        return FakeMesh(address=instance_id) if self.network is None else self.network.mesh()

    def keep_history(self, topics: Iterable[KeptTopic]) -> dict[str, HistoryLog]:
        self.logs = {topic.pattern: FakeLog(topic.pattern) for topic in topics}
        return dict(self.logs)

    def send(self, message: CallMessage) -> None:
        self._check()
        self.sent.append(message)

    def publish(self, topic: str, event: bytes, *, context: bytes, trace_id: str, target: list[str] | None) -> None:
        self._check()
        if not self.publishes:
            raise MeshUnavailable("no streams")
        self.published.append(Published(topic, json.loads(event), strict_json(context), trace_id, target))

    def broadcast(self, message: bytes) -> None:
        self.tell("", message)

    def tell(self, address: str, message: bytes, *, expires: float | None = None) -> None:
        if not self.connected:
            raise MeshUnavailable("not connected")
        self.told_peers.append((address, strict_json(message)))
        if self.network is not None:
            self.network.bring(address, message)

    async def record(self, record: bytes) -> None:
        self._check()
        self.records.append(strict_json(record))
        if self.network is not None:
            self.network.keep(record)

    def when_proven(self, proven: Callable[[], None]) -> None:
        if self.proves:
            proven()
        else:
            self.unproven.append(proven)

    def forget(self, correlation_id: str) -> None:
        self.forgotten.append(correlation_id)

    def when_events_are_in(self, done: Callable[[], None]) -> None:
        self._check()
        asyncio.get_running_loop().call_soon(done)

    def subscribe(self, topic: str, done: Callable[[bool], None]) -> None:
        self.bindings.append(("+", topic))
        if self.binds_at_once:
            done(topic not in self.refused)
        else:
            self.waiting.setdefault(topic, []).append(done)

    def unsubscribe(self, topic: str) -> None:
        self.bindings.append(("-", topic))
        for done in self.waiting.pop(topic, ()):
            done(True)

    def _check(self) -> None:
        if self.error is not None:
            raise self.error
        if not self.connected:
            raise MeshUnavailable("not connected")

    # The broker and the services, played by the test

    @property
    def told(self) -> MeshReceiver:
        """The receiver that the gateway has bound."""
        assert self.receiver is not None
        return self.receiver

    @property
    def calls(self) -> list[CallMessage]:
        """The messages sent, without the requests for descriptions."""
        return [message for message in self.sent if message.method != "nuropb_describe"]

    @property
    def describes(self) -> list[CallMessage]:
        """The requests for descriptions."""
        return [message for message in self.sent if message.method == "nuropb_describe"]

    def reply(self, message: CallMessage, result: Any = None, error: dict[str, Any] | None = None) -> bool:
        """Have a service answer; return whether the gateway expected the reply."""
        expected = self.told.expects(message.correlation_id)
        if expected:
            self.told.on_reply(Reply(message.correlation_id, json.dumps(result).encode(), error))
        return expected

    def unreadable(self, message: CallMessage) -> None:
        """Have a service answer with text that is not valid JSON."""
        if self.told.expects(message.correlation_id):
            self.told.on_unreadable(message.correlation_id)

    def describe(
        self, service: str, methods: Mapping[str, Any] | Sequence[str], *, public_key: str | None = None, **more: Any
    ) -> None:
        """Answer the last request for the service's description. ``methods`` may be names alone."""
        question = next(message for message in reversed(self.describes) if message.service == service)
        described = methods if isinstance(methods, Mapping) else {name: {} for name in methods}
        assert self.reply(question, {"methods": described, "public_key": public_key, **more})

    def bound(self, topic: str) -> None:
        """Confirm the binding of ``topic``."""
        for done in self.waiting.pop(topic):
            done(topic not in self.refused)

    def event(self, topic: str, event: Any = None, *, target: list[str] | None = None, **more: Any) -> None:
        """Deliver an event."""
        self.told.on_event(EventMessage(topic, json.dumps(event).encode(), target=target, **more))

    def lose(self) -> None:
        """Lose the connection. Messages sent before may still be answered."""
        self.connected = False
        self.told.on_connection_change(connected=False)

    def find(self) -> None:
        """Restore the connection."""
        self.connected = True
        self.told.on_connection_change(connected=True)


@dataclass
class Network:
    """A fake broker between the processes of one gateway: messages to one or all of them, and the stream of records."""

    meshes: dict[str, FakeMesh] = field(default_factory=dict)
    records: list[bytes] = field(default_factory=list)
    #: Addresses of processes to which messages are lost.
    cut_off: set[str] = field(default_factory=set)

    def mesh(self) -> FakeMesh:
        """Make the mesh of one more process; :meth:`connect` connects it."""
        address = f"address-{len(self.meshes)}"
        mesh = self.meshes[address] = FakeMesh(connected=False, address=address, network=self)
        return mesh

    def connect(self, mesh: FakeMesh) -> None:
        """Connect a process, and deliver all records to it."""
        mesh.find()
        for record in self.records:
            mesh.told.on_record(record)

    def move(self, mesh: FakeMesh) -> None:
        """Give a process a new address; what is on its way to the present one is lost."""
        del self.meshes[mesh.address]
        mesh.address = f"{mesh.address}-moved"
        self.meshes[mesh.address] = mesh

    def bring(self, address: str, message: bytes) -> None:
        loop = asyncio.get_running_loop()
        for each, mesh in self.meshes.items():
            if address in ("", each) and mesh.runs and each not in self.cut_off:
                loop.call_soon(mesh.told.on_peer_message, message)

    def keep(self, record: bytes) -> None:
        self.records.append(record)
        for mesh in self.meshes.values():
            if mesh.connected:
                mesh.told.on_record(record)


@dataclass
class FakeGateway:
    """Both managers of a gateway, between a fake authenticator and a fake mesh."""

    settings: Settings
    authenticator: FakeAuthenticator
    handlers: HandlerManager
    mesh: FakeMesh
    manager: ServiceMeshManager
    clock: Clock

    async def connect(self, token: str = "alice") -> FakeHandler:
        """Register a new connection."""
        handler = FakeHandler()
        await self.handlers.register(handler, token)
        return handler

    def receive(self, handler: FakeHandler, kind: str, **payload: Any) -> list[dict[str, Any]]:
        """Pass on a frame of the client; return the frames that it got at once."""
        before = len(handler.frames)
        self.handlers.on_handler_message(handler, json.dumps({"type": kind, "payload": payload}))
        return handler.frames[before:]

    def request(
        self, handler: FakeHandler, method: str = "get", *, service: str = "orders", **payload: Any
    ) -> list[dict[str, Any]]:
        """Have the client call a method; return the frames that it got at once."""
        return self.receive(handler, "request", service=service, method=method, **payload)

    def know(self, service: str = "orders", methods: Mapping[str, Any] | Sequence[str] = ("get", "put")) -> None:
        """Fetch the description of a service, without a call."""
        self.manager.calls.descriptions.look_up(service, 60.0, lambda found: None)
        self.mesh.describe(service, methods)

    async def pass_time(self, seconds: float, condition: Callable[[], object]) -> None:
        """Move the clock, and wait until ``condition`` holds."""
        self.clock.now += seconds
        await until(condition)

    async def sweep(self, seconds: float) -> None:
        """Move the clock, and wait until all deadlines up to then were checked."""
        self.clock.now += seconds
        await until(lambda: self.manager.calls.table.looked_at > self.clock.now)

    def assert_idle(self) -> None:
        """Check that no call is in flight, and that nothing is kept for connections that ended."""
        manager = self.manager
        assert manager.in_flight == 0
        assert not manager.calls.descriptions.waiting
        assert not any(map(manager.client_calls.in_flight, self.handlers.handlers))
        if not len(self.handlers):
            assert not len(manager.client_calls)
            assert not manager.events.sessions
            assert not manager.events.subscriptions
            assert manager.events.history.is_idle
            assert self.handlers.is_idle


def make_gateway(
    controller: ServiceMeshManagerController | None = None,
    *,
    policy: Policy | None = None,
    mesh: FakeMesh | None = None,
    **settings: Any,
) -> FakeGateway:
    """Make a gateway that is not started. Clients may do everything, unless ``policy`` says otherwise."""
    made = Settings(**({"targeted_topics": ()} | settings))
    authenticator = FakeAuthenticator()
    policy = policy or ExposePolicy(["*.*"], ["#"])
    mesh = mesh or FakeMesh()
    clock = Clock(1000.0)  # whole seconds can be added and compared exactly
    handlers = HandlerManager(made, authenticator, policy, clock=clock)
    kept_topics = parse_kept_topics(made.history)
    manager = ServiceMeshManager(made, handlers, mesh, policy, controller, kept_topics=kept_topics, clock=clock)
    return FakeGateway(made, authenticator, handlers, mesh, manager, clock)


@contextlib.asynccontextmanager
async def running(controller: ServiceMeshManagerController | None = None, **options: Any) -> AsyncIterator[FakeGateway]:
    """Run a gateway with a clock that only the test moves."""
    gateway = make_gateway(controller, **options)
    async with gateway.manager:
        yield gateway


async def end_call(gateway: FakeGateway, handler: FakeHandler, message: CallMessage, how: str) -> None:
    """End a call in one of the ways a call can end; ``handler`` is its client."""
    mesh, correlation_id = gateway.mesh, message.correlation_id
    if how == "reply":
        mesh.reply(message, "done")
    elif how == "error":
        mesh.reply(message, error={"error": "NuropbValidationError", "description": "no"})
    elif how == "bug":
        mesh.reply(message, error={"error": "NuropbException", "description": "Runtime exception"})
    elif how == "too large":
        mesh.reply(message, "x" * gateway.settings.outbox_size)
    elif how == "unreadable":
        mesh.unreadable(message)
    elif how == "returned":
        mesh.told.on_returned(correlation_id)
    elif how == "failed":
        mesh.told.on_rejected(correlation_id)
    elif how == "lost":
        mesh.told.on_unconfirmed(correlation_id)
    elif how == "cancel":
        gateway.receive(handler, "cancel", id="1")
    elif how == "timeout":
        waited = gateway.manager.statistics.timeouts
        in_flight = gateway.manager.in_flight
        await gateway.pass_time(61.0, lambda: gateway.manager.statistics.timeouts == waited + in_flight)
    else:
        gateway.handlers.unregister(handler)


async def application_call(gateway: FakeGateway, **options: Any) -> tuple[asyncio.Task[Any], CallMessage]:
    """Start a request of the host application, and wait until it is sent."""
    task = asyncio.create_task(gateway.manager.request("orders", "get", **options))
    sent = len(gateway.mesh.calls)
    await until(lambda: len(gateway.mesh.calls) > sent)
    return task, gateway.mesh.calls[-1]


class FakeReceiver:
    """A receiver of checked frames that keeps them, and keeps the handlers that left."""

    def __init__(self) -> None:
        self.frames: list[tuple[Handler, ClientFrame]] = []
        self.gone: list[Handler] = []
        #: Raised for every frame, once it is set.
        self.error: Exception | None = None
        #: Awaited by handlers that arrive, once it is set.
        self.gate: asyncio.Event | None = None
        self.arrived = 0
        self.on_refreshed: Callable[[Handler], None] | None = None

    def on_handler_message_received(self, handler: Handler, frame: ClientFrame) -> None:
        self.frames.append((handler, frame))
        if self.error is not None:
            raise self.error

    async def on_handler_arriving(self) -> None:
        self.arrived += 1
        if self.gate is not None:
            await self.gate.wait()

    def on_handler_registered(self, handler: Handler) -> None:
        """Do nothing."""

    def on_handler_unregistered(self, handler: Handler) -> None:
        self.gone.append(handler)

    def on_handler_parked(self, handler: Handler) -> None:
        pass

    def on_handler_refreshed(self, handler: Handler) -> None:
        if self.on_refreshed is not None:
            self.on_refreshed(handler)

    def calls_in_flight(self, handler: Handler) -> int:
        return 0


class HandlerHarness:
    """A HandlerManager between fakes: an authenticator, a receiver, and a clock that only the test moves.

    Clients may do everything, unless ``expose``, ``topics`` or ``policy`` say otherwise.
    """

    def __init__(
        self,
        *,
        expose: list[str] | None = None,
        topics: list[str] | None = None,
        policy: ExposePolicy | None = None,
        shared_limits: SharedLimits | None = None,
        **settings: Any,
    ) -> None:
        self.authenticator = FakeAuthenticator()
        self.receiver = FakeReceiver()
        self.clock = Clock(1000.0)
        policy = policy or ExposePolicy(["*.*"] if expose is None else expose, ["#"] if topics is None else topics)
        self.manager = HandlerManager(
            Settings(**settings), self.authenticator, policy, shared_limits=shared_limits, clock=self.clock
        )
        self.manager.bind_receiver(self.receiver)

    async def connect(self, token: str = "alice") -> FakeHandler:
        """Register a new connection."""
        handler = FakeHandler()
        await self.manager.register(handler, token)
        return handler

    def receive(self, handler: FakeHandler, frame: Any) -> ClientFrame | None:
        """Pass on a frame of the client: a text, or anything else as JSON."""
        return self.manager.on_handler_message(handler, frame if isinstance(frame, str) else json.dumps(frame))

    def assert_empty(self) -> None:
        """Check that nothing is kept for any connection."""
        assert len(self.manager) == 0
        assert self.manager.handlers == ()
        assert self.manager.is_idle
        assert self.manager.admission.is_idle


def request_frame(**payload: Any) -> dict[str, Any]:
    """Make a request for ``orders.get``, unless ``payload`` names another method."""
    return {"type": "request", "payload": {"service": "orders", "method": "get", **payload}}


def authorize_frame(token: str, **payload: Any) -> dict[str, Any]:
    """Make an ``authorize`` frame."""
    return {"type": "authorize", "payload": {"token": token, **payload}}
