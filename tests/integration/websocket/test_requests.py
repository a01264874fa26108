"""Requests and commands over a WebSocket: answers, ids, limits, cancellation, descriptions."""

from __future__ import annotations

import json
from typing import Any

import pytest

from nuropb_gateway_asgi import Identity
from nuropb_gateway_asgi.mesh.embedded import EmbeddedMesh
from tests.integration.websocket.conftest import LONG
from tests.kit.clients import Client, connect
from tests.kit.gateways import RunningGateway, eventually, make_gateway, run_gateway
from tests.kit.turnstile import at_turnstile

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
            "resume": True,
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
        assert await client.error_code("demo.echo") == "too_many_requests"  # the service still works on it


async def test_cancel_answers_once_and_only_what_is_in_flight() -> None:
    async with at_turnstile() as (running, turnstile), connect(running.url, "alice") as client:
        await client.ask("describe", service="turnstile")  # otherwise the call would wait for the description
        await client.request("turnstile.wait", id="x", trace_id="t")
        await client.send("cancel", id="x")
        await client.send("cancel", id="x")
        await client.send("cancel", id="never")
        answer = await client.answer("x")
        assert (answer["error"]["code"], answer["error"]["retryable"]) == ("cancelled", False)
        assert answer["trace_id"] == "t"
        assert (
            await client.result("turnstile.open", id="x") == "open"
        )  # the id is free again, and the first call still runs
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
