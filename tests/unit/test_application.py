"""Calls, events and descriptions for the host application."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import anyio
import pytest

from nuropb_gateway_asgi.authentication import Identity
from nuropb_gateway_asgi.authorization import ExposePolicy
from nuropb_gateway_asgi.exceptions import CallError, MeshUnavailable, MessageTooLarge, NotStartedError
from nuropb_gateway_asgi.wire.interface import Reply
from tests.kit.waiting import DEADLINE

from .fakes import FakeGateway, FakeHandler, application_call, end_call, running, strict_json, until

# --- calls and events -----------------------------------------------------------------------------------


async def test_the_host_calls_and_gets_the_result(gateway: FakeGateway) -> None:
    gateway.know()
    identity = Identity(user_id="alice", username="Alice", token="alice/1")
    task, message = await application_call(gateway, params={"id": 7}, identity=identity, timeout=5.0, trace_id="t")
    assert (message.kind, message.trace_id, message.deadline) == ("request", "t", gateway.clock.now + 5)
    assert strict_json(bytes(message.params)) == {"id": 7}
    assert strict_json(message.context) == {
        "user_id": "alice",
        "Authorization": "Bearer alice/1",
        "trace_id": "t",
        "session_id": None,
    }
    gateway.mesh.reply(message, {"total": 3})
    assert await task == {"total": 3}
    gateway.assert_idle()


async def test_the_host_calls_for_nobody_unless_it_says_for_whom(gateway: FakeGateway) -> None:
    gateway.know()
    task, message = await application_call(gateway)
    context = strict_json(message.context)
    assert (context["user_id"], context["Authorization"]) == (None, None)
    assert context["trace_id"] == message.trace_id != ""
    assert bytes(message.params) == b"{}"
    assert message.deadline == gateway.clock.now + gateway.settings.request_timeout
    gateway.mesh.reply(message)
    assert await task is None


async def test_the_policy_for_clients_does_not_apply_to_the_host() -> None:
    async with running(policy=ExposePolicy([], [])) as gateway:
        gateway.know()
        task, message = await application_call(gateway)
        gateway.mesh.reply(message, 1)
        assert await task == 1


HOST_ERRORS = [
    # end of the call, code, class, retryable
    ("error", "invalid_params", "NuropbValidationError", False),
    ("bug", "service_error", "NuropbException", False),
    ("unreadable", "service_error", "NuropbHandlingError", False),
    ("returned", "service_unavailable", "NuropbNotDeliveredError", True),
    ("failed", "mesh_unavailable", "NuropbTransportError", True),
    ("timeout", "timeout", "NuropbTimeoutError", False),
]


@pytest.mark.parametrize(("how", "code", "error", "retryable"), HOST_ERRORS)
async def test_a_call_of_the_host_fails_with_the_code_of_the_protocol(
    gateway: FakeGateway, how: str, code: str, error: str, retryable: bool
) -> None:
    gateway.know()
    task, message = await application_call(gateway)
    await end_call(gateway, FakeHandler(), message, how)
    with pytest.raises(CallError) as caught:
        await task
    assert (caught.value.code, caught.value.error, caught.value.retryable) == (code, error, retryable)
    for later in ("reply", "error", "returned", "failed", "unreadable"):
        await end_call(gateway, FakeHandler(), message, later)
    gateway.assert_idle()


async def test_the_host_may_have_results_of_any_size(gateway: FakeGateway) -> None:
    # OUTBOX_SIZE bounds the queues of clients; a result for the application goes through none.
    gateway.know()
    task, message = await application_call(gateway)
    gateway.mesh.reply(message, "x" * gateway.settings.outbox_size)
    assert len(await task) == gateway.settings.outbox_size


async def test_a_result_that_python_cannot_hold_is_an_error_of_the_service(gateway: FakeGateway) -> None:
    gateway.know()
    task, message = await application_call(gateway)
    gateway.mesh.told.on_reply(Reply(message.correlation_id, b"1e999"))
    with pytest.raises(CallError) as caught:
        await task
    assert caught.value.code == "service_error"


@pytest.mark.parametrize("method", ["nothing", "get"])
async def test_a_call_of_the_host_may_fail_at_once(gateway: FakeGateway, method: str) -> None:
    gateway.know()
    if method == "get":
        gateway.mesh.lose()
    with pytest.raises(CallError) as caught:
        await gateway.manager.request("orders", method)
    assert caught.value.code == ("method_not_found" if method == "nothing" else "mesh_unavailable")
    gateway.assert_idle()


async def test_a_call_of_the_host_that_is_cancelled_is_forgotten(gateway: FakeGateway) -> None:
    gateway.know()
    task, message = await application_call(gateway)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert gateway.mesh.forgotten == [message.correlation_id]
    gateway.assert_idle()
    assert not gateway.mesh.reply(message)
    assert gateway.manager.statistics.late_replies == 1


async def test_a_call_of_the_host_that_is_cancelled_while_it_waits_for_a_description_is_not_sent(
    gateway: FakeGateway,
) -> None:
    task = asyncio.create_task(gateway.manager.request("orders", "get"))
    await until(lambda: gateway.mesh.describes)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    gateway.mesh.describe("orders", ["get"])
    assert not gateway.mesh.calls
    gateway.assert_idle()


@pytest.mark.parametrize("how", ["reply", "error", "returned"])
async def test_a_call_of_the_host_that_ends_as_it_is_cancelled_is_cancelled(gateway: FakeGateway, how: str) -> None:
    gateway.know()
    task, message = await application_call(gateway)
    await end_call(gateway, FakeHandler(), message, how)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    gateway.assert_idle()
    task, message = await application_call(gateway)
    task.cancel()
    await end_call(gateway, FakeHandler(), message, how)
    with pytest.raises(asyncio.CancelledError):
        await task
    gateway.assert_idle()


@pytest.mark.parametrize("timeout", [0.0, -1.0, -3600.0])
async def test_a_call_whose_time_is_up_before_it_begins_ends(gateway: FakeGateway, timeout: float) -> None:
    gateway.know()
    await gateway.sweep(1.0)
    task, _ = await application_call(gateway, timeout=timeout)
    gateway.clock.now += 0.2
    with pytest.raises(CallError) as caught, anyio.fail_after(DEADLINE):
        await task
    assert caught.value.code == "timeout"


@pytest.mark.parametrize("timeout", [float("inf"), float("nan")])
async def test_a_call_that_never_ends_is_refused(gateway: FakeGateway, timeout: float) -> None:
    gateway.know()
    with pytest.raises(ValueError, match="timeout"):
        await gateway.manager.request("orders", "get", timeout=timeout)
    gateway.assert_idle()


@pytest.mark.parametrize("params", [{("a", "b"): 1}, {"a": {("b",): 1}}])
async def test_params_that_are_no_json_are_the_fault_of_the_host(
    gateway: FakeGateway, params: Mapping[Any, Any]
) -> None:
    with pytest.raises(TypeError):
        await gateway.manager.request("orders", "get", params)
    gateway.assert_idle()


async def test_a_command_of_the_host_returns_once_the_mesh_has_taken_it(gateway: FakeGateway) -> None:
    gateway.know()
    task = asyncio.create_task(gateway.manager.command("orders", "put", {"id": 7}, trace_id="t"))
    await until(lambda: gateway.mesh.calls)
    (message,) = gateway.mesh.calls
    assert (message.kind, message.trace_id) == ("command", "t")
    assert not task.done()
    gateway.mesh.told.on_confirmed(message.correlation_id)
    await task


async def test_a_command_of_the_host_that_nobody_takes_fails(gateway: FakeGateway) -> None:
    gateway.know()
    task = asyncio.create_task(gateway.manager.command("orders", "put"))
    await until(lambda: gateway.mesh.calls)
    gateway.mesh.told.on_returned(gateway.mesh.calls[0].correlation_id)
    with pytest.raises(CallError, match="service_unavailable"):
        await task


async def test_the_host_publishes_events(gateway: FakeGateway) -> None:
    identity = Identity(user_id="alice", username="Alice", token="alice/1")
    await gateway.manager.publish_event("orders.new", {"id": 7})
    await gateway.manager.publish_event("orders.new", 1, target=("bob",), identity=identity, trace_id="t")
    one, two = gateway.mesh.published
    assert (one.topic, one.event, one.target, one.context["user_id"]) == ("orders.new", {"id": 7}, None, None)
    assert one.context["trace_id"] == one.trace_id != ""
    assert (two.event, two.target, two.trace_id, two.context["user_id"]) == (1, ["bob"], "t", "alice")
    assert two.context["Authorization"] == "Bearer alice/1"


@pytest.mark.parametrize("topic", ["", "orders.*", "#", "a\nb", "x" * 256, "goodbye", "closed"])
async def test_what_is_no_topic_is_not_published(gateway: FakeGateway, topic: str) -> None:
    with pytest.raises(ValueError, match="topic"):
        await gateway.manager.publish_event(topic, {})
    assert not gateway.mesh.published


async def test_an_event_that_cannot_be_published_is_an_error_of_the_call(gateway: FakeGateway) -> None:
    gateway.mesh.lose()
    with pytest.raises(CallError) as caught:
        await gateway.manager.publish_event("orders.new", {})
    assert (caught.value.code, caught.value.retryable) == ("mesh_unavailable", True)
    assert isinstance(caught.value.__cause__, MeshUnavailable)


@pytest.mark.parametrize("target", ["bob", b"bob", {"bob": 1}, 5])
async def test_an_event_whose_target_is_no_list_is_refused(gateway: FakeGateway, target: Any) -> None:
    with pytest.raises(TypeError, match="target: not a list of user ids"):
        await gateway.manager.publish_event("orders.new", 1, target=target)
    assert not gateway.mesh.published


async def test_an_event_that_the_mesh_finds_too_large_is_an_error(gateway: FakeGateway) -> None:
    gateway.mesh.error = MessageTooLarge("the limit is 5 bytes")
    with pytest.raises(CallError, match="the limit is 5 bytes") as caught:
        await gateway.manager.publish_event("orders.new", "x" * 10)
    assert caught.value.code == "payload_too_large"


async def test_a_call_that_the_mesh_finds_too_large_is_an_error(gateway: FakeGateway) -> None:
    gateway.know("orders", ["create"])
    gateway.mesh.error = MessageTooLarge("the limit is 5 bytes")
    with pytest.raises(CallError, match="the limit is 5 bytes") as caught:
        await gateway.manager.request("orders", "create", {"text": "x" * 10})
    assert caught.value.code == "payload_too_large"


async def test_in_flight_counts_the_calls_of_the_host(gateway: FakeGateway) -> None:
    gateway.know()
    task, message = await application_call(gateway)
    assert gateway.manager.in_flight == 1
    gateway.mesh.reply(message)
    await task
    assert gateway.manager.in_flight == 0


# --- descriptions ---------------------------------------------------------------------------------------


async def test_a_service_is_asked_what_it_is_whatever_is_known(gateway: FakeGateway) -> None:
    gateway.know("orders", ["get"])
    asked = asyncio.create_task(gateway.manager.describe("orders"))
    await until(lambda: len(gateway.mesh.describes) == 2)
    gateway.mesh.describe("orders", ["get", "put"], service_version="2")
    description = await asked
    assert (list(description.methods or ()), description.version) == (["get", "put"], "2")


@pytest.mark.parametrize(
    ("how", "code"), [("returned", "service_unavailable"), ("failed", "mesh_unavailable"), ("error", None)]
)
async def test_a_service_that_does_not_say_what_it_is(gateway: FakeGateway, how: str, code: str | None) -> None:
    asked = asyncio.create_task(gateway.manager.describe("orders"))
    await until(lambda: gateway.mesh.describes)
    await end_call(gateway, await gateway.connect(), gateway.mesh.describes[0], how)
    if code is None:
        assert (await asked).methods is None
    else:
        with pytest.raises(CallError) as caught:
            await asked
        assert (caught.value.code, caught.value.retryable) == (code, True)
    gateway.assert_idle()


async def test_who_no_longer_waits_for_a_description_is_not_told() -> None:
    async with running() as gateway:
        asked = asyncio.create_task(gateway.manager.describe("orders"))
        await until(lambda: gateway.mesh.describes)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        gateway.mesh.describe("orders", ["get"])
        gateway.assert_idle()
    with pytest.raises(NotStartedError):
        await gateway.manager.describe("orders")
