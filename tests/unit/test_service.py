"""Calls of a service object's methods, and events for it."""

from __future__ import annotations

import asyncio
import logging
from decimal import Decimal
from typing import Any

import anyio
import pytest

from nuropb_gateway_asgi.wire.services import (
    Outcome,
    call_service,
    deliver_event,
    describe_service,
    with_context,
)

from .example_service import (
    NuropbCallAgain,
    NuropbException,
    NuropbSuccess,
    NuropbValidationError,
    OurValidationError,
    Service,
    Unspeakable,
    call,
    circular,
    deep,
    marked,
)
from .fakes import strict_json, until

# --- calling --------------------------------------------------------------------------------------------

RESULTS: list[tuple[str, dict[str, Any], Any]] = [
    ("echo", {"a": [1, None]}, {"a": [1, None]}),
    ("echo", {}, {}),
    ("echo_later", {"a": 1}, {"a": 1}),
    ("future", {}, "from a future"),
    ("add", {"a": 1}, 3),
    ("whoami", {"a": 1}, [{"user_id": "alice", "seen": True}, {"a": 1}]),
    ("undecorated", {"a": 1}, {"a": 1}),
    ("static", {"a": 1}, 1),
    ("by_class", {"a": 1}, "Service 1"),
]


@pytest.mark.parametrize(("method", "params", "result"), RESULTS)
async def test_a_method_is_called_with_its_parameters(method: str, params: dict[str, Any], result: Any) -> None:
    outcome = await call(method, **params)
    assert (outcome.action, strict_json(outcome.result), outcome.error, outcome.events) == ("ack", result, None, ())


@pytest.mark.parametrize("service", ["method", "function"])
async def test_whoever_asks_for_the_context_gets_it_first_and_it_is_not_described(service: str) -> None:
    class Orders:
        @with_context
        def mine(self, who: dict[str, Any], status: str = "open") -> Any:
            return [who, status]

    orders = Orders()
    if service == "function":
        orders.mine = with_context(lambda who, status="open": [who, status])  # type: ignore[method-assign]
    outcome = await call_service(
        orders, service="orders", method="mine", params={"status": "paid"}, context={"user_id": "alice"}
    )
    assert strict_json(outcome.result) == [{"user_id": "alice"}, "paid"]
    assert [name for name, _ in describe_service(orders)["methods"]["mine"]["parameters"]["properties"]] == ["status"]
    outcome = await call_service(orders, service="orders", method="mine", params={"who": {}}, context={})
    assert outcome.error is not None  # a missing context is not made up


@pytest.mark.parametrize("function", [lambda: None, lambda self: None])
def test_a_method_without_an_argument_for_the_context_cannot_have_it(function: Any) -> None:
    with pytest.raises(TypeError, match="no argument for the context"):
        with_context(function)


async def test_the_context_of_a_call_is_a_copy() -> None:
    context = {"user_id": "alice"}
    await call_service(Service(), service="s", method="whoami", params={}, context=context)
    assert context == {"user_id": "alice"}


UNKNOWN = [
    "_private",
    "__init__",
    "__class__",
    "_handle_event_",
    "nothing",
    "",
    "number",
    "size",
    "calls",
    "callback",
    "echo.__func__",
    "nuropb_describe_",
]


@pytest.mark.parametrize("method", UNKNOWN)
async def test_what_is_not_a_public_method_is_unknown(method: str) -> None:
    outcome = await call(method)
    assert outcome == Outcome(
        "reject", error={"error": "NuropbHandlingError", "description": f"Unknown method {method}"}
    )


async def test_an_attribute_that_can_be_called_is_a_method() -> None:
    service = Service()
    service.callback = lambda: "called"
    assert strict_json((await call("callback", service)).result) == "called"


def test_parameters_that_catch_all_have_the_names_by_which_readers_know_them() -> None:
    class Loose:
        def find(self, *words: str, **filters: Any) -> None: ...

    parameters = describe_service(Loose())["methods"]["find"]["parameters"]
    assert [name for name, _ in parameters["properties"]] == ["args", "kwargs"]
    assert parameters["required"] == ["args", "kwargs"]


def test_an_object_may_have_a_description_of_its_own() -> None:
    class Shop:
        """The class of all shops."""

    shop = Shop()
    assert describe_service(shop)["description"] == "The class of all shops."
    shop.__doc__ = "The shop of tea"
    assert describe_service(shop)["description"] == "The shop of tea"


async def test_a_hidden_method_can_be_called_all_the_same() -> None:
    class Hiding:
        @marked(mesh_hidden=True)
        def hidden(self) -> str:
            return "found"

    assert "hidden" not in describe_service(Hiding())["methods"]
    assert strict_json((await call("hidden", Hiding())).result) == "found"


FAILURES = [
    # exception, error and description when raised at once, and when raised later
    (
        ValueError("db.internal"),
        ("NuropbException", "Runtime exception calling orders.raises:ValueError: db.internal"),
        ("ValueError", "db.internal"),
    ),
    (
        KeyError("a"),
        ("NuropbException", "Runtime exception calling orders.raises:KeyError: 'a'"),
        ("KeyError", "'a'"),
    ),
    (
        NuropbValidationError("no"),
        ("NuropbValidationError", "no"),
        ("NuropbValidationError", "no"),
    ),
    (
        OurValidationError("no"),
        ("OurValidationError", "no"),
        ("OurValidationError", "no"),
    ),
    (
        NuropbException("why"),
        ("NuropbException", "why"),
        ("NuropbException", "why"),
    ),
    (
        NuropbException(),
        ("NuropbException", "None"),
        ("NuropbException", "None"),
    ),
    (
        NuropbException("", KeyError("a")),
        ("NuropbException", "'a'"),
        ("NuropbException", "'a'"),
    ),
    (
        Unspeakable(),
        ("RuntimeError", "The outcome is not JSON"),
        ("RuntimeError", "The outcome is not JSON"),
    ),
]


@pytest.mark.parametrize(("error", "at_once", "later"), FAILURES)
async def test_an_exception_is_the_outcome(error: Exception, at_once: tuple[str, str], later: tuple[str, str]) -> None:
    for method, (name, description) in (("raises", at_once), ("raises_later", later)):
        outcome = await call(method, error=error)
        assert outcome == Outcome("reject", error={"error": name, "description": description})


@pytest.mark.parametrize(("error", "at_once", "later"), FAILURES)
async def test_an_exception_that_is_returned_is_as_good_as_one_that_is_raised_later(
    error: Exception, at_once: tuple[str, str], later: tuple[str, str]
) -> None:
    assert await call("returns", value=error) == await call("raises_later", error=error)


@pytest.mark.parametrize(
    ("params", "faults"),
    [
        ({}, "missing: a"),
        ({"b": 1, "c": 3}, "missing: a; unknown: c"),
        ({"a": 1, "b": 2, "self": 1}, "unknown: self"),
    ],
)
async def test_parameters_that_do_not_fit_are_named(params: dict[str, Any], faults: str) -> None:
    error = {"error": "NuropbValidationError", "description": f"orders.add: parameters {faults}"}
    assert await call("add", **params) == Outcome("reject", error=error)


@pytest.mark.parametrize("method", ["raises", "raises_later"])
async def test_an_error_is_logged_with_its_trace_id_and_place_and_without_its_message(
    method: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    params = {"error": ValueError("4111 1111")}
    await call_service(Service(), service="orders", method=method, params=params, context={}, trace_id="c0ffee")
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.message == f"trace c0ffee: orders.{method} raised ValueError"
    formatted = logging.Formatter().format(record)
    assert f"in {method}\n" in formatted
    assert "wire/services.py" not in formatted
    assert "4111" not in formatted


async def test_an_error_that_a_service_answers_with_on_purpose_is_no_fault_of_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    await call_service(
        Service(),
        service="orders",
        method="raises",
        params={"error": NuropbValidationError("no")},
        context={},
        trace_id="not\na line",
    )
    (record,) = caplog.records
    assert (record.levelno, record.message) == (
        logging.INFO,
        "trace unknown: orders.raises answered with NuropbValidationError",
    )


@pytest.mark.parametrize("method", ["raises", "raises_later"])
async def test_a_success_may_be_raised(method: str) -> None:
    outcome = await call(method, error=NuropbSuccess({"total": Decimal(3)}))
    assert outcome == Outcome("ack", b'{"total": "3"}')


async def test_events_come_with_a_success() -> None:
    events: list[dict[str, Any]] = [
        {"topic": "orders.new", "payload": {"id": 7}, "target": None},
        {"topic": "orders.new", "payload": None, "target": ["alice", 7]},
        {"topic": "orders.new", "payload": 1},
    ]
    outcome = await call("raises", error=NuropbSuccess("done", events))
    assert outcome.action == "ack"
    assert outcome.events == (
        ("orders.new", {"id": 7}, None),
        ("orders.new", None, ["alice", "7"]),
        ("orders.new", 1, None),
    )


BAD_EVENTS: list[Any] = [
    {},
    {"topic": "a"},
    {"payload": 1},
    {"topic": None, "payload": 1},
    {"topic": 7, "payload": 1},
    {"topic": "a.*", "payload": 1},
    {"topic": "", "payload": 1},
    {"topic": "x" * 256, "payload": 1},
    {"topic": "a", "payload": {("b",): 1}},
    {"topic": "a", "payload": 1, "target": 7},
    7,
    None,
]


@pytest.mark.parametrize("event", BAD_EVENTS)
async def test_an_event_that_cannot_be_published_spoils_the_success(event: Any) -> None:
    outcome = await call("raises", error=NuropbSuccess("done", [event]))
    assert outcome.action == "reject"
    assert outcome.events == ()
    assert outcome.error is not None


@pytest.mark.parametrize("method", ["raises", "raises_later"])
async def test_a_call_is_made_again_once(method: str) -> None:
    assert await call(method, error=NuropbCallAgain("later")) == Outcome("requeue")
    outcome = await call(method, error=NuropbCallAgain("later"), redelivered=True)
    assert outcome.action == "reject"
    assert outcome.error is not None
    assert outcome.error["error"] == "NuropbCallAgainReject"


async def test_a_call_that_is_made_again_may_succeed() -> None:
    assert (await call("echo", redelivered=True)).action == "ack"


NOT_JSON = [{("a", "b"): 1}, {1j: 1}, deep(100_000), circular(), [Unspeakable()]]


@pytest.mark.parametrize("value", NOT_JSON, ids=["tuple key", "complex key", "deep", "circular", "no words"])
async def test_a_result_that_is_no_json_is_an_exception(value: Any) -> None:
    assert (await call("returns", value=value)).action == "reject"
    outcome = await call("raises", error=NuropbSuccess(value))
    assert outcome.action == "reject"
    assert outcome.error is not None
    assert outcome.error["description"] == "The outcome is not JSON"


async def test_a_call_that_is_cancelled_is_cancelled() -> None:
    service = Service()

    async def wait() -> None:
        service.calls.append("waits")
        await asyncio.sleep(3600)

    service.callback = wait
    task = asyncio.create_task(call("callback", service))
    await until(lambda: service.calls)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("method", ["raises", "raises_later"])
async def test_a_cancellation_of_something_else_is_an_exception(method: str) -> None:
    async with anyio.create_task_group():
        outcome = await call(method, error=asyncio.CancelledError("another task"))
    assert outcome.action == "reject"
    assert outcome.error is not None
    assert "CancelledError" in str(outcome.error)


async def test_a_service_may_end_its_own_waiting() -> None:
    service = Service()

    async def wait() -> str:
        with anyio.move_on_after(0.001):
            await asyncio.sleep(3600)
        async with asyncio.timeout(0.001):
            await asyncio.sleep(3600)
        return "never"

    service.callback = wait
    outcome = await call("callback", service)
    assert outcome.error == {"error": "TimeoutError", "description": ""}


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit()])
def test_the_end_of_the_process_is_not_an_outcome(error: BaseException) -> None:
    with pytest.raises(type(error)):
        asyncio.run(call("raises", error=error))


# --- events ---------------------------------------------------------------------------------------------


class Listener:
    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []

    def _handle_event_(self, *event: Any) -> None:
        self.events.append(event)


class PatientListener(Listener):
    async def _handle_event_(self, *event: Any) -> None:  # type: ignore[override]
        await asyncio.sleep(0)
        super()._handle_event_(*event)


@pytest.mark.parametrize("listener", [Listener(), PatientListener()])
async def test_an_event_is_delivered_with_four_arguments(listener: Listener) -> None:
    context = {"user_id": "alice"}
    await deliver_event(listener, "orders.new", {"id": 7}, ["bob"], context)
    assert listener.events == [("orders.new", {"id": 7}, ["bob"], {"user_id": "alice"})]
    assert listener.events[0][3] is not context


async def test_who_does_not_listen_hears_nothing() -> None:
    await deliver_event(object(), "orders.new", None, None, {})


@pytest.mark.parametrize("kind", ["at once", "later", "cancelled", "wrong signature", "not callable"])
async def test_an_exception_of_a_listener_ends_in_the_log(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    def at_once(*_: Any) -> None:
        raise ValueError("a bad day")

    async def later(*_: Any) -> None:
        raise ValueError("a bad day")

    async def cancelled(*_: Any) -> None:
        raise asyncio.CancelledError

    def wrong_signature(topic: str) -> None:
        raise AssertionError(topic)

    class Failing:
        _handle_event_ = {
            "at once": at_once,
            "later": later,
            "cancelled": cancelled,
            "wrong signature": wrong_signature,
        }.get(kind, 7)

    async with anyio.create_task_group():
        await deliver_event(Failing(), "orders.new", None, None, {}, "7")
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.message.startswith("trace 7: Failing._handle_event_ (topic orders.new) raised ")


async def test_delivering_can_be_cancelled() -> None:
    started: list[bool] = []

    class Slow:
        async def _handle_event_(self, *_: Any) -> None:
            started.append(True)
            await asyncio.sleep(3600)

    task = asyncio.create_task(deliver_event(Slow(), "a", None, None, {}))
    await until(lambda: started)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
