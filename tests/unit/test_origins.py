"""Origins of pages that may connect."""

from __future__ import annotations

import logging

import pytest
from starlette.datastructures import Headers

from nuropb_gateway_asgi.authentication.origins import NAMED, SECONDS, OriginPolicy, RefusedOrigins, shown_origin
from nuropb_gateway_asgi.exceptions import SettingsError
from nuropb_gateway_asgi.handlers.handshake import check_origin
from nuropb_gateway_asgi.handlers.refusals import Refusal


@pytest.mark.parametrize(
    ("allowed", "origin", "expected"),
    [
        ([], "https://a.example", False),
        (["https://a.example"], "https://a.example", True),
        (["https://a.example"], "HTTPS://A.Example", True),
        (["HTTPS://A.Example"], "https://a.example", True),
        (["https://a.example"], "https://a.example:443", True),
        (["https://a.example:443"], "https://a.example", True),
        (["http://a.example"], "http://a.example:80", True),
        (["http://a.example"], "http://a.example:443", False),
        (["https://a.example"], "http://a.example", False),
        (["https://a.example"], "https://a.example:8443", False),
        (["https://a.example:8443"], "https://a.example:8443", True),
        (["https://a.example:8443"], "https://a.example", False),
        (["https://a.example"], "https://b.a.example", False),
        (["https://a.example"], "https://a.example.evil.example", False),
        (["https://a.example"], "https://evil-a.example", False),
        (["https://a.example"], "https://a.example@evil.example", False),
        (["https://a.example"], "https://evil.example/https://a.example", False),
        (["https://a.example"], "https://a.example/", False),
        (["https://a.example"], "https://a.example.", False),
        (["https://a.example"], "https://a.example:", False),
        (["https://a.example"], "https://a.example:0443", False),
        (["https://a.example"], "https://a.example:65979", False),
        (["https://a.example"], " https://a.example", False),
        (["https://a.example"], "https://a.example\n", False),
        (["https://a.example"], "https://a.example https://b.example", False),
        (["https://k.example"], "https://\u212a.example", False),
        (["https://a.example"], "a.example", False),
        (["https://a.example"], "null", False),
        (["https://a.example"], "", False),
        (["https://.example"], f"https://{'a.' * 200}example", False),
        (["https://xaxexample"], "https://xa.example", False),
        (["https://a.example", "https://b.example"], "https://b.example", True),
        (["https://xn--mnchen-3ya.example"], "https://xn--mnchen-3ya.example", True),
        (["https://[2001:DB8:0::1]:8443"], "https://[2001:db8::1]:8443", True),
        (["https://[2001:db8::1]"], "https://[2001:db8::2]", False),
        (["https://[2001:db8::1]"], "https://[:::]", False),
        (["http://192.0.2.1:8080"], "http://192.0.2.1:8080", True),
        (["capacitor://localhost"], "capacitor://localhost", True),
        (["capacitor://localhost"], "ionic://localhost", False),
        (["https://.example.com"], "https://a.example.com", True),
        (["https://.example.com"], "https://b.a.example.com:443", True),
        (["https://.Example.com"], "https://A.example.com", True),
        (["https://.example.com"], "https://example.com", False),
        (["https://.example.com"], "https://.example.com", False),
        (["https://.example.com"], "https://..example.com", False),
        (["https://.example.com"], "https://evil-example.com", False),
        (["https://.example.com"], "https://evilexample.com", False),
        (["https://.example.com"], "https://a.example.com.evil.example", False),
        (["https://.example.com"], "http://a.example.com", False),
        (["https://.example.com"], "https://a.example.com:8443", False),
        (["https://.example.com:8443"], "https://a.example.com:8443", True),
        (["https://.example.com:8443"], "http://a.example.com:8443", False),
        (["https://.example.com", "https://example.com"], "https://example.com", True),
        (["*"], "https://a.example", True),
        (["*"], "null", True),
        (["*"], "anything at all", True),
        (["https://a.example", "*"], "https://b.example", True),
    ],
)
def test_origins(allowed: list[str], origin: str, expected: bool) -> None:
    policy = OriginPolicy(allowed)
    assert policy.allows(origin) is expected
    assert policy.allows_any is ("*" in allowed)


@pytest.mark.parametrize(
    ("origin", "expected"),
    [
        ("http://localhost", True),
        ("https://LOCALHOST:5173", True),
        ("http://127.0.0.1:8000", True),
        ("http://[::1]:3000", True),
        ("http://[0:0:0:0:0:0:0:1]", True),
        ("http://app.localhost", False),
        ("http://localhost.evil.example", False),
        ("http://127.0.0.2", False),
        ("http://0.0.0.0:8000", False),
        ("ftp://localhost", False),
        ("https://a.example", False),
        ("null", False),
    ],
)
def test_loopback_origins(origin: str, expected: bool) -> None:
    assert OriginPolicy.loopback().allows(origin) is expected
    assert OriginPolicy([]).allows(origin) is False
    assert not OriginPolicy.loopback().allows_any


def test_loopback_can_be_added_to_other_origins() -> None:
    policy = OriginPolicy(["https://a.example"], loopback=True)
    assert policy.allows("https://a.example")
    assert policy.allows("http://localhost:5173")


@pytest.mark.parametrize(
    "entry",
    [
        "",
        "a.example",
        "//a.example",
        "https://",
        "https://a.example/",
        "https://a.example/path",
        "https://a.example?x=1",
        "https://a.example#x",
        "https://user@a.example",
        "https://a.example:",
        "https://a.example:port",
        "https://a.example:65536",
        "https://a.example:-1",
        "https://a b.example",
        "https://münchen.example",
        "https://*.example.com",
        "https://.",
        "https://..example.com",
        "https://.[::1]",
        "https://.0.0.1",
        "https://[::1",
        "https://[1.2.3]",
        "null",
        "**",
        "https://a.example,https://b.example",
    ],
)
def test_entry_that_is_not_an_origin_is_refused(entry: str) -> None:
    with pytest.raises(SettingsError, match="ALLOWED_ORIGINS") as caught:
        OriginPolicy(["https://ok.example", entry])
    assert repr(entry) in str(caught.value)


def test_origins_must_be_a_list() -> None:
    with pytest.raises(SettingsError, match="a string; expected a list"):
        OriginPolicy("https://a.example")


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("https://gateway.example", "https://gateway.example"),
        ("https://gateway.example/prefix", "https://gateway.example:443"),
        ("http://gateway.example:8080", "http://gateway.example:8080"),
        ("https://[2001:db8::1]:8443/x", "https://[2001:db8::1]:8443"),
    ],
)
def test_the_gateways_own_origin_may_always_connect(url: str, origin: str) -> None:
    assert not OriginPolicy(["https://a.example"]).allows(origin)
    for policy in (OriginPolicy(["https://a.example"], own=url), OriginPolicy.loopback(own=url)):
        assert policy.allows(origin)
        assert not policy.allows("https://other.example")


# --- refused origins in the log -------------------------------------------------------------------------


def test_an_origin_is_named_once_a_minute() -> None:
    refused = RefusedOrigins()
    assert [refused.note("https://a.example", now) for now in (0.0, 1.0, 59.9, 60.0, 61.0)] == [
        True,
        False,
        False,
        True,
        False,
    ]
    assert refused.note("https://b.example", 61.0)


def test_a_flood_of_made_up_origins_is_counted_and_not_named() -> None:
    refused = RefusedOrigins()
    named = [refused.note(f"https://{number}.example", 0.0) for number in range(1000)]
    assert (sum(named), refused.left_out) == (NAMED, 1000 - NAMED)
    assert refused.note("https://a.example", SECONDS)


@pytest.mark.parametrize(
    ("origin", "shown"),
    [
        ("https://a.example:8443", "https://a.example:8443"),
        ("null", "null (a local file or a sandboxed frame)"),
        ("https://a.example/?token=secret", "(not a valid origin)"),
        ("https://" + "a" * 250, "(not a valid origin)"),
        ("https://a.example\n", "(not a valid origin)"),
    ],
)
def test_only_an_origin_is_shown(origin: str, shown: str) -> None:
    assert shown_origin(origin) == shown


def test_the_warning_about_an_origin_names_the_setting(caplog: pytest.LogCaptureFixture) -> None:
    policy = OriginPolicy(["https://a.example"])
    for _ in range(3):
        with pytest.raises(Refusal) as caught:
            check_origin(Headers({"origin": "https://b.example"}), policy)
    assert caught.value.failure.description == "Origin not allowed: https://b.example"
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.message == (
        "connection refused: a page of origin https://b.example; to allow its origin, add it to "
        "NUROPB_GATEWAY_ALLOWED_ORIGINS"
    )
