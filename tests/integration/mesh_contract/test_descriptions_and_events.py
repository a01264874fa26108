"""Descriptions, encryption, nuropb's own example, events, and the interface of the host application, on every mesh."""

from __future__ import annotations

import secrets
from typing import Any
from uuid import uuid4

import anyio
import pytest

from nuropb_gateway_asgi import CallError
from tests.kit.gateways import DEADLINE, eventually
from tests.kit.managers import (
    Client,
    Gateway,
    Services,
    authenticate,
)

# --- describe ---------------------------------------------------------------------------------------------------


async def test_a_description_names_what_can_be_called(client: Client, echo: str) -> None:
    answer = await client.ask("describe", service=echo)
    assert answer["result"]["unavailable"] == []
    description = answer["result"]["services"][echo]
    assert description["version"] == "1.2.3"
    assert description["description"].startswith("Answers with what it was given")
    assert set(description["methods"]) == {
        *("echo", "add", "slow", "big", "nan", "whoami", "secret", "success", "call_again", "call_again_forever"),
        *("fail_value", "fail_async", "fail_validation", "fail_authorization", "fail_authentication"),
        *("fail_deprecated", "exit_hard", "emit", "record", "recorded", "events", "count"),
    }
    assert {name for name, method in description["methods"].items() if method["requires_encryption"]} == {"secret"}


@pytest.mark.parametrize(
    ("method", "properties", "required"),
    [
        ("add", {"a": {"type": "int"}, "b": {"type": "int"}}, ["a", "b"]),
        ("count", {"method": {"type": "str", "default": ""}}, []),
        ("whoami", {}, []),
    ],
)
async def test_a_description_names_the_parameters(
    client: Client, echo: str, method: str, properties: dict[str, Any], required: list[str]
) -> None:
    answer = await client.ask("describe", service=echo)
    parameters = answer["result"]["services"][echo]["methods"][method]["parameters"]
    assert parameters == {"type": "object", "properties": properties, "required": required}


async def test_a_description_of_everything_has_what_was_called(client: Client, services: Services) -> None:
    at_first = (await client.ask("describe"))["result"]
    if services.objects:  # a mesh that runs the services knows them before anybody calls them
        assert set(at_first["services"]) == {services.echo, services.stub}
        return
    assert at_first == {"services": {}, "unavailable": []}
    await client.result(services.echo, "echo")
    assert set((await client.ask("describe"))["result"]["services"]) == {services.echo}
    await client.result(services.stub, "test_method")
    assert set((await client.ask("describe"))["result"]["services"]) == {services.echo, services.stub}


# --- encryption -------------------------------------------------------------------------------------------------


async def test_a_method_that_requires_encryption_is_called(client: Client, services: Services) -> None:
    assert await client.result(services.echo, "secret", {"value": "ü"}) == "kept ü"
    result = await client.result(services.stub, "test_requires_encryption")
    assert result == "Result that's to be encrypted in transit"


async def test_an_encrypted_call_can_fail_and_be_a_command(client: Client, echo: str) -> None:
    assert (await client.error(echo, "secret", {"valu": "s"}))["code"] == "invalid_params"
    before = await client.result(echo, "count", {"method": "secret"})
    assert (await client.ask("command", service=echo, method="secret", params={"value": "s"}))["error"] is None
    assert await client.result(echo, "count", {"method": "secret"}) == before + 1
    assert await client.result(echo, "secret", {"value": "s"}) == "kept s"


# --- the example of nuropb itself -------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["test_method", "test_async_method"])
async def test_nuropbs_own_example_answers(client: Client, services: Services, method: str) -> None:
    result = await client.result(services.stub, method, {"a": 1})
    assert result == f"response from {services.stub}.{method}"


async def test_nuropbs_own_example_authorises_by_the_token(client: Client, services: Services) -> None:
    claims = await client.result(services.stub, "test_requires_user_claims")
    assert claims["user_id"] == "test_user"


async def test_nuropbs_own_example_is_called_again(client: Client, services: Services) -> None:
    error = await client.error(services.stub, "test_call_again_loop")
    assert error["error"] == "NuropbCallAgainReject"


# --- events -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("event", [{"id": 1, "text": "ü"}, [1, [None]], "text", 0.5, None])
async def test_an_event_reaches_those_who_subscribed_to_its_topic(gateway: Gateway, echo: str, event: Any) -> None:
    topic = f"t{secrets.token_hex(4)}"
    exact, star, rest, other = [await gateway.connect(name) for name in ("exact", "star", "rest", "other")]
    await exact.ask("subscribe", topics=[f"{topic}.orders.created"])
    await star.ask("subscribe", topics=[f"{topic}.*.created", f"{topic}.orders.*"])
    await rest.ask("subscribe", topics=[f"{topic}.#"])
    await other.ask("subscribe", topics=[f"{topic}.orders", f"{topic}.*"])

    await exact.result(echo, "emit", {"topic": f"{topic}.orders.created", "event": event})
    await rest.result(echo, "emit", {"topic": f"{topic}.last", "event": 0})
    await rest.until(lambda: len(rest.events) == 2)
    await other.until(lambda: other.events)
    for client in (exact, star):
        (seen,) = client.events
        assert (seen["topic"], seen["event"]) == (f"{topic}.orders.created", event)
        assert set(seen) <= {"topic", "event", "trace_id"}
    assert [seen["topic"] for seen in rest.events] == [f"{topic}.orders.created", f"{topic}.last"]
    assert [seen["topic"] for seen in other.events] == [f"{topic}.last"]


async def test_an_event_with_a_target_reaches_those_users_alone(gateway: Gateway, echo: str) -> None:
    topic = f"t{secrets.token_hex(4)}"
    one, one_too, two, three = [await gateway.connect(name) for name in ("one", "one", "two", "three")]
    for client in (two, three):
        await client.ask("subscribe", topics=[f"{topic}.#"])
    await two.result(echo, "emit", {"topic": f"{topic}.private", "event": "s", "target": ["one", "two", "nobody"]})
    await two.result(echo, "emit", {"topic": f"{topic}.public", "event": "p"})
    await three.until(lambda: three.events)
    await two.until(lambda: len(two.events) == 2)
    for client in (one, one_too):
        assert [(seen["topic"], seen["event"]) for seen in client.events] == [(f"{topic}.private", "s")]
    assert [seen["topic"] for seen in two.events] == [f"{topic}.private", f"{topic}.public"]
    assert [seen["topic"] for seen in three.events] == [f"{topic}.public"]


async def test_an_event_with_an_empty_target_reaches_nobody(gateway: Gateway, echo: str) -> None:
    topic = f"t{secrets.token_hex(4)}"
    client = await gateway.connect()
    await client.ask("subscribe", topics=[f"{topic}.#"])
    await client.result(echo, "emit", {"topic": f"{topic}.nobody", "event": 1, "target": []})
    await client.result(echo, "emit", {"topic": f"{topic}.all", "event": 2})
    await client.until(lambda: client.events)
    assert [seen["event"] for seen in client.events] == [2]


async def test_subscriptions_are_listed_and_end(gateway: Gateway, echo: str) -> None:
    topic = f"t{secrets.token_hex(4)}"
    client = await gateway.connect()
    a, b = f"{topic}.a", f"{topic}.b"
    assert (await client.ask("subscribe", topics=[a, b, a]))["result"] == {"topics": [a, b]}
    assert (await client.ask("subscribe", topics=[b]))["result"] == {"topics": [a, b]}
    assert (await client.ask("unsubscribe", topics=[a, "never"]))["result"] == {"topics": [b]}
    for each in (a, b):
        await client.result(echo, "emit", {"topic": each, "event": each})
    await client.until(lambda: client.events)
    assert (await client.ask("subscribe", topics=[a]))["result"] == {"topics": [b, a]}
    await client.result(echo, "emit", {"topic": a, "event": "again"})
    await client.until(lambda: len(client.events) == 2)
    assert [seen["event"] for seen in client.events] == [b, "again"]


async def test_what_one_connection_unsubscribes_another_keeps(gateway: Gateway, echo: str) -> None:
    topic = f"t{secrets.token_hex(4)}"
    stays, goes, leaves = [await gateway.connect() for _ in range(3)]
    for client in (stays, goes, leaves):
        await client.ask("subscribe", topics=[f"{topic}.#"])
    await goes.ask("unsubscribe", topics=[f"{topic}.#"])
    gateway.handlers.unregister(leaves)
    await stays.result(echo, "emit", {"topic": f"{topic}.x", "event": 1})
    await stays.until(lambda: stays.events)
    assert not goes.events
    assert not leaves.events


async def test_events_keep_their_order(gateway: Gateway, echo: str) -> None:
    topic = f"t{secrets.token_hex(4)}"
    client = await gateway.connect()
    await client.ask("subscribe", topics=[f"{topic}.#"])
    for n in range(60):
        client.send("command", service=echo, method="emit", params={"topic": f"{topic}.{n}", "event": n})
    await client.until(lambda: len(client.events) == 60)
    assert [seen["event"] for seen in client.events] == list(range(60))


async def test_an_event_of_its_own_topics_reaches_the_controller(gateway: Gateway, echo: str) -> None:
    client = await gateway.connect()
    await client.result(echo, "emit", {"topic": "controller.test", "event": {"n": 1}, "target": ["u"]})
    await client.result(echo, "emit", {"topic": "controllers.test", "event": {"n": 2}})
    await client.result(echo, "emit", {"topic": "controller", "event": [3]})
    await eventually(lambda: len(gateway.controller.received) == 2)
    assert gateway.controller.received == [
        ("controller.test", {"n": 1}, ["u"], {"service": echo}),
        ("controller", [3], None, {"service": echo}),
    ]


# --- for the host application -----------------------------------------------------------------------------------


async def test_the_host_application_calls_services_itself(gateway: Gateway, echo: str) -> None:
    manager = gateway.manager
    assert await manager.request(echo, "add", {"a": 1, "b": 2}) == 3
    assert await manager.request(echo, "secret", {"value": "s"}) == "kept s"
    identity = await authenticate("token-of-u1")
    seen = await manager.request(echo, "whoami", identity=identity, trace_id="t")
    assert seen == {"user_id": "u1", "Authorization": "Bearer token-of-u1", "trace_id": "t", "session_id": None}
    token = uuid4().hex
    await manager.command(echo, "record", {"token": token})
    assert {"token": token} in await manager.request(echo, "recorded")


@pytest.mark.parametrize(
    ("method", "code", "retryable"),
    [("fail_validation", "invalid_params", False), ("fail_value", "service_error", False)],
)
async def test_the_host_applications_calls_fail_with_the_same_codes(
    gateway: Gateway, echo: str, method: str, code: str, retryable: bool
) -> None:
    with pytest.raises(CallError) as caught:
        await gateway.manager.request(echo, method)
    assert (caught.value.code, caught.value.retryable) == (code, retryable)
    with pytest.raises(CallError) as caught:
        await gateway.manager.command("nobody-at-all", method)
    assert (caught.value.code, caught.value.retryable) == ("service_unavailable", True)
    with pytest.raises(CallError) as caught:
        await gateway.manager.request(echo, "slow", {"seconds": 3600}, timeout=0.1)
    assert (caught.value.code, caught.value.retryable) == ("timeout", False)


async def test_the_host_application_publishes_to_clients_and_services(gateway: Gateway, echo: str) -> None:
    topic = f"t{secrets.token_hex(4)}"
    one, two = await gateway.connect("one"), await gateway.connect("two")
    for client in (one, two):
        await client.ask("subscribe", topics=[f"{topic}.#"])
    identity = await authenticate("token-of-one")
    await gateway.manager.publish_event(f"{topic}.private", {"n": 1}, target=["one"], trace_id="t", identity=identity)
    await gateway.manager.publish_event(f"{topic}.public", [2])
    await two.until(lambda: two.events)
    await one.until(lambda: len(one.events) == 2)
    assert one.events[0] == {"topic": f"{topic}.private", "event": {"n": 1}, "trace_id": "t"}
    assert [seen["event"] for seen in two.events] == [[2]]

    async def received() -> list[Any]:
        return [event for event in await one.result(echo, "events") if event["topic"].startswith(topic)]

    with anyio.fail_after(DEADLINE):
        while len(events := await received()) < 2:
            pass
    private, public = events
    assert (private["event"], private["target"]) == ({"n": 1}, ["one"])
    assert private["context"]["Authorization"] == "Bearer token-of-one"
    assert (public["event"], public["target"]) == ([2], None)
    assert public["context"]["user_id"] is None
