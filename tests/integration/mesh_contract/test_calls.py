"""Requests and commands: results, failures, order, timeouts, on every mesh."""

from __future__ import annotations

import json
from typing import Any
from uuid import uuid4

import pytest

from tests.kit.gateways import eventually
from tests.kit.managers import (
    Client,
    Gateway,
    Services,
    running,
    settings_for_tests,
)

# --- requests ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"text": "üñí ☃ 𝄞 \u0000 \u2028", "quote": '"\\/'},
        {"null": None, "yes": True, "no": False, "list": [1, [2, [3, {}]]], "": "no name"},
        {"int": 2**53, "negative": -(2**53), "float": 0.1, "exponent": 1e300, "tiny": 5e-324},
        {"deep": json.loads("[" * 25 + "]" * 25)},
    ],
    ids=["nothing", "text", "nested", "numbers", "deep"],
)
async def test_a_request_comes_back_as_it_was_sent(client: Client, echo: str, params: dict[str, Any]) -> None:
    assert await client.result(echo, "echo", params) == params


async def test_ids_are_echoed_and_a_trace_id_is_made_where_none_was_given(client: Client, echo: str) -> None:
    answer = await client.request(echo, "add", {"a": 1, "b": 2}, id="7", trace_id="t ü")
    assert answer == {"id": "7", "trace_id": "t ü", "result": 3, "error": None}
    answer = await client.request(echo, "add", {"a": 1, "b": 2})
    assert set(answer) == {"id", "trace_id", "result", "error"}
    assert answer["trace_id"]


async def test_a_frame_with_only_a_trace_id_is_answered_with_it(client: Client, echo: str) -> None:
    client.send("request", id=None, trace_id="only", service=echo, method="add", params={"a": 1, "b": 2})
    await client.until(lambda: any(frame["payload"].get("trace_id") == "only" for frame in client.frames))
    (frame,) = client.frames
    assert frame == {"type": "response", "payload": {"trace_id": "only", "result": 3, "error": None}}
    client.frames.clear()


async def test_the_service_sees_who_calls_and_nothing_that_the_client_made_up(gateway: Gateway, echo: str) -> None:
    client = await gateway.connect("müller")
    lies: dict[str, Any] = {
        "context": {"user_id": "root"},
        "user_id": "root",
        "reply_to": "x",
        "correlation_id": "y",
        "encrypted": "yes",
    }
    assert await client.result(echo, "whoami", trace_id="t1", **lies) == {
        "user_id": "müller",
        "Authorization": "Bearer token-of-müller",
        "trace_id": "t1",
        "session_id": client.session_id,
    }


async def test_a_big_result_arrives_whole(client: Client, echo: str) -> None:
    assert await client.result(echo, "big", {"size": 900_000}) == "x" * 900_000


async def test_a_result_that_does_not_fit_is_an_error(client: Client, echo: str) -> None:
    error = await client.error(echo, "big", {"size": 1_100_000})
    assert (error["code"], error["retryable"]) == ("payload_too_large", False)
    assert await client.result(echo, "add", {"a": 1, "b": 2}) == 3


async def test_a_result_that_is_raised_is_a_result(client: Client, gateway: Gateway, services: Services) -> None:
    assert await client.result(services.echo, "success") == {"raised": True}
    stub = services.stub
    assert await client.result(stub, "test_success_error") == f"response from {stub}.test_success_error"


async def test_five_hundred_calls_at_once_are_each_answered_with_their_own_result(
    request: pytest.FixtureRequest, services: Services
) -> None:
    async with running(request, services, settings_for_tests(max_in_flight=500, rate_limit="off")) as gateway:
        client = await gateway.connect()
        ids = {
            n: client.send("request", service=services.echo, method="echo", params={"n": n, "half": n / 2})
            for n in range(500)
        }
        await client.until(lambda: len(client.frames) >= 500)
        for n, id_ in ids.items():
            (answer,) = client.answers(id_)
            assert answer["result"] == {"n": n, "half": n / 2}
        assert gateway.manager.in_flight == 0


async def test_a_slow_call_delays_no_other(client: Client, echo: str) -> None:
    slow = client.send("request", service=echo, method="slow", params={"seconds": 3600})
    assert await client.result(echo, "slow", {"seconds": 0}) == 0
    assert not client.answers(slow)
    client.send("cancel", id=slow)
    assert (await client.answer(slow))["error"]["code"] == "cancelled"


async def test_an_id_can_be_used_again_when_its_answer_is_there_and_not_before(client: Client, echo: str) -> None:
    client.send("request", id="same", service=echo, method="slow", params={"seconds": 0.2})
    client.send("request", id="same", service=echo, method="add", params={"a": 1, "b": 2})
    await client.until(lambda: len(client.answers("same")) == 2)
    refused, done = client.answers("same")
    assert refused["error"]["code"] == "duplicate_id"
    assert done["result"] == 0.2
    assert (await client.request(echo, "add", {"a": 1, "b": 2}, id="other"))["result"] == 3
    client.frames.clear()


async def test_more_calls_than_allowed_are_refused_and_the_rest_is_answered(
    request: pytest.FixtureRequest, services: Services
) -> None:
    async with running(request, services, settings_for_tests(max_in_flight=3)) as gateway:
        client = await gateway.connect()
        ids = [client.send("request", service=services.echo, method="slow", params={"seconds": 0.1}) for _ in range(5)]
        answers = [await client.answer(id_) for id_ in ids]
        assert [answer["result"] for answer in answers] == [0.1, 0.1, 0.1, None, None]
        assert [answer["error"]["code"] for answer in answers[3:]] == ["too_many_requests"] * 2


# --- what fails -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "code", "name", "description"),
    [
        ("fail_validation", "invalid_params", "NuropbValidationError", "the quantity must be positive"),
        ("fail_authorization", "permission_denied", "NuropbAuthorizationError", "only managers may do that"),
        ("fail_authentication", "unauthenticated", "NuropbAuthenticationError", "the token has been revoked"),
        ("fail_deprecated", "deprecated", "NuropbDeprecatedError", "use add"),
    ],
)
async def test_what_a_service_says_on_purpose_reaches_the_client(
    client: Client, echo: str, method: str, code: str, name: str, description: str
) -> None:
    error = await client.error(echo, method)
    assert (error["code"], error["error"], error["retryable"]) == (code, name, False)
    assert description in error["description"]


@pytest.mark.parametrize("method", ["fail_value", "fail_async"])
async def test_what_a_service_says_by_accident_does_not(client: Client, echo: str, method: str) -> None:
    answer = await client.request(echo, method, trace_id="look for me")
    error = answer["error"]
    assert answer["result"] is None
    assert (error["code"], error["retryable"]) == ("service_error", False)
    assert error["description"] == f"{echo}.{method} failed; look for trace_id look for me"
    assert error["error"].startswith("Nuropb")
    assert "hunter2" not in json.dumps(client.frames)


@pytest.mark.parametrize("params", [{}, {"a": 1}, {"a": 1, "b": 2, "c": 3}, {"self": 1, "a": 1, "b": 1}])
async def test_parameters_that_the_method_does_not_have_are_an_error_that_names_them(
    client: Client, echo: str, params: dict[str, Any]
) -> None:
    error = await client.error(echo, "add", params)
    assert error["code"] == "invalid_params"
    for name in {"a", "b"} ^ params.keys():
        assert f"{name}" in error["description"].partition("parameters ")[2]


async def test_a_result_that_only_python_calls_json_is_an_error(client: Client, echo: str) -> None:
    error = await client.error(echo, "nan")
    assert (error["code"], error["retryable"]) == ("service_error", False)
    assert "JSON" in error["description"]


async def test_every_failure_is_answered_once(client: Client, gateway: Gateway, echo: str) -> None:
    methods = ["fail_value", "fail_async", "fail_validation", "fail_deprecated", "nan", "call_again_forever"] * 3
    ids = [client.send("request", service=echo, method=method) for method in methods]
    for id_ in ids:
        assert (await client.answer(id_))["error"]["code"] != "internal"
    # The second of nuropb's two replies has come once a later call is answered.
    assert await client.result(echo, "add", {"a": 1, "b": 2}) == 3
    assert all(len(client.answers(id_)) == 1 for id_ in ids)


async def test_a_method_that_wants_to_be_called_again_is_called_once_more(client: Client, services: Services) -> None:
    before = await client.result(services.echo, "count", {"method": "call_again"})
    assert await client.result(services.echo, "call_again", {"key": uuid4().hex}) == "at last"
    assert await client.result(services.echo, "count", {"method": "call_again"}) == before + 2


async def test_a_method_that_always_wants_to_be_called_again_fails(client: Client, echo: str) -> None:
    before = await client.result(echo, "count", {"method": "call_again_forever"})
    error = await client.error(echo, "call_again_forever")
    assert (error["code"], error["error"]) == ("service_error", "NuropbCallAgainReject")
    assert await client.result(echo, "count", {"method": "call_again_forever"}) == before + 2


@pytest.mark.parametrize("kind", ["request", "command", "describe"])
async def test_a_service_that_is_not_there_is_unavailable(client: Client, kind: str) -> None:
    call = {} if kind == "describe" else {"method": "anything", "params": {}}
    answer = await client.ask(kind, service="nobody-at-all", **call)
    assert answer["result"] is None
    assert answer["error"] == {
        "error": "NuropbNotDeliveredError",
        "description": "Service nobody-at-all is not available",
        "code": "service_unavailable",
        "retryable": True,
        "retry_after_ms": None,
    }


@pytest.mark.parametrize("kind", ["request", "command"])
@pytest.mark.parametrize("method", ["no_such_method", "hidden", "hunter2", "service_name"])
async def test_a_method_that_is_not_described_is_not_found(
    client: Client, services: Services, kind: str, method: str
) -> None:
    before = await client.result(services.echo, "count")
    answer = await client.ask(kind, service=services.echo, method=method, params={})
    assert answer["error"]["code"] == "method_not_found"
    assert await client.result(services.echo, "count") == before


@pytest.mark.parametrize("kind", ["request", "command"])
@pytest.mark.parametrize("method", ["nuropb_describe", "_handle_event_", "__init__", "a.b", ""])
async def test_what_is_no_public_method_is_refused_before_the_service_sees_it(
    client: Client, services: Services, kind: str, method: str
) -> None:
    before = await client.result(services.echo, "count")
    answer = await client.ask(kind, service=services.echo, method=method, params={})
    assert answer["error"]["code"] in ("bad_request", "permission_denied")
    assert await client.result(services.echo, "count") == before


# --- commands ---------------------------------------------------------------------------------------------------


async def test_a_command_is_answered_and_executed(client: Client, echo: str) -> None:
    token = uuid4().hex
    answer = await client.ask("command", service=echo, method="record", params={"token": token}, trace_id="t")
    assert answer == {"id": answer["id"], "trace_id": "t", "result": None, "error": None}
    assert {"token": token} in await client.result(echo, "recorded")


async def test_a_command_that_fails_was_taken_all_the_same(client: Client, echo: str) -> None:
    before = await client.result(echo, "count", {"method": "fail_value"})
    answer = await client.ask("command", service=echo, method="fail_value", params={})
    assert (answer["result"], answer["error"]) == (None, None)
    assert await client.result(echo, "count", {"method": "fail_value"}) == before + 1


async def test_commands_are_executed_in_their_order(client: Client, echo: str) -> None:
    token = uuid4().hex
    params = [{"token": token, "n": n} for n in range(50)]
    ids = [client.send("command", service=echo, method="record", params=each) for each in params]
    for id_ in ids:
        assert (await client.answer(id_))["error"] is None
    recorded = await client.result(echo, "recorded")
    assert [each for each in recorded if each.get("token") == token] == params


# --- time -------------------------------------------------------------------------------------------------------


async def test_a_request_without_an_answer_in_time_ends_with_timeout(
    client: Client, gateway: Gateway, echo: str
) -> None:
    await client.result(echo, "echo")
    error = await client.error(echo, "slow", {"seconds": 2}, timeout=1)
    assert (error["code"], error["error"], error["retryable"]) == ("timeout", "NuropbTimeoutError", False)
    await eventually(lambda: gateway.manager.statistics.late_replies == 1)
    assert len(client.frames) == 2


async def test_a_cancelled_request_is_answered_once_with_cancelled(client: Client, gateway: Gateway, echo: str) -> None:
    await client.result(echo, "echo")
    id_ = client.send("request", service=echo, method="slow", params={"seconds": 0.3})
    client.send("cancel", id=id_)
    assert (await client.answer(id_))["error"]["code"] == "cancelled"
    client.send("cancel", id=id_)
    client.send("cancel", id="never heard of")
    await eventually(lambda: gateway.manager.statistics.late_replies == 1)
    assert len(client.answers(id_)) == 1
    assert not client.answers("never heard of")


async def test_a_request_that_is_cancelled_before_the_service_is_known_is_never_sent(client: Client, echo: str) -> None:
    token = uuid4().hex
    id_ = client.send("request", service=echo, method="record", params={"token": token})
    client.send("cancel", id=id_)
    assert (await client.answer(id_))["error"]["code"] == "cancelled"
    assert {"token": token} not in await client.result(echo, "recorded")


async def test_the_answer_to_a_client_that_has_left_is_dropped(gateway: Gateway, echo: str) -> None:
    client = await gateway.connect()
    await client.result(echo, "echo")
    id_ = client.send("request", service=echo, method="slow", params={"seconds": 0.2})
    gateway.handlers.unregister(client)
    assert gateway.manager.in_flight == 0
    await eventually(lambda: gateway.manager.statistics.late_replies == 1)
    assert gateway.manager.statistics.abandoned == 1
    assert not client.answers(id_)
