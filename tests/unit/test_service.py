from __future__ import annotations

import asyncio
import dataclasses
import datetime as dt
import json
import logging
import sys
from collections.abc import Awaitable, Callable
from decimal import Decimal
from types import ModuleType
from typing import Any
from uuid import UUID

import anyio
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from nuropb_gateway_asgi.wire.services import (
    Outcome,
    call_service,
    deliver_event,
    describe_service,
    to_json,
    with_context,
)

from .fakes import strict_json, until

# --- nuropb's own classes and decorators, as far as their names go --------------------------------------


class NuropbException(Exception):
    def __init__(self, description: str | None = None, exception: Exception | None = None) -> None:
        super().__init__(description)
        self.description = description
        self.exception = exception


class NuropbValidationError(NuropbException):
    """One that services raise on purpose."""


class OurValidationError(NuropbValidationError):
    """One that a service made of it."""


class NuropbCallAgain(NuropbException):
    """Once more, please."""


class NuropbSuccess(NuropbException):
    def __init__(self, result: Any, events: list[dict[str, Any]] | None = None) -> None:
        super().__init__()
        self.result = result
        self.events = events or []


def marked(**attributes: Any) -> Callable[[Any], Any]:
    def mark(function: Any) -> Any:
        for name, value in attributes.items():
            setattr(function, f"__nuropb_{name}__", value)
        return function

    return mark


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


class Service:
    """A service."""

    _service_name = "orders"
    _version = "1.2.3"
    number = 7

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.callback: Callable[..., Any] | None = None

    @property
    def size(self) -> int:
        return 7

    def echo(self, **params: Any) -> Any:
        return params

    async def echo_later(self, **params: Any) -> Any:
        await asyncio.sleep(0)
        return params

    def future(self) -> Awaitable[str]:
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        future.set_result("from a future")
        return future

    def add(self, a: int, b: int = 2) -> int:
        return a + b

    @marked(context=True, context_arg="ctx")
    def whoami(self, ctx: dict[str, Any], **params: Any) -> Any:
        ctx["seen"] = True
        return [ctx, params]

    @marked(context=False)
    def undecorated(self, **params: Any) -> Any:
        return params

    @staticmethod
    def static(a: int) -> int:
        return a

    @classmethod
    def by_class(cls, a: int) -> str:
        return f"{cls.__name__} {a}"

    def raises(self, error: BaseException) -> None:
        raise error

    async def raises_later(self, error: BaseException) -> None:
        await asyncio.sleep(0)
        raise error

    def _private(self) -> str:
        return "private"

    def returns(self, value: Any) -> Any:
        return value


async def call(method: str, instance: object = None, *, redelivered: bool = False, **params: Any) -> Outcome:
    return await call_service(
        instance or Service(),
        service="orders",
        method=method,
        params=params,
        context={"user_id": "alice"},
        redelivered=redelivered,
    )


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
    assert outcome.error is not None  # nobody makes up a context


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


@pytest.mark.parametrize("params", [{}, {"a": 1, "c": 3}, {"self": 1}])
async def test_parameters_that_do_not_fit_are_an_exception(params: dict[str, Any]) -> None:
    outcome = await call("add", **params)
    assert outcome.action == "reject"
    assert outcome.error is not None
    assert outcome.error["description"].startswith("Runtime exception calling orders.add:TypeError: ")


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


def deep(levels: int) -> Any:
    value: Any = None
    for _ in range(levels):
        value = [value]
    return value


def circular() -> Any:
    value: list[Any] = []
    value.append(value)
    return value


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
        await deliver_event(Failing(), "orders.new", None, None, {})
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.message == "Failing._handle_event_ failed for topic orders.new"


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


# --- JSON -----------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Point:
    x: int
    y: Decimal


BERLIN = dt.timezone(dt.timedelta(hours=1))
SPELLINGS = [
    (None, None),
    ([1, "é", 2.5, True], [1, "é", 2.5, True]),
    ((1, 2), [1, 2]),
    ({1: "a", None: "b", 2.5: "c", False: "d"}, {"1": "a", "null": "b", "2.5": "c", "false": "d"}),
    (dt.datetime(2026, 1, 2, 3, 4, 5), "2026-01-02T03:04:05Z"),  # noqa: DTZ001 - as a service might
    (dt.datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=dt.UTC), "2026-01-02T03:04:05.000678+00:00Z"),
    (dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=BERLIN), "2026-01-02T03:04:05+01:00Z"),
    (dt.date(2026, 1, 2), "2026-01-02Z"),
    (dt.time(3, 4), "03:04:00Z"),
    (dt.timedelta(days=1, seconds=2), "1 day, 0:00:02"),
    (Decimal("1E+3"), "1000"),
    (Decimal("0.10"), "0.10"),
    (Point(1, Decimal("2.50")), {"x": 1, "y": "2.50"}),
    (Point, str(Point)),
    ({"a": [Point(1, Decimal(2))]}, {"a": [{"x": 1, "y": "2"}]}),
    (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
    ({1}, "{1}"),
    (b"a", "b'a'"),
    ("\ud800", "\ud800"),
]


@pytest.mark.parametrize(("value", "spelling"), SPELLINGS)
def test_values_are_spelled_as_nuropb_spells_them(value: Any, spelling: Any) -> None:
    encoded = to_json(value)
    assert encoded.isascii()
    assert strict_json(encoded) == spelling


@pytest.mark.parametrize(("value", "text"), [(float("nan"), b"NaN"), (float("inf"), b"Infinity")])
def test_what_only_python_reads_is_written_all_the_same(value: float, text: bytes) -> None:
    assert to_json(value) == text


@pytest.mark.parametrize(
    ("value", "error"),
    [({("a", "b"): 1}, TypeError), (circular(), ValueError), (deep(100_000), RecursionError)],
    ids=["tuple key", "circular", "deep"],
)
def test_what_nobody_reads_is_not_written(value: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        to_json(value)


# --- describe -------------------------------------------------------------------------------------------


def module(source: str) -> ModuleType:
    """A module without this one's string annotations, unless it asks for them."""
    made = ModuleType("described")
    exec(compile(source, "described", "exec", dont_inherit=True), made.__dict__)
    return made


def parameters(source: str) -> list[tuple[str, str, Any]]:
    """The parameters of a method with this signature: name, type, default."""
    made = module(f"from typing import *\nclass Described:\n    def method({source}): ...")
    described = describe_service(made.Described())["methods"]["method"]["parameters"]
    assert described["type"] == "object"
    assert described["required"] == [name for name, spec in described["properties"] if spec["default"] == ""]
    return [(name, spec["type"], spec["default"]) for name, spec in described["properties"]]


SIGNATURES: list[tuple[str, list[tuple[str, str, Any]]]] = [
    ("self", []),
    ("self, ctx, a", [("a", "", "")]),
    ("self, a: int, b: str = 'x', *, c: float = 1.5", [("a", "int", ""), ("b", "str", "x"), ("c", "float", 1.5)]),
    ("self, *args, **kwargs: Any", [("args", "", ""), ("kwargs", "Any", "")]),
    ("self, a: Optional[int] = None", [("a", "int", None)]),
    ("self, a: 'int'", [("a", "int", "")]),
    ("self, a: 'int | None' = None", [("a", "int", None)]),
    ("self, a: list[int]", [("a", "int", "")]),
    ("self, a: dict[str, int]", [("a", "", "")]),
    ("self, a: int | str", [("a", "", "")]),
    ("self, a: Literal['x']", [("a", "", "")]),
    ("self, a: Literal['x', 'y'] = 'x'", [("a", "", "x")]),
    ("self, a: Callable[[int], str]", [("a", "", "")]),
    ("self, a: None", [("a", "", "")]),
    ("self, a: 7", [("a", "", "")]),
    ("self, a: list", [("a", "list", "")]),
]


@pytest.mark.parametrize(("signature", "described"), SIGNATURES)
def test_parameters_are_described(signature: str, described: list[tuple[str, str, Any]]) -> None:
    assert parameters(signature) == described


def test_annotations_that_are_strings_are_described() -> None:
    source = "from __future__ import annotations\nclass S:\n    def m(self, a: int, b: str | None = None): ..."
    described = describe_service(module(source).S())["methods"]["m"]["parameters"]
    assert [(name, spec["type"]) for name, spec in described["properties"]] == [("a", "int"), ("b", "str")]


def test_a_service_is_described() -> None:
    described = describe_service(Service())
    assert {name: described[name] for name in described if name != "methods"} == {
        "service_name": "orders",
        "service_version": "1.2.3",
        "description": "A service.",
        "warnings": [],
        "encrypted_methods": False,
        "public_key": None,
    }
    assert list(described["methods"]) == [
        "add",
        "by_class",
        "echo",
        "echo_later",
        "future",
        "raises",
        "raises_later",
        "returns",
        "static",
        "undecorated",
        "whoami",
    ]
    assert described["methods"]["whoami"]["parameters"]["required"] == ["params"]


def test_what_a_service_does_not_say_is_left_open() -> None:
    class Silent:
        pass

    described = describe_service(Silent())
    names = ("service_name", "service_version", "description", "methods", "public_key")
    assert [described[name] for name in names] == [None, None, None, {}, None]


def test_the_name_may_be_a_property() -> None:
    class Named:
        @property
        def service_name(self) -> str:
            return "named"

    assert describe_service(Named())["service_name"] == "named"


def test_what_can_be_called_on_the_instance_is_described_too() -> None:
    service = Service()
    service.callback = lambda a: a
    assert "callback" in describe_service(service)["methods"]
    assert "calls" not in describe_service(service)["methods"]


class Slotted:
    """Without a dictionary of its own."""

    __slots__ = ("a",)

    def method(self) -> None:
        """Does nothing."""


def test_a_service_without_a_dictionary_is_described() -> None:
    described = describe_service(Slotted())["methods"]
    assert list(described) == ["method"]
    assert described["method"]["description"] == "Does nothing."


def test_builtins_are_described_without_parameters_they_do_not_tell() -> None:
    class Builtins:
        dictionary = dict
        smallest = min
        length = len

    described = describe_service(Builtins())["methods"]
    assert list(described) == ["dictionary", "length", "smallest"]
    assert described["dictionary"]["parameters"]["properties"] == []


async def test_a_description_is_the_answer_to_nuropb_describe() -> None:
    outcome = await call("nuropb_describe")
    assert outcome.action == "ack"
    assert strict_json(outcome.result) == json.loads(json.dumps(describe_service(Service())))


async def test_defaults_are_spelled_as_results_are() -> None:
    class Defaults:
        def method(self, at: Any = dt.date(2026, 1, 2), kind: Any = Point) -> None: ...

    outcome = await call("nuropb_describe", Defaults())
    properties = dict(strict_json(outcome.result)["methods"]["method"]["parameters"]["properties"])
    assert properties["at"]["default"] == "2026-01-02Z"
    assert properties["kind"]["default"] == str(Point)


async def test_a_service_that_cannot_be_described_says_so() -> None:
    class Broken:
        @property
        def status(self) -> str:
            raise ValueError("not now")

    outcome = await call("nuropb_describe", Broken())
    assert outcome.action == "reject"


class Marked:
    @marked(mesh_hidden=True)
    def hidden(self) -> None: ...

    @marked(mesh_hidden=False, description="In other words.")
    def shown(self) -> None:
        """Not this."""

    @marked(requires_encryption=True, context=True, context_arg="who")
    def secret(self, who: Any, ctx: int) -> None: ...

    @marked(requires_encryption=None)
    def open(self) -> None: ...


def test_marks_of_nuropbs_decorators_are_read() -> None:
    described = describe_service(Marked())
    methods = described["methods"]
    assert list(methods) == ["open", "secret", "shown"]
    assert methods["shown"]["description"] == "In other words."
    assert [methods[name]["requires_encryption"] for name in methods] == [False, True, False]
    assert methods["secret"]["parameters"]["required"] == ["ctx"]
    assert described["encrypted_methods"] is True
    assert described["public_key"] is None


def test_the_public_key_is_shown_where_something_is_to_be_encrypted() -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    marked_service, service = Marked(), Service()
    marked_service._private_key = service._private_key = key  # type: ignore[attr-defined]
    pem = describe_service(marked_service)["public_key"]
    loaded = serialization.load_pem_public_key(pem.encode())
    assert loaded == key.public_key()
    assert describe_service(service)["public_key"] is None


if sys.version_info >= (3, 12):  # the syntax is new there

    def test_type_parameters_are_described() -> None:
        made = module("class S:\n    def m[T](self, a: T, b: list[T] = []): ...")
        described = describe_service(made.S())["methods"]["m"]["parameters"]
        assert [(name, spec["type"]) for name, spec in described["properties"]] == [("a", "T"), ("b", "T")]
