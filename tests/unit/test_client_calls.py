"""Calls of clients: their messages, their ids and limits, their circuit breakers and error budgets."""

from __future__ import annotations

import json
from typing import Any

import pytest

from nuropb_gateway_asgi.limits.circuits import ERROR_REFUSALS_ALLOWED, ERRORS_ALLOWED, OPEN_AFTER, PAUSE

from .fakes import FakeGateway, answers, application_call, running, strict_json

# --- messages to the mesh -------------------------------------------------------------------------------


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


# --- ids, and the number of calls in flight -------------------------------------------------------------


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


# --- circuit breakers and error budgets -----------------------------------------------------------------


async def test_no_circuit_opens_while_the_mesh_is_in_doubt(gateway: FakeGateway) -> None:
    gateway.know()
    gateway.mesh.proves = False
    handler = await gateway.connect()
    for _ in range(OPEN_AFTER):
        gateway.request(handler, timeout=1.0)
    await gateway.pass_time(1.1, lambda: len(handler.frames) == OPEN_AFTER)
    assert gateway.manager.open_circuits == []
    for proven in gateway.mesh.unproven:  # the mesh was well, and the service is silent
        proven()
    assert gateway.manager.open_circuits == ["orders"]


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
    task, message = await application_call(gateway)
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


async def test_a_probe_that_its_client_gives_up_goes_on_until_its_deadline(gateway: FakeGateway) -> None:
    gateway.know()
    handler = await gateway.connect()
    for _ in range(OPEN_AFTER):
        gateway.request(handler, timeout=1.0)
    await gateway.pass_time(1.1, lambda: len(handler.frames) == OPEN_AFTER)
    handler.take()
    gateway.clock.now += PAUSE
    gateway.request(handler, id="probe", timeout=3.0)
    gateway.receive(handler, "cancel", id="probe")
    gateway.clock.now += PAUSE
    gateway.request(handler, id="early")
    assert answers(handler) == [("probe", None, "cancelled"), ("early", None, "service_unavailable")]
    await gateway.pass_time(2.1, lambda: not gateway.manager.calls.table.orphans)
    gateway.request(handler, id="next")
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
    for _ in range(ERROR_REFUSALS_ALLOWED):
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


async def test_the_calls_of_a_session_that_got_another_id_without_a_connection_count_for_its_user() -> None:
    async with running(max_in_flight=1) as gateway:
        gateway.know()
        alice, again = await gateway.connect(), await gateway.connect()
        gateway.request(alice, id="1")
        former = alice.session_id
        gateway.handlers.park(alice)
        gateway.handlers.rename(alice, "another")
        gateway.manager.client_calls.rename(alice, former)
        gateway.request(again, id="2")
        assert again.codes == ["too_many_requests"]
        gateway.mesh.reply(gateway.mesh.calls[0], 1)
        gateway.handlers.unregister(alice)
        again.take()
        gateway.request(again, id="3")
        assert again.codes == []
