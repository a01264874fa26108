"""Calls in flight: each ends exactly once, whatever the mesh, the service and the client do."""

from __future__ import annotations

import pytest

from nuropb_gateway_asgi.exceptions import MeshUnavailable
from nuropb_gateway_asgi.limits.circuits import ERRORS_ALLOWED
from nuropb_gateway_asgi.routing.calls import CallTable
from nuropb_gateway_asgi.wire.interface import CallMessage, Reply

from .fakes import UNKNOWN_ID, FakeGateway, answers, end_call, running, strict_json

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
    assert gateway.mesh.reply(one)  # its place does
    for message in (one, two):
        assert not gateway.mesh.reply(message)
    assert not gateway.mesh.told.expects(UNKNOWN_ID)
    statistics = gateway.manager.statistics
    assert (statistics.late_replies, statistics.double_replies, statistics.unknown_replies) == (1, 2, 1)
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
    await gateway.sweep(61.0)  # a service may still answer a call that its client has given up
    assert gateway.mesh.forgotten == [message.correlation_id]


STRANGERS = ["on_returned", "on_confirmed", "on_rejected", "on_unconfirmed", "on_unreadable", "on_dead_lettered"]


@pytest.mark.parametrize("event", STRANGERS)
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


# --- calls that their clients give up -------------------------------------------------------------------

GIVEN_UP = ["cancel", "gone"]


async def given_up(gateway: FakeGateway, how: str, count: int = 1, kind: str = "request") -> list[CallMessage]:
    """Make ``count`` calls of alice that are sent and then given up, and return their messages."""
    gateway.know()
    sent = len(gateway.mesh.calls)
    handler = await gateway.connect()
    for number in range(count):
        gateway.receive(handler, kind, service="orders", method="get", id=str(number))
        if how == "cancel":
            gateway.receive(handler, "cancel", id=str(number))
    if how == "gone":
        gateway.handlers.unregister(handler)
    return gateway.mesh.calls[sent:]


@pytest.mark.parametrize("how", GIVEN_UP)
async def test_a_call_that_its_client_gives_up_keeps_its_place_until_the_answer(how: str) -> None:
    async with running(max_in_flight=2) as gateway:
        first, second = await given_up(gateway, how, 2)
        handler, other = await gateway.connect(), await gateway.connect("bob")
        assert gateway.manager.in_flight == 0
        gateway.request(handler, id="a")
        gateway.request(other, id="b")
        assert answers(handler) == [("a", None, "too_many_requests")]
        assert not other.frames
        gateway.mesh.reply(first)
        gateway.request(handler, id="c")
        assert len(gateway.mesh.calls) == 4
        gateway.mesh.reply(second, error={"error": "ValueError", "description": ""})
        assert not gateway.manager.calls.table.orphans
        assert not len(gateway.handlers.shared_limits.orphans)


@pytest.mark.parametrize("how", GIVEN_UP)
async def test_a_call_that_its_client_gives_up_keeps_its_place_until_the_deadline(how: str) -> None:
    async with running(max_in_flight=1, request_timeout=5.0) as gateway:
        await given_up(gateway, how)
        handler = await gateway.connect()
        gateway.request(handler)
        assert handler.codes == ["too_many_requests"]
        await gateway.sweep(5.1)
        assert not gateway.manager.calls.table.orphans
        gateway.request(handler, id="now")
        gateway.mesh.reply(gateway.mesh.calls[-1], "fine")
        assert answers(handler)[1:] == [("now", "fine", None)]


@pytest.mark.parametrize("how", GIVEN_UP)
@pytest.mark.parametrize("ending", ["error", "unreadable", "silence"])
async def test_a_call_that_is_given_up_and_fails_counts_as_any_other(how: str, ending: str) -> None:
    async with running(request_timeout=5.0, max_in_flight=100, max_in_flight_per_service=100) as gateway:
        for message in await given_up(gateway, how, ERRORS_ALLOWED):
            if ending == "error":
                gateway.mesh.reply(message, error={"error": "ValueError", "description": ""})
            elif ending == "unreadable":
                gateway.mesh.unreadable(message)
        if ending == "silence":
            await gateway.sweep(5.1)
        assert gateway.handlers.shared_limits.budgets.refuses("alice", gateway.clock.now) is not None


@pytest.mark.parametrize("how", GIVEN_UP)
async def test_a_call_that_is_given_up_and_succeeds_counts_for_nothing(gateway: FakeGateway, how: str) -> None:
    for message in await given_up(gateway, how, 10):
        assert gateway.mesh.reply(message)
    assert not len(gateway.handlers.shared_limits.budgets)
    assert gateway.manager.statistics.late_replies == 10


@pytest.mark.parametrize("ending", ["on_returned", "on_confirmed", "on_rejected", "on_unconfirmed"])
async def test_a_command_that_is_given_up_frees_its_place_whatever_the_mesh_reports(
    gateway: FakeGateway, ending: str
) -> None:
    for message in await given_up(gateway, "cancel", 2, kind="command"):
        getattr(gateway.mesh.told, ending)(message.correlation_id)
    assert not len(gateway.handlers.shared_limits.orphans)
    assert not gateway.manager.calls.table.orphans


async def test_a_call_that_was_not_sent_yet_gives_its_place_back_at_once() -> None:
    async with running(max_in_flight=1) as gateway:
        handler = await gateway.connect()
        gateway.request(handler, id="1")  # waits for the description
        gateway.receive(handler, "cancel", id="1")
        gateway.request(handler, id="2")
        gateway.mesh.describe("orders", ["get"])
        assert answers(handler) == [("1", None, "cancelled")]
        assert len(gateway.mesh.calls) == 1


async def test_nothing_is_kept_for_calls_that_were_given_up_when_the_gateway_stops(gateway: FakeGateway) -> None:
    await given_up(gateway, "gone", 3)
    gateway.manager.calls.close()
    limits = gateway.handlers.shared_limits
    assert (len(limits.orphans), len(limits.request_places), gateway.manager.calls.table.orphans) == (0, 0, ())


# --- a user's share of a service ------------------------------------------------------------------------


async def test_further_calls_of_a_user_wait_in_the_gateway_in_their_order() -> None:
    async with running(max_in_flight_per_service=2) as gateway:
        gateway.know()
        handler, other = await gateway.connect(), await gateway.connect("bob")
        for number in range(4):
            gateway.request(handler, id=str(number), params={"n": number})
        assert gateway.manager.calls.places.waiting == 2
        gateway.request(other, params={"n": "bob's"})
        assert sent_params(gateway) == [0, 1, "bob's"]
        gateway.mesh.reply(gateway.mesh.calls[0])
        assert sent_params(gateway) == [0, 1, "bob's", 2]
        assert not handler.frames[1:]
        gateway.mesh.reply(gateway.mesh.calls[3])
        assert sent_params(gateway) == [0, 1, "bob's", 2, 3]
        for message in gateway.mesh.calls:
            gateway.mesh.reply(message)
        assert sorted(id_ for id_, _, code in answers(handler) if code is None) == ["0", "1", "2", "3"]
        assert not len(gateway.handlers.shared_limits.request_places)


async def test_a_share_is_of_one_service_and_counts_all_connections() -> None:
    async with running(max_in_flight_per_service=1) as gateway:
        gateway.know()
        gateway.know("users", ["me"])
        one, two = await gateway.connect(), await gateway.connect()
        gateway.request(one)
        gateway.request(two)
        gateway.request(two, "me", service="users")
        assert [message.service for message in gateway.mesh.calls] == ["orders", "users"]
        gateway.handlers.unregister(one)
        assert len(gateway.mesh.calls) == 2  # the service still works on it
        gateway.mesh.reply(gateway.mesh.calls[0])
        assert len(gateway.mesh.calls) == 3


@pytest.mark.parametrize("how", GIVEN_UP)
async def test_a_call_that_is_given_up_while_it_waits_is_never_sent(how: str) -> None:
    async with running(max_in_flight_per_service=1, max_in_flight=2) as gateway:
        gateway.know()
        first, handler = await gateway.connect(), await gateway.connect()
        gateway.request(first)
        gateway.request(handler, id="1")
        if how == "cancel":
            gateway.receive(handler, "cancel", id="1")
            assert answers(handler) == [("1", None, "cancelled")]
        else:
            gateway.handlers.unregister(handler)
        assert gateway.manager.calls.places.waiting == 0
        gateway.mesh.reply(gateway.mesh.calls[0])
        assert len(gateway.mesh.calls) == 1
        gateway.assert_idle()
        assert not len(gateway.handlers.shared_limits.request_places)
        assert not len(gateway.handlers.shared_limits.orphans)


async def test_a_call_whose_time_is_over_while_it_waits_was_not_delivered() -> None:
    async with running(max_in_flight_per_service=1) as gateway:
        gateway.know()
        handler = await gateway.connect()
        gateway.request(handler, timeout=30)
        gateway.request(handler, id="short", timeout=1)
        await gateway.sweep(1.1)
        assert answers(handler) == [("short", None, "too_many_requests")]
        assert handler.frames[0]["payload"]["error"]["retryable"]
        assert not len(gateway.handlers.shared_limits.budgets)


async def test_calls_of_which_all_time_is_over_at_once_are_not_sent() -> None:
    async with running(max_in_flight_per_service=1) as gateway:
        gateway.know()
        handler = await gateway.connect()
        for number in range(40):
            gateway.request(handler, id=str(number), timeout=1)
        await gateway.sweep(1.1)
        assert sorted(map(str, handler.codes)) == ["timeout"] + ["too_many_requests"] * 39
        assert len(gateway.mesh.calls) == 1
        gateway.assert_idle()


async def test_thousands_of_waiting_calls_end_without_recursion_when_the_mesh_is_lost() -> None:
    async with running(max_in_flight_per_service=1, max_in_flight=3000) as gateway:
        gateway.know()
        handler = await gateway.connect()
        for number in range(3000):
            gateway.request(handler, id=str(number))
        gateway.mesh.lose()
        gateway.mesh.told.on_rejected(gateway.mesh.calls[0].correlation_id)
        assert handler.codes == ["mesh_unavailable"] * 3000
        gateway.assert_idle()


async def test_waiting_calls_are_answered_when_the_gateway_stops() -> None:
    async with running(max_in_flight_per_service=1) as gateway:
        gateway.know()
        handler = await gateway.connect()
        for number in range(5):
            gateway.request(handler, id=str(number))
        gateway.manager.calls.close()
        assert handler.codes == ["mesh_unavailable"] * 5
        assert len(gateway.mesh.calls) == 1


async def test_requests_to_a_service_that_answers_quickly_do_not_wait() -> None:
    async with running(max_in_flight_per_service=1) as gateway:
        gateway.know()
        handler = await gateway.connect()
        gateway.request(handler)
        gateway.mesh.reply(gateway.mesh.calls[0])
        for number in range(10):
            gateway.request(handler, id=str(number))
        assert len(gateway.mesh.calls) == 11
        for _ in range(2):
            gateway.receive(handler, "command", service="orders", method="put")
        assert len(gateway.mesh.calls) == 12  # how long commands take, nothing tells


@pytest.mark.parametrize("how", ["late", "never", "given up"])
async def test_requests_wait_again_once_the_service_was_slow(how: str) -> None:
    async with running(max_in_flight_per_service=1) as gateway:
        gateway.know()
        handler = await gateway.connect()
        gateway.request(handler, id="1")
        gateway.mesh.reply(gateway.mesh.calls[0])
        gateway.request(handler, id="2", timeout=5)
        if how == "given up":
            gateway.receive(handler, "cancel", id="2")
        await gateway.sweep(6.0 if how == "never" else 2.0)
        if how != "never":
            gateway.mesh.reply(gateway.mesh.calls[1])
        for number in range(3, 6):
            gateway.request(handler, id=str(number))
        assert len(gateway.mesh.calls) == 3


# --- commands -------------------------------------------------------------------------------------------


async def test_a_command_keeps_its_share_until_the_service_answers_a_later_request() -> None:
    async with running(max_in_flight_per_service=2) as gateway:
        gateway.know()
        handler, other = await gateway.connect(), await gateway.connect("bob")
        gateway.request(other)
        earlier = gateway.mesh.calls[-1]
        for number in range(4):
            gateway.receive(handler, "command", service="orders", method="put", id=str(number))
        gateway.clock.now += 1
        first, second = gateway.mesh.calls[1:]
        gateway.mesh.told.on_confirmed(first.correlation_id)
        gateway.clock.now += 1
        gateway.mesh.told.on_confirmed(second.correlation_id)
        gateway.mesh.reply(earlier)
        assert len(gateway.mesh.calls) == 3
        # The gateway asks the service something, and its answer proves that the commands before it are taken.
        gateway.clock.now += 1
        gateway.mesh.describe("orders", ["get", "put"])
        assert len(gateway.mesh.calls) == 4
        gateway.mesh.describe("orders", ["get", "put"])
        assert len(gateway.mesh.calls) == 5
        assert handler.codes == [None, None]


async def test_a_command_that_no_service_takes_gives_its_share_back_when_the_broker_drops_it() -> None:
    async with running(max_in_flight_per_service=1, request_timeout=5.0) as gateway:
        gateway.know()
        handler = await gateway.connect()
        gateway.receive(handler, "command", service="orders", method="put")
        gateway.mesh.told.on_confirmed(gateway.mesh.calls[0].correlation_id)
        gateway.clock.now += 4
        gateway.receive(handler, "command", service="orders", method="put")
        assert len(gateway.mesh.calls) == 1
        await gateway.sweep(1.1)
        assert len(gateway.mesh.calls) == 2


@pytest.mark.parametrize("ending", ["on_returned", "on_rejected", "dead-lettered", "dead-lettered first"])
async def test_commands_that_fail_count_for_their_user(ending: str) -> None:
    async with running(max_in_flight=100, max_in_flight_per_service=100) as gateway:
        gateway.know()
        handler = await gateway.connect()
        for _ in range(ERRORS_ALLOWED):
            gateway.receive(handler, "command", service="orders", method="put")
            told, correlation_id = gateway.mesh.told, gateway.mesh.calls[-1].correlation_id
            if ending == "dead-lettered":
                told.on_confirmed(correlation_id)
            if ending.startswith("dead"):
                told.on_dead_lettered(correlation_id)
            else:
                getattr(told, ending)(correlation_id)
        handler.take()
        gateway.receive(handler, "command", service="orders", method="put", id="1")
        assert answers(handler) == [("1", None, "too_many_requests")]


async def test_a_failed_request_counts_once_though_it_is_dead_lettered(gateway: FakeGateway) -> None:
    gateway.know()
    handler = await gateway.connect()
    for _ in range(ERRORS_ALLOWED - 1):
        gateway.request(handler)
        message = gateway.mesh.calls[-1]
        gateway.mesh.told.on_dead_lettered(message.correlation_id)
        gateway.mesh.reply(message, error={"error": "ValueError", "description": ""})
        gateway.mesh.told.on_dead_lettered(message.correlation_id)
    assert gateway.request(handler) == []


def sent_params(gateway: FakeGateway) -> list[object]:
    """Return the parameter ``n`` of each call that was sent."""
    return [strict_json(bytes(message.params))["n"] for message in gateway.mesh.calls]
