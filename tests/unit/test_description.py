from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from nuropb_gateway_asgi.wire.description import Description, MethodInfo, describe_for_clients, parse_description

KEY = "-----BEGIN PUBLIC KEY-----"
#: As nuropb 0.1.8 makes it, of ``def add(self, ctx, a: int, b=2, *args, c: str, **kwargs)``.
PARAMETERS = {
    "type": "object",
    "properties": [
        ["a", {"type": "int", "description": "", "default": ""}],
        ["b", {"type": "", "description": "", "default": 2}],
        ["args", {"type": "", "description": "", "default": ""}],
        ["c", {"type": "str", "description": "", "default": ""}],
        ["kwargs", {"type": "", "description": "", "default": ""}],
    ],
    "required": ["a", "args", "c", "kwargs"],
}
ORDERS = {
    "service_name": "orders",
    "service_version": "1.2.3",
    "description": "All about orders",
    "warnings": [],
    "encrypted_methods": True,
    "public_key": KEY,
    "methods": {
        "add": {"description": "Adds", "requires_encryption": False, "parameters": PARAMETERS},
        "pay": {"description": None, "requires_encryption": True, "parameters": {}},
        "_private": {"description": "Not to be called", "requires_encryption": False, "parameters": {}},
    },
}


def parse(described: Any) -> Description:
    return parse_description("orders", json.dumps(described).encode(), 5.0)


def parameters(value: dict[str, Any]) -> Any:
    description = Description("orders", 0.0, {"m": MethodInfo(parameters=value)})
    return describe_for_clients(description, ["m"])["methods"]["m"]["parameters"]


@pytest.mark.parametrize(
    ("mark", "is_gateway"), [(True, True), (False, False), (1, False), ("yes", False), ([], False)]
)
def test_a_gateway_is_known_by_its_description(mark: Any, is_gateway: bool) -> None:
    found = parse(ORDERS | {"nuropb_gateway": mark})
    assert (found.is_gateway, found.methods is not None) == (is_gateway, True)
    assert not parse(ORDERS).is_gateway


def test_a_description_has_what_the_service_says_of_itself() -> None:
    assert parse(ORDERS) == Description(
        "orders",
        5.0,
        methods={"add": MethodInfo("Adds", False, PARAMETERS), "pay": MethodInfo(None, True, {})},
        description="All about orders",
        version="1.2.3",
        public_key=KEY,
    )
    assert parse_description("orders", Raw(json.dumps(ORDERS).encode()), 5.0) == parse(ORDERS)


def test_what_is_not_said_has_a_default() -> None:
    assert parse({"methods": {"get": {}}}) == Description("orders", 5.0, {"get": MethodInfo(None, False, {})})
    assert parse({"methods": {}}).methods == {}
    assert not parse({"methods": {}}).keys_differ
    assert parse({"methods": {}, "service_version": [1, 2]}).version == [1, 2]


UNREADABLE: list[bytes] = [
    b"",
    b"null",
    b"[]",
    b'"NuropbException"',
    b"{}",
    b'{"methods":null}',
    b'{"methods":[]}',
    b'{"methods":{"get":null}}',
    b'{"methods":{"get":{"requires_encryption":"yes"}}}',
    b'{"methods":{"get":{"parameters":[]}}}',
    b'{"methods":{},"public_key":5}',
    b'{"methods":{},"service_version":NaN}',
    b'{"methods":{},"service_version":%b}' % (b"[" * 100_000),
    b'{"methods":{},"service_version":%b}' % (b"1" * 5000),
    b'{"methods":{"\xff":{}}}',
    b'{"methods":{},"description":"\xff"}',
]


@pytest.mark.parametrize("result", UNREADABLE)
def test_of_a_service_that_does_not_describe_itself_nothing_is_known(result: bytes) -> None:
    description = parse_description("orders", result, 5.0)
    assert description == Description("orders", 5.0)
    assert description.methods is None
    assert not description.encrypts


@pytest.mark.parametrize(
    ("methods", "encrypts"),
    [
        (None, False),
        ({}, False),
        ({"a": MethodInfo()}, False),
        ({"a": MethodInfo(), "b": MethodInfo(requires_encryption=True)}, True),
    ],
)
def test_a_service_encrypts_if_one_method_requires_it(methods: dict[str, MethodInfo] | None, encrypts: bool) -> None:
    assert Description("orders", 0.0, methods).encrypts is encrypts


def test_clients_get_the_methods_that_are_named() -> None:
    described = describe_for_clients(parse(ORDERS), ["pay", "add"])
    assert described == {
        "description": "All about orders",
        "version": "1.2.3",
        "methods": {
            "pay": {
                "description": None,
                "parameters": {"type": "object", "properties": {}, "required": []},
                "requires_encryption": True,
            },
            "add": {
                "description": "Adds",
                "parameters": {
                    "type": "object",
                    "properties": {
                        "a": {"type": "int"},
                        "b": {"type": "any", "default": 2},
                        "args": {"type": "any"},
                        "c": {"type": "str"},
                        "kwargs": {"type": "any"},
                    },
                    "required": ["a", "c"],
                },
                "requires_encryption": False,
            },
        },
    }
    assert list(described["methods"]) == ["pay", "add"]


def test_of_a_service_without_a_description_clients_get_no_methods() -> None:
    described = describe_for_clients(Description("orders", 0.0), [])
    assert described == {"description": None, "version": None, "methods": {}}


NOTHING: dict[str, Any] = {"type": "object", "properties": {}, "required": []}


def one(name: str, spec: dict[str, Any], *required: str) -> dict[str, Any]:
    return {"type": "object", "properties": {name: spec}, "required": list(required)}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({}, NOTHING),
        ({"properties": None, "required": None}, NOTHING),
        ({"properties": "ab", "required": "a"}, NOTHING),
        ({"properties": ["ab", "cd"]}, NOTHING),
        ({"properties": [None, 5, [], ["a"], ["a", {}, {}], [5, {}], [["a"], {}], {"a": 1, "b": 2}]}, NOTHING),
        ({"properties": [["a", {"type": "int", "default": 5}]]}, one("a", {"type": "int", "default": 5})),
        ({"properties": {"a": {"type": "int", "default": 5}}}, one("a", {"type": "int", "default": 5})),
        ({"properties": {"a": {"type": "int", "default": ""}}, "required": ["a"]}, one("a", {"type": "int"}, "a")),
        ({"properties": [["a", None]]}, one("a", {"type": "any", "default": None})),
        ({"properties": [["a", None]], "required": [[], {}, None, 5, "b"]}, one("a", {"type": "any", "default": None})),
        ({"properties": [["a", {}]], "required": {"a": 1}}, one("a", {"type": "any", "default": None})),
        ({"properties": [["args", {"type": "list"}]], "required": ["args"]}, one("args", {"type": "list"}, "args")),
        ({"properties": [["args", {"type": []}]], "required": ["args"]}, one("args", {"type": "any"})),
        ({"properties": [["kwargs", {"type": ""}]], "required": ["kwargs"]}, one("kwargs", {"type": "any"})),
    ],
)
def test_parameters_in_any_shape_become_an_object(value: dict[str, Any], expected: dict[str, Any]) -> None:
    assert parameters(value) == expected


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(0, 9) | st.sampled_from(["a", "args", "type", "default", ""]),
    lambda children: (
        st.lists(children, max_size=3) | st.dictionaries(st.sampled_from(["a", "args", "type", "default"]), children)
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["properties", "required", "type"]), json_values))
def test_whatever_a_service_says_of_its_parameters_clients_get_an_object(value: dict[str, Any]) -> None:
    described = parameters(value)
    assert set(described) == {"type", "properties", "required"}
    assert described["type"] == "object"
    assert set(described["required"]) <= set(described["properties"])
    for name, spec in described["properties"].items():
        assert spec["type"]
        catches_all = name == "args" and spec["type"] in ("any", "Any")
        assert ("default" not in spec) == (name in described["required"] or catches_all)


@given(st.binary() | json_values.map(lambda value: json.dumps({"methods": value}).encode()))
def test_any_result_is_a_description_of_something_or_of_nothing(result: bytes) -> None:
    assert parse_description("orders", result, 5.0).service == "orders"
