from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Mapping
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nuropb_gateway_asgi.authentication import Identity
from nuropb_gateway_asgi.authorization import ExposePolicy
from nuropb_gateway_asgi.exceptions import CallError, MeshUnavailable, NotStartedError
from nuropb_gateway_asgi.limits.circuits import ERRORS_ALLOWED, OPEN_AFTER, PAUSE, REFUSALS_ALLOWED
from nuropb_gateway_asgi.protocol import Failure, Ping
from nuropb_gateway_asgi.routing.calls import CallTable
from nuropb_gateway_asgi.wire.description import MAX_AGE_SECONDS, Description
from nuropb_gateway_asgi.wire.interface import CallMessage, Mesh, MeshReceiver, Reply

from .fakes import FakeGateway, FakeHandler, FakeMesh, answers, make_gateway, running, strict_json, until

KEY = "-----BEGIN PUBLIC KEY-----\none\n-----END PUBLIC KEY-----\n"
OTHER_KEY = KEY.replace("one", "two")
SECRET = {"get": {}, "secret": {"requires_encryption": True}}


@pytest.fixture
async def gateway() -> AsyncIterator[FakeGateway]:
    async with running() as gateway:
        yield gateway


# --- its life -------------------------------------------------------------------------------------------


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
        # Both wait for the same description; the second began to wait after it was asked for.
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


# --- what a call becomes --------------------------------------------------------------------------------


async def test_a_request_becomes_a_message_and_the_reply_its_answer(gateway: FakeGateway) -> None:
    gateway.know()
    handler = await gateway.connect("alice/1")
    assert not gateway.request(handler, params={"id": 7}, id="1", trace_id="t")
    (message,) = gateway.mesh.calls
    assert (message.kind, message.service, message.method, message.trace_id) == ("request", "orders", "get", "t")
    assert strict_json(bytes(message.params)) == {"id": 7}
    assert message.deadline == gateway.clock.now + gateway.settings.request_timeout
    assert message.public_key is None
    assert gateway.manager.in_flight == 1
    assert gateway.mesh.reply(message, {"total": 3})
    assert handler.frames == [
        {"type": "response", "payload": {"id": "1", "trace_id": "t", "result": {"total": 3}, "error": None}}
    ]
    gateway.assert_idle()


async def test_params_reach_the_service_as_they_were_written(gateway: FakeGateway) -> None:
    gateway.know()
    handler = await gateway.connect()
    text = '{"type":"request","payload":{"service":"orders","method":"get","params":{"a": 1.50, "b":"\\u00e9"}}}'
    gateway.handlers.on_handler_message(handler, text)
    assert bytes(gateway.mesh.calls[0].params) == b'{"a": 1.50, "b":"\\u00e9"}'


async def test_the_context_is_made_from_the_identity_alone(gateway: FakeGateway) -> None:
    gateway.know()
    handler = await gateway.connect("alice/1")
    smuggled = {
        "context": {"user_id": "root", "roles": ["admin"]},
        "correlation_id": "c" * 32,
        "reply_to": "nuropb-evil-rq",
        "encrypted": "yes",
        "headers": {"nuropb_type": "command"},
        "identity": {"user_id": "root"},
        "user_id": "root",
        "public_key": "mine",
        "deadline": 1e9,
        "ttl": 1,
        "tag": "command",
    }
    envelope = {"type": "request", **smuggled}
    payload = {"service": "orders", "method": "get", "trace_id": "t", **smuggled}
    gateway.handlers.on_handler_message(handler, json.dumps({**envelope, "payload": payload}))
    gateway.receive(handler, "command", **payload)
    request, command = gateway.mesh.calls
    for message in (request, command):
        assert strict_json(message.context) == {
            "user_id": "alice",
            "Authorization": "Bearer alice/1",
            "trace_id": "t",
            "session_id": handler.session_id,
        }
        assert message.correlation_id != "c" * 32
        assert message.public_key is None
        assert message.deadline == gateway.clock.now + gateway.settings.request_timeout
        assert bytes(message.params) == b"{}"
    assert (request.kind, command.kind) == ("request", "command")


async def test_the_context_follows_the_newest_token(gateway: FakeGateway) -> None:
    gateway.know()
    handler = await gateway.connect("alice/1")
    gateway.receive(handler, "authorize", token="alice/2")
    await handler.finish()
    gateway.request(handler)
    assert strict_json(gateway.mesh.calls[0].context)["Authorization"] == "Bearer alice/2"


async def test_what_a_client_says_in_params_stays_in_params(gateway: FakeGateway) -> None:
    gateway.know()
    handler = await gateway.connect()
    gateway.request(handler, params={"context": {"user_id": "root"}, "reply_to": "x"})
    (message,) = gateway.mesh.calls
    assert strict_json(bytes(message.params)) == {"context": {"user_id": "root"}, "reply_to": "x"}
    assert strict_json(message.context)["user_id"] == "alice"


async def test_correlation_ids_are_the_gateways_own(gateway: FakeGateway) -> None:
    gateway.know()
    handlers = [await gateway.connect() for _ in range(2)]
    for handler in handlers:
        for number in range(3):
            gateway.request(handler, id=str(number))
    ids = {message.correlation_id for message in gateway.mesh.calls}
    assert len(ids) == 6
    assert all(len(each) == 32 and int(each, 16) for each in ids)


async def test_a_call_without_trace_id_gets_one_and_the_client_is_told(gateway: FakeGateway) -> None:
    gateway.know()
    handler = await gateway.connect()
    gateway.request(handler)
    (message,) = gateway.mesh.calls
    assert len(message.trace_id) == 32
    gateway.mesh.reply(message)
    assert handler.frames[0]["payload"] == {"trace_id": message.trace_id, "result": None, "error": None}


async def test_an_empty_trace_id_is_the_clients_own(gateway: FakeGateway) -> None:
    gateway.know()
    handler = await gateway.connect()
    gateway.request(handler, trace_id="")
    gateway.mesh.reply(gateway.mesh.calls[0])
    assert handler.frames[0]["payload"]["trace_id"] == ""


async def test_calls_with_the_same_trace_id_and_no_id_are_two_calls(gateway: FakeGateway) -> None:
    gateway.know()
    handler = await gateway.connect()
    gateway.request(handler, trace_id="t")
    gateway.request(handler, trace_id="t")
    for result, message in reversed(list(enumerate(gateway.mesh.calls))):
        gateway.mesh.reply(message, result)
    assert [frame["payload"]["result"] for frame in handler.frames] == [1, 0]


async def test_answers_come_in_the_order_in_which_they_are_ready(gateway: FakeGateway) -> None:
    gateway.know()
    handler = await gateway.connect()
    for number in range(3):
        gateway.request(handler, id=str(number))
    first, second, third = gateway.mesh.calls
    for message in (third, first, second):
        gateway.mesh.reply(message)
    assert [answer[0] for answer in answers(handler)] == ["2", "0", "1"]


@pytest.mark.parametrize(
    ("asked", "granted"), [(None, 20.0), (0.5, 0.5), (40, 40.0), (50.0, 50.0), (51, 50.0), (1e300, 50.0)]
)
async def test_a_client_may_wait_as_long_as_it_likes_up_to_the_maximum(asked: float | None, granted: float) -> None:
    async with running(request_timeout=20.0, request_timeout_max=50.0) as gateway:
        gateway.know()
        handler = await gateway.connect()
        payload: dict[str, Any] = {} if asked is None else {"timeout": asked}
        gateway.request(handler, **payload)
        assert gateway.mesh.calls[0].deadline == gateway.clock.now + granted


# --- how a call ends ------------------------------------------------------------------------------------

ENDINGS = {
    # how it ends: code of the answer
    "reply": None,
    "error": "invalid_params",
    "bug": "service_error",
    "too large": "payload_too_large",
    "unreadable": "service_error",
    "returned": "service_unavailable",
    "failed": "mesh_unavailable",
    "lost": "timeout",
    "cancel": "cancelled",
    "timeout": "timeout",
    "gone": "",
}
NOBODY = "f" * 32


async def end(gateway: FakeGateway, handler: FakeHandler, message: CallMessage, how: str) -> None:
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


@pytest.mark.parametrize("how", ENDINGS)
async def test_a_request_is_answered_once_however_it_ends_and_whatever_comes_later(
    gateway: FakeGateway, how: str
) -> None:
    gateway.know()
    handler = await gateway.connect()
    gateway.request(handler, id="1", trace_id="t")
    (message,) = gateway.mesh.calls
    await end(gateway, handler, message, how)
    gateway.assert_idle()
    code = ENDINGS[how]
    if code == "":
        assert not handler.frames
    else:
        assert handler.codes == [code]
        assert (handler.frames[0]["payload"]["id"], handler.frames[0]["payload"]["trace_id"]) == ("1", "t")
        if code is not None:
            retryable = code in ("service_unavailable", "mesh_unavailable")
            assert handler.frames[0]["payload"]["error"]["retryable"] is retryable
    answered = handler.take()
    for later in ENDINGS:
        await end(gateway, handler, message, later)
    assert not handler.frames, answered
    gateway.assert_idle()


@pytest.mark.parametrize("how", [how for how in ENDINGS if how != "gone"])
async def test_an_id_is_free_again_however_its_request_ended(gateway: FakeGateway, how: str) -> None:
    gateway.know()
    handler = await gateway.connect()
    gateway.request(handler, id="1")
    await end(gateway, handler, gateway.mesh.calls[0], how)
    handler.take()
    gateway.request(handler, id="1")
    gateway.mesh.reply(gateway.mesh.calls[1], "again")
    assert answers(handler) == [("1", "again", None)]


COMMAND_ENDINGS = {
    "taken": None,
    "returned": "service_unavailable",
    "failed": "mesh_unavailable",
    "lost": "timeout",
    "cancel": "cancelled",
    "timeout": "timeout",
    "gone": "",
}


@pytest.mark.parametrize("how", COMMAND_ENDINGS)
async def test_a_command_is_answered_once_however_it_ends_and_whatever_comes_later(
    gateway: FakeGateway, how: str
) -> None:
    gateway.know()
    handler = await gateway.connect()
    gateway.receive(handler, "command", service="orders", method="put", id="1", timeout=5)
    (message,) = gateway.mesh.calls
    assert message.kind == "command"
    assert message.deadline == gateway.clock.now + gateway.settings.request_timeout
    for each in [how, *COMMAND_ENDINGS]:
        if each == "taken":
            gateway.mesh.told.on_confirmed(message.correlation_id)
        else:
            await end(gateway, handler, message, each)
    code = COMMAND_ENDINGS[how]
    assert answers(handler) == ([] if code == "" else [("1", None, code)])
    gateway.assert_idle()


async def test_nobody_replies_to_a_command(gateway: FakeGateway) -> None:
    gateway.know()
    handler = await gateway.connect()
    gateway.receive(handler, "command", service="orders", method="put")
    assert not gateway.mesh.reply(gateway.mesh.calls[0], "forged")
    assert not handler.frames


async def test_the_first_of_two_replies_is_the_true_one(gateway: FakeGateway) -> None:
    gateway.know()
    handler = await gateway.connect()
    gateway.request(handler, id="1")
    (message,) = gateway.mesh.calls
    assert gateway.mesh.reply(message, error={"error": "NuropbValidationError", "description": "no"})
    assert not gateway.mesh.reply(message, "no")
    assert answers(handler) == [("1", None, "invalid_params")]
    assert gateway.manager.statistics.double_replies == 1


async def test_replies_that_nobody_waits_for_are_told_apart(gateway: FakeGateway) -> None:
    gateway.know()
    handler = await gateway.connect()
    gateway.request(handler, id="1")
    gateway.request(handler, id="2")
    one, two = gateway.mesh.calls
    gateway.receive(handler, "cancel", id="1")
    gateway.mesh.reply(two)
    for message in (one, two):
        assert not gateway.mesh.reply(message)
    assert not gateway.mesh.told.expects(NOBODY)
    statistics = gateway.manager.statistics
    assert (statistics.late_replies, statistics.double_replies, statistics.unknown_replies) == (1, 1, 1)
    # One reply is the description's.
    assert (statistics.requests, statistics.replies, statistics.cancelled) == (2, 2, 1)


async def test_ended_calls_are_remembered_and_not_for_ever(gateway: FakeGateway) -> None:
    gateway.manager.calls.table = CallTable(remembered=3)
    gateway.know()
    handler = await gateway.connect()
    for _ in range(7):
        gateway.request(handler)
        gateway.mesh.reply(gateway.mesh.calls[-1])
    for message in list(gateway.mesh.calls):
        assert not gateway.mesh.reply(message)
    statistics = gateway.manager.statistics
    assert statistics.double_replies + statistics.unknown_replies == 7
    assert 3 <= statistics.double_replies <= 6


async def test_a_user_who_cannot_be_written_down_can_call_nothing(gateway: FakeGateway) -> None:
    handler = await gateway.connect("\ud800")
    gateway.request(handler, id="1")
    assert answers(handler) == [("1", None, "internal")]
    assert not gateway.mesh.sent
    gateway.handlers.unregister(handler)
    gateway.assert_idle()
    assert gateway.manager.statistics.abandoned == 0


@pytest.mark.parametrize("how", ["cancel", "timeout", "gone"])
async def test_the_mesh_forgets_what_nobody_waits_for(gateway: FakeGateway, how: str) -> None:
    gateway.know()
    handler = await gateway.connect()
    gateway.request(handler, id="1")
    (message,) = gateway.mesh.calls
    await end(gateway, handler, message, how)
    assert gateway.mesh.forgotten == [message.correlation_id]


@pytest.mark.parametrize("event", ["on_returned", "on_confirmed", "on_rejected", "on_unconfirmed", "on_unreadable"])
async def test_news_of_a_stranger_mean_nothing(gateway: FakeGateway, event: str) -> None:
    getattr(gateway.mesh.told, event)(NOBODY)
    gateway.assert_idle()


async def test_who_takes_the_reply_first_is_not_asked_twice(gateway: FakeGateway) -> None:
    gateway.know()
    handler = await gateway.connect()
    gateway.request(handler)
    (message,) = gateway.mesh.calls
    gateway.mesh.reply(message)
    gateway.mesh.told.on_reply(Reply(message.correlation_id))
    assert len(handler.frames) == 1


@pytest.mark.parametrize(("over", "code"), [(0, None), (1, "payload_too_large")])
async def test_a_result_may_fill_the_outbox_and_not_more(over: int, code: str | None) -> None:
    async with running(outbox_size=1024, max_message_size=512) as gateway:
        gateway.know()
        handler = await gateway.connect()
        gateway.request(handler)
        gateway.mesh.reply(gateway.mesh.calls[0], "x" * (1024 - 2 + over))
        assert handler.codes == [code]


async def test_a_request_ends_when_its_time_is_up_and_not_before(gateway: FakeGateway) -> None:
    gateway.know()
    handler = await gateway.connect()
    gateway.request(handler, id="long")
    gateway.request(handler, id="short", timeout=1.0)
    await gateway.pass_time(1.1, lambda: handler.frames)
    assert answers(handler) == [("short", None, "timeout")]
    await gateway.sweep(28.8)
    assert len(handler.frames) == 1
    await gateway.pass_time(0.2, lambda: len(handler.frames) == 2)
    assert answers(handler)[1] == ("long", None, "timeout")
    assert gateway.manager.statistics.timeouts == 2


async def test_an_unknown_id_is_not_cancelled(gateway: FakeGateway) -> None:
    gateway.know()
    handler, other = await gateway.connect(), await gateway.connect()
    gateway.request(other, id="1")
    assert not gateway.receive(handler, "cancel", id="1")
    gateway.request(handler, id="2")
    assert not gateway.receive(handler, "cancel", id="1")
    assert gateway.manager.in_flight == 2
    assert gateway.manager.statistics.cancelled == 0


async def test_the_correlation_id_of_a_call_does_not_cancel_it_for_others(gateway: FakeGateway) -> None:
    gateway.know()
    handler, other = await gateway.connect(), await gateway.connect()
    gateway.request(other)
    assert not gateway.receive(handler, "cancel", id=gateway.mesh.calls[0].correlation_id)
    assert gateway.manager.in_flight == 1


# --- ids and the number in flight -----------------------------------------------------------------------


@pytest.mark.parametrize("second", ["request", "command", "describe"])
async def test_an_id_in_flight_is_refused_and_its_request_goes_on(gateway: FakeGateway, second: str) -> None:
    gateway.know()
    handler = await gateway.connect()
    gateway.request(handler, id="1")
    payload = {} if second == "describe" else {"service": "orders", "method": "get"}
    gateway.receive(handler, second, id="1", **payload)
    assert answers(handler) == [("1", None, "duplicate_id")]
    assert len(gateway.mesh.calls) == 1
    gateway.mesh.reply(gateway.mesh.calls[0], "done")
    assert answers(handler)[1:] == [("1", "done", None)]
    gateway.assert_idle()


async def test_an_id_belongs_to_its_connection(gateway: FakeGateway) -> None:
    gateway.know()
    one, two = await gateway.connect(), await gateway.connect()
    gateway.request(one, id="1")
    gateway.request(two, id="1")
    for result, message in enumerate(gateway.mesh.calls):
        gateway.mesh.reply(message, result)
    assert (answers(one), answers(two)) == ([("1", 0, None)], [("1", 1, None)])


async def test_only_so_many_calls_are_in_flight_on_a_connection() -> None:
    async with running(max_in_flight=3) as gateway:
        gateway.know()
        handler, other = await gateway.connect(), await gateway.connect()
        gateway.request(handler)
        gateway.receive(handler, "command", service="orders", method="put")
        gateway.receive(handler, "describe", service="users")
        for kind in ("request", "command"):
            gateway.receive(handler, kind, service="orders", method="get", id="more")
        gateway.receive(handler, "describe", id="more")
        assert handler.codes == ["too_many_requests"] * 3
        error = handler.frames[0]["payload"]["error"]
        assert error["retryable"]
        assert error["retry_after_ms"] > 0
        gateway.request(other)
        assert not other.frames
        gateway.mesh.reply(gateway.mesh.calls[0])
        handler.take()
        gateway.request(handler, id="now")
        gateway.mesh.reply(gateway.mesh.calls[-1])
        assert answers(handler) == [("now", None, None)]


# --- the mesh is not there ------------------------------------------------------------------------------


async def test_without_a_connection_calls_fail_at_once_and_can_be_repeated(gateway: FakeGateway) -> None:
    gateway.know()
    handler = await gateway.connect()
    gateway.mesh.lose()
    gateway.request(handler, id="1")
    gateway.request(handler, service="unknown", id="2")
    gateway.receive(handler, "command", service="orders", method="put", id="3")
    assert handler.codes == ["mesh_unavailable"] * 3
    assert all(frame["payload"]["error"]["retry_after_ms"] for frame in handler.frames)
    assert not gateway.mesh.calls
    assert not handler.closes
    gateway.mesh.find()
    gateway.request(handler, id="1")
    assert len(gateway.mesh.calls) == 1


@pytest.mark.parametrize("service", ["orders", "users"])
async def test_a_mesh_that_refuses_a_message_is_not_there(gateway: FakeGateway, service: str) -> None:
    gateway.know()
    handler = await gateway.connect()
    gateway.mesh.error = MeshUnavailable("blocked")
    gateway.request(handler, service=service)
    assert handler.codes == ["mesh_unavailable"]
    gateway.assert_idle()


async def test_a_loss_of_the_connection_leaves_what_was_sent_to_be_answered_later(gateway: FakeGateway) -> None:
    gateway.know()
    handler = await gateway.connect()
    gateway.request(handler, id="1")
    gateway.mesh.lose()
    gateway.mesh.find()
    assert not handler.frames
    gateway.mesh.reply(gateway.mesh.calls[0], "done")
    assert answers(handler) == [("1", "done", None)]
    assert len(gateway.mesh.calls) == 1


async def test_a_name_that_the_mesh_does_not_take_is_a_bad_request(gateway: FakeGateway) -> None:
    gateway.know()
    handler = await gateway.connect()
    gateway.mesh.error = ValueError("a name has more than 255 bytes")
    gateway.request(handler, id="1")
    assert handler.codes == ["bad_request"]
    assert handler.frames[0]["payload"]["error"]["description"] == "a name has more than 255 bytes"
    gateway.assert_idle()


@pytest.mark.parametrize("service", ["orders", "users"])
async def test_a_mesh_that_breaks_is_one_internal_answer(
    gateway: FakeGateway, service: str, caplog: pytest.LogCaptureFixture
) -> None:
    gateway.know()
    handler = await gateway.connect()
    gateway.mesh.error = ZeroDivisionError("a bug")
    gateway.request(handler, service=service, id="1")
    assert answers(handler) == [("1", None, "internal")]
    assert "a bug" in caplog.text
    assert "a bug" not in handler.texts[0]
    gateway.assert_idle()
    gateway.mesh.error = None
    gateway.request(handler, id="1")
    gateway.mesh.reply(gateway.mesh.calls[0], "fine")
    assert answers(handler)[1:] == [("1", "fine", None)]


# --- descriptions ---------------------------------------------------------------------------------------


async def test_the_first_call_to_a_service_waits_for_its_description(gateway: FakeGateway) -> None:
    handler = await gateway.connect()
    gateway.request(handler, id="1")
    (question,) = gateway.mesh.sent
    assert (question.kind, question.service, question.method) == ("request", "orders", "nuropb_describe")
    assert (bytes(question.params), question.context) == (b"{}", b"{}")
    gateway.mesh.describe("orders", ["get"])
    (message,) = gateway.mesh.calls
    gateway.mesh.reply(message, "done")
    assert answers(handler) == [("1", "done", None)]


async def test_a_hundred_first_calls_ask_once(gateway: FakeGateway) -> None:
    handlers = [await gateway.connect(f"user{number}") for number in range(10)]
    for handler in handlers:
        for number in range(10):
            gateway.request(handler, id=str(number))
    assert len(gateway.mesh.sent) == 1
    gateway.mesh.describe("orders", ["get"])
    assert len(gateway.mesh.describes) == 1
    assert len(gateway.mesh.calls) == 100
    for message in gateway.mesh.calls:
        gateway.mesh.reply(message)
    assert all(handler.codes == [None] * 10 for handler in handlers)
    gateway.assert_idle()


@pytest.mark.parametrize("how", ["cancel", "gone", "timeout"])
async def test_a_call_that_ended_while_it_waited_is_not_sent(gateway: FakeGateway, how: str) -> None:
    handler, other = await gateway.connect(), await gateway.connect()
    gateway.request(handler, id="1", timeout=1.0)
    gateway.request(other, id="2")
    if how == "timeout":
        await gateway.pass_time(1.1, lambda: handler.frames)
    elif how == "cancel":
        gateway.receive(handler, "cancel", id="1")
    else:
        gateway.handlers.unregister(handler)
    gateway.mesh.describe("orders", ["get"])
    (message,) = gateway.mesh.calls
    gateway.mesh.reply(message)
    assert [answer[0] for answer in answers(other)] == ["2"]
    assert len(handler.frames) == (0 if how == "gone" else 1)
    gateway.assert_idle()


async def test_a_description_is_renewed_after_a_minute_while_calls_go_on(gateway: FakeGateway) -> None:
    gateway.know()
    handler = await gateway.connect()
    gateway.clock.now += 59.9
    gateway.request(handler)
    assert len(gateway.mesh.describes) == 1
    gateway.clock.now += 0.2
    for _ in range(3):
        gateway.request(handler)
    assert len(gateway.mesh.describes) == 2
    assert len(gateway.mesh.calls) == 4
    gateway.mesh.describe("orders", ["put"])
    gateway.request(handler)
    assert handler.codes == ["method_not_found"]


async def test_a_method_that_is_not_described_is_not_called(gateway: FakeGateway) -> None:
    gateway.know()
    handler = await gateway.connect()
    gateway.request(handler, "delete", id="1")
    gateway.receive(handler, "command", service="orders", method="delete", id="2")
    assert handler.codes == ["method_not_found"] * 2
    assert handler.frames[0]["payload"]["error"]["error"] == "NuropbHandlingError"
    assert not gateway.mesh.calls
    assert len(gateway.mesh.describes) == 1


async def test_a_method_may_have_come_since_the_description_is_older_than_five_seconds(gateway: FakeGateway) -> None:
    gateway.know()
    handler = await gateway.connect()
    gateway.clock.now += 5
    gateway.request(handler, "new", id="1")
    assert handler.codes == ["method_not_found"]
    gateway.clock.now += 0.1
    gateway.request(handler, "new", id="2")
    gateway.request(handler, "newer", id="3")
    gateway.request(handler, "get", id="4")
    assert len(gateway.mesh.describes) == 2
    gateway.mesh.describe("orders", ["get", "new"])
    assert [message.method for message in gateway.mesh.calls] == ["get", "new"]
    assert answers(handler)[1:] == [("3", None, "method_not_found")]


@pytest.mark.parametrize("method", ["_hidden", "__init__"])
async def test_private_methods_of_a_description_are_not_there(gateway: FakeGateway, method: str) -> None:
    gateway.manager.calls.descriptions.look_up("orders", 60.0, lambda found: None)
    gateway.mesh.describe("orders", ["get", method])
    handler = await gateway.connect()
    gateway.receive(handler, "describe", service="orders")
    assert list(handler.frames[0]["payload"]["result"]["services"]["orders"]["methods"]) == ["get"]


NOT_DESCRIBED = [
    # how the question ends, code of the waiting call (None: it is sent)
    ("returned", "service_unavailable"),
    ("failed", "mesh_unavailable"),
    ("error", None),
    ("bug", None),
    ("unreadable", None),
]
#: One method by its name, all others by a wildcard.
BY_NAME = ExposePolicy(["orders.get", "*.*"], [])


@pytest.mark.parametrize(("how", "code"), NOT_DESCRIBED)
async def test_what_becomes_of_a_call_when_the_service_does_not_describe_itself(how: str, code: str | None) -> None:
    async with running(policy=BY_NAME) as gateway:
        handler = await gateway.connect()
        gateway.request(handler, id="1")
        gateway.request(handler, id="2")
        (question,) = gateway.mesh.sent
        await end(gateway, handler, question, how)
        if code is None:
            assert len(gateway.mesh.calls) == 2
            assert not handler.frames
            gateway.request(handler)
            assert len(gateway.mesh.calls) == 3
        else:
            assert answers(handler) == [("1", None, code), ("2", None, code)]
            assert not gateway.mesh.calls
            gateway.assert_idle()
            gateway.request(handler, id="1")
            assert len(gateway.mesh.describes) == 2


UNREADABLE = ["null", '"text"', "[]", "{}", '{"methods":null}', '{"methods":[]}', '{"methods":{"a":{"parameters":1}}}']


@pytest.mark.parametrize("result", UNREADABLE)
async def test_a_description_that_says_nothing_lets_calls_through_that_a_rule_names(result: str) -> None:
    async with running(policy=BY_NAME) as gateway:
        handler = await gateway.connect()
        gateway.request(handler)
        gateway.mesh.reply(gateway.mesh.describes[0], json.loads(result))
        assert [message.method for message in gateway.mesh.calls] == ["get"]


@pytest.mark.parametrize("kind", ["request", "command"])
async def test_what_a_service_hides_is_not_known_when_it_cannot_describe_itself_so_a_wildcard_allows_nothing(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(policy=BY_NAME) as gateway:
        handler = await gateway.connect()
        gateway.receive(handler, kind, service="orders", method="put", id="1")
        gateway.receive(handler, kind, service="orders", method="get", id="2")
        gateway.mesh.reply(gateway.mesh.describes[0], {})
        gateway.receive(handler, kind, service="orders", method="put", id="3")
        assert answers(handler) == [("1", None, "permission_denied"), ("3", None, "permission_denied")]
        description = "Service orders cannot describe itself, and no rule names put in full"
        assert handler.frames[0]["payload"]["error"]["description"] == description
        assert [message.method for message in gateway.mesh.calls] == ["get"]
        assert "only methods that the policy names in full can be called" in caplog.text


async def test_the_host_application_may_call_what_nobody_describes(gateway: FakeGateway) -> None:
    host = asyncio.create_task(gateway.manager.request("orders", "put"))
    await until(lambda: gateway.mesh.describes)
    gateway.mesh.reply(gateway.mesh.describes[0], {})
    gateway.mesh.reply(gateway.mesh.calls[0], 5)
    assert await host == 5


async def test_a_policy_that_breaks_over_a_service_without_description_is_one_internal_answer() -> None:
    class Broken(ExposePolicy):
        def names(self, identity: Identity, service: str, method: str) -> bool:
            raise KeyError

    async with running(policy=Broken(["*.*"], [])) as gateway:
        handler = await gateway.connect()
        gateway.request(handler, id="1")
        gateway.request(handler, id="2")
        gateway.mesh.reply(gateway.mesh.describes[0], {})
        assert answers(handler) == [("1", None, "internal"), ("2", None, "internal")]
        gateway.assert_idle()


async def test_a_service_that_is_too_slow_to_describe_itself_is_not_available(gateway: FakeGateway) -> None:
    early, late = await gateway.connect("alice"), await gateway.connect("bob")
    gateway.request(early)
    gateway.clock.now += 20
    gateway.request(late)
    await gateway.pass_time(10.1, lambda: late.frames)
    assert early.codes == ["timeout"]
    assert late.codes == ["service_unavailable"]
    assert not gateway.mesh.calls
    gateway.assert_idle()


@pytest.mark.parametrize("how", ["failed", "error", "bug", "unreadable", "timeout", "nothing"])
async def test_what_was_known_holds_while_a_service_does_not_describe_itself(gateway: FakeGateway, how: str) -> None:
    gateway.know()
    gateway.clock.now += 61
    handler = await gateway.connect()
    gateway.request(handler, "delete", id="1", timeout=60)
    question = gateway.mesh.describes[1]
    if how == "nothing":
        gateway.mesh.reply(question, {})
    elif how == "timeout":
        await gateway.pass_time(30.1, lambda: handler.frames)
    else:
        await end(gateway, handler, question, how)
    assert answers(handler) == [("1", None, "method_not_found")]
    assert not gateway.mesh.calls
    gateway.assert_idle()


async def test_a_service_that_is_gone_is_forgotten(gateway: FakeGateway) -> None:
    gateway.know()
    gateway.clock.now += 61
    handler = await gateway.connect()
    gateway.request(handler, "delete", id="1")
    gateway.mesh.told.on_returned(gateway.mesh.describes[1].correlation_id)
    assert handler.codes == ["service_unavailable"]
    assert list(gateway.manager.calls.descriptions) == []


async def test_services_that_nobody_answers_for_leave_nothing(gateway: FakeGateway) -> None:
    handler = await gateway.connect()
    for number in range(50):
        gateway.request(handler, service=f"guess{number}")
        gateway.mesh.told.on_returned(gateway.mesh.sent[-1].correlation_id)
    assert list(gateway.manager.calls.descriptions) == []
    gateway.assert_idle()


# --- encryption -----------------------------------------------------------------------------------------


def describe_secret(gateway: FakeGateway, *keys: str | None) -> None:
    """The service describes itself once for each of ``keys``."""
    for key in keys:
        gateway.mesh.describe("orders", SECRET, public_key=key)


async def test_the_key_is_used_where_it_is_required_and_nowhere_else(gateway: FakeGateway) -> None:
    handler = await gateway.connect()
    gateway.request(handler, "secret")
    gateway.request(handler, "get")
    gateway.receive(handler, "command", service="orders", method="secret")
    describe_secret(gateway, KEY, KEY)
    keys = [(message.kind, message.method, message.public_key) for message in gateway.mesh.calls]
    assert keys == [("request", "secret", KEY), ("request", "get", None), ("command", "secret", KEY)]
    assert all(message.public_key is None for message in gateway.mesh.describes)
    gateway.request(handler, "secret")
    assert gateway.mesh.calls[-1].public_key == KEY
    assert len(gateway.mesh.describes) == 2


async def test_a_key_is_asked_for_twice_before_it_is_trusted(gateway: FakeGateway) -> None:
    handler = await gateway.connect()
    gateway.request(handler, "get")
    describe_secret(gateway, KEY)
    assert not gateway.mesh.calls
    assert len(gateway.mesh.describes) == 2
    describe_secret(gateway, KEY)
    assert len(gateway.mesh.calls) == 1


async def test_a_key_that_was_trusted_is_not_asked_for_twice_again(gateway: FakeGateway) -> None:
    handler = await gateway.connect()
    gateway.request(handler, "secret")
    describe_secret(gateway, KEY, KEY)
    gateway.clock.now += 5.1
    gateway.request(handler, "secret")
    assert len(gateway.mesh.calls) == 1
    describe_secret(gateway, KEY)
    assert len(gateway.mesh.calls) == 2
    assert len(gateway.mesh.describes) == 3


@pytest.mark.parametrize("keys", [(KEY, OTHER_KEY), (KEY, None), (None, KEY), (None, None)])
async def test_a_service_with_several_keys_or_none_is_not_called_encrypted(
    gateway: FakeGateway, keys: tuple[str | None, str | None], caplog: pytest.LogCaptureFixture
) -> None:
    handler = await gateway.connect()
    gateway.request(handler, "secret", id="1")
    gateway.request(handler, "get", id="2")
    describe_secret(gateway, *keys)
    assert answers(handler) == [("1", None, "service_error")]
    assert [message.method for message in gateway.mesh.calls] == ["get"]
    assert ("several public keys" in caplog.text) is (keys[0] != keys[1])


async def test_a_service_that_changes_its_key_is_asked_twice_again(gateway: FakeGateway) -> None:
    handler = await gateway.connect()
    gateway.request(handler, "secret")
    describe_secret(gateway, KEY, KEY)
    gateway.clock.now += 5.1
    gateway.request(handler, "secret")
    describe_secret(gateway, OTHER_KEY)
    assert len(gateway.mesh.calls) == 1
    describe_secret(gateway, OTHER_KEY)
    assert [message.public_key for message in gateway.mesh.calls] == [KEY, OTHER_KEY]


async def test_keys_that_differed_are_asked_for_twice_until_they_agree(gateway: FakeGateway) -> None:
    handler = await gateway.connect()
    gateway.request(handler, "secret")
    describe_secret(gateway, KEY, OTHER_KEY)
    gateway.clock.now += 5.1
    gateway.request(handler, "secret", id="1")
    describe_secret(gateway, OTHER_KEY, OTHER_KEY)
    assert [message.public_key for message in gateway.mesh.calls] == [OTHER_KEY]


SECOND_QUESTION = [
    # how it ends, code of the call to the method that has to be encrypted
    ("returned", "service_unavailable"),
    ("failed", "mesh_unavailable"),
    ("timeout", "service_unavailable"),
    ("error", "service_error"),
    ("bug", "service_error"),
    ("unreadable", "service_error"),
    ("nothing", "service_error"),
]


@pytest.mark.parametrize(("how", "code"), SECOND_QUESTION)
@pytest.mark.parametrize("known", [False, True])
async def test_a_key_that_was_seen_once_is_neither_trusted_nor_forgotten(
    gateway: FakeGateway, how: str, code: str, known: bool
) -> None:
    handler = await gateway.connect()
    if known:
        gateway.request(handler, "get")
        describe_secret(gateway, KEY, KEY)
        gateway.mesh.reply(gateway.mesh.calls[0])
        handler.take()
        gateway.clock.now += 5.1
    sent = len(gateway.mesh.calls)
    gateway.request(handler, "secret", id="1", timeout=60)
    gateway.clock.now += 10
    describe_secret(gateway, OTHER_KEY)
    second = gateway.mesh.describes[-1]
    if how == "nothing":
        gateway.mesh.reply(second, {})
    elif how == "timeout":
        await gateway.pass_time(30.2, lambda: handler.frames)
    else:
        await end(gateway, handler, second, how)
    assert answers(handler) == [("1", None, code)]
    assert len(gateway.mesh.calls) == sent


@pytest.mark.parametrize("how", ["error", "unreadable", "nothing"])
async def test_a_method_that_had_to_be_encrypted_is_never_called_in_clear(gateway: FakeGateway, how: str) -> None:
    handler = await gateway.connect()
    gateway.request(handler, "get")
    describe_secret(gateway, KEY, KEY)
    for age in (5.1, 61.0):
        gateway.clock.now += age
        gateway.request(handler, "secret")
        question = gateway.mesh.describes[-1]
        if how == "nothing":
            gateway.mesh.reply(question, {})
        else:
            await end(gateway, handler, question, how)
        assert [message.public_key for message in gateway.mesh.calls if message.method == "secret"][-1] == KEY
    assert all(message.public_key for message in gateway.mesh.calls if message.method == "secret")


# --- describe, for clients ------------------------------------------------------------------------------


async def test_a_client_is_told_what_it_may_call() -> None:
    async with running(policy=ExposePolicy(["orders.get", "orders.nothing", "users.*"], [])) as gateway:
        handler = await gateway.connect()
        assert not gateway.receive(handler, "describe", id="1", trace_id="t")
        assert sorted(message.service for message in gateway.mesh.describes) == ["orders", "users"]
        gateway.mesh.describe("users", ["me"], description="People", service_version="1.2")
        assert not handler.frames
        gateway.mesh.describe("orders", ["get", "delete"])
        assert handler.frames[0]["payload"] == {
            "id": "1",
            "trace_id": "t",
            "error": None,
            "result": {
                "services": {
                    "orders": {"description": None, "version": None, "methods": {"get": DESCRIBED}},
                    "users": {"description": "People", "version": "1.2", "methods": {"me": DESCRIBED}},
                },
                "unavailable": [],
            },
        }
        gateway.assert_idle()


DESCRIBED = {
    "description": None,
    "parameters": {"type": "object", "properties": {}, "required": []},
    "requires_encryption": False,
}


async def test_one_service_is_described_when_one_is_asked_for(gateway: FakeGateway) -> None:
    handler = await gateway.connect()
    gateway.receive(handler, "describe", service="orders")
    assert [message.service for message in gateway.mesh.describes] == ["orders"]
    gateway.mesh.describe("orders", ["get"])
    assert list(handler.frames[0]["payload"]["result"]["services"]) == ["orders"]


async def test_services_behind_a_wildcard_are_described_once_they_are_known(gateway: FakeGateway) -> None:
    handler = await gateway.connect()
    gateway.receive(handler, "describe", id="1")
    gateway.know("orders", ["get"])
    gateway.know("quiet", [])
    gateway.manager.calls.descriptions.look_up("broken", 60.0, lambda found: None)
    gateway.mesh.reply(gateway.mesh.describes[-1], {})
    gateway.receive(handler, "describe", id="2")
    first, second = (answer[1] for answer in answers(handler))
    assert first == {"services": {}, "unavailable": []}
    assert list(second["services"]) == ["orders"]


async def test_a_service_that_is_not_there_does_not_keep_the_others_back() -> None:
    async with running(policy=ExposePolicy(["orders.*", "users.*"], [])) as gateway:
        handler = await gateway.connect()
        gateway.receive(handler, "describe")
        gateway.mesh.told.on_returned(gateway.mesh.describes[0].correlation_id)
        gateway.mesh.describe("users", ["me"])
        result = handler.frames[0]["payload"]["result"]
        assert (list(result["services"]), result["unavailable"]) == (["users"], ["orders"])


async def test_a_service_that_does_not_answer_does_not_keep_the_others_back() -> None:
    async with running(policy=ExposePolicy(["orders.*", "users.*"], [])) as gateway:
        handler = await gateway.connect()
        gateway.receive(handler, "describe", id="1")
        gateway.mesh.describe("users", ["me"])
        await gateway.pass_time(30.2, lambda: handler.frames)
        assert handler.codes == [None]
        result = handler.frames[0]["payload"]["result"]
        assert (list(result["services"]), result["unavailable"]) == (["users"], ["orders"])
        gateway.assert_idle()


@pytest.mark.parametrize(("how", "code"), [("returned", "service_unavailable"), ("failed", "mesh_unavailable")])
async def test_why_one_service_cannot_be_described_is_the_answer(gateway: FakeGateway, how: str, code: str) -> None:
    handler = await gateway.connect()
    gateway.receive(handler, "describe", service="orders", id="1")
    await end(gateway, handler, gateway.mesh.describes[0], how)
    assert answers(handler) == [("1", None, code)]
    gateway.assert_idle()


async def test_a_service_that_cannot_describe_itself_has_no_methods_to_show(gateway: FakeGateway) -> None:
    handler = await gateway.connect()
    gateway.receive(handler, "describe", service="orders")
    gateway.mesh.reply(gateway.mesh.describes[0], error={"error": "NuropbException", "description": "annotations"})
    assert handler.frames[0]["payload"]["result"]["services"]["orders"]["methods"] == {}


async def test_describing_is_refused_where_nothing_may_be_called() -> None:
    async with running(policy=ExposePolicy(["orders.get"], [])) as gateway:
        handler = await gateway.connect()
        gateway.receive(handler, "describe", service="users", id="1")
        assert answers(handler) == [("1", None, "permission_denied")]
        assert not gateway.mesh.sent
        gateway.assert_idle()


@pytest.mark.parametrize("how", ["cancel", "gone", "timeout"])
async def test_a_describe_ends_as_a_request_does(gateway: FakeGateway, how: str) -> None:
    handler = await gateway.connect()
    gateway.receive(handler, "describe", service="orders", id="1")
    (question,) = gateway.mesh.sent
    if how == "timeout":
        await gateway.pass_time(31, lambda: handler.frames)
        assert handler.codes in (["timeout"], ["service_unavailable"])
    else:
        await end(gateway, handler, question, how)
        assert handler.codes == (["cancelled"] if how == "cancel" else [])
    before = len(handler.frames)
    gateway.mesh.reply(question, {"methods": {"get": {}}})
    assert len(handler.frames) == before
    gateway.assert_idle()


class BrokenPolicy(ExposePolicy):
    """A policy of the host's that fails in one of its methods."""

    def __init__(self, broken: str) -> None:
        super().__init__(["*.*", "orders.*"], ["#"])
        self.broken = broken

    def may_call(self, identity: Identity, service: str, method: str) -> bool:
        assert self.broken != "may_call"
        return super().may_call(identity, service, method)

    def may_describe(self, identity: Identity, service: str) -> bool:
        assert self.broken != "may_describe"
        return super().may_describe(identity, service)

    def services(self, identity: Identity) -> tuple[str, ...]:
        assert self.broken != "services"
        return tuple(super().services(identity))


@pytest.mark.parametrize(
    ("broken", "service"),
    [("may_call", None), ("may_call", "orders"), ("may_describe", "orders"), ("services", None)],
)
async def test_a_policy_that_breaks_is_one_internal_answer(broken: str, service: str | None) -> None:
    policy = BrokenPolicy(broken)
    async with running(policy=policy) as gateway:
        handler = await gateway.connect()
        gateway.receive(handler, "describe", id="1", **({} if service is None else {"service": service}))
        if gateway.mesh.describes:
            gateway.mesh.describe("orders", ["get"])
        assert answers(handler) == [("1", None, "internal")]
        gateway.assert_idle()
        await gateway.pass_time(61, lambda: not gateway.manager.calls.table.deadlines)
        assert len(handler.frames) == 1
        policy.broken = ""
        gateway.receive(handler, "describe", id="1", service="orders")
        if gateway.manager.in_flight:
            gateway.mesh.describe("orders", ["get"])
        assert handler.codes == ["internal", None]


ODD_PARAMETERS = [
    {},
    {"properties": None, "required": None},
    {"properties": 5, "required": 5},
    {"properties": "ab", "required": "ab"},
    {"properties": [5, "ab", [], ["a"], [1, {}], [{}, {}]], "required": [{}, [], None]},
    {"properties": [["a", None], ["b", {"type": {}, "default": []}]], "required": ["a", {}, "a", "c"]},
    {"properties": {"a": {"type": "int"}, "b": 1}, "required": {"a": 1}},
    {"properties": [["args", {"type": ""}], ["kwargs", {}]], "required": ["args", "kwargs"]},
]


@pytest.mark.parametrize("parameters", ODD_PARAMETERS)
async def test_a_service_may_describe_its_parameters_as_oddly_as_it_likes(
    gateway: FakeGateway, parameters: dict[str, Any]
) -> None:
    handler = await gateway.connect()
    gateway.receive(handler, "describe", service="orders")
    gateway.mesh.describe("orders", {"get": {"parameters": parameters}})
    described = handler.frames[0]["payload"]["result"]["services"]["orders"]["methods"]["get"]["parameters"]
    assert set(described["required"]) <= set(described["properties"])
    assert not {"args", "kwargs"} & set(described["required"])


async def test_parameters_are_listed_by_name(gateway: FakeGateway) -> None:
    handler = await gateway.connect()
    gateway.receive(handler, "describe", service="orders")
    properties = [["id", {"type": "int", "description": "", "default": ""}], ["full", {"type": "", "default": False}]]
    parameters = {"type": "object", "properties": properties, "required": ["id"]}
    gateway.mesh.describe("orders", {"get": {"description": "One order", "parameters": parameters}})
    assert handler.frames[0]["payload"]["result"]["services"]["orders"]["methods"]["get"] == {
        "description": "One order",
        "parameters": {
            "type": "object",
            "properties": {"id": {"type": "int"}, "full": {"type": "any", "default": False}},
            "required": ["id"],
        },
        "requires_encryption": False,
    }


# --- what a service's error is to a client --------------------------------------------------------------

TRANSLATIONS = [
    # class, code
    ("NuropbMessageError", "bad_request"),
    ("NuropbValidationError", "invalid_params"),
    ("NuropbAuthenticationError", "unauthenticated"),
    ("NuropbAuthorizationError", "permission_denied"),
    ("NuropbNotDeliveredError", "service_unavailable"),
    ("NuropbTransportError", "mesh_unavailable"),
    ("NuropbTimeoutError", "timeout"),
    ("NuropbDeprecatedError", "deprecated"),
    ("NuropbHandlingError", "service_error"),
    ("NuropbException", "service_error"),
    ("NuropbCallAgainReject", "service_error"),
    ("ValueError", "service_error"),
    ("", "service_error"),
]
NAMED = {name for name, _ in TRANSLATIONS[:9]}


@pytest.mark.parametrize("details", ["nuropb", "all", "none"])
@pytest.mark.parametrize(("name", "code"), TRANSLATIONS)
async def test_errors_are_translated(details: str, name: str, code: str) -> None:
    async with running(error_details=details) as gateway:
        gateway.know()
        handler = await gateway.connect()
        gateway.request(handler, trace_id="t")
        gateway.mesh.reply(gateway.mesh.calls[0], error={"error": name, "description": "db.internal:5432"})
        error = handler.frames[0]["payload"]["error"]
        assert error["code"] == code
        shown = details == "all" or (details == "nuropb" and name in NAMED)
        neutral = "orders.get failed; look for trace_id t"
        assert error["description"] == ("db.internal:5432" if shown else neutral)
        fallback = "NuropbHandlingError"
        assert error["error"] == (name or fallback if shown or name.startswith("Nuropb") else fallback)


ODD_ERRORS: list[tuple[dict[str, Any], str]] = [
    ({"error": "NuropbHandlingError", "description": "Unknown method get"}, "method_not_found"),
    ({"error": "NuropbException", "description": "Unknown method get"}, "service_error"),
    ({}, "service_error"),
    ({"error": None, "description": None}, "service_error"),
    ({"error": {"a": 1}, "description": ["b"]}, "service_error"),
    ({"error": "NuropbValidationError"}, "invalid_params"),
]


@pytest.mark.parametrize(("error", "code"), ODD_ERRORS)
@pytest.mark.parametrize("details", ["nuropb", "all", "none"])
async def test_an_error_may_look_odd(error: dict[str, Any], code: str, details: str) -> None:
    async with running(error_details=details) as gateway:
        gateway.know()
        handler = await gateway.connect()
        gateway.request(handler)
        gateway.mesh.reply(gateway.mesh.calls[0], error=error)
        assert handler.codes == [code]


async def test_an_error_may_say_no_more_than_the_outbox_holds() -> None:
    async with running(outbox_size=1024, max_message_size=512, error_details="all") as gateway:
        gateway.know()
        handler = await gateway.connect()
        for size in (1024, 1025):
            gateway.request(handler)
            error = {"error": "NuropbValidationError", "description": "x" * size}
            gateway.mesh.reply(gateway.mesh.calls[-1], error=error)
        assert handler.codes == ["invalid_params"] * 2
        shown = [frame["payload"]["error"]["description"][:3] for frame in handler.frames]
        assert shown == ["xxx", "ord"]


async def test_an_error_is_an_error_whatever_the_result_says(gateway: FakeGateway) -> None:
    gateway.know()
    handler = await gateway.connect()
    gateway.request(handler)
    gateway.mesh.reply(gateway.mesh.calls[0], "looks fine", error={"error": "NuropbValidationError"})
    assert [(answer[1], answer[2]) for answer in answers(handler)] == [(None, "invalid_params")]


async def test_what_a_client_is_not_told_is_in_the_log_under_the_trace_id(
    gateway: FakeGateway, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    gateway.know()
    handler = await gateway.connect("alice/c0ffee")
    gateway.request(handler, trace_id="trace7", params={"card": "4111"})
    gateway.mesh.reply(gateway.mesh.calls[0], error={"error": "KeyError", "description": "4111"})
    (record,) = [record for record in caplog.records if "trace7" in record.message]
    assert "orders.get failed with KeyError" in record.message
    assert "c0ffee" not in caplog.text
    assert "4111" not in caplog.text


# --- guards ---------------------------------------------------------------------------------------------


async def test_a_service_that_does_not_answer_fails_at_once_until_it_does(gateway: FakeGateway) -> None:
    gateway.know()
    gateway.know("users", ["me"])
    handler = await gateway.connect()
    for _ in range(OPEN_AFTER):
        gateway.request(handler, timeout=1.0)
    await gateway.pass_time(1.1, lambda: len(handler.frames) == OPEN_AFTER)
    assert gateway.manager.open_circuits == ["orders"]
    handler.take()
    gateway.request(handler, id="at once")
    assert answers(handler) == [("at once", None, "service_unavailable")]
    assert handler.take()[0]["payload"]["error"]["retry_after_ms"] == PAUSE * 1000 + 1
    gateway.clock.now += PAUSE
    gateway.request(handler, id="probe")
    gateway.request(handler, id="refused")
    gateway.request(handler, "me", service="users", id="other")
    assert answers(handler) == [("refused", None, "service_unavailable")]
    probe = gateway.mesh.calls[-2]
    gateway.mesh.reply(probe, "back")
    assert answers(handler)[1:] == [("probe", "back", None)]
    gateway.request(handler, id="again")
    assert not handler.frames[2:]
    assert gateway.manager.open_circuits == []


async def test_one_users_timeouts_cut_no_other_user_off(gateway: FakeGateway) -> None:
    gateway.know()
    alice, bob = await gateway.connect("alice"), await gateway.connect("bob")
    for _ in range(OPEN_AFTER):
        gateway.request(alice, timeout=1.0)
    await gateway.pass_time(1.1, lambda: len(alice.frames) == OPEN_AFTER)
    assert gateway.request(alice)[0]["payload"]["error"]["code"] == "service_unavailable"
    for _ in range(3):
        assert gateway.request(bob) == []
    assert len(gateway.mesh.calls) == OPEN_AFTER + 3


async def test_commands_and_the_host_wait_for_no_users_circuit(gateway: FakeGateway) -> None:
    gateway.know()
    handler = await gateway.connect()
    for _ in range(OPEN_AFTER):
        gateway.request(handler, timeout=1.0)
    await gateway.pass_time(1.1, lambda: len(handler.frames) == OPEN_AFTER)
    assert gateway.receive(handler, "command", service="orders", method="put") == []
    task, message = await call(gateway)
    gateway.mesh.reply(message, "there")
    assert await task == "there"


async def test_a_late_reply_shows_that_the_service_is_there(gateway: FakeGateway) -> None:
    gateway.know()
    handler = await gateway.connect()
    for _ in range(OPEN_AFTER):
        gateway.request(handler, timeout=1.0)
    await gateway.pass_time(1.1, lambda: len(handler.frames) == OPEN_AFTER)
    assert not gateway.mesh.reply(gateway.mesh.calls[0])
    assert gateway.manager.open_circuits == []


@pytest.mark.parametrize("news", ["lost", "lost and found"])
async def test_what_was_under_way_when_the_mesh_came_or_went_counts_against_nobody(
    gateway: FakeGateway, news: str
) -> None:
    gateway.know()
    handler = await gateway.connect()
    for _ in range(ERRORS_ALLOWED):
        gateway.request(handler, timeout=1.0)
    gateway.clock.now += 0.5
    gateway.mesh.lose()
    if news == "lost and found":
        gateway.mesh.find()
    await gateway.pass_time(0.6, lambda: len(handler.frames) == ERRORS_ALLOWED)
    assert gateway.manager.open_circuits == []
    assert not len(gateway.handlers.shared_limits.budgets)


async def test_a_probe_that_ends_without_an_answer_makes_way_for_the_next(gateway: FakeGateway) -> None:
    gateway.know()
    handler = await gateway.connect()
    for _ in range(OPEN_AFTER):
        gateway.request(handler, timeout=1.0)
    await gateway.pass_time(1.1, lambda: len(handler.frames) == OPEN_AFTER)
    handler.take()
    gateway.clock.now += PAUSE
    gateway.request(handler, id="probe")
    gateway.receive(handler, "cancel", id="probe")
    gateway.request(handler, id="next")
    assert answers(handler) == [("probe", None, "cancelled")]
    assert len(gateway.mesh.calls) == OPEN_AFTER + 2


async def test_a_user_whose_calls_keep_failing_has_to_wait(gateway: FakeGateway) -> None:
    gateway.know()
    handler, other = await gateway.connect("alice"), await gateway.connect("bob")
    for _ in range(ERRORS_ALLOWED):
        gateway.request(handler)
        gateway.mesh.reply(gateway.mesh.calls[-1], error={"error": "ValueError", "description": ""})
    handler.take()
    gateway.request(handler, id="1")
    assert answers(handler) == [("1", None, "too_many_requests")]
    assert 0 < handler.frames[0]["payload"]["error"]["retry_after_ms"] <= 60001
    gateway.request(other)
    gateway.mesh.reply(gateway.mesh.calls[-1])
    assert other.codes == [None]
    for _ in range(REFUSALS_ALLOWED):
        gateway.request(handler)
    assert [code for code, _ in handler.closes][:1] == [4509]
    gateway.clock.now += 60
    handler.take()
    gateway.request(handler, id="2")
    gateway.mesh.reply(gateway.mesh.calls[-1], "fine")
    assert answers(handler) == [("2", "fine", None)]


async def test_who_asked_is_told_how_calls_ended(gateway: FakeGateway) -> None:
    ended: list[tuple[str, str]] = []
    gateway.manager.calls.on_call_ended = lambda service, code, seconds: ended.append((service, code))
    gateway.know()
    handler = await gateway.connect()
    gateway.request(handler)
    gateway.mesh.reply(gateway.mesh.calls[0])
    gateway.request(handler, "nothing")
    gateway.request(handler, service="guess")
    gateway.mesh.told.on_returned(gateway.mesh.sent[-1].correlation_id)
    gateway.receive(handler, "describe", service="orders")
    assert ended == [("orders", "ok"), ("orders", "method_not_found"), ("other", "service_unavailable")]


async def test_subscribers_may_leave_while_answers_are_handed_out(gateway: FakeGateway) -> None:
    handlers = [await gateway.connect(f"user{number}") for number in range(5)]

    def leave_all() -> None:
        for handler in handlers:
            gateway.handlers.unregister(handler)

    for handler in handlers:
        gateway.request(handler, "delete")
        handler.on_send = leave_all
    gateway.mesh.describe("orders", ["get"])
    assert sum(len(handler.frames) for handler in handlers) == 1
    gateway.assert_idle()


# --- what a service is, for the host application --------------------------------------------------------


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
    await end(gateway, await gateway.connect(), gateway.mesh.describes[0], how)
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


# --- for the host application ---------------------------------------------------------------------------


async def call(gateway: FakeGateway, **options: Any) -> tuple[asyncio.Task[Any], CallMessage]:
    """A request of the host's that is on its way."""
    task = asyncio.create_task(gateway.manager.request("orders", "get", **options))
    sent = len(gateway.mesh.calls)
    await until(lambda: len(gateway.mesh.calls) > sent)
    return task, gateway.mesh.calls[-1]


async def test_the_host_calls_and_gets_the_result(gateway: FakeGateway) -> None:
    gateway.know()
    identity = Identity(user_id="alice", username="Alice", token="alice/1")
    task, message = await call(gateway, params={"id": 7}, identity=identity, timeout=5.0, trace_id="t")
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
    task, message = await call(gateway)
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
        task, message = await call(gateway)
        gateway.mesh.reply(message, 1)
        assert await task == 1


HOST_ERRORS = [
    # how it ends, code, class, retryable
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
    task, message = await call(gateway)
    await end(gateway, FakeHandler(), message, how)
    with pytest.raises(CallError) as caught:
        await task
    assert (caught.value.code, caught.value.error, caught.value.retryable) == (code, error, retryable)
    for later in ("reply", "error", "returned", "failed", "unreadable"):
        await end(gateway, FakeHandler(), message, later)
    gateway.assert_idle()


async def test_the_host_may_have_results_of_any_size(gateway: FakeGateway) -> None:
    # The outbox is the clients'; nothing of this goes through one.
    gateway.know()
    task, message = await call(gateway)
    gateway.mesh.reply(message, "x" * gateway.settings.outbox_size)
    assert len(await task) == gateway.settings.outbox_size


async def test_a_result_that_python_cannot_hold_is_an_error_of_the_service(gateway: FakeGateway) -> None:
    gateway.know()
    task, message = await call(gateway)
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
    task, message = await call(gateway)
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
    task, message = await call(gateway)
    await end(gateway, FakeHandler(), message, how)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    gateway.assert_idle()
    task, message = await call(gateway)
    task.cancel()
    await end(gateway, FakeHandler(), message, how)
    with pytest.raises(asyncio.CancelledError):
        await task
    gateway.assert_idle()


@pytest.mark.parametrize("timeout", [0.0, -1.0, -3600.0])
async def test_a_call_whose_time_is_up_before_it_begins_ends(gateway: FakeGateway, timeout: float) -> None:
    gateway.know()
    await gateway.sweep(1.0)
    task, _ = await call(gateway, timeout=timeout)
    gateway.clock.now += 0.2
    with pytest.raises(CallError) as caught, anyio.fail_after(5):
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


@pytest.mark.parametrize("topic", ["", "orders.*", "#", "a\nb", "x" * 256])
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


async def test_in_flight_counts_the_calls_of_the_host(gateway: FakeGateway) -> None:
    gateway.know()
    task, message = await call(gateway)
    assert gateway.manager.in_flight == 1
    gateway.mesh.reply(message)
    await task
    assert gateway.manager.in_flight == 0


# --- all together ---------------------------------------------------------------------------------------

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
@settings(max_examples=80, deadline=None)
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
                    await end(gateway, handler, message, step)
        gateway.clock.now += 100
        await until(lambda: not gateway.manager.in_flight)
        for trace_id, (handler, step) in asked.items():
            count = sum(frame["payload"].get("trace_id") == trace_id for frame in handler.frames)
            assert count == 1 or (count == 0 and handler in left), (trace_id, step)
        # In clear go also calls to a service that could not say that it has secrets.
        assert all(message.method == "secret" for message in gateway.mesh.sent if message.public_key is not None)
        gateway.assert_idle()
        for handler in handlers:
            gateway.handlers.unregister(handler)
        gateway.assert_idle()


# --- what services say of themselves, for the contract ----------------------------------------------------------


async def test_all_services_are_asked_at_once_and_one_that_is_away_harms_nobody() -> None:
    policy = ExposePolicy(["orders.*", "stock.*", "users.me"], [])
    async with running(policy=policy) as gateway, asyncio.TaskGroup() as tasks:
        identity = await gateway.authenticator("alice")
        assert identity is not None
        asked = tasks.create_task(gateway.manager.describe_for(identity, patience=60.0))
        await until(lambda: len(gateway.mesh.describes) == 3)
        assert {message.service for message in gateway.mesh.describes} == {"orders", "stock", "users"}
        gateway.mesh.describe("orders", ["get"])
        gateway.mesh.describe("users", ["me"])
        stock = next(message for message in gateway.mesh.describes if message.service == "stock")
        gateway.mesh.told.on_returned(stock.correlation_id)
        found = await asked
        assert {name: getattr(each, "methods", None) is not None for name, each in found.items()} == {
            "orders": True,
            "stock": False,
            "users": True,
        }


async def test_nobody_waits_for_a_service_longer_than_wanted() -> None:
    async with running(policy=ExposePolicy(["orders.*", "stock.*"], [])) as gateway:
        identity = await gateway.authenticator("alice")
        assert identity is not None
        gateway.know("orders", ["get"])
        gateway.clock.now += MAX_AGE_SECONDS + 1  # it is asked again, and what is known is better than nothing
        found = await gateway.manager.describe_for(identity, patience=0.0)
        assert isinstance(found["orders"], Description)
        assert isinstance(found["stock"], Failure)
        gateway.mesh.describe("stock", ["count"])
        gateway.mesh.describe("orders", ["get", "put"])
        found = await gateway.manager.describe_for(identity, patience=0.0)
        assert isinstance(found["stock"], Description)


async def test_where_nothing_may_be_called_nobody_is_asked() -> None:
    async with running(policy=ExposePolicy([], [])) as gateway:
        identity = await gateway.authenticator("alice")
        assert identity is not None
        assert await gateway.manager.describe_for(identity, patience=60.0) == {}
        assert gateway.mesh.describes == []
    with pytest.raises(NotStartedError):
        await gateway.manager.describe_for(identity, patience=60.0)
