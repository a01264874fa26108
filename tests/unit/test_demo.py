from __future__ import annotations

import contextlib
import math
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest

from nuropb_gateway_asgi.mesh.demo import DemoService
from nuropb_gateway_asgi.wire.services import Outcome, call_service, describe_service

from .fakes import strict_json, until

Published = list[tuple[str, Any, list[str] | None]]


async def call(method: str, *, service: DemoService | None = None, **params: Any) -> Outcome:
    return await call_service(
        service or DemoService(), service="demo", method=method, params=params, context={"user_id": "alice"}
    )


@contextlib.asynccontextmanager
async def running(service: DemoService) -> AsyncIterator[Published]:
    """Run the service; the list gets its events."""
    published: Published = []

    def publish(topic: str, event: Any, target: list[str] | None = None) -> None:
        published.append((topic, event, target))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(service._run_, publish)
        await until(lambda: service._publish is not None)
        yield published
        tasks.cancel_scope.cancel()


RESULTS: list[tuple[str, dict[str, Any], Any]] = [
    ("echo", {"a": [1, None], "é": {}}, {"a": [1, None], "é": {}}),
    ("echo", {}, {}),
    ("add", {"a": 1, "b": 2}, 3),
    ("add", {"a": 1.5, "b": -2}, -0.5),
    ("add", {"a": 2**64 - 1, "b": 2**64 - 1}, 2**65 - 2),
    ("whoami", {}, {"user_id": "alice"}),
]


@pytest.mark.parametrize(("method", "params", "result"), RESULTS)
async def test_what_succeeds(method: str, params: dict[str, Any], result: Any) -> None:
    outcome = await call(method, **params)
    assert (outcome.action, strict_json(outcome.result), outcome.error) == ("ack", result, None)


@pytest.mark.parametrize("seconds", [0, 0.001, -1e308, math.nan])
async def test_it_can_be_slow(seconds: float) -> None:
    outcome = await call("slow", seconds=seconds)
    assert list(strict_json(outcome.result)) == ["slept"]


FAILURES: list[tuple[str, dict[str, Any], str, str]] = [
    ("add", {"a": "1", "b": 2}, "NuropbValidationError", "demo.add: parameters of the wrong type: a (expected float)"),
    ("add", {"a": True, "b": 2}, "NuropbValidationError", "demo.add: parameters of the wrong type: a (expected float)"),
    ("add", {"a": 1, "b": None}, "NuropbValidationError", "demo.add: parameters of the wrong type: b (expected float)"),
    (
        "slow",
        {"seconds": "nan"},
        "NuropbValidationError",
        "demo.slow: parameters of the wrong type: seconds (expected float)",
    ),
    ("fail", {"how": "validation"}, "NuropbValidationError", "This is how a validation failure looks"),
    ("fail", {"how": "authorization"}, "NuropbAuthorizationError", "This is how a authorization failure looks"),
    ("fail", {"how": "authentication"}, "NuropbAuthenticationError", "This is how a authentication failure looks"),
    ("fail", {"how": "deprecated"}, "NuropbDeprecatedError", "This is how a deprecated failure looks"),
    ("fail", {"how": "handling"}, "NuropbHandlingError", "This is how a handling failure looks"),
    ("fail", {}, "NuropbException", "Runtime exception calling demo.fail:ZeroDivisionError: "),
    ("fail", {"how": "well"}, "NuropbValidationError", "how must be one of validation, authorization, "),
    ("publish", {"topic": "demo.x"}, "NuropbValidationError", "topic: "),
    ("nothing", {}, "NuropbHandlingError", "Unknown method nothing"),
    ("_run_", {}, "NuropbHandlingError", "Unknown method _run_"),
]


@pytest.mark.parametrize(("method", "params", "error", "description"), FAILURES)
async def test_what_fails(method: str, params: dict[str, Any], error: str, description: str) -> None:
    outcome = await call(method, **params)
    assert outcome.action == "reject"
    assert outcome.error is not None
    assert outcome.error["error"] == error
    assert outcome.error["description"].startswith(description)


async def test_a_client_can_publish() -> None:
    service = DemoService()
    async with running(service) as published:
        outcome = await call("publish", service=service, topic="demo.news", event={"a": 1}, target=["bob"])
        assert strict_json(outcome.result) == {"topic": "demo.news"}
        await call("publish", service=service, topic="demo.news")
        assert published == [("demo.news", {"a": 1}, ["bob"]), ("demo.news", None, None)]


@pytest.mark.parametrize(
    "params",
    [
        {"topic": "demo.*"},
        {"topic": ""},
        {"topic": "goodbye"},
        {"topic": 7},
        {"topic": None},
        {"topic": "x" * 256},
        {"topic": "demo.x", "target": "bob"},
        {"topic": "demo.x", "target": [7]},
        {"topic": "demo.x", "target": {}},
    ],
)
async def test_what_cannot_be_published_is_a_validation_error(params: dict[str, Any]) -> None:
    service = DemoService()
    async with running(service) as published:
        outcome = await call("publish", service=service, **params)
        assert outcome.error is not None
        assert outcome.error["error"] == "NuropbValidationError"
        assert not published


async def test_it_ticks_as_long_as_it_runs() -> None:
    service = DemoService()
    async with running(service) as published:
        await until(lambda: published)
    topic, event, target = published[0]
    assert (topic, event["count"], target) == ("demo.tick", 1, None)
    assert event["time"] > 1.7e9


def test_it_describes_itself() -> None:
    described = describe_service(DemoService())
    assert (described["service_name"], described["encrypted_methods"]) == ("demo", False)
    assert list(described["methods"]) == ["add", "echo", "fail", "publish", "slow", "whoami"]
    assert all(method["description"] for method in described["methods"].values())
    assert described["methods"]["whoami"]["parameters"]["properties"] == []
