"""Arguments of calls against signatures and descriptions."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Optional

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nuropb_gateway_asgi.wire.arguments import faults_by_description, faults_by_signature
from nuropb_gateway_asgi.wire.services import describe_service


class Orders:
    """Methods of every form."""

    def typed(self, number: int, price: float = 1.0, item: str = "tea", paid: bool = False) -> None:
        """Take types that JSON has."""

    def lists(self, items: list[str], names: dict[str, int | None], more: tuple[int, ...] = ()) -> None:
        """Take containers."""

    def open(self, first: Any, unknown: Unknown | int = 1, **rest: Any) -> None:  # type: ignore[name-defined]  # noqa: F821
        """Take anything."""

    def nothing_or(self, a: int | None, b: Optional[str] = "", c: int | None = 1, d: int = None) -> None:  # type: ignore[assignment]  # noqa: RUF013, UP045
        """Take null."""

    def with_context(self, context: dict[str, Any], *, number: int) -> None:
        """Take a context first."""

    def positional(self, number: int, /) -> None:
        """Take what no call can give."""


CALLS = [
    ("typed", {"number": 1}, ""),
    ("typed", {"number": 3.0, "price": 2, "item": "", "paid": True}, ""),
    ("typed", {"number": 3.5}, "of the wrong type: number (expected int)"),
    ("typed", {"number": True, "price": "2", "item": 1, "paid": 0}, "of the wrong type: number (expected int), "
     "price (expected float), item (expected str), paid (expected bool)"),
    ("typed", {"number": None}, "of the wrong type: number (expected int)"),
    ("typed", {}, "missing: number"),
    ("typed", {"num": 1, "item": []}, "missing: number; unknown: num; of the wrong type: item (expected str)"),
    ("lists", {"items": [1], "names": {}, "more": [1]}, ""),
    ("lists", {"items": "a", "names": []}, "of the wrong type: items (expected list), names (expected dict)"),
    ("open", {"first": None, "unknown": "x", "other": 1}, ""),
    ("open", {}, "missing: first"),
    ("nothing_or", {"a": None, "b": None, "c": None, "d": None}, ""),
    ("nothing_or", {"a": "", "b": 1, "c": "", "d": ""}, "of the wrong type: a (expected int or None), "
     "b (expected str or None), c (expected int or None), d (expected int or None)"),
    ("positional", {}, ""),
]  # fmt: skip


@pytest.mark.parametrize(("method", "params", "faults"), CALLS)
def test_faults_are_named(method: str, params: dict[str, Any], faults: str) -> None:
    assert faults_by_signature(getattr(Orders(), method), 0, params) == (f"parameters {faults}" if faults else "")


def test_the_context_is_no_parameter_of_a_call() -> None:
    method = Orders().with_context
    assert faults_by_signature(method, 1, {"number": 1}) == ""
    assert faults_by_signature(method, 1, {"context": {}}) == "parameters missing: number; unknown: context"


@pytest.mark.parametrize("function", [max, functools.partial(max, 1), print])
def test_a_function_without_parameters_of_its_own_takes_anything(function: Callable[..., Any]) -> None:
    assert faults_by_signature(function, 0, {}) == ""


def test_an_argument_that_a_decorator_adds_is_not_missing() -> None:
    def get(database: Any, number: int) -> None: ...

    @functools.wraps(get)
    def with_database(**params: Any) -> None:
        get(object(), **params)

    assert faults_by_signature(with_database, 0, {"number": 1}) == ""


def test_names_of_a_caller_are_cut() -> None:
    params = {"\x1b[31m": 1, "x" * 100: 2, **dict.fromkeys("abcdefghijkl", 3)}
    text = faults_by_signature(lambda: None, 0, params)
    assert "\x1b" not in text
    assert "xxx" not in text
    assert text.endswith("g, h, ...")


# --- by a description -----------------------------------------------------------------------------------


def described(method: str) -> dict[str, Any]:
    parameters: dict[str, Any] = describe_service(Orders())["methods"][method]["parameters"]
    return parameters


DESCRIBED_CALLS = [
    ("typed", {"number": 1}, ""),
    ("typed", {"num": "1"}, "missing: number; unknown: num"),
    ("typed", {"number": "1"}, "of the wrong type: number (expected int)"),
    ("typed", {"number": None}, ""),
    ("typed", {"number": [1]}, ""),
    ("open", {"first": 1, "rest": 1}, ""),
    ("lists", {"items": ["a"], "names": {}}, ""),
]


@pytest.mark.parametrize(("method", "params", "faults"), DESCRIBED_CALLS)
def test_a_description_explains(method: str, params: dict[str, Any], faults: str) -> None:
    assert faults_by_description(described(method), params) == (f"parameters {faults}" if faults else "")


@pytest.mark.parametrize("name", ["args", "kwargs"])
def test_a_described_catch_all_takes_anything(name: str) -> None:
    parameters = {"properties": [["a", {"type": "int"}], [name, {"type": ""}]], "required": ["a", name]}
    assert faults_by_description(parameters, {"a": 1, "b": 2}) == ""


@given(
    st.dictionaries(st.sampled_from(["properties", "required", "type"]), st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=6)),
    st.dictionaries(st.text(), st.integers()),
)  # fmt: skip
def test_no_description_breaks_it(parameters: dict[str, Any], params: dict[str, Any]) -> None:
    assert isinstance(faults_by_description(parameters, params), str)
