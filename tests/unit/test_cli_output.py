"""Output that is safe for terminals, and the URL of a gateway."""

from __future__ import annotations

import io
import json
import sys
from typing import Any

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nuropb_gateway_asgi.cli._output import dump, printable
from nuropb_gateway_asgi.cli._target import BadURL, parse_url
from nuropb_gateway_asgi.cli.call import split_words


@given(st.text())
def test_nothing_of_a_text_can_move_a_cursor(text: str) -> None:
    assert printable(text).isprintable()


@given(st.dictionaries(st.text(), st.text() | st.integers() | st.none()), st.booleans())
def test_what_is_dumped_is_json_that_a_terminal_can_show(value: dict[str, Any], pretty: bool) -> None:
    text = dump(value, pretty=pretty)
    assert json.loads(text) == value
    assert all(line.isprintable() for line in text.split("\n"))
    assert pretty or "\n" not in text


def test_what_standard_output_has_no_characters_for_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert dump("ä") == '"\\u00e4"'
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="utf-8"))
    assert dump("ä") == '"ä"'


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("ws://127.0.0.1:8000/ws", "ws://127.0.0.1:8000/ws"),
        ("WSS://Gateway.example.com/a/ws", "wss://gateway.example.com:443/a/ws"),
        ("ws://gateway.example.com", "ws://gateway.example.com:80/ws"),
        ("ws://gateway.example.com/", "ws://gateway.example.com:80/"),
        ("http://127.0.0.1:8000", "ws://127.0.0.1:8000/ws"),
        ("http://127.0.0.1:8000/", "ws://127.0.0.1:8000/ws"),
        ("HTTPS://gateway.example.com/gateway/", "wss://gateway.example.com:443/gateway/ws"),
        ("https://gateway.example.com/gateway/ws", "wss://gateway.example.com:443/gateway/ws"),
        ("ws://[::1]:1/ws", "ws://[::1]:1/ws"),
        ("wss://host/ws?token=hunter2", "wss://host:443/ws"),
    ],
)
def test_a_url_is_shown_without_what_may_be_secret(url: str, shown: str) -> None:
    assert parse_url(url).shown == shown


@pytest.mark.parametrize(
    ("url", "used"),
    [
        ("http://host:1?token=hunter2", "ws://host:1/ws?token=hunter2"),
        ("wss://host/a/ws", "wss://host/a/ws"),
    ],
)
def test_a_client_gets_the_url_of_the_websocket(url: str, used: str) -> None:
    assert parse_url(url).url == used


@pytest.mark.parametrize(
    ("words", "split"),
    [
        (("demo", "add", ("a:=2",)), ("demo", "add", ("a:=2",))),
        (("demo.add", "a:=2", ("b:=3",)), ("demo", "add", ("a:=2", "b:=3"))),
        (("demo.add", None, ()), ("demo", "add", ())),
        (("shop.orders", "get", ()), ("shop.orders", "get", ())),
        (("shop.orders.get", "-", ()), ("shop.orders", "get", ("-",))),
        (("demo.add", '{"a": 2}', ()), ("demo", "add", ('{"a": 2}',))),
    ],
)
def test_service_and_method_may_be_one_word(words: Any, split: Any) -> None:
    assert split_words(*words) == split


@pytest.mark.parametrize(
    "words", [("demo", None, ()), ("demo", "a=2", ()), ("demo.", None, ()), (".add", None, ()), ("ws://host", "a", ())]
)
def test_a_service_needs_a_method(words: Any) -> None:
    with pytest.raises(click.UsageError):
        split_words(*words)


@pytest.mark.parametrize(
    ("url", "mend"),
    [
        ("", "https://gateway.example.com"),
        ("nonsense", "https://gateway.example.com"),
        ("localhost:8000", "https://gateway.example.com"),
        ("amqp://host/", "https://gateway.example.com"),
        ("ws:///ws", "wss://gateway.example.com/ws"),
        ("ws://host:0/ws", "wss://gateway.example.com/ws"),
        ("ws://host:99999/ws", "wss://gateway.example.com/ws"),
        ("ws://host:http/ws", "wss://gateway.example.com/ws"),
        ("ws://[::1/ws", "wss://gateway.example.com/ws"),
        ("ws://user:hunter2@host/ws", "--token-file"),
        ("ws://host/ws#hunter2", "remove the part from #"),
        ("ws://ho st/ws", "remove"),
        ("ws://host/ws\n", "remove"),
    ],
)
def test_a_url_at_which_no_gateway_can_be(url: str, mend: str) -> None:
    with pytest.raises(BadURL) as caught:
        parse_url(url)
    assert mend in caught.value.mend
    assert "hunter2" not in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("host", "is_local"),
    [
        ("127.0.0.1", True),
        ("127.8.9.10", True),
        ("[::1]", True),
        ("localhost", True),
        ("LOCALHOST", True),
        ("localhost.evil.example", False),
        ("127.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("gateway.example.com", False),
        ("10.0.0.1", False),
        ("[::]", False),
    ],
)
def test_only_a_loopback_address_stays_on_this_machine(host: str, is_local: bool) -> None:
    assert parse_url(f"ws://{host}/ws").is_local is is_local
