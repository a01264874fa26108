from __future__ import annotations

from typing import Any

import pytest

from nuropb_gateway_asgi.cli._parameters import parse_parameters


def parse(*words: str, stdin: str = "") -> dict[str, Any]:
    return parse_parameters(words, lambda: stdin)


@pytest.mark.parametrize(
    ("words", "parameters"),
    [
        ([], {}),
        (["name=Ann"], {"name": "Ann"}),
        (["count=3"], {"count": "3"}),
        (["count:=3"], {"count": 3}),
        (["empty="], {"empty": ""}),
        (["sum=1+1=2"], {"sum": "1+1=2"}),
        (["url=http://a:=b"], {"url": "http://a:=b"}),
        (["text=naïve 😀\n"], {"text": "naïve 😀\n"}),
        (["tags:=[1, null, true, 1.5]", "nested:={}"], {"tags": [1, None, True, 1.5], "nested": {}}),
        (["large:=123456789012345678901234567890"], {"large": 123456789012345678901234567890}),
        (['{"a": 1, "b": 2}'], {"a": 1, "b": 2}),
        ([' {"a": 1}'], {"a": 1}),
        (['{"a": 1, "b": 2}', "b=new", "c:=3"], {"a": 1, "b": "new", "c": 3}),
        (["b=new", '{"b": 2}'], {"b": "new"}),
    ],
)
def test_words_are_parameters(words: list[str], parameters: dict[str, Any]) -> None:
    assert parse(*words) == parameters


def test_a_dash_is_an_object_from_standard_input() -> None:
    assert parse("-", "b=2", stdin='{"a": 1}\n') == {"a": 1, "b": "2"}


def test_standard_input_is_read_only_when_it_is_named() -> None:
    def read() -> str:
        raise AssertionError("standard input was read")

    assert parse_parameters(["a=-"], read) == {"a": "-"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["word"], "name=text"),
        (["=value"], "name=text"),
        ([":=1"], "name=text"),
        (["a=1", "a:=2"], "a is given twice"),
        (["a:=one"], "a is not JSON"),
        (["a:="], "a is not JSON"),
        (["a:=NaN"], "NaN is not a JSON number"),
        (["a:=-Infinity"], "-Infinity is not a JSON number"),
        (["a:=1e999"], "1e999 is not a JSON number"),
        (['a:={"b": 1, "b": 2}'], "a name occurs twice"),
        (["a:=" + "[" * 100_000], "nested too deeply"),
        (["{"], "the object is not JSON"),
        (["{}", "{}"], "more than one JSON object"),
        (["{}", "-"], "more than one JSON object"),
        (["-"], "standard input is not JSON"),
        (["a=\udcff"], "not text"),
        (['a:="\\ud800"'], "not text"),
    ],
)
def test_what_is_no_parameter_or_would_lose_something(words: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse(*words)


def test_standard_input_has_to_be_an_object() -> None:
    with pytest.raises(ValueError, match="standard input is not a JSON object"):
        parse("-", stdin="[1]")
