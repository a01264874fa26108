from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import anyio
import anyio.lowlevel
import pytest

from nuropb_gateway_asgi.exceptions import MeshUnavailable
from nuropb_gateway_asgi.mesh.embedded import EmbeddedMesh
from nuropb_gateway_asgi.wire.interface import CallMessage, EventMessage, Mesh, Reply
from nuropb_gateway_asgi.wire.services import PublishEvent, Runnable

from .fakes import strict_json, until


class Receiver:
    """A receiver that keeps everything."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Any]] = []
        self.events: list[EventMessage] = []
        self.changes: list[bool] = []
        #: Calls of on_records_read.
        self.records_read = 0
        #: Messages of other transports, and records.
        self.said: list[bytes] = []
        self.expected = True

    def expects(self, correlation_id: str) -> bool:
        return self.expected

    def on_reply(self, reply: Reply) -> None:
        self.told.append(("reply", (reply.correlation_id, strict_json(bytes(reply.result)), reply.error)))

    def on_unreadable(self, correlation_id: str) -> None:
        self.told.append(("unreadable", correlation_id))

    def on_returned(self, correlation_id: str) -> None:
        self.told.append(("returned", correlation_id))

    def on_confirmed(self, correlation_id: str) -> None:
        self.told.append(("taken", correlation_id))

    def on_rejected(self, correlation_id: str) -> None:
        self.told.append(("failed", correlation_id))

    def on_dead_lettered(self, correlation_id: str) -> None:
        self.told.append(("dead-lettered", correlation_id))

    def on_too_large(self, correlation_id: str, description: str) -> None:
        raise AssertionError

    def on_replies_lost(self) -> None:
        raise AssertionError("the embedded mesh loses no replies")

    def on_unconfirmed(self, correlation_id: str) -> None:
        self.told.append(("lost", correlation_id))

    def on_event(self, event: EventMessage) -> None:
        self.events.append(event)

    def on_gap(self, reason: str) -> None: ...

    def on_topic_refused(self, topic: str) -> None:
        raise AssertionError

    def on_peer_message(self, message: bytes) -> None:
        self.said.append(message)

    def on_record(self, record: bytes) -> None:
        self.said.append(record)

    def on_records_read(self) -> None:
        self.records_read += 1

    def on_connection_change(self, *, connected: bool) -> None:
        self.changes.append(connected)


class NuropbCallAgain(Exception):
    """Known by its name."""


class NuropbSuccess(Exception):
    """Known by its name."""

    def __init__(self, result: Any, events: Any) -> None:
        self.result, self.events = result, events


class Service:
    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.events: list[tuple[Any, ...]] = []
        self.gate: asyncio.Event | None = None
        self.act: Callable[[], Any] = lambda: None

    def echo(self, **params: Any) -> Any:
        self.calls.append(params)
        return params

    def raises(self) -> None:
        raise ValueError("db.internal")

    def does(self) -> Any:
        return self.act()

    async def waits(self) -> str:
        assert self.gate is not None
        self.calls.append("waits")
        try:
            await self.gate.wait()
        finally:
            self.calls.append("waited")
        return "waited"

    def again(self, times: int) -> Any:
        self.calls.append(times)
        if len(self.calls) <= times:
            raise NuropbCallAgain
        return "at last"

    def whoami(self, ctx: dict[str, Any]) -> Any:
        return ctx

    whoami.__nuropb_context__ = True  # type: ignore[attr-defined]

    def _handle_event_(self, *event: Any) -> None:
        self.events.append(event)


class Controller:
    def greet(self, name: str = "you") -> str:
        return f"hello {name}"

    def _handle_event_(self, *event: Any) -> None:
        raise AssertionError("the controller hears of events from the manager")


class House:
    """A mesh with two services, and its receiver."""

    def __init__(self) -> None:
        self.orders, self.users, self.receiver = Service(), Service(), Receiver()
        self.mesh = EmbeddedMesh({"orders": self.orders, "users": self.users, "silent": object()}, service_name="gw")
        self.mesh.bind(self.receiver, Controller())

    def send(self, method: str, params: Any = None, *, service: str = "orders", **fields: Any) -> str:
        """Send a message; return its correlation id."""
        message = CallMessage(
            kind=fields.pop("kind", "request"),
            correlation_id=uuid4().hex,
            trace_id="t",
            service=service,
            method=method,
            params=json.dumps(params or {}).encode(),
            context=b'{"user_id":"alice"}',
            deadline=time.monotonic() + fields.pop("timeout", 30.0),
            timeout=30.0,
        )
        self.mesh.send(message)
        return message.correlation_id

    def publish(self, topic: str, event: bytes = b"1", target: list[str] | None = None) -> None:
        self.mesh.publish(topic, event, context=b'{"user_id":"alice"}', trace_id="t", target=target)

    async def told(self) -> tuple[str, Any]:
        """Wait for the next call of the receiver."""
        await until(lambda: self.receiver.told)
        return self.receiver.told.pop(0)

    async def reply(self) -> tuple[Any, Any]:
        """Wait for the next reply: result and error."""
        kind, (_, result, error) = await self.told()
        assert kind == "reply"
        return result, error


@pytest.fixture
def house() -> House:
    return House()


def test_it_is_a_mesh(house: House) -> None:
    mesh: Mesh = house.mesh
    assert not mesh.connected
    assert mesh.problem == "the mesh is not running"


# --- its life -------------------------------------------------------------------------------------------


async def test_it_is_connected_as_long_as_it_runs(house: House) -> None:
    for _ in range(2):
        async with house.mesh as entered:
            assert entered is house.mesh
            assert house.mesh.connected
            assert house.mesh.problem is None
        assert not house.mesh.connected
    assert house.receiver.changes == [True, False] * 2


async def test_it_has_no_records_to_read(house: House) -> None:
    async with house.mesh:
        assert house.receiver.records_read == 1


async def test_leaving_what_was_not_entered_changes_nothing(house: House) -> None:
    await house.mesh.__aexit__(None, None, None)
    assert not house.mesh.connected


@pytest.mark.parametrize("when", ["before", "after"])
async def test_what_does_not_run_takes_nothing(house: House, when: str) -> None:
    if when == "after":
        async with house.mesh:
            pass
    with pytest.raises(MeshUnavailable):
        house.send("echo")
    with pytest.raises(MeshUnavailable):
        house.publish("orders.new")
    assert not house.receiver.told


async def test_without_a_receiver_it_does_not_run() -> None:
    with pytest.raises(RuntimeError, match="bind"):
        await EmbeddedMesh({}).__aexit__(None, None, None)


async def test_a_call_that_runs_at_the_end_is_cancelled_and_not_answered(house: House) -> None:
    house.orders.gate = asyncio.Event()
    async with house.mesh:
        house.send("waits")
        await until(lambda: house.orders.calls)
    assert house.orders.calls == ["waits", "waited"]
    assert not house.receiver.told


async def test_an_exception_of_the_application_passes(house: House) -> None:
    with pytest.raises(KeyError):
        async with house.mesh:
            raise KeyError
    assert not house.mesh.connected


# --- calls ----------------------------------------------------------------------------------------------


async def test_a_request_is_answered_once(house: House) -> None:
    async with house.mesh:
        correlation_id = house.send("echo", {"a": [1, "é"]})
        assert await house.told() == ("reply", (correlation_id, {"a": [1, "é"]}, None))
        house.send("raises")
        result, error = await house.reply()
        assert result is None
        assert error["description"] == "Runtime exception calling orders.raises:ValueError: db.internal"
        await anyio.wait_all_tasks_blocked()
        assert not house.receiver.told


async def test_a_method_sees_the_context_of_the_call(house: House) -> None:
    async with house.mesh:
        house.send("whoami")
        assert await house.reply() == ({"user_id": "alice"}, None)


async def test_nothing_is_told_before_sending_is_over(house: House) -> None:
    async with house.mesh:
        house.send("echo")
        house.send("echo", kind="command")
        house.send("echo", service="nobody")
        assert not house.receiver.told
        await until(lambda: len(house.receiver.told) == 3)


@pytest.mark.parametrize("kind", ["request", "command"])
async def test_a_message_to_nobody_is_returned(house: House, kind: str) -> None:
    async with house.mesh:
        correlation_id = house.send("echo", service="nobody", kind=kind)
        assert await house.told() == ("returned", correlation_id)
        await anyio.wait_all_tasks_blocked()
        assert not house.receiver.told


async def test_a_command_is_taken_and_never_answered(house: House) -> None:
    async with house.mesh:
        correlation_id = house.send("echo", kind="command")
        assert await house.told() == ("taken", correlation_id)
        await anyio.wait_all_tasks_blocked()
        assert not house.receiver.told
    assert house.orders.calls == [{}]


@pytest.mark.parametrize("method", ["raises", "nothing"])
async def test_a_command_that_fails_is_taken_and_dead_lettered(house: House, method: str) -> None:
    async with house.mesh:
        correlation_id = house.send(method, kind="command")
        assert await house.told() == ("taken", correlation_id)
        assert await house.told() == ("dead-lettered", correlation_id)


async def test_services_describe_themselves(house: House) -> None:
    async with house.mesh:
        house.send("nuropb_describe")
        result, error = await house.reply()
        assert error is None
        assert "echo" in result["methods"]


async def test_the_controller_is_called_by_the_name_of_the_gateway(house: House) -> None:
    async with house.mesh:
        house.send("greet", {"name": "Alice"}, service="gw")
        assert await house.reply() == ("hello Alice", None)


async def test_calls_run_side_by_side(house: House) -> None:
    house.orders.gate = asyncio.Event()
    async with house.mesh:
        house.send("waits")
        house.send("echo")
        assert await house.reply() == ({}, None)
        house.orders.gate.set()
        assert await house.reply() == ("waited", None)


async def test_what_expired_is_not_called(house: House) -> None:
    async with house.mesh:
        house.send("echo", timeout=0.0)
        house.send("echo", kind="command", timeout=-1.0)
        await anyio.wait_all_tasks_blocked()
    assert not house.orders.calls
    assert [kind for kind, _ in house.receiver.told] == ["taken"]


async def test_a_call_that_nobody_waits_for_runs_to_its_end(house: House) -> None:
    house.orders.gate = asyncio.Event()
    async with house.mesh:
        correlation_id = house.send("waits")
        await until(lambda: house.orders.calls)
        house.receiver.expected = False
        house.mesh.forget(correlation_id)
        house.orders.gate.set()
        await until(lambda: len(house.orders.calls) == 2)
        await anyio.wait_all_tasks_blocked()
    assert not house.receiver.told


@pytest.mark.parametrize(("times", "error"), [(0, None), (1, None), (2, "NuropbCallAgainReject")])
async def test_a_call_is_made_again_once(house: House, times: int, error: str | None) -> None:
    async with house.mesh:
        house.send("again", {"times": times})
        result, failure = await house.reply()
    assert result == (None if error else "at last")
    assert (failure or {}).get("error") == error
    assert len(house.orders.calls) == min(times, 1) + 1


@pytest.mark.parametrize("value", [float("nan"), [float("inf")], "\ud800"])
async def test_a_result_that_only_python_reads_is_told_apart(house: House, value: Any) -> None:
    house.orders.act = lambda: value
    async with house.mesh:
        correlation_id = house.send("does")
        assert await house.told() == ("unreadable", correlation_id)


def raising(error: BaseException) -> Callable[[], Any]:
    def act() -> None:
        raise error

    return act


@pytest.mark.parametrize(
    "act",
    [
        raising(asyncio.CancelledError("another task")),
        raising(NuropbSuccess(1, [{"topic": 7, "payload": 1}])),
        raising(NuropbSuccess(1, [{"topic": "a", "payload": {("b",): 1}}])),
        raising(NuropbSuccess(1, [7])),
        lambda: {("a", "b"): 1},
    ],
)
async def test_a_service_that_misbehaves_harms_nobody_else(house: House, act: Callable[[], Any]) -> None:
    house.orders.act = act
    async with house.mesh:
        house.send("does")
        result, error = await house.reply()
        assert result is None
        assert error is not None
        house.send("echo", service="users")
        assert await house.reply() == ({}, None)


# --- events ---------------------------------------------------------------------------------------------


def done(bound: bool) -> None:
    """It is bound."""


async def test_an_event_comes_to_the_gateway_if_it_subscribed(house: House) -> None:
    bound: list[str] = []
    async with house.mesh:
        house.mesh.subscribe("orders.*", lambda ok: bound.append("orders.*"))
        assert bound == ["orders.*"]
        house.mesh.subscribe("orders.*", done)
        house.mesh.subscribe("orders.new", done)
        house.publish("orders.new", b'{"id":7}', ["alice"])
        house.publish("users.new")
        assert not house.receiver.events
        await until(lambda: house.receiver.events)
        await anyio.wait_all_tasks_blocked()
        (event,) = house.receiver.events
        assert (event.topic, strict_json(bytes(event.event)), event.target) == ("orders.new", {"id": 7}, ["alice"])
        assert (event.trace_id, strict_json(bytes(event.context))) == ("t", {"user_id": "alice"})
        house.mesh.unsubscribe("orders.*")
        house.mesh.unsubscribe("orders.new")
        house.mesh.unsubscribe("never")
        house.publish("orders.new")
        await anyio.wait_all_tasks_blocked()
        assert len(house.receiver.events) == 1


async def test_an_event_comes_to_every_service_that_listens(house: House) -> None:
    async with house.mesh:
        house.publish("orders.new", b'{"id":7}', ["bob"])
        await anyio.wait_all_tasks_blocked()
    expected = [("orders.new", {"id": 7}, ["bob"], {"user_id": "alice"})]
    assert house.orders.events == house.users.events == expected


@pytest.mark.parametrize("event", [b"NaN", b"[Infinity]", b'"\\ud800"'])
async def test_an_event_that_only_python_reads_does_not_come_to_the_gateway(
    house: House, event: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with house.mesh:
        house.mesh.subscribe("#", done)
        house.publish("orders.new", event)
        house.publish("orders.new", b"2")
        await until(lambda: house.receiver.events)
    assert [bytes(message.event) for message in house.receiver.events] == [b"2"]
    assert len(house.orders.events) == 2
    assert "dropped" in caplog.text


async def test_events_come_with_a_success(house: House) -> None:
    events = [{"topic": "orders.new", "payload": {"id": 7}, "target": ["alice"]}, {"topic": "a", "payload": 1}]
    house.orders.act = raising(NuropbSuccess("done", events))
    async with house.mesh:
        house.mesh.subscribe("orders.#", done)
        house.send("does")
        assert await house.reply() == ("done", None)
        await until(lambda: house.receiver.events)
    (event,) = house.receiver.events
    assert (event.topic, strict_json(bytes(event.event)), event.target) == ("orders.new", {"id": 7}, ["alice"])
    assert event.trace_id


# --- services that run ----------------------------------------------------------------------------------


class Ticker:
    """Publishes when it starts, and again when it is told to stop."""

    def __init__(self) -> None:
        self.publish: PublishEvent | None = None

    async def _run_(self, publish: PublishEvent) -> None:
        self.publish = publish
        publish("ticks.first", {"count": 1})
        try:
            await anyio.sleep_forever()
        finally:
            publish("ticks.last", {"count": 2}, ["alice"])


async def test_a_service_that_runs_does_so_as_long_as_the_mesh() -> None:
    ticker, receiver = Ticker(), Receiver()
    assert isinstance(ticker, Runnable)
    mesh = EmbeddedMesh({"ticker": ticker, "silent": object()})
    mesh.bind(receiver, object())
    mesh.subscribe("#", done)
    async with mesh:
        await until(lambda: receiver.events)
        assert ticker.publish is not None
        ticker.publish("ticks.second", None, ["bob"])
        await until(lambda: len(receiver.events) == 2)
    assert [(event.topic, event.target) for event in receiver.events] == [
        ("ticks.first", None),
        ("ticks.second", ["bob"]),
    ]
    ticker.publish("ticks.late", None)


async def test_what_cannot_be_published_is_the_fault_of_the_publisher() -> None:
    ticker, receiver = Ticker(), Receiver()
    mesh = EmbeddedMesh({"ticker": ticker})
    mesh.bind(receiver, object())
    async with mesh:
        await until(lambda: ticker.publish)
        assert ticker.publish is not None
        with pytest.raises(TypeError):
            ticker.publish("ticks.bad", {("a", "b"): 1})


# --- transports ---------------------------------------------------------------------------------------------------


class Family:
    """A mesh and one for another transport, each with its receiver."""

    def __init__(self, services: dict[str, object]) -> None:
        self.first, self.second = Receiver(), Receiver()
        self.mesh = EmbeddedMesh(services, service_name="gw")
        self.other = self.mesh.for_transport("gw-2")
        self.mesh.bind(self.first, Controller())
        self.other.bind(self.second, object())
        for mesh in (self.mesh, self.other):
            mesh.subscribe("#", done)


async def test_all_transports_have_the_same_services_which_run_once() -> None:
    ticker = Ticker()
    family = Family({"ticker": ticker})
    async with family.mesh, family.other:
        await until(lambda: ticker.publish)
        assert ticker.publish is not None
        ticker.publish("ticks.second", 2)
        await until(lambda: len(family.second.events) == len(family.first.events) == 2)
    assert [event.topic for event in family.first.events] == ["ticks.first", "ticks.second"]
    assert family.first.changes == family.second.changes == [True, False]


async def test_an_event_of_one_transport_reaches_all_of_them_while_they_run() -> None:
    family = Family({})
    async with family.mesh:
        async with family.other:
            family.other.publish("a", b"1", context=b"{}", trace_id="t", target=None)
            await until(lambda: family.first.events and family.second.events)
        family.mesh.publish("b", b"2", context=b"{}", trace_id="t", target=None)
        await until(lambda: len(family.first.events) == 2)
    assert [event.topic for event in family.second.events] == ["a"]


async def test_transports_send_each_other_messages() -> None:
    family = Family({})
    assert family.mesh.address != family.other.address
    async with family.mesh, family.other:
        family.mesh.tell(family.other.address, b"one")
        family.mesh.tell("nobody", b"two")
        family.other.broadcast(b"three")
        await family.other.record(b"four")
        await until(lambda: len(family.second.said) == 3 and len(family.first.said) == 2)
    assert sorted(family.first.said) == [b"four", b"three"]
    assert sorted(family.second.said) == [b"four", b"one", b"three"]
    with pytest.raises(MeshUnavailable):
        family.mesh.tell(family.other.address, b"late")
