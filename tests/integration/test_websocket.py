"""What clients and the gateway say to each other once they are connected, and what hostile clients cannot do."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest
from starlette.exceptions import WebSocketException
from starlette.websockets import WebSocket

from nuropb_gateway_asgi import CloseCode, Identity, WebSocketHandler
from nuropb_gateway_asgi.handlers.direct import FRAMES_PER_TURN
from nuropb_gateway_asgi.mesh.embedded import EmbeddedMesh
from tests.kit.clients import CLOSE, CONTINUATION, PING, PONG, TEXT, Client, Frame, RawClient, connect
from tests.kit.gateways import DEADLINE, RunningGateway, authorise_from_token, eventually, make_gateway, run_gateway
from tests.unit.fakes import FakeHandler

BEARER = ("Authorization", "Bearer alice")
#: Seconds of a token that is to expire; long enough to connect with it on a busy machine.
BRIEFLY = 0.7
LONG = {"seconds": 3600}


@pytest.fixture(scope="module")
async def shared() -> AsyncIterator[RunningGateway]:
    async with run_gateway(expose=["demo.*", "nobody.*"]) as running:
        yield running


@pytest.fixture
async def running(shared: RunningGateway) -> AsyncIterator[RunningGateway]:
    """A gateway of which nothing may be left in use by any test."""
    yield shared
    await shared.is_empty()


class Turnstile:
    """A service whose answers wait for one another, so that no test has to wait for time."""

    def __init__(self) -> None:
        self.opened = asyncio.Event()
        self.through = 0

    async def wait(self) -> str:
        await self.opened.wait()
        self.through += 1
        return "through"

    def open(self) -> str:
        self.opened.set()
        return "open"


@contextlib.asynccontextmanager
async def at_turnstile() -> AsyncIterator[tuple[RunningGateway, Turnstile]]:
    turnstile = Turnstile()
    gateway = make_gateway(mesh=EmbeddedMesh({"turnstile": turnstile}), expose=["turnstile.*"])
    async with run_gateway(gateway) as running:
        yield running, turnstile


@pytest.fixture
async def client(running: RunningGateway) -> AsyncIterator[Client]:
    async with connect(running.url, "alice") as client:
        yield client
        assert await client.settled() == []


# --- hello ------------------------------------------------------------------------------------------------------


async def test_hello_says_who_where_and_how_much() -> None:
    async def somebody(token: str) -> Identity | None:
        return Identity(user_id="u-1", username="Ada", token=token, expires_at=4102444800)

    gateway = make_gateway(
        authenticator=somebody,
        instance_id="here",
        max_message_size=2048,
        max_in_flight=7,
        request_timeout=3,
        ping_interval=20,
    )
    async with (
        run_gateway(gateway) as running,
        connect(running.url, "one") as one,
        connect(running.url, "two") as two,
    ):
        session_id = one.hello.pop("session_id")
        assert isinstance(session_id, str)
        assert session_id not in ("", two.hello["session_id"])
        assert one.hello == {
            "user_id": "u-1",
            "username": "Ada",
            "protocol": "nuropb.v1",
            "instance_id": "here",
            "expires_at": 4102444800,
            "limits": {"max_message_size": 2048, "max_in_flight": 7, "request_timeout": 3.0, "ping_interval": 20.0},
        }


# --- requests ---------------------------------------------------------------------------------------------------


async def test_a_request_is_answered(client: Client) -> None:
    answer = await client.call("demo.add", {"a": 1, "b": 2}, id="7", trace_id="t")
    assert answer == {"id": "7", "trace_id": "t", "result": 3, "error": None}


async def test_answers_come_in_the_order_they_are_ready() -> None:
    async with at_turnstile() as (running, _), connect(running.url, "alice") as client:
        await client.request("turnstile.wait", id="1")
        await client.request("turnstile.wait", id="2")
        await client.request("turnstile.open", id="3")
        assert [(await client.next())["payload"]["id"] for _ in range(3)] == ["3", "1", "2"]


async def test_parameters_pass_unchanged(client: Client) -> None:
    params = {"text": 'ü€𝄞\u0000\u2028"\\', "big": 2**63 - 1, "small": 1e-300, "deep": [[[[{"": None}]]]], "no": False}
    assert await client.result("demo.echo", params) == params


async def test_params_may_be_left_out(client: Client) -> None:
    assert (await client.ask("request", service="demo", method="echo"))["result"] == {}


async def test_what_the_service_sees_is_made_by_the_gateway(client: Client) -> None:
    forged: dict[str, Any] = {
        "context": {"user_id": "root"},
        "correlation_id": "c",
        "reply_to": "q",
        "encrypted": "yes",
        "headers": {"nuropb_type": "event"},
        "tag": "response",
    }
    context = await client.result("demo.whoami", {}, trace_id="t", **forged)
    assert context == {
        "user_id": "alice",
        "Authorization": "Bearer alice",
        "trace_id": "t",
        "session_id": client.hello["session_id"],
    }


async def test_the_gateway_makes_a_trace_id_when_there_is_none(client: Client) -> None:
    answer = await client.call("demo.whoami")
    assert answer["trace_id"] == answer["result"]["trace_id"]
    assert answer["trace_id"]


async def test_a_client_of_nuropb_gw_sends_only_trace_ids(client: Client) -> None:
    await client.request("demo.add", {"a": 1, "b": 2}, trace_id="one")
    await client.request("demo.fail", {"how": "validation"}, trace_id="two")
    first, second = [(await client.next())["payload"] for _ in range(2)]
    assert first == {"trace_id": "one", "result": 3, "error": None}
    assert (second["trace_id"], second["error"]["error"]) == ("two", "NuropbValidationError")
    assert "id" not in second


async def test_a_command_is_answered_once_it_is_taken(client: Client) -> None:
    await client.request("demo.slow", {"seconds": 3600}, id="slow")
    answer = await client.ask("command", service="demo", method="slow", params={"seconds": 0}, trace_id="t")
    assert answer == {"id": "ask-1", "trace_id": "t", "result": None, "error": None}
    await client.send("cancel", id="slow")
    assert (await client.answer("slow"))["error"]["code"] == "cancelled"


@pytest.mark.parametrize(
    ("how", "code", "name"),
    [
        ("validation", "invalid_params", "NuropbValidationError"),
        ("authorization", "permission_denied", "NuropbAuthorizationError"),
        ("authentication", "unauthenticated", "NuropbAuthenticationError"),
        ("deprecated", "deprecated", "NuropbDeprecatedError"),
        ("handling", "service_error", "NuropbHandlingError"),
    ],
)
async def test_what_a_service_raises_on_purpose(client: Client, how: str, code: str, name: str) -> None:
    answer = await client.call("demo.fail", {"how": how}, trace_id="t")
    assert (answer["result"], answer["trace_id"]) == (None, "t")
    assert answer["error"] == {
        "error": name,
        "description": f"This is how a {how} failure looks",
        "code": code,
        "retryable": False,
        "retry_after_ms": None,
    }


async def test_what_a_service_raises_by_mistake(client: Client) -> None:
    error = (await client.call("demo.fail", {"how": "bug"}, trace_id="look-me-up"))["error"]
    assert (error["code"], error["retryable"]) == ("service_error", False)
    assert "look-me-up" in error["description"]
    assert "Zero" not in json.dumps(error)
    assert "This is how" not in json.dumps(error)


async def test_the_details_of_errors_are_set() -> None:
    async with run_gateway(error_details="all") as running, connect(running.url, "alice") as client:
        assert "This is how a bug" in (await client.call("demo.fail", {"how": "bug"}))["error"]["description"]
    async with run_gateway(error_details="none") as running, connect(running.url, "alice") as client:
        error = (await client.call("demo.fail", {"how": "validation"}))["error"]
        assert "This is how" not in error["description"]
        assert (error["error"], error["code"]) == ("NuropbValidationError", "invalid_params")


async def test_there_is_no_such_method(client: Client) -> None:
    assert await client.error_code("demo.nothing") == "method_not_found"


async def test_there_is_no_such_service(client: Client) -> None:
    error = (await client.call("nobody.anything"))["error"]
    assert (error["error"], error["code"], error["retryable"]) == (
        "NuropbNotDeliveredError",
        "service_unavailable",
        True,
    )


@pytest.mark.parametrize("name", ["other.echo", "demo.nuropb_describe", "nuropb-gateway.anything", "Demo.echo"])
async def test_what_is_not_exposed_cannot_be_called(client: Client, name: str) -> None:
    assert await client.error_code(name) == "permission_denied"
    service, _, method = name.rpartition(".")
    answer = await client.ask("command", service=service, method=method)
    assert answer["error"]["code"] == "permission_denied"


async def test_no_answer_in_time(client: Client) -> None:
    error = (await client.call("demo.slow", LONG, timeout=0.05))["error"]
    assert (error["error"], error["code"], error["retryable"]) == ("NuropbTimeoutError", "timeout", False)


async def test_a_client_cannot_wait_longer_than_the_server_does() -> None:
    async with (
        run_gateway(request_timeout=0.05, request_timeout_max=0.1) as running,
        connect(running.url, "alice") as client,
    ):
        for timeout in ({}, {"timeout": 1e9}, {"timeout": 0.01}):
            assert await client.error_code("demo.slow", LONG, **timeout) == "timeout"


async def test_a_result_may_be_too_large() -> None:
    class Big:
        def text(self, size: int) -> str:
            return "x" * size

    gateway = make_gateway(
        mesh=EmbeddedMesh({"big": Big()}), expose=["big.text"], max_message_size=1024, outbox_size=10_000
    )
    async with run_gateway(gateway) as running, connect(running.url, "alice") as client:
        assert len(await client.result("big.text", {"size": 9_998})) == 9_998
        assert await client.error_code("big.text", {"size": 9_999}) == "payload_too_large"
        assert len(await client.result("big.text", {"size": 9_998})) == 9_998


@pytest.mark.parametrize("value", ["float('nan')", "{(1, 2): 3}", "object()", "chr(0xD800)", "10 ** 5000"])
async def test_a_service_answers_what_json_does_not_have(value: str) -> None:
    class Odd:
        def odd(self) -> Any:
            return eval(value)

    gateway = make_gateway(mesh=EmbeddedMesh({"odd": Odd()}), expose=["odd.*"])
    async with run_gateway(gateway) as running, connect(running.url, "alice") as client:
        answer = await client.call("odd.odd")
        assert (answer["error"] or {"code": "service_error"})["code"] == "service_error"
        assert await client.settled() == []


# --- ids, limits, cancel ----------------------------------------------------------------------------------------


async def test_an_id_is_in_flight_once(client: Client) -> None:
    await client.request("demo.slow", LONG, id="x")
    for again in ("request", "command"):
        answer = await client.ask(again, service="demo", method="echo", id="x")
        assert answer["error"]["code"] == "duplicate_id"
    assert (await client.ask("describe", id="x"))["error"]["code"] == "duplicate_id"
    await client.send("cancel", id="x")
    assert (await client.answer("x"))["error"]["code"] == "cancelled"
    assert await client.result("demo.echo", id="x") == {}


async def test_ids_are_of_one_connection(running: RunningGateway) -> None:
    async with connect(running.url, "alice") as one, connect(running.url, "alice:2") as two:
        await one.request("demo.slow", LONG, id="x")
        await one.settled()
        assert await two.result("demo.echo", id="x") == {}
        await two.send("cancel", id="x")
        assert await two.settled() == []
        assert running.occupancy == (2, 2, 1)


async def test_more_requests_in_flight_than_allowed() -> None:
    async with run_gateway(max_in_flight=2) as running, connect(running.url, "alice") as client:
        await client.request("demo.slow", LONG, id="1")
        await client.request("demo.slow", LONG)
        for type_ in ("request", "command"):
            error = (await client.ask(type_, service="demo", method="echo"))["error"]
            assert (error["code"], error["retryable"]) == ("too_many_requests", True)
            assert error["retry_after_ms"] > 0
        async with connect(running.url, "alice:2") as other:
            assert await other.result("demo.echo") == {}
        await client.send("cancel", id="1")
        assert (await client.answer("1"))["error"]["code"] == "cancelled"
        assert await client.result("demo.echo") == {}


async def test_cancel_answers_once_and_only_what_is_in_flight() -> None:
    async with at_turnstile() as (running, turnstile), connect(running.url, "alice") as client:
        await client.ask("describe", service="turnstile")  # or the call would wait for that, and not be made
        await client.request("turnstile.wait", id="x", trace_id="t")
        await client.send("cancel", id="x")
        await client.send("cancel", id="x")
        await client.send("cancel", id="never")
        answer = await client.answer("x")
        assert (answer["error"]["code"], answer["error"]["retryable"]) == ("cancelled", False)
        assert answer["trace_id"] == "t"
        assert await client.result("turnstile.open", id="x") == "open"  # the id is free, and the first call goes on
        await eventually(lambda: turnstile.through == 1)
        await client.send("cancel", id="x")
        assert await client.settled() == []
        assert running.gateway.service_mesh_manager.statistics.late_replies == 1


async def test_too_many_failed_calls() -> None:
    async with run_gateway() as running, connect(running.url, "bob") as other:
        async with connect(running.url, "alice") as client:
            for _ in range(50):
                assert await client.error_code("demo.fail") == "service_error"
            error = (await client.call("demo.echo"))["error"]
            assert (error["code"], error["retryable"]) == ("too_many_requests", True)
            assert error["retry_after_ms"] > 0
            for _ in range(60):
                await client.request("demo.echo")
            assert (await client.closed()).code == 4509
        assert await other.result("demo.echo") == {}


# --- describe ---------------------------------------------------------------------------------------------------


async def test_describe_says_what_may_be_called(client: Client) -> None:
    answer = await client.ask("describe", trace_id="t")
    assert answer["trace_id"] == "t"
    assert sorted(answer["result"]["services"]) == ["demo"]
    assert answer["result"]["unavailable"] == ["nobody"]
    methods = answer["result"]["services"]["demo"]["methods"]
    assert {"add", "echo", "fail", "publish", "slow", "whoami"} <= set(methods)
    assert not [name for name in methods if name.startswith(("_", "nuropb_"))]
    assert methods["add"]["parameters"]["required"] == ["a", "b"]
    one = await client.ask("describe", service="demo")
    assert one["result"]["services"] == answer["result"]["services"]
    assert (await client.ask("describe", service="nobody"))["error"]["code"] == "service_unavailable"


async def test_describe_leaves_out_what_may_not_be_called() -> None:
    async with run_gateway(expose=["demo.add"]) as running, connect(running.url, "alice") as client:
        described = (await client.ask("describe"))["result"]["services"]
        assert list(described["demo"]["methods"]) == ["add"]
        assert (await client.ask("describe", service="other"))["error"]["code"] == "permission_denied"
        assert (await client.ask("describe", service="nuropb-gateway"))["error"]["code"] == "permission_denied"


# --- events -----------------------------------------------------------------------------------------------------


async def publish(client: Client, topic: str, event: Any, **more: Any) -> None:
    await client.result("demo.publish", {"topic": topic, "event": event, **more})


async def test_events_come_to_who_subscribed(client: Client, running: RunningGateway) -> None:
    answer = await client.ask("subscribe", topics=["demo.orders.*", "demo.users.#"], trace_id="t")
    assert answer["result"] == {"topics": ["demo.orders.*", "demo.users.#"]}
    assert answer["trace_id"] == "t"
    async with connect(running.url, "bob") as publisher:
        await publish(publisher, "demo.orders.created", {"n": 1})
        await publish(publisher, "demo.orders.created.twice", {"n": 2})
        await publish(publisher, "demo.users", {"n": 3})
        await publish(publisher, "demo.other", {"n": 4})
        assert await publisher.settled() == []
    events = [frame["payload"] for frame in await client.settled()]
    assert [(event["topic"], event["event"]["n"]) for event in events] == [
        ("demo.orders.created", 1),
        ("demo.users", 3),
    ]


async def test_an_event_comes_once_however_many_patterns_match(client: Client) -> None:
    await client.ask("subscribe", topics=["demo.a.#", "demo.a.*", "demo.*.b", "demo.a.b"])
    await publish(client, "demo.a.b", [])
    assert (await client.event("demo.a.b"))["event"] == []
    assert await client.settled() == []


async def test_unsubscribed_is_unsubscribed(client: Client) -> None:
    await client.ask("subscribe", topics=["demo.a", "demo.b", "demo.a"])
    assert (await client.ask("subscribe", topics=["demo.a"]))["result"] == {"topics": ["demo.a", "demo.b"]}
    answer = await client.ask("unsubscribe", topics=["demo.a", "demo.never"])
    assert answer["result"] == {"topics": ["demo.b"]}
    await publish(client, "demo.a", 1)
    await publish(client, "demo.b", 2)
    assert [frame["payload"]["event"] for frame in await client.settled()] == [2]


async def test_subscribing_is_all_or_nothing(client: Client) -> None:
    for topics in (["demo.a", "orders.a"], ["demo.a", "#"], ["demo.a", "*.a"]):
        assert (await client.ask("subscribe", topics=topics))["error"]["code"] == "permission_denied"
    for topics in (["demo.a", ""], ["demo.a", "demo.a*"], ["demo.a", "demo." + "x" * 255]):
        assert (await client.ask("subscribe", topics=topics))["error"]["code"] == "bad_request"
    too_many = [f"demo.a.{number}" for number in range(101)]
    assert (await client.ask("subscribe", topics=too_many))["error"]["code"] == "bad_request"
    assert (await client.ask("unsubscribe", topics=[]))["result"] == {"topics": []}
    await publish(client, "demo.a", 1)
    assert (await client.ask("subscribe", topics=too_many[:100]))["error"] is None
    assert (await client.ask("subscribe", topics=["demo.b"]))["error"]["code"] == "bad_request"


async def test_topics_of_a_user() -> None:
    async with run_gateway(expose_topics=["users.{user_id}.#"]) as running, connect(running.url, "al") as al:
        assert (await al.ask("subscribe", topics=["users.al.#"]))["error"] is None
        for topic in ("users.bob.#", "users.*.x", "users.#", "users.al", "users.al*", "users.alice"):
            allowed = topic == "users.al"
            assert ((await al.ask("subscribe", topics=[topic]))["error"] is None) is allowed


async def test_a_target_gets_its_event_and_nobody_else_does(client: Client, running: RunningGateway) -> None:
    async with connect(running.url, "bob") as bob, connect(running.url, "bob:2") as bob_again:
        await client.ask("subscribe", topics=["demo.private"])
        await publish(client, "demo.private", "psst", target=["bob", "carol"])
        for target in (bob, bob_again):
            assert (await target.event("demo.private"))["event"] == "psst"
        await publish(client, "demo.private", "nobody", target=[])
        assert await bob.settled() == await bob_again.settled() == []


async def test_the_demo_ticks(client: Client) -> None:
    await client.ask("subscribe", topics=["demo.tick"])
    first, second = [(await client.event("demo.tick"))["event"]["count"] for _ in range(2)]
    assert second == first + 1
    await client.ask("unsubscribe", topics=["demo.tick"])
    await client.settled()


# --- pings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("payload", [None, 0, "", "x" * 1000, [1, {"a": []}], {"nested": {"deep": True}}])
async def test_a_ping_comes_back(client: Client, payload: Any) -> None:
    await client.send_frame({"type": "ping", "payload": payload})
    assert await client.next() == {"type": "pong", "payload": payload}


async def test_a_ping_may_be_empty(client: Client) -> None:
    await client.send_frame({"type": "ping"})
    assert await client.next() == {"type": "pong"}


async def test_who_answers_no_ping_is_hung_up_on_unless_it_never_learned_to() -> None:
    async with run_gateway(ping_interval=0.05, ping_timeout=1) as running, contextlib.AsyncExitStack() as stack:
        by_header = await stack.enter_async_context(connect(running.url, headers=[("Authorization", "Bearer :alice")]))
        by_frame = await stack.enter_async_context(connect(running.url, "alice"))
        await by_frame.request("demo.echo", trace_id="legacy")
        silent = await stack.enter_async_context(connect(running.url, "alice"))
        closed = await silent.closed()
        assert (closed.code, closed.frames) == (4012, [{"type": "ping"}])
        # They have been silent for longer than the one that was hung up on.
        for legacy in (by_header, by_frame):
            await legacy.request("demo.add", {"a": 1, "b": 1}, trace_id="t")
            assert (await legacy.wait_for(lambda frame: frame["payload"].get("trace_id") == "t"))["payload"]["result"]


@pytest.mark.parametrize("answer", [{"type": "pong"}, {"type": "pong", "payload": {"a": 1}}, {"type": "ping"}, "{"])
async def test_whatever_comes_back_shows_that_the_client_is_there(answer: Any) -> None:
    async with (
        run_gateway(ping_interval=0.02, ping_timeout=DEADLINE) as running,
        connect(running.url, "alice") as client,
    ):
        for _ in range(3):  # a further ping is only sent when the one before was answered
            await client.wait_for(lambda frame: frame == {"type": "ping"})
            if answer == "{":
                await client.send_text("{")
            else:
                await client.send_frame(answer)
        assert await client.result("demo.echo") == {}


# --- frames that are none ---------------------------------------------------------------------------------------

MALFORMED: list[str] = [
    "",
    "null",
    "[]",
    '"request"',
    "{",
    "{}",
    "{}{}",
    "NaN",
    '{"type":"request"}',
    '{"type":"request","payload":null}',
    '{"type":"request","payload":[]}',
    '{"type":"nonsense","payload":{}}',
    '{"type":"Request","payload":{"service":"demo","method":"echo"}}',
    '{"type":7,"payload":{}}',
    '{"type":"response","payload":{}}',
    '{"type":"event","payload":{"topic":"hello","event":{}}}',
    '{"type":"error"}',
    '{"type":"request","payload":{"service":"demo"}}',
    '{"type":"request","payload":{"method":"echo"}}',
    '{"type":"request","payload":{"service":"demo","method":"_run_"}}',
    '{"type":"request","payload":{"service":"demo","method":"__class__"}}',
    '{"type":"request","payload":{"service":"demo","method":""}}',
    '{"type":"request","payload":{"service":"demo","method":"a.b"}}',
    '{"type":"request","payload":{"service":"","method":"echo"}}',
    '{"type":"request","payload":{"service":"de mo","method":"echo"}}',
    '{"type":"request","payload":{"service":"d\\u00e9mo","method":"echo"}}',
    '{"type":"request","payload":{"service":7,"method":"echo"}}',
    '{"type":"request","payload":{"service":"demo","method":"echo","params":[]}}',
    '{"type":"request","payload":{"service":"demo","method":"echo","params":null}}',
    '{"type":"request","payload":{"service":"demo","method":"echo","params":"{}"}}',
    '{"type":"request","payload":{"service":"demo","method":"echo","id":7}}',
    '{"type":"request","payload":{"service":"demo","method":"echo","id":""}}',
    '{"type":"request","payload":{"service":"demo","method":"echo","id":"\\u00e9"}}',
    '{"type":"request","payload":{"service":"demo","method":"echo","trace_id":{}}}',
    '{"type":"request","payload":{"service":"demo","method":"echo","trace_id":"a\\nb"}}',
    '{"type":"request","payload":{"service":"demo","method":"echo","timeout":0}}',
    '{"type":"request","payload":{"service":"demo","method":"echo","timeout":-1}}',
    '{"type":"request","payload":{"service":"demo","method":"echo","timeout":"1"}}',
    '{"type":"request","payload":{"service":"demo","method":"echo","timeout":NaN}}',
    '{"type":"request","payload":{"service":"demo","method":"echo","params":{"a":NaN}}}',
    '{"type":"request","payload":{"service":"demo","method":"echo","params":{"a":-Infinity}}}',
    '{"type":"request","payload":{"service":"demo","method":"echo","params":{"a":1e999}}}',
    '{"type":"request","payload":{"service":"demo","method":"echo","params":{"a":01}}}',
    '{"type":"request","payload":{"service":"demo","method":"echo","params":{"a":"\\ud800"}}}',
    '{"type":"request","payload":{"service":"demo","method":"echo","params":{"a":18446744073709551616}}}',
    '{"type":"request","payload":{"service":"demo","method":"echo","params":{"a":' + "[" * 40 + "]" * 40 + "}}}",
    '{"type":"request","payload":{"service":"demo","method":"echo","params":{"a":' + "[" * 9000 + "]" * 9000 + "}}}",
    "[" * 30000,
    '{"type":"subscribe","payload":{"topics":"demo.#"}}',
    '{"type":"subscribe","payload":{"topics":[1]}}',
    '{"type":"cancel","payload":{}}',
    '{"type":"authorize","payload":{"token":null}}',
    "\ufeff{}",
    "\u0000",
]


@pytest.mark.parametrize("text", MALFORMED, ids=range(len(MALFORMED)))
async def test_what_is_no_frame_is_answered_with_bad_request(client: Client, text: str) -> None:
    await client.send_text(text)
    (answer,) = await client.settled()
    error = answer if answer["type"] == "error" else answer["payload"]["error"]
    assert (error["code"], error["retryable"]) == ("bad_request", False)


async def test_a_broken_frame_is_answered_by_its_id(client: Client) -> None:
    answer = await client.ask("request", service="demo", method="_private", id="x", trace_id="t")
    assert (answer["trace_id"], answer["error"]["code"]) == ("t", "bad_request")


async def test_broken_json_has_the_name_that_nuropb_gw_gave_it(client: Client) -> None:
    await client.send_text("{")
    error = await client.next()
    assert (error["type"], error["error"]) == ("error", "JSONDecodeError")
    assert error["description"].startswith("Error decoding JSON")


async def test_a_flood_of_frames_leaves_others_their_turn() -> None:
    """Thousands of frames that arrive at once are not handled at once."""
    count, handled = 20_000, 0
    unlimited = run_gateway(outbox_size=2**24, rate_limit="off", rate_limit_user="off")
    async with unlimited as running, RawClient.open(running.url) as flood:
        manager = running.gateway.handler_manager
        handle = manager.on_handler_message

        def counting(handler: Any, data: Any) -> Any:
            nonlocal handled
            handled += 1
            return handle(handler, data)

        async def read() -> None:
            for _ in range(count):
                await flood.read_frame()

        manager.on_handler_message = counting  # type: ignore[method-assign]
        await flood.handshake("/ws", ("Authorization", "Bearer mallory"))
        turns = []
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(flood.send, RawClient.frame(b'{"type":"ping"}') * count)
            tasks.start_soon(read)
            while handled < count:
                before = handled
                await asyncio.sleep(0)
                turns.append(handled - before)
        assert max(turns) <= 2 * FRAMES_PER_TURN


async def test_ten_broken_frames_in_a_row(running: RunningGateway) -> None:
    async with connect(running.url, "alice") as client:
        for good in ({"type": "pong"}, {"type": "cancel", "payload": {"id": "x"}}):
            for _ in range(9):
                await client.send_text("{")
            await client.send_frame(good)
        for _ in range(10):
            await client.send_text("{}")
        closed = await client.closed()
        assert closed.code == 4501
        assert [frame["code"] for frame in closed.frames] == ["bad_request"] * 28


async def test_a_binary_message(running: RunningGateway) -> None:
    async with connect(running.url, "alice") as client:
        await client.send_text(b'{"type":"ping"}')
        assert (await client.closed()).code == 1003


async def test_a_message_that_is_too_big(running: RunningGateway) -> None:
    frame = json.dumps({"type": "request", "payload": {"service": "demo", "method": "echo", "params": {"x": ""}}})
    fits = frame.replace('""', '"' + "x" * (65536 - len(frame)) + '"')
    async with connect(running.url, "alice") as client:
        await client.send_text(fits)
        assert len((await client.next())["payload"]["result"]["x"]) == 65536 - len(frame)
        await client.send_text(fits + " ")
        closed = await client.closed()
        assert (closed.code, [frame["code"] for frame in closed.frames]) == (1009, ["payload_too_large"])
    async with connect(running.url, "alice") as client:
        await client.send_text("€" * 30000)  # bytes are counted, not characters
        assert (await client.closed()).code == 1009
    async with connect(running.url, "alice") as client:
        await client.send_text("x" * 1_000_000)  # the server's own limit
        assert (await client.closed()).code == 1009


async def test_invalid_utf8(running: RunningGateway) -> None:
    for payload in (b'{"type":"ping","payload":"\xff"}', b"\xed\xa0\x80", b"\xc3"):
        async with RawClient.open(running.url) as raw:
            await raw.handshake("/ws", BEARER)
            await raw.send(raw.frame(payload))
            assert await raw.close_code() == 1007
        await running.is_empty()


async def test_a_message_in_fragments(running: RunningGateway) -> None:
    async with RawClient.open(running.url) as raw:
        await raw.handshake("/ws", BEARER)
        await raw.read_frame()
        await raw.send(raw.frame(b'{"type":"pi', fin=False) + raw.frame(b"!", PING))
        await raw.send(b"".join(raw.frame(b"", CONTINUATION, fin=False) for _ in range(1000)))
        await raw.send(raw.frame(b'ng","payload":"\xc3', CONTINUATION, fin=False) + raw.frame(b'\xbc"}', CONTINUATION))
        assert await raw.read_frame() == (PONG, b"!")
        assert await raw.read_frame() == (TEXT, '{"type":"pong","payload":"ü"}'.encode())


@pytest.mark.parametrize(
    "data",
    [
        RawClient.frame(b"{}", 3),
        RawClient.frame(b"{}", CONTINUATION),
        RawClient.frame(b"{}", fin=False) + RawClient.frame(b"{}"),
        RawClient.frame(b"x" * 126, PING),
        RawClient.frame(b"", PING, fin=False),
        RawClient.frame(b"\x00", CLOSE),
        RawClient.frame(b"\x03\xee", CLOSE),
        RawClient.frame(b"\x03\xe8\xff", CLOSE),
        b"\xc1\x80\x00\x00\x00\x00",
        b"\x81\x02{}",
        b"\x81\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        b"GET / HTTP/1.1\r\n\r\n",
    ],
)
async def test_what_breaks_the_websocket_protocol_ends_the_connection(running: RunningGateway, data: bytes) -> None:
    async with RawClient.open(running.url) as raw:
        await raw.handshake("/ws", BEARER)
        await raw.send_json({"type": "request", "payload": {"service": "demo", "method": "slow", "params": LONG}})
        await raw.send(data)
        await raw.ended()
    await running.is_empty()


# --- tokens on a live connection --------------------------------------------------------------------------------


async def test_the_token_expires(running: RunningGateway) -> None:
    async with connect(running.url, f"alice:for:{BRIEFLY}") as client:
        await client.request("demo.slow", LONG)
        closed = await client.closed()
        assert (closed.code, closed.frames) == (4005, [])


async def test_a_newer_token_keeps_the_connection(running: RunningGateway) -> None:
    async with connect(running.url, f"alice:for:{BRIEFLY}") as client:
        answer = await client.ask("authorize", token="alice:for:1000", trace_id="t")
        assert answer["result"]["expires_at"] > client.hello["expires_at"]
        assert answer["trace_id"] == "t"
        assert (await client.result("demo.whoami"))["Authorization"] == "Bearer alice:for:1000"
        async with connect(running.url, f"alice:for:{BRIEFLY}") as other:
            assert (await other.closed()).code == 4005
        assert await client.result("demo.echo") == {}
        # And a shorter one shortens it.
        assert (await client.ask("authorize", token="alice:for:0.05"))["error"] is None
        assert (await client.closed()).code == 4005


@pytest.mark.parametrize(
    ("token", "code"),
    [
        ("bad", "unauthenticated"),
        ("", "unauthenticated"),
        ("alice:for:0", "unauthenticated"),
        ("bob", "permission_denied"),
    ],
)
async def test_a_token_that_does_not_do_changes_nothing(client: Client, token: str, code: str) -> None:
    assert (await client.ask("authorize", token=token))["error"]["code"] == code
    assert (await client.result("demo.whoami"))["Authorization"] == "Bearer alice"


async def test_authorize_without_an_id_is_answered_too(client: Client) -> None:
    await client.send("authorize", token="alice:2")
    assert "expires_at" in (await client.next())["payload"]["result"]
    await client.send("authorize", token="bad")
    answer = await client.next()
    error = answer if answer["type"] == "error" else answer["payload"]["error"]
    assert error["code"] == "unauthenticated"


async def test_a_flood_of_tokens_keeps_one_authenticator_busy() -> None:
    busy = most = 0
    opened = asyncio.Event()

    async def slow(token: str) -> Identity | None:
        nonlocal busy, most
        answer = authorise_from_token(token)
        if token != "alice":
            busy += 1
            most = max(most, busy)
            await opened.wait()
            busy -= 1
        return None if answer is None else Identity(user_id="alice", username="Alice", token=token)

    async with run_gateway(make_gateway(authenticator=slow)) as running, connect(running.url, "alice") as client:
        for number in range(50):
            await client.send("authorize", token=f"alice:{number}", id=str(number))
        assert await client.result("demo.echo") == {}  # nothing waits for the authenticator
        opened.set()
        answers = [await client.answer(str(number)) for number in range(50)]
        assert most == 1
        refused = [answer["error"]["code"] for answer in answers if answer["error"] is not None]
        assert refused == ["too_many_requests"] * 49
        assert (await client.ask("authorize", token="alice:50"))["error"] is None


async def test_an_authenticator_that_fails_later(caplog: pytest.LogCaptureFixture) -> None:
    async def broken(token: str) -> Identity | None:
        if token != "alice":
            raise ZeroDivisionError("secret")
        return Identity(user_id="alice", username="Alice", token=token)

    async with run_gateway(make_gateway(authenticator=broken)) as running, connect(running.url, "alice") as client:
        assert (await client.ask("authorize", token="alice:2"))["error"]["code"] == "internal"
        assert await client.result("demo.echo") == {}
    assert "secret" not in caplog.text


# --- slow consumers ---------------------------------------------------------------------------------------------

SMALL: dict[str, Any] = {"send_buffer": 4096, "max_message_size": 2048, "outbox_size": 16384}


@contextlib.asynccontextmanager
async def reluctant(running: RunningGateway, token: str = "slow") -> AsyncIterator[RawClient]:
    """A client that is connected and reads nothing more."""
    async with RawClient.open(running.url, receive_buffer=4096) as raw:
        assert " 101 " in await raw.handshake("/ws", ("Authorization", f"Bearer {token}"))
        yield raw


async def flood(raw: RawClient, frames: int = 400) -> None:
    """Ask for more than the buffers on the way take, without reading it."""
    for number in range(frames):
        await raw.send_json({"type": "ping", "payload": f"{number:01000}"})


async def test_a_client_that_does_not_read_its_answers() -> None:
    async with run_gateway(**SMALL) as running, connect(running.url, "alice") as other, reluctant(running) as raw:
        await flood(raw)
        await eventually(lambda: running.gateway.handler_manager.statistics.closed[CloseCode.SLOW_CONSUMER] == 1)
        assert await other.result("demo.echo") == {}
        assert await raw.close_code() == 4008  # once it reads again
        await eventually(lambda: running.occupancy == (1, 1, 0))
        assert await other.settled() == []


async def test_a_client_that_does_not_read_its_events() -> None:
    count = 300
    async with (
        run_gateway(**SMALL) as running,
        connect(running.url, "alice") as publisher,
        connect(running.url, "bob") as reader,
        reluctant(running) as raw,
    ):
        await raw.send_json({"type": "subscribe", "payload": {"topics": ["demo.news"]}})
        await reader.ask("subscribe", topics=["demo.news"])
        for number in range(count):
            await publish(publisher, "demo.news", f"{number:01000}")
            assert int((await reader.event("demo.news"))["event"]) == number
        await eventually(lambda: running.gateway.handler_manager.statistics.closed[CloseCode.SLOW_CONSUMER] == 1)
        assert await raw.close_code() == 4008


@pytest.mark.parametrize("server", ["websockets-sansio", "wsproto", "hypercorn"])
async def test_a_write_that_does_not_end(server: Any) -> None:
    async with (
        run_gateway(server=server, write_timeout=0.5, send_buffer=4096) as running,
        connect(running.url, "alice") as other,
        reluctant(running) as raw,
    ):
        await raw.send_json({"type": "request", "payload": {"service": "demo", "method": "slow", "params": LONG}})
        await flood(raw)  # which fits into the outbox
        await eventually(lambda: running.occupancy == (1, 1, 0))
        assert running.gateway.handler_manager.statistics.closed == {CloseCode.SLOW_CONSUMER: 1}
        assert await other.result("demo.echo") == {}


async def test_a_write_that_does_not_end_while_the_connection_is_closed() -> None:
    """Whatever it is closed for, the deadline of the write goes on."""
    async with run_gateway(write_timeout=0.1, send_buffer=4096) as running:
        async with reluctant(running, "slow:for:0.05") as raw:
            await flood(raw)
            await running.is_empty()
        async with reluctant(running) as raw:
            await flood(raw)
            running.gateway.handler_manager.close_all(CloseCode.DISCONNECTED)
            await running.is_empty()


async def test_a_client_that_does_not_read_and_says_goodbye() -> None:
    async with run_gateway(send_buffer=4096, write_timeout=3600) as running, reluctant(running) as raw:
        await flood(raw)
        await raw.send(raw.frame((1000).to_bytes(2, "big"), CLOSE))
        await running.is_empty()
        raw.abort()


async def test_a_client_that_does_not_read_and_is_gone() -> None:
    async with run_gateway(**SMALL) as running, reluctant(running) as raw:
        await flood(raw, 100)
        raw.abort()
        await running.is_empty()


# --- leaving ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("abort", [True, False])
async def test_nothing_stays_of_who_leaves(running: RunningGateway, abort: bool) -> None:
    before = running.gateway.service_mesh_manager.statistics.abandoned
    async with connect(running.url, "alice") as client:
        for number in range(20):
            await client.request("demo.slow", LONG, id=str(number))
            await client.request("demo.slow", LONG)
        await client.ask("subscribe", topics=["demo.a", "demo.#"])
        assert running.occupancy == (1, 1, 40)
        if abort:
            client.abort()
            await running.is_empty()
    await running.is_empty()
    assert running.gateway.service_mesh_manager.statistics.abandoned == before + 40
    assert not running.gateway.service_mesh_manager.client_calls
    assert not running.gateway.handler_manager._user_sessions


async def test_a_crowd_that_comes_and_goes() -> None:
    rng = random.Random(4711)
    async with run_gateway(max_connections=12) as running:

        async def visit(number: int) -> None:
            with contextlib.suppress(Exception):  # refused, or gone while it was talking
                async with connect(running.url, f"user{number % 3}") as client:
                    await client.request("demo.slow", LONG)
                    await client.send("subscribe", topics=["demo.#"])
                    if rng.random() < 0.5:
                        await client.result("demo.publish", {"topic": "demo.x", "event": number})
                    if rng.random() < 0.5:
                        client.abort()

        await asyncio.gather(*(visit(number) for number in range(60)))
        await running.is_empty()
        assert not running.gateway.service_mesh_manager.client_calls
        async with connect(running.url, "alice") as client:
            assert await client.result("demo.echo") == {}


async def test_a_connection_that_is_too_old_is_asked_to_come_again() -> None:
    async with run_gateway(max_connection_lifetime=0.5, drain_timeout=0.5) as running:
        async with connect(running.url, "alice") as client:
            await client.request("demo.slow", {"seconds": 0.4}, id="1")
            event = (await client.event("goodbye"))["event"]
            assert event["reason"] == "lifetime"
            assert 0 <= event["retry_after_ms"] < 5000
            await client.request("demo.echo", {"still": "there"}, id="2")
            assert (await client.answer("2"))["result"] == {"still": "there"}
            closed = await client.closed()
            assert closed.code == 4001
            assert [frame["payload"].get("id") for frame in closed.frames] in ([], ["1"])
        await running.is_empty()
        assert not running.gateway.handler_manager._retiring


def test_connections_that_came_together_end_apart() -> None:
    manager = make_gateway(max_connection_lifetime=1000.0).handler_manager
    lifetimes = {manager._lifetime(FakeHandler()) for _ in range(200)}
    assert len(lifetimes) > 100
    assert all(900 <= lifetime <= 1000 for lifetime in lifetimes)


async def test_the_operator_hangs_up(running: RunningGateway) -> None:
    manager = running.gateway.handler_manager
    async with (
        connect(running.url, "alice") as one,
        connect(running.url, "alice:2") as two,
        connect(running.url, "bob") as bob,
    ):
        assert await manager.send_message_to_user_ids(["alice", "nobody"], {"type": "event", "payload": 1}) == 2
        assert await manager.close_user_ids(["alice"], reason="enough of you " * 20) == 2
        for client in (one, two):
            closed = await client.closed()
            assert (closed.code, closed.frames) == (4503, [{"type": "event", "payload": 1}])
            assert closed.reason.startswith("enough of you")
        await eventually(lambda: manager.get_user_handlers(["alice"]) == [])
        assert await bob.result("demo.echo") == {}


async def test_draining_says_goodbye_and_waits_for_answers() -> None:
    async with at_turnstile() as (running, turnstile), connect(running.url, "alice") as client:
        await client.request("turnstile.wait", id="waiting")
        await client.settled()
        draining = asyncio.create_task(running.gateway.drain())
        goodbye = await client.next()
        assert goodbye["payload"]["topic"] == "goodbye"
        assert goodbye["payload"]["event"]["reason"] == "draining"
        assert 0 <= goodbye["payload"]["event"]["retry_after_ms"] <= 5000
        assert not draining.done()
        turnstile.open()
        assert (await client.answer("waiting"))["result"] == "through"
        await draining


async def test_calls_that_were_on_their_way_when_draining_began_are_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nuropb_gateway_asgi.drain.GOODBYE_GRACE", 3600.0)
    async with run_gateway(drain_timeout=3600.0) as running:
        async with connect(running.url, "alice") as client:
            draining = asyncio.create_task(running.gateway.drain())
            await client.event("goodbye")
            assert await client.result("demo.echo", {"a": 1}) == {"a": 1}
            assert not draining.done()
        await draining  # nobody is there who could still call


async def test_what_was_said_last_is_on_its_way_when_a_drain_ends() -> None:
    async with run_gateway() as running, connect(running.url, "alice") as client:
        (handler,) = running.gateway.handler_manager.handlers
        await running.gateway.drain()
        assert handler.outbox_size == 0  # a server may hang up at once now
        assert (await client.next())["payload"]["topic"] == "goodbye"


# --- subclasses -------------------------------------------------------------------------------------------------


async def test_hooks_of_a_subclass() -> None:
    calls: list[Any] = []

    class Handler(WebSocketHandler):
        async def on_connect(self, websocket: WebSocket) -> None:
            assert self.identity is not None
            calls.append(("connect", self.identity.user_id, websocket.headers["X-Test"]))

        async def on_disconnect(self, websocket: WebSocket, close_code: int) -> None:
            calls.append(("disconnect", close_code))

    async with run_gateway(make_gateway(handler_class=Handler)) as running:
        async with connect(running.url, "alice", headers=[("X-Test", "1")]):
            pass
        await eventually(lambda: len(calls) == 2)
        async with connect(running.url, "alice", headers=[("X-Test", "2")]) as client:
            await client.send_text(b"")
            await client.closed()
        await eventually(lambda: len(calls) == 4)
        async with connect(running.url, "alice", headers=[("X-Test", "3")]) as client:
            await client.connection.close(3333)
        await eventually(lambda: len(calls) == 6)
        async with connect(running.url, "alice", headers=[("X-Test", "4")]) as client:
            client.abort()
        await eventually(lambda: len(calls) == 8)
    assert calls[::2] == [("connect", "alice", number) for number in "1234"]
    assert calls[1:6:2] == [("disconnect", 1000), ("disconnect", 1003), ("disconnect", 3333)]
    assert calls[7] in (("disconnect", 1005), ("disconnect", 1006))


async def test_a_hook_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    class Handler(WebSocketHandler):
        async def on_connect(self, websocket: WebSocket) -> None:
            raise ZeroDivisionError

    async with run_gateway(make_gateway(handler_class=Handler)) as running:
        with caplog.at_level(logging.ERROR):
            async with connect(running.url, "alice", hello=False) as client:
                assert (await client.closed()).code == 1011
            await running.is_empty()
    assert "ZeroDivisionError" in caplog.text


async def test_a_hook_that_refuses() -> None:
    class Handler(WebSocketHandler):
        async def on_connect(self, websocket: WebSocket) -> None:
            raise WebSocketException(4403, "not today")

    async with run_gateway(make_gateway(handler_class=Handler)) as running:
        async with connect(running.url, "alice", hello=False) as client:
            closed = await client.closed()
            assert (closed.code, closed.reason, closed.frames) == (4403, "not today", [])
        await running.is_empty()


# --- a storm ----------------------------------------------------------------------------------------------------


class Storm:
    """Random frames, and how many answers each of them is due, by id, by trace_id, or else by nothing."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.due: Counter[tuple[str, str]] = Counter()
        self._failures = self._malformed = self._made = 0

    def frame(self) -> str:
        make = self.random.choice(
            [self.call, self.call, self.call, self.failing_call, self.other, self.ping, self.silent, self.malformed]
        )
        text = make()
        self._malformed = self._malformed + 1 if make == self.malformed else 0
        return text

    def call(self) -> str:
        name, params = self.random.choice(
            [
                ("echo", {"text": "ü" * self.random.randrange(200)}),
                ("add", {"a": 1, "b": 2}),
                ("slow", {"seconds": self.random.random() / 20}),
                ("publish", {"topic": "demo.storm", "event": self.random.random()}),
                ("whoami", {}),
            ]
        )
        payload = {"service": "demo", "method": name, "params": params}
        return self._expecting(self.random.choice(["request", "request", "command"]), payload)

    def failing_call(self) -> str:
        if self._failures == 30:  # more of them, and the user is not let through any more
            return self.ping()
        self._failures += 1
        payload: dict[str, Any] = self.random.choice(
            [
                {"service": "demo", "method": "fail", "params": {"how": "bug"}},
                {"service": "demo", "method": "nothing"},
                {"service": "demo", "method": "add", "params": {"c": 1}},
                {"service": "nobody", "method": "at_all"},
                {"service": "closed", "method": "to_you"},
                {"service": "demo", "method": "slow", "params": LONG, "timeout": 0.02},
            ]
        )
        return self._expecting("request", payload)

    def other(self) -> str:
        choices: list[tuple[str, dict[str, Any]]] = [
            ("describe", {}),
            ("describe", {"service": "demo"}),
            ("describe", {"service": "closed"}),
            ("subscribe", {"topics": ["demo.storm"]}),
            ("subscribe", {"topics": ["demo.storm", "closed"]}),
            ("unsubscribe", {"topics": ["demo.storm"]}),
            ("authorize", {"token": "alice:2"}),
            ("authorize", {"token": "bad"}),
            ("authorize", {"token": "bob"}),
        ]
        return self._expecting(*self.random.choice(choices))

    def ping(self) -> str:
        self._made += 1
        self.due["pong", str(self._made)] += 1
        return json.dumps({"type": "ping", "payload": str(self._made)})

    def silent(self) -> str:
        if self.random.random() < 0.3:
            return '{"type":"pong"}'
        return json.dumps({"type": "cancel", "payload": {"id": self._id(again=True)}})

    def malformed(self) -> str:
        if self._malformed == 9:
            return self.ping()
        if self.random.random() < 0.5:
            return self._expecting("request", {"service": "demo", "method": "_private"})
        self.due["error", ""] += 1
        return self.random.choice([text for text in MALFORMED if len(text) < 1000])

    def _expecting(self, type_: str, payload: dict[str, Any]) -> str:
        roll = self.random.random()
        if roll < 0.7:
            payload["id"] = self._id(again=self.random.random() < 0.1)
            self.due["id", payload["id"]] += 1
        elif roll < 0.9:
            payload["trace_id"] = f"t-{self._id()}"
            self.due["trace_id", payload["trace_id"]] += 1
        else:
            self.due["error", ""] += 1
        return json.dumps({"type": type_, "payload": payload})

    def _id(self, *, again: bool = False) -> str:
        if again:
            return str(self.random.randrange(self._made + 1))
        self._made += 1
        return str(self._made)

    def kind_of(self, frame: Frame) -> tuple[str, str] | None:
        """What was due, of a frame that came."""
        payload = frame.get("payload")
        if frame["type"] == "event":
            return None
        if frame["type"] == "pong":
            return "pong", str(payload)
        if frame["type"] == "response" and isinstance(payload, dict):
            if "id" in payload:
                return "id", payload["id"]
            if str(payload.get("trace_id", "")).startswith("t-"):
                return "trace_id", payload["trace_id"]
        return "error", ""


@pytest.mark.parametrize("seed", range(6))
async def test_every_frame_of_a_storm_is_answered_once(seed: int) -> None:
    storm = Storm(seed)
    answers: Counter[tuple[str, str]] = Counter()
    async with run_gateway(expose=["demo.*", "nobody.*"], max_in_flight=20) as running:
        async with connect(running.url, "alice") as client:

            async def rage() -> None:
                for _ in range(400):
                    await client.send_text(storm.frame())

            def count(frame: Frame) -> None:
                kind = storm.kind_of(frame)
                if kind is not None:
                    answers[kind] += 1

            raging = asyncio.create_task(rage())
            while not raging.done() or answers.total() < storm.due.total():
                count(await client.next())
            await raging
            await eventually(lambda: running.occupancy == (1, 1, 0))
            for frame in await client.settled():
                count(frame)
        assert answers == storm.due


async def test_storms_over_each_other() -> None:
    """The same on one gateway, by clients of which some are gone in the middle."""
    async with run_gateway(expose=["demo.*", "nobody.*"]) as running:

        async def one(seed: int) -> None:
            storm = Storm(seed)
            async with connect(running.url, f"user{seed}") as client:
                for _ in range(150):
                    await client.send_text(storm.frame())
                if seed % 2:
                    client.abort()
                    return
                answers: Counter[tuple[str, str]] = Counter()
                while answers.total() < storm.due.total():
                    kind = storm.kind_of(await client.next())
                    if kind is not None:
                        answers[kind] += 1
                assert answers == storm.due

        await asyncio.gather(*(one(seed) for seed in range(100, 108)))
        await running.is_empty()
