"""Tokens in the headers, subprotocols and cookies of a handshake."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.datastructures import Headers

from nuropb_gateway_asgi.authentication.credentials import (
    Credentials,
    bearer_from_header,
    bearer_from_subprotocols,
    find_credentials,
    take_subprotocols,
)
from tests.kit.tokens import b64


@pytest.mark.parametrize(
    ("value", "token"),
    [
        ("Bearer abc", "abc"),
        ("bearer abc", "abc"),
        ("BEARER abc", "abc"),
        ("Bearer   abc", "abc"),
        ("Bearer\tabc", "abc"),
        (" Bearer abc ", "abc"),
        ("Bearer :abc", "abc"),
        ("Bearer : abc", "abc"),
        ("Bearer:abc", "abc"),
        ("bearer: abc", "abc"),
        ("Bearer a:b", "a:b"),
        ("Bearer " + "x" * 16384, "x" * 16384),
        ("Bearer " + "x" * 16385, None),
        ("Bearer", None),
        ("Bearer ", None),
        ("Bearer :", None),
        ("Bearer:", None),
        ("Bearerabc", None),
        ("Bearer abc def", None),
        ("Bearer abc, Bearer def", None),
        ("Bearer abc\r\nX: y", None),
        ("Bearer é", None),
        ("Bearer\u00a0abc", None),
        ("Basic dXNlcjpwYXNz", None),
        ("Token Bearer abc", None),
        ("abc", None),
        ("", None),
    ],
)
def test_bearer_from_header(value: str, token: str | None) -> None:
    assert bearer_from_header(value) == token


def offer(token: bytes) -> str:
    return f"base64url.bearer.nuropb.{b64(token)}"


@pytest.mark.parametrize(
    ("subprotocols", "token"),
    [
        ([], None),
        (["nuropb.v1"], None),
        (["nuropb.v1", offer(b"abc")], "abc"),
        ([offer(b"abc"), "nuropb.v1"], "abc"),
        ([offer(b"abcd"), offer(b"abcd")], "abcd"),
        ([offer(b"abc"), offer(b"abd")], None),
        ([offer(b"")], None),
        ([offer(b"a b")], None),
        ([offer(b"a\n")], None),
        ([offer(b"\xff\xfe")], None),
        ([offer(b"x" * 16385)], None),
        ([offer(b"abcd") + "=="], None),
        ([offer(b"abcd")[:-1] + "B"], None),
        (["base64url.bearer.nuropb.a"], None),
        (["base64url.bearer.nuropb.YWJj!"], None),
        (["base64url.bearer.nuropb.é"], None),
        (["Base64url.Bearer.Nuropb.YWJj"], None),
        (["base64url.bearer.authorization.k8s.io.YWJj"], None),
    ],
)
def test_bearer_from_subprotocols(subprotocols: list[str], token: str | None) -> None:
    assert bearer_from_subprotocols(subprotocols) == token


NOTHING = Credentials()
MALFORMED = Credentials(malformed=True)
CONFLICT = Credentials(conflict=True)
BOTH = Credentials(conflict=True, malformed=True)


def header(*values: str) -> list[tuple[str, str]]:
    return [("Authorization", value) for value in values]


def cookie(*values: str) -> list[tuple[str, str]]:
    return [("Cookie", value) for value in values]


@pytest.mark.parametrize(
    ("headers", "subprotocols", "expected"),
    [
        # none
        ([], [], NOTHING),
        ([("X-Authorization", "Bearer abc"), ("Proxy-Authorization", "Bearer abc")], ["nuropb.v1"], NOTHING),
        (cookie("other=abc; Authorization2=abc; authorization=abc; Authorization"), [], NOTHING),
        # the header
        (header("Bearer abc"), [], Credentials("abc", "header")),
        (header("Bearer :abc"), [], Credentials("abc", "header", legacy=True)),
        (header("Bearer:abc"), [], Credentials("abc", "header", legacy=True)),
        (header("Bearer abc", "Bearer abc"), [], Credentials("abc", "header")),
        (header("Bearer abc", "Bearer abd"), [], CONFLICT),
        (header("Bearer abc", "bearer abc"), [], CONFLICT),
        (header("Basic dXNlcjpwYXNz"), [], MALFORMED),
        (header("Basic dXNlcjpwYXNz", "Basic dXNlcg=="), [], BOTH),
        (header("Basic dXNlcjpwYXNz", "Bearer abc"), [], BOTH),
        (header("Bearer abc, Bearer abd"), [], MALFORMED),
        (header(""), [], MALFORMED),
        # the subprotocol
        ([], [offer(b"abc")], Credentials("abc", "subprotocol")),
        ([], ["nuropb.v1", offer(b"abc"), offer(b"abc")], Credentials("abc", "subprotocol")),
        ([], [offer(b"abc"), offer(b"abd")], CONFLICT),
        ([], [offer(b"")], MALFORMED),
        ([], [offer(b"abc"), offer(b"a b")], BOTH),
        # the cookie
        (cookie("Authorization=abc"), [], Credentials("abc", "cookie")),
        (cookie("a=b;\t Authorization\t= abc"), [], Credentials("abc", "cookie")),
        *((cookie(f"{c}Authorization=abc; Authorization{c}=abc"), [], NOTHING) for c in "\xa0\x85\x1f\x0b"),
        *((cookie(f"Authorization=abc{c}"), [], MALFORMED) for c in "\xa0\x85\x1c"),
        (cookie("a=b; Authorization=abc ;c"), [], Credentials("abc", "cookie")),
        (cookie("a=b", "Authorization=abc"), [], Credentials("abc", "cookie")),
        (cookie('Authorization="abc"'), [], Credentials("abc", "cookie")),
        (cookie("Authorization=Bearer abc"), [], Credentials("abc", "cookie")),
        (cookie('Authorization="Bearer :abc"'), [], Credentials("abc", "cookie")),
        (cookie("Authorization=Bearer%20abc"), [], Credentials("abc", "cookie")),
        (cookie("Authorization=%22abc%22"), [], Credentials("abc", "cookie")),
        (cookie("Authorization=ab=="), [], Credentials("ab==", "cookie")),
        (cookie("Authorization=bearer-of-rings"), [], Credentials("bearer-of-rings", "cookie")),
        (cookie("Authorization=abc; Authorization=abc"), [], Credentials("abc", "cookie")),
        (cookie("Authorization=abc; Authorization=abd"), [], CONFLICT),
        (cookie("Authorization=abc", "Authorization=abd"), [], CONFLICT),
        (cookie("Authorization="), [], MALFORMED),
        (cookie('Authorization=""'), [], MALFORMED),
        (cookie('Authorization="'), [], Credentials('"', "cookie")),
        (cookie("Authorization=a b"), [], MALFORMED),
        (cookie("Authorization=a%0Ab"), [], MALFORMED),
        (cookie("Authorization=%FF"), [], MALFORMED),
        (cookie("Authorization=" + "%61" * 11000), [], MALFORMED),
        # several
        (header("Bearer abc") + cookie("Authorization=abc"), [offer(b"abc")], Credentials("abc", "header")),
        (cookie("Authorization=abc"), [offer(b"abc")], Credentials("abc", "subprotocol")),
        (header("Bearer abc"), [offer(b"abd")], CONFLICT),
        (header("Bearer abc") + cookie("Authorization=abd"), [], CONFLICT),
        (cookie("Authorization=abd"), [offer(b"abc")], CONFLICT),
        (header("Basic dXNlcjpwYXNz"), [offer(b"abc")], BOTH),
        (header("Bearer abc") + cookie("Authorization="), [], BOTH),
    ],
)
def test_find_credentials(headers: list[tuple[str, str]], subprotocols: list[str], expected: Credentials) -> None:
    raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers]
    assert find_credentials(Headers(raw=raw), subprotocols, "Authorization") == expected


def test_cookie_is_not_read_unless_it_has_a_name() -> None:
    assert find_credentials(Headers({"Cookie": "Authorization=abc; =abc"}), []) == NOTHING


@given(st.text(st.characters(max_codepoint=255)), st.text(st.characters(max_codepoint=255)), st.text())
@settings(database=None, deadline=None)
def test_credentials_that_are_refused_have_no_token(authorization: str, jar: str, subprotocol: str) -> None:
    headers = Headers({"Authorization": authorization, "Cookie": f"t={jar}"})
    credentials = find_credentials(headers, [f"base64url.bearer.nuropb.{subprotocol}"], "t")
    refused = credentials.conflict or credentials.malformed
    assert refused == (credentials.token is None) == (credentials.channel is None)


@pytest.mark.parametrize("kind", [list, tuple])
def test_a_token_is_taken_out_of_the_scope(kind: Any) -> None:
    secret = f"base64url.bearer.nuropb.{b64(b'abc')}"
    headers = [
        (b"host", b"h"),
        (b"sec-websocket-protocol", f"nuropb.v1 ,{secret}, chat".encode()),
        (b"Sec-WebSocket-Protocol", secret.upper().encode()),
    ]
    scope = {"headers": kind(headers), "subprotocols": kind(["nuropb.v1", secret, "chat", secret])}
    copied = dict(scope)
    assert take_subprotocols(scope) == ("nuropb.v1", secret, "chat", secret)
    kept = [(b"host", b"h"), (b"sec-websocket-protocol", b"nuropb.v1, chat")]
    for each in (scope, copied)[: 2 if kind is list else 1]:
        assert (each["headers"], each["subprotocols"]) == (kept, ["nuropb.v1", "chat"])


def test_a_scope_without_a_token_is_left_as_it_is() -> None:
    headers = ((b"sec-websocket-protocol", b"nuropb.v1,chat"),)
    scope: dict[str, Any] = {"headers": headers, "subprotocols": ("nuropb.v1", "chat")}
    assert take_subprotocols(scope) == ("nuropb.v1", "chat")
    assert scope["headers"] is headers
    assert take_subprotocols({"headers": []}) == ()
