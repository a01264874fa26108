"""The findings of ``doctor``: one row for each observation, with the expected fact and remedy."""

from __future__ import annotations

import errno
import socket
import ssl
from typing import Any

import pytest

from nuropb_gateway_asgi.cli._target import parse_url
from nuropb_gateway_asgi.cli.doctor.findings import Finding, span
from nuropb_gateway_asgi.cli.doctor.gateway_findings import (
    CLOSE_REMEDIES,
    about_call,
    about_close,
    about_description,
    about_hello,
    about_origin,
    about_refusal,
)
from nuropb_gateway_asgi.cli.doctor.network_findings import (
    about_certificate,
    about_clock,
    about_health,
    about_network,
    about_tls,
    about_transport,
    says_mesh_is_lost,
)
from nuropb_gateway_asgi.cli.doctor.token_findings import about_claims, read_claims
from nuropb_gateway_asgi.client import Limits
from nuropb_gateway_asgi.protocol import CloseCode, ErrorCode
from tests.kit.tokens import make

NOW = 1_800_000_000.0
CLAIMS = {"sub": "alice", "exp": NOW + 3600}
TARGET = parse_url("wss://gateway.example.com/ws")


def verification(code: int) -> ssl.SSLCertVerificationError:
    error = ssl.SSLCertVerificationError("certificate")
    error.verify_code, error.verify_message = code, "as OpenSSL says it"
    return error


def tls(reason: str) -> ssl.SSLError:
    error = ssl.SSLError(1, reason)
    error.reason = reason
    return error


WRONG: list[tuple[Finding, str, str]] = [
    # the network
    (about_network(socket.gaierror(socket.EAI_NONAME, ""), "x"), "the name x does not exist", "check the spelling"),
    (about_network(socket.gaierror(socket.EAI_AGAIN, ""), "x"), "name server", "network"),
    (
        about_network(ConnectionRefusedError(errno.ECONNREFUSED, ""), "x:1"),
        "nothing listens at x:1",
        "gateway runs",
    ),
    (about_network(TimeoutError(), "x:1"), "x:1 does not answer", "firewall"),
    (about_network(OSError(errno.ENETUNREACH, ""), "x:1"), "no route to x:1", "VPN"),
    (about_network(OSError(errno.EMFILE, "Too many"), "x:1"), "x:1: Too many", "this machine"),
    (about_network(TimeoutError(), "p:1", proxied=True), "the proxy p:1", "NO_PROXY"),
    # TLS
    (about_tls(verification(10), TARGET), "gateway.example.com has expired", "renew"),
    (about_tls(verification(9), TARGET), "not valid yet", "clock"),
    (about_tls(verification(18), TARGET), "is self-signed", "SSL_CERT_FILE"),
    (about_tls(verification(20), TARGET), "unknown authority", "intermediate certificates"),
    (about_tls(verification(62), TARGET), "another name", "a name that it contains"),
    (about_tls(verification(85), TARGET), "as OpenSSL says it", "Python 3.13 and newer verify strictly"),
    (about_tls(verification(7), TARGET), "as OpenSSL says it", "a valid one"),
    (about_tls(tls("WRONG_VERSION_NUMBER"), TARGET), "port 443 does not use TLS", "ws://"),
    (about_tls(tls("TLSV1_ALERT_PROTOCOL_VERSION"), TARGET), "TLSV1_ALERT", "version in common"),
    (about_tls(TimeoutError(), TARGET), "does not answer the TLS handshake", "ws://"),
    (about_tls(ConnectionResetError(), TARGET), "ConnectionResetError", "this port uses TLS"),
    # HTTP
    (about_health(None, None, None), "not answer in HTTP", "wss://"),
    (
        about_health(200, 503, {"reasons": ["mesh: gone\n"]}),
        "not ready: mesh: gone\\u000a",
        "nuropb-gateway check",
    ),
    (about_health(400, 400, None), "HTTP 400", "wss://"),
    (about_health(502, 502, None), "HTTP 502", "proxy"),
    (about_clock(200.0), "3 minutes ahead of", "NTP"),
    (about_clock(-7200.0), "2 hours behind", "NTP"),
    # the token
    (about_claims({"sub": "a"}, NOW), "the token has no exp claim", "issued with exp"),
    (about_claims({"sub": "a", "exp": "soon"}, NOW), "the token has no exp claim", "issued with exp"),
    (about_claims({"sub": "a", "exp": 10**400}, NOW), "the token has no exp claim", "issued with exp"),
    (about_claims({"sub": "a", "exp": NOW - 90}, NOW), "the token expired 1 minute ago", "a new token"),
    (about_claims(CLAIMS | {"nbf": NOW + 3600}, NOW), "not valid yet: its nbf is 1 hour ahead", "clocks"),
    # the handshake
    (about_refusal(401, "No", CLAIMS, NOW), "401: No", "no issuer (JWT_ISSUER) and no audience (JWT_AUDIENCE)"),
    (
        about_refusal(401, "", CLAIMS | {"aud": ["a", "b"], "iss": "me"}, NOW),
        "401",
        "issuer me (JWT_ISSUER) and audience a, b (JWT_AUDIENCE)",
    ),
    (about_refusal(401, "", CLAIMS, NOW + 3601), "401", "the token step above"),
    (about_refusal(401, "", None, NOW), "401", "complete"),
    (about_refusal(403, "", CLAIMS, NOW), "403", "no gateway at this path"),
    (about_refusal(404, "", CLAIMS, NOW), "404", "no gateway at this path"),
    (about_refusal(200, "", CLAIMS, NOW), "200", "no gateway at this path"),
    (about_refusal(426, "", CLAIMS, NOW), "426", "upgrade"),
    (about_refusal(429, "", CLAIMS, NOW), "429", "too many"),
    (about_refusal(431, "", CLAIMS, NOW), "431", "too long"),
    (about_refusal(500, "", CLAIMS, NOW), "500", "log"),
    (about_refusal(502, "", CLAIMS, NOW), "502", "proxy"),
    (about_refusal(503, "The gateway is full", CLAIMS, NOW), "503: The gateway is full", "try again"),
    (about_refusal(503, "", CLAIMS, NOW), "503", "if a proxy sent this"),
    (about_close(1006, "no hello in time", CLAIMS, NOW), "no hello in time", "this is a gateway"),
    (about_close(4510, "", CLAIMS, NOW), "4510", "JWT_ISSUER"),
    (about_close(4511, "revoked", CLAIMS, NOW), "4511: revoked", "a new one"),
    (about_close(4999, "", CLAIMS, NOW), "4999", "docs/protocol.md"),
    # pages
    (
        about_origin(403, "Origin not allowed: http://a.example", "http://a.example"),
        "may not connect",
        "ALLOWED_ORIGINS",
    ),
    (about_origin(403, "", "http://a.example"), "403", "no gateway at this path"),
    (about_origin(None, "", "http://a.example"), "no answer", "this is a gateway"),
    # calls and subscriptions
    (about_hello("nuropb.v9", "a", Limits(), expected="nuropb.v1"), "speaks nuropb.v9", "versions"),
    (about_description({"services": {}, "unavailable": ["orders"]}), "no answer from orders", "services run"),
    (
        about_description({"services": {}, "unavailable": ["orders"]}),
        "no answer from orders",
        "take them out of EXPOSE",
    ),
    (
        about_description({"services": {}, "unavailable": ["orders"]}, mesh_is_lost=True),
        "no answer from orders",
        "the gateway cannot reach RabbitMQ",
    ),
    (
        about_description({"services": {"a": {"methods": {"x": {}}}}, "unavailable": ["a"]}),
        "0 methods of 0 services; no answer from a",
        "services run",
    ),
    (about_call("timeout", "timeout: x"), "timeout: x", "check that it runs"),
    (about_call("newer", "newer: x"), "newer: x", "log"),
]

FINE: list[tuple[Finding, str, str | None]] = [
    (about_origin(101, "", "http://a.example"), "a page of http://a.example may connect", None),
    (about_transport(TARGET, query=False), "wss://gateway.example.com:443/ws", None),
    (about_transport(TARGET, query=True), "with a query", "--token-file"),
    (about_transport(parse_url("ws://10.0.0.1/ws"), query=False), "ws://10.0.0.1:80/ws", "wss://"),
    (about_transport(parse_url("ws://127.0.0.1/ws"), query=False), "ws://127.0.0.1:80/ws", None),
    (about_transport(parse_url("ws://[::1]/ws"), query=False), "ws://[::1]:80/ws", None),
    (about_transport(parse_url("ws://localhost/ws"), query=False), "ws://localhost:80/ws", None),
    # Names that only begin like a loopback address.
    (about_transport(parse_url("ws://localhost.evil.example/ws"), query=False), "localhost.evil.example:80", "wss://"),
    (about_transport(parse_url("ws://127.evil.example/ws"), query=False), "127.evil.example:80", "wss://"),
    (about_transport(parse_url("ws://127.0.0.1.evil.example/ws"), query=False), "127.0.0.1.evil.example:80", "wss://"),
    (about_health(200, 200, {"ready": True}), "alive and ready", None),
    (about_clock(9.0), "agree", None),
    (about_claims(CLAIMS, NOW), "user alice, valid for 1 hour", None),
    (about_claims({"exp": NOW + 59}, NOW), "user unknown, valid for 59 seconds", "no sub claim"),
    (about_claims(CLAIMS | {"exp": NOW - 5}, NOW), "expired 5 seconds ago, within the leeway", "a new token"),
    (
        about_claims(CLAIMS | {"aud": "b"}, NOW, audience="a"),
        "alice",
        "its aud is b, but JWT_AUDIENCE here is a",
    ),
    (about_claims(CLAIMS | {"aud": "b"}, NOW, audience="a, b"), "alice", None),
    (about_claims(CLAIMS | {"azp": "a"}, NOW, client_id="a,b"), "alice", None),
    (about_claims(CLAIMS | {"azp": "a"}, NOW, audience="x", client_id="a"), "alice", None),
    (about_claims(CLAIMS, NOW, client_id="a"), "alice", "its client_id or azp is missing, but JWT_CLIENT_ID here is a"),
    (about_claims({"uid": "bob", "exp": NOW + 59}, NOW, user_claim="uid"), "user bob, valid for 59 seconds", None),
    (about_claims(CLAIMS, NOW, user_claim="uid"), "user unknown", "no uid claim"),
    (about_claims(CLAIMS, NOW, issuer="me"), "alice", "its iss is missing, but JWT_ISSUER here is me"),
    (about_claims(CLAIMS | {"aud": ["a"], "iss": "me"}, NOW, audience="a", issuer="me"), "alice", None),
    (about_hello("nuropb.v1", "a\x1b", Limits(), expected="nuropb.v1"), "user a\\u001b; 64 calls", None),
    (about_description({"services": {"a": {"methods": {"x": {}}}}}), "1 method of 1 service", None),
    (about_description({"services": {}}), "no methods", "EXPOSE"),
]

UNKNOWN = [
    (about_health(200, 404, None), "alive; /readyz is not reachable"),
    (about_health(404, 404, None), "HTTP 404"),
    (about_health(200, 200, "<html>"), "HTTP 200"),
    (about_clock(None), "have no date"),
    (about_claims(None, NOW), "not a JSON web token"),
]


@pytest.mark.parametrize(("finding", "found", "mend"), WRONG)
def test_what_is_wrong_is_said_and_how_to_mend_it(finding: Finding, found: str, mend: str) -> None:
    assert finding.status == "wrong"
    assert found in finding.found
    assert mend in (finding.mend or "")


@pytest.mark.parametrize(("finding", "found", "advice"), FINE)
def test_what_is_well_is_said_with_advice_where_there_is_any(finding: Finding, found: str, advice: str | None) -> None:
    assert finding.status == "ok"
    assert found in finding.found
    assert advice in (finding.mend or "") if advice else finding.mend is None


@pytest.mark.parametrize(("finding", "found"), UNKNOWN)
def test_what_cannot_be_told_is_no_failure(finding: Finding, found: str) -> None:
    assert (finding.status, finding.mend) == ("not checked", None)
    assert found in finding.found


@pytest.mark.parametrize("finding", [row[0] for row in (*WRONG, *FINE, *UNKNOWN)])
def test_a_finding_is_a_line_that_a_terminal_can_show(finding: Finding) -> None:
    assert f"{finding.found}{finding.mend or ''}".isprintable()


@pytest.mark.parametrize("code", ErrorCode)
def test_every_error_code_has_a_remedy(code: ErrorCode) -> None:
    finding = about_call(code.value, "said")
    # doctor sends no duplicate ids and cancels no calls.
    assert code in (ErrorCode.DUPLICATE_ID, ErrorCode.CANCELLED) or finding.mend != about_call("", "").mend


@pytest.mark.parametrize(
    ("body", "is_lost"),
    [({"mesh": {"connected": False}}, True), ({"mesh": {"connected": True}}, False), ({}, False), ("<html>", False)],
)
def test_only_a_gateway_that_says_so_has_lost_the_mesh(body: object, is_lost: bool) -> None:
    assert says_mesh_is_lost(body) is is_lost


def test_a_certificate_that_ends_soon_is_worth_a_word() -> None:
    def about(days: float) -> Finding:
        return about_certificate({"notAfter": "Jan  1 00:00:00 2030 GMT"}, "TLSv1.3", 1893456000 - days * 86400)

    assert about(30) == Finding("ok", "TLSv1.3, certificate valid for 30 days", None)
    assert about(13.5) == Finding("ok", "TLSv1.3, certificate valid for 13 days", "renew the certificate soon")


def test_warnings_of_a_gateway_that_is_ready_are_worth_a_word() -> None:
    finding = about_health(200, 200, {"ready": True, "warnings": ["mesh: gone\n", "keys: old"]})
    assert finding == Finding("ok", "alive and ready", "look at its warnings: mesh: gone\\u000a; keys: old")
    assert about_health(200, 200, {"ready": True, "warnings": []}) == Finding("ok", "alive and ready", None)


@pytest.mark.parametrize(
    "token", ["", "a", "a.b", "a.b.c", "a.bnVsbA.c", "a..c", "a.\u00e4.c", "a." + "W1tb" * 50_000 + ".c"]
)
def test_what_is_no_web_token_has_no_claims(token: str) -> None:
    assert read_claims(token) is None


def test_the_claims_of_a_web_token_are_read() -> None:
    claims: dict[str, Any] = {"sub": "ä", "aud": ["x"]}
    read = read_claims(make(claims)) or {}
    assert {name: read.get(name) for name in claims} == claims


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0 seconds"), (59.4, "59 seconds"), (60, "1 minute"), (-3600, "1 hour"), (172800, "2 days")],
)
def test_how_long_it_is(seconds: float, said: str) -> None:
    assert span(seconds) == said


def test_close_codes_that_are_told_about_are_real() -> None:
    assert set(CLOSE_REMEDIES) <= set(CloseCode)
