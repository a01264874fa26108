"""Results as JSON, and descriptions of service objects."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import sys
from decimal import Decimal
from types import ModuleType
from typing import Any
from uuid import UUID

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from nuropb_gateway_asgi.wire.services import (
    describe_service,
    to_json,
)

from .example_service import (
    Service,
    call,
    circular,
    deep,
    marked,
)
from .fakes import strict_json

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
    (dt.datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=dt.UTC), "2026-01-02T03:04:05.000678Z"),
    (dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=BERLIN), "2026-01-02T03:04:05+01:00"),
    (dt.date(2026, 1, 2), "2026-01-02"),
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
def test_values_are_spelled_as_nuropb_spells_them_and_times_as_rfc_3339(value: Any, spelling: Any) -> None:
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
    """Make a module, without this one's string annotations unless it asks for them."""
    made = ModuleType("described")
    exec(compile(source, "described", "exec", dont_inherit=True), made.__dict__)
    return made


def parameters(source: str) -> list[tuple[str, str, Any]]:
    """Return the parameters of a method with this signature: name, type, default."""
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
    assert described["methods"]["whoami"]["parameters"]["required"] == ["kwargs"]


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
    assert properties["at"]["default"] == "2026-01-02"
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
