"""The traffic between a gateway and its mesh, in a recording."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest

from nuropb_gateway_asgi.client import CallTimeout, Client, GatewayError, ServiceUnavailable, connect
from nuropb_gateway_asgi.exceptions import MeshUnavailable
from nuropb_gateway_asgi.mesh.embedded import EmbeddedMesh
from nuropb_gateway_asgi.mocks import CallLog, MockService
from nuropb_gateway_asgi.mocks.faults import Faults
from nuropb_gateway_asgi.mocks.mesh_recording import recorded_mesh
from nuropb_gateway_asgi.mocks.recording import Recording
from nuropb_gateway_asgi.mocks.replay import Replay
from nuropb_gateway_asgi.mocks.traffic import REDACTED, CallRecord, EventRecord, read_traffic
from nuropb_gateway_asgi.wire.errors import NuropbValidationError
from nuropb_gateway_asgi.wire.interface import CallMessage, MeshReceiver, Reply
from tests.kit.gateways import make_gateway, run_gateway
from tests.kit.waiting import eventually
from tests.unit.fakes import FakeMesh


@dataclass
class Recorded:
    """A gateway on an embedded mesh whose traffic is recorded, and a client."""

    mesh: EmbeddedMesh
    faults: Faults
    client: Client
    url: str
    path: Path

    def records(self) -> list[CallRecord | EventRecord]:
        return read_traffic(self.path)[1]

    def calls(self) -> list[CallRecord]:
        return [each for each in self.records() if isinstance(each, CallRecord)]

    def events(self) -> list[EventRecord]:
        return [each for each in self.records() if isinstance(each, EventRecord)]


def create(item: str, password: str = "") -> dict[str, str]:
    if item == "beer":
        raise NuropbValidationError("sold out")
    return {"item": item, "email": "alice@example.com"}


@pytest.fixture
async def recorded(tmp_path: Path) -> AsyncIterator[Recorded]:
    faults, recording = Faults(), Recording(tmp_path / "traffic.jsonl", ["email"])
    service = MockService("orders", {"create": create, "list": []})
    faults.mesh = mesh = EmbeddedMesh({"orders": service}, interceptor=CallLog(faults))
    gateway = make_gateway(
        mesh=recorded_mesh(mesh, recording),
        mesh_url="embedded://demo",
        expose=("*.*",),
        expose_topics=("#",),
        http="on",
    )
    with recording.opened():
        async with run_gateway(gateway) as running, connect(running.url, token="alice", proxy=None) as client:
            yield Recorded(mesh, faults, client, running.url, recording.path)


async def test_calls_are_recorded_with_their_answers_and_without_secrets(recorded: Recorded) -> None:
    await recorded.client.request("orders", "create", {"item": "tea", "password": "hunter2"})
    (call,) = recorded.calls()
    assert (call.type, call.service, call.method) == ("request", "orders", "create")
    assert call.params == {"item": "tea", "password": REDACTED}
    assert (call.result, call.error) == ({"item": "tea", "email": REDACTED}, None)
    assert "hunter2" not in recorded.path.read_text()


async def test_errors_are_recorded_as_clients_know_them(recorded: Recorded) -> None:
    with pytest.raises(GatewayError):
        await recorded.client.request("orders", "create", {"item": "beer"})
    (call,) = recorded.calls()
    assert call.error == {"code": "invalid_params", "description": "sold out", "error": "NuropbValidationError"}


async def test_a_command_is_recorded_once_the_mesh_has_taken_it(recorded: Recorded) -> None:
    await recorded.client.command("orders", "list")
    (call,) = recorded.calls()
    assert (call.type, call.result, call.error) == ("command", None, None)


async def test_calls_without_an_answer_are_recorded(recorded: Recorded) -> None:
    await recorded.client.request("orders", "list")
    recorded.faults.set("lost")
    with pytest.raises(CallTimeout):
        await recorded.client.request("orders", "list", timeout=0.1)
    recorded.faults.set("lost", on=False)
    recorded.faults.set("away")
    with pytest.raises(ServiceUnavailable):
        await recorded.client.request("orders", "list")
    codes = [None if call.error is None else call.error["code"] for call in recorded.calls()]
    assert codes == [None, "timeout", "service_unavailable"]


async def test_an_event_for_several_transports_is_recorded_once_with_its_users(recorded: Recorded) -> None:
    async with recorded.client.subscribe("orders.#") as events:
        recorded.mesh.emit("orders.created", {"number": 1})
        recorded.mesh.emit("orders.created", {"number": 1}, ["alice"])
        for _ in range(2):
            await anext(events)
    await eventually(lambda: len(recorded.events()) == 2)
    assert [(each.topic, each.event, each.users) for each in recorded.events()] == [
        ("orders.created", {"number": 1}, None),
        ("orders.created", {"number": 1}, ["alice"]),
    ]


async def test_the_recording_of_a_mesh_is_replayed_as_that_of_a_client(recorded: Recorded) -> None:
    params: dict[str, Any] = {"item": "tea"}
    answer = await recorded.client.request("orders", "create", params)
    replay = Replay(recorded.path)
    recorded.mesh.host.add("orders", replay.services()["orders"])
    assert await recorded.client.request("orders", "create", params) == {**answer, "email": REDACTED}
    assert replay.report() == []


async def test_a_service_that_sends_a_value_that_is_too_deep_is_recorded_without_it(recorded: Recorded) -> None:
    deep: Any = []
    for _ in range(600):
        deep = [deep]
    recorded.mesh.host.add("orders", MockService("orders", {"list": lambda: deep}))
    await recorded.client.request("orders", "list")
    (call,) = recorded.calls()
    assert call.error is None


class Receiver:
    """A receiver that keeps the names of its calls."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *values: self.told.append(name)


@pytest.fixture
def sent(tmp_path: Path) -> Iterator[tuple[FakeMesh, Receiver, Path]]:
    """A mesh that has taken a call with the correlation id ``id``, and its receiver."""
    recording = Recording(tmp_path / "traffic.jsonl")
    mesh, receiver = FakeMesh(), Receiver()
    with recording.opened():
        taps = recorded_mesh(mesh, recording)
        taps.bind(cast("MeshReceiver", receiver), None)
        deadline = time.monotonic() + 30
        taps.send(CallMessage("request", "id", "trace", "orders", "list", b"{}", b"{}", deadline, 30))
        yield mesh, receiver, recording.path


@pytest.mark.parametrize(
    ("outcome", "values", "code"),
    [
        ("on_unreadable", (), "service_error"),
        ("on_returned", (), "service_unavailable"),
        ("on_rejected", (), "mesh_unavailable"),
        ("on_unconfirmed", (), "timeout"),
        ("on_too_large", ("too large",), None),
        ("on_confirmed", (), None),
    ],
)
def test_each_outcome_of_a_call_is_recorded_and_passed_on(
    outcome: str, values: tuple[str, ...], code: str | None, sent: tuple[FakeMesh, Receiver, Path]
) -> None:
    mesh, receiver, path = sent
    getattr(mesh.told, outcome)("id", *values)
    errors = [each.error["code"] for each in read_traffic(path)[1] if isinstance(each, CallRecord) and each.error]
    assert errors == ([] if code is None else [code])
    assert receiver.told == [outcome]


def test_an_exception_of_another_kind_is_a_service_error(sent: tuple[FakeMesh, Receiver, Path]) -> None:
    mesh, receiver, path = sent
    mesh.told.on_reply(Reply("id", error={"error": "ZeroDivisionError", "description": "division by zero"}))
    (call,) = read_traffic(path)[1]
    assert isinstance(call, CallRecord)
    assert call.error == {"code": "service_error", "description": "division by zero", "error": "ZeroDivisionError"}
    assert receiver.told == ["on_reply"]


def test_a_call_that_the_mesh_does_not_take_raises_and_is_not_recorded(tmp_path: Path) -> None:
    recording = Recording(tmp_path / "traffic.jsonl")
    mesh = FakeMesh(error=MeshUnavailable("away"))
    message = CallMessage("request", "id", "trace", "orders", "list", b"{}", b"{}", time.monotonic() + 30, 30)
    with recording.opened(), pytest.raises(MeshUnavailable):
        recorded_mesh(mesh, recording).send(message)
    assert read_traffic(recording.path)[1] == []
