"""Calls in flight: each ends exactly once, whatever the mesh, the service and the client do."""

from __future__ import annotations

import pytest

from nuropb_gateway_asgi.exceptions import MeshUnavailable
from nuropb_gateway_asgi.routing.calls import CallTable
from nuropb_gateway_asgi.wire.interface import Reply

from .fakes import UNKNOWN_ID, FakeGateway, answers, end_call, running

# --- the end of a call ----------------------------------------------------------------------------------

ENDINGS = {
    # end of the call: code of the answer ("": no answer)
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


@pytest.mark.parametrize("how", ENDINGS)
async def test_a_request_is_answered_once_however_it_ends_and_whatever_comes_later(
    gateway: FakeGateway, how: str
) -> None:
    gateway.know()
    handler = await gateway.connect()
    gateway.request(handler, id="1", trace_id="t")
    (message,) = gateway.mesh.calls
    await end_call(gateway, handler, message, how)
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
        await end_call(gateway, handler, message, later)
    assert not handler.frames, answered
    gateway.assert_idle()


@pytest.mark.parametrize("how", [how for how in ENDINGS if how != "gone"])
async def test_an_id_is_free_again_however_its_request_ended(gateway: FakeGateway, how: str) -> None:
    gateway.know()
    handler = await gateway.connect()
    gateway.request(handler, id="1")
    await end_call(gateway, handler, gateway.mesh.calls[0], how)
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
            await end_call(gateway, handler, message, each)
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
    assert not gateway.mesh.told.expects(UNKNOWN_ID)
    statistics = gateway.manager.statistics
    assert (statistics.late_replies, statistics.double_replies, statistics.unknown_replies) == (1, 1, 1)
    # One of the replies is the service's description.
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
    await end_call(gateway, handler, message, how)
    assert gateway.mesh.forgotten == [message.correlation_id]


@pytest.mark.parametrize("event", ["on_returned", "on_confirmed", "on_rejected", "on_unconfirmed", "on_unreadable"])
async def test_news_of_a_stranger_mean_nothing(gateway: FakeGateway, event: str) -> None:
    getattr(gateway.mesh.told, event)(UNKNOWN_ID)
    gateway.assert_idle()


async def test_without_their_replies_requests_are_answered_at_once_and_commands_wait_on(gateway: FakeGateway) -> None:
    gateway.know()
    handler = await gateway.connect()
    gateway.request(handler, id="1")
    gateway.request(handler, id="2")
    gateway.receive(handler, "command", service="orders", method="put", id="3")
    gateway.mesh.told.on_replies_lost()
    assert handler.codes == ["timeout", "timeout"]
    assert not gateway.mesh.reply(gateway.mesh.calls[0])
    gateway.mesh.told.on_confirmed(gateway.mesh.calls[2].correlation_id)
    assert handler.codes == ["timeout", "timeout", None]


async def test_without_replies_a_call_that_waits_for_a_description_was_not_sent(gateway: FakeGateway) -> None:
    handler = await gateway.connect()
    gateway.request(handler, id="1")
    assert len(gateway.mesh.describes) == 1
    gateway.mesh.told.on_replies_lost()
    assert handler.codes == ["mesh_unavailable"]
    assert gateway.mesh.calls == []
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


# --- without a mesh -------------------------------------------------------------------------------------


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
