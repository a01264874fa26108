"""The ServiceMeshManager: its start and end, and all of its parts together."""

from __future__ import annotations

import asyncio
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nuropb_gateway_asgi.exceptions import CallError, NotStartedError
from nuropb_gateway_asgi.protocol import Ping
from nuropb_gateway_asgi.wire.interface import Mesh, MeshReceiver

from .fakes import (
    KEY,
    OTHER_KEY,
    SECRET,
    FakeGateway,
    FakeHandler,
    FakeMesh,
    answers,
    end_call,
    make_gateway,
    running,
    until,
)

# --- life of the manager --------------------------------------------------------------------------------


def test_the_fake_mesh_is_a_mesh_and_the_manager_a_receiver() -> None:
    gateway = make_gateway()
    mesh: Mesh = gateway.mesh
    receiver: MeshReceiver = gateway.manager.receiver
    assert (gateway.mesh.receiver, gateway.manager.mesh) == (receiver, mesh)


async def test_the_mesh_runs_as_long_as_the_context() -> None:
    gateway = make_gateway()
    assert not gateway.manager.started
    for _ in range(2):
        async with gateway.manager as entered:
            assert entered is gateway.manager
            assert gateway.mesh.runs
            assert gateway.manager.started
        assert not gateway.mesh.runs
        assert not gateway.manager.started


async def test_whether_the_mesh_is_there_can_be_asked_for(gateway: FakeGateway) -> None:
    assert gateway.manager.connected
    gateway.mesh.connected, gateway.mesh.problem = False, "the broker sleeps"
    assert not gateway.manager.connected
    assert gateway.manager.problem == "the broker sleeps"


async def test_a_mesh_that_does_not_start_leaves_nothing_running() -> None:
    gateway = make_gateway(mesh=FakeMesh(error=OSError("no")))
    with pytest.RaisesGroup(OSError):
        async with gateway.manager:
            pass
    assert not gateway.manager.started
    gateway.mesh.error = None
    async with gateway.manager:
        assert gateway.manager.started


async def test_an_exception_of_the_application_ends_the_mesh_and_passes() -> None:
    gateway = make_gateway()
    with pytest.RaisesGroup(KeyError):
        async with gateway.manager:
            raise KeyError
    assert not gateway.mesh.runs


async def test_leaving_what_was_not_entered_changes_nothing() -> None:
    gateway = make_gateway()
    await gateway.manager.__aexit__(None, None, None)
    assert not gateway.manager.started


@pytest.mark.parametrize("when", ["before", "after"])
async def test_while_it_does_not_run_calls_are_answered_at_once(when: str) -> None:
    gateway = make_gateway()
    if when == "after":
        async with gateway.manager:
            pass
    handler = await gateway.connect()
    for kind in ("request", "command"):
        gateway.receive(handler, kind, service="orders", method="get", id="1")
    gateway.receive(handler, "describe", id="1")
    assert handler.codes == ["mesh_unavailable"] * 3
    assert not gateway.mesh.sent
    with pytest.raises(NotStartedError):
        await gateway.manager.request("orders", "get")
    with pytest.raises(NotStartedError):
        await gateway.manager.command("orders", "get")
    with pytest.raises(NotStartedError):
        await gateway.manager.publish_event("orders.new", {})
    gateway.handlers.unregister(handler)
    gateway.assert_idle()


async def test_what_is_in_flight_at_the_end_is_answered_and_nothing_is_sent_any_more() -> None:
    async with running() as gateway:
        gateway.manager.calls.descriptions.look_up("orders", 60.0, lambda found: None)
        gateway.mesh.describe("orders", SECRET, public_key=KEY)
        gateway.mesh.describe("orders", SECRET, public_key=KEY)
        handler = await gateway.connect()
        gateway.request(handler, id="sent")
        gateway.receive(handler, "command", service="orders", method="get", id="command")
        gateway.request(handler, service="users", id="waits")
        gateway.receive(handler, "describe", service="users", id="describe")
        gateway.clock.now += 6
        # Both wait for the same description; the second began to wait when it was already on its way.
        gateway.request(handler, "secret", id="stale")
        gateway.request(handler, "secret", id="stale too")
        host = asyncio.create_task(gateway.manager.request("orders", "get"))
        await until(lambda: len(gateway.mesh.calls) == 3)
        sent = len(gateway.mesh.sent)
    with pytest.raises(CallError) as caught:
        await host
    assert caught.value.code == "mesh_unavailable"
    assert set(handler.codes) == {"mesh_unavailable"}
    ids = [answer[0] for answer in answers(handler)]
    assert sorted(ids) == ["command", "describe", "sent", "stale", "stale too", "waits"]
    assert len(gateway.mesh.sent) == sent
    gateway.handlers.unregister(handler)
    gateway.assert_idle()


async def test_frames_that_are_not_for_the_mesh_are_the_fault_of_the_caller(gateway: FakeGateway) -> None:
    with pytest.raises(TypeError, match="Ping"):
        gateway.manager.on_handler_message_received(FakeHandler(), Ping(b""))  # type: ignore[arg-type]


async def test_that_the_mesh_comes_and_goes_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "nuropb_gateway_asgi.routing.receiver")
    async with running() as gateway:
        gateway.mesh.lose()
        gateway.mesh.find()
    gateway.mesh.lose()
    levels = [(record.levelname, record.message) for record in caplog.records]
    assert levels == [("WARNING", "mesh disconnected"), ("INFO", "mesh connected"), ("INFO", "mesh disconnected")]


# --- random sequences of frames and replies -------------------------------------------------------------

MOVES = [
    *("request", "request", "command", "describe", "cancel", "leave", "later"),
    *("reply", "reply", "error", "unreadable", "returned", "failed", "taken", "lost"),
]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(MOVES),
        st.integers(0, 7),
        st.sampled_from([None, "1", "2", "3"]),
        st.sampled_from(["get", "secret", "nothing"]),
    ),
    max_size=40,
)


@given(STEPS)
async def test_whatever_happens_every_frame_has_one_answer(steps: list[tuple[str, int, str | None, str]]) -> None:
    async with running(max_in_flight=5) as gateway:
        handlers = [await gateway.connect("alice"), await gateway.connect("bob")]
        asked: dict[str, tuple[FakeHandler, str]] = {}
        left: list[FakeHandler] = []
        for number, (step, which, id_, method) in enumerate(steps):
            handler = handlers[which % 2]
            trace_id = f"t{number}"
            ids = {"trace_id": trace_id} | ({} if id_ is None else {"id": id_})
            if step in ("request", "command", "describe"):
                payload = {} if step == "describe" and which > 3 else {"service": f"s{which % 3}"}
                if step != "describe":
                    payload["method"] = method
                gateway.receive(handler, step, **payload, **ids)
                asked[trace_id] = (handler, step)
            elif step == "cancel":
                gateway.receive(handler, "cancel", id=id_ or "1")
            elif step == "leave":
                gateway.handlers.unregister(handler)
                left.append(handler)
                handlers[which % 2] = await gateway.connect("carol")
            elif step == "later":
                gateway.clock.now += which
            elif gateway.mesh.sent:
                message = gateway.mesh.sent[-1 - which % len(gateway.mesh.sent)]
                if message.method == "nuropb_describe" and step == "reply":
                    key = KEY if which % 2 else OTHER_KEY
                    gateway.mesh.reply(message, {"methods": SECRET, "public_key": key})
                elif step == "taken":
                    if message.kind == "command":
                        gateway.mesh.told.on_confirmed(message.correlation_id)
                else:
                    await end_call(gateway, handler, message, step)
        gateway.clock.now += 100
        await until(lambda: not gateway.manager.in_flight)
        for trace_id, (handler, step) in asked.items():
            count = sum(frame["payload"].get("trace_id") == trace_id for frame in handler.frames)
            assert count == 1 or (count == 0 and handler in left), (trace_id, step)
        # The converse does not hold: a method that no description marks as secret is called in clear.
        assert all(message.method == "secret" for message in gateway.mesh.sent if message.public_key is not None)
        gateway.assert_idle()
        for handler in handlers:
            gateway.handlers.unregister(handler)
        gateway.assert_idle()
