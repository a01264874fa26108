"""Descriptions of services: when a call waits for them, and which public key is trusted."""

from __future__ import annotations

import asyncio
import json

import pytest

from nuropb_gateway_asgi.authentication import Identity
from nuropb_gateway_asgi.authorization import ExposePolicy

from .fakes import KEY, OTHER_KEY, SECRET, FakeGateway, FakeHandler, answers, end_call, running, until

# --- the first call, and renewal ------------------------------------------------------------------------


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
    # end of the request for the description, code of the waiting call (None: the call is sent)
    ("returned", "service_unavailable"),
    ("failed", "mesh_unavailable"),
    ("error", None),
    ("bug", None),
    ("unreadable", None),
]
#: Exposes one method by its name, and all others by a wildcard.
BY_NAME = ExposePolicy(["orders.get", "*.*"], [])


@pytest.mark.parametrize(("how", "code"), NOT_DESCRIBED)
async def test_what_becomes_of_a_call_when_the_service_does_not_describe_itself(how: str, code: str | None) -> None:
    async with running(policy=BY_NAME) as gateway:
        handler = await gateway.connect()
        gateway.request(handler, id="1")
        gateway.request(handler, id="2")
        (question,) = gateway.mesh.sent
        await end_call(gateway, handler, question, how)
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

        names_service = names

    async with running(policy=Broken(["*.*"], [])) as gateway:
        handler = await gateway.connect()
        gateway.request(handler, id="1")
        gateway.request(handler, id="2")
        gateway.mesh.reply(gateway.mesh.describes[0], {})
        gateway.receive(handler, "request", service="other", method="get", id="3")
        gateway.mesh.describe("other", ["get"], nuropb_gateway=True)
        assert answers(handler) == [(str(number), None, "internal") for number in (1, 2, 3)]
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
        await end_call(gateway, handler, question, how)
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
    """Have the service describe itself once for each of ``keys``."""
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
    # end of the second request for the description, code of the call to be encrypted
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
        await end_call(gateway, handler, second, how)
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
            await end_call(gateway, handler, question, how)
        assert [message.public_key for message in gateway.mesh.calls if message.method == "secret"][-1] == KEY
    assert all(message.public_key for message in gateway.mesh.calls if message.method == "secret")


# --- a service that does not answer ---------------------------------------------------------------------


def described(handler: FakeHandler) -> tuple[list[str], list[str]]:
    """The services of the last answer, and those that it names as unavailable."""
    result = handler.frames[-1]["payload"]["result"]
    return list(result["services"]), result["unavailable"]


async def test_a_service_that_does_not_answer_holds_a_description_up_for_three_seconds() -> None:
    async with running(policy=ExposePolicy(["orders.*", "stopped.*"], [])) as gateway:
        handler = await gateway.connect()
        gateway.receive(handler, "describe", id="1")
        gateway.mesh.describe("orders", ["get"])
        await gateway.sweep(2.9)
        assert not handler.frames
        await gateway.pass_time(0.2, lambda: handler.frames)
        assert described(handler) == (["orders"], ["stopped"])


async def test_the_next_description_does_not_wait_for_it_again() -> None:
    async with running(policy=ExposePolicy(["orders.*", "stopped.*"], [])) as gateway:
        handler = await gateway.connect()
        gateway.receive(handler, "describe", id="1")
        gateway.mesh.describe("orders", ["get"])
        await gateway.pass_time(3.1, lambda: handler.frames)
        gateway.receive(handler, "describe", id="2")
        await until(lambda: len(handler.frames) == 2)
        assert described(handler) == (["orders"], ["stopped"])


async def test_a_service_that_has_stopped_is_named_beside_its_former_description() -> None:
    async with running(policy=ExposePolicy(["orders.*"], [])) as gateway:
        gateway.know()
        handler = await gateway.connect()
        await gateway.sweep(61.0)
        gateway.receive(handler, "describe", id="1")
        await gateway.pass_time(3.1, lambda: handler.frames)
        assert described(handler) == (["orders"], ["orders"])


async def test_a_call_waits_for_the_description_as_long_as_it_may(gateway: FakeGateway) -> None:
    handler = await gateway.connect()
    gateway.receive(handler, "describe", id="1", service="orders")
    gateway.request(handler, id="2", timeout=10.0)
    await gateway.pass_time(3.1, lambda: handler.frames)
    assert handler.codes == ["service_unavailable"]
    gateway.mesh.describe("orders", ["get"])
    gateway.mesh.reply(gateway.mesh.calls[0], "done")
    assert answers(handler)[-1] == ("2", "done", None)
