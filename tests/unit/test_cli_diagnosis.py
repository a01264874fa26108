"""What is wrong, by what was seen: a row each."""

from __future__ import annotations

import errno
import socket
import ssl
from typing import Any

import pytest

from nuropb_gateway_asgi.cli._target import parse_url
from nuropb_gateway_asgi.cli.doctor import gateway_findings as diagnosis
from nuropb_gateway_asgi.cli.doctor.gateway_findings import Finding
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
    (diagnosis.about_network(socket.gaierror(socket.EAI_NONAME, ""), "x"), "no such name as x", "spelt right"),
    (diagnosis.about_network(socket.gaierror(socket.EAI_AGAIN, ""), "x"), "name server", "network"),
    (
        diagnosis.about_network(ConnectionRefusedError(errno.ECONNREFUSED, ""), "x:1"),
        "nothing listens at x:1",
        "running",
    ),
    (diagnosis.about_network(TimeoutError(), "x:1"), "x:1 does not answer", "firewall"),
    (diagnosis.about_network(OSError(errno.ENETUNREACH, ""), "x:1"), "no way to x:1", "VPN"),
    (diagnosis.about_network(OSError(errno.EMFILE, "Too many"), "x:1"), "x:1: Too many", "this machine"),
    (diagnosis.about_network(TimeoutError(), "p:1", proxied=True), "the proxy p:1", "NO_PROXY"),
    # TLS
    (diagnosis.about_tls(verification(10), TARGET), "gateway.example.com has expired", "renew"),
    (diagnosis.about_tls(verification(9), TARGET), "not valid yet", "clock"),
    (diagnosis.about_tls(verification(18), TARGET), "signed by itself", "SSL_CERT_FILE"),
    (diagnosis.about_tls(verification(20), TARGET), "unknown here", "in between"),
    (diagnosis.about_tls(verification(62), TARGET), "another name", "use the name"),
    (diagnosis.about_tls(verification(7), TARGET), "as OpenSSL says it", "one that holds"),
    (diagnosis.about_tls(tls("WRONG_VERSION_NUMBER"), TARGET), "no TLS at port 443", "ws://"),
    (diagnosis.about_tls(tls("TLSV1_ALERT_PROTOCOL_VERSION"), TARGET), "TLSV1_ALERT", "version in common"),
    (diagnosis.about_tls(TimeoutError(), TARGET), "does not answer the handshake", "ws://"),
    (diagnosis.about_tls(ConnectionResetError(), TARGET), "ConnectionResetError", "TLS at this port"),
    # what the server says over HTTP
    (diagnosis.about_health(None, None, None), "not answer in HTTP", "wss://"),
    (
        diagnosis.about_health(200, 503, {"reasons": ["mesh: gone\n"]}),
        "not ready: mesh: gone\\u000a",
        "nuropb-gateway check",
    ),
    (diagnosis.about_health(400, 400, None), "HTTP 400", "wss://"),
    (diagnosis.about_health(502, 502, None), "HTTP 502", "proxy"),
    (diagnosis.about_clock(200.0), "3 minutes ahead of", "NTP"),
    (diagnosis.about_clock(-7200.0), "2 hours behind", "NTP"),
    # the token
    (diagnosis.about_claims({"sub": "a"}, NOW), "when it ends (exp)", "issued with exp"),
    (diagnosis.about_claims({"sub": "a", "exp": "soon"}, NOW), "when it ends (exp)", "issued with exp"),
    (diagnosis.about_claims({"sub": "a", "exp": 10**400}, NOW), "when it ends (exp)", "issued with exp"),
    (diagnosis.about_claims({"sub": "a", "exp": NOW - 90}, NOW), "expired 1 minute ago", "another one"),
    (diagnosis.about_claims(CLAIMS | {"nbf": NOW + 3600}, NOW), "not good before 1 hour", "clocks"),
    # the handshake
    (diagnosis.about_refusal(401, "No", CLAIMS, NOW), "401: No", "no issuer (JWT_ISSUER), no audience (JWT_AUDIENCE)"),
    (
        diagnosis.about_refusal(401, "", CLAIMS | {"aud": ["a", "b"], "iss": "me"}, NOW),
        "401",
        "issuer me (JWT_ISSUER), audience a, b",
    ),
    (diagnosis.about_refusal(401, "", CLAIMS, NOW + 3601), "401", "the token above"),
    (diagnosis.about_refusal(401, "", None, NOW), "401", "complete"),
    (diagnosis.about_refusal(403, "", CLAIMS, NOW), "403", "no gateway at this path"),
    (diagnosis.about_refusal(404, "", CLAIMS, NOW), "404", "no gateway at this path"),
    (diagnosis.about_refusal(200, "", CLAIMS, NOW), "200", "no gateway at this path"),
    (diagnosis.about_refusal(426, "", CLAIMS, NOW), "426", "upgrade"),
    (diagnosis.about_refusal(429, "", CLAIMS, NOW), "429", "too many"),
    (diagnosis.about_refusal(431, "", CLAIMS, NOW), "431", "too long"),
    (diagnosis.about_refusal(500, "", CLAIMS, NOW), "500", "log"),
    (diagnosis.about_refusal(502, "", CLAIMS, NOW), "502", "proxy"),
    (diagnosis.about_refusal(503, "The gateway is full", CLAIMS, NOW), "503: The gateway is full", "try again"),
    (diagnosis.about_refusal(503, "", CLAIMS, NOW), "503", "if that is a proxy"),
    (diagnosis.about_close(1006, "no hello in time", CLAIMS, NOW), "no hello in time", "is it a gateway"),
    (diagnosis.about_close(4510, "", CLAIMS, NOW), "4510", "JWT_ISSUER"),
    (diagnosis.about_close(4511, "revoked", CLAIMS, NOW), "4511: revoked", "another one"),
    (diagnosis.about_close(4999, "", CLAIMS, NOW), "4999", "docs/protocol.md"),
    # using it
    (diagnosis.about_hello("nuropb.v9", "a", Limits(), expected="nuropb.v1"), "speaks nuropb.v9", "versions"),
    (diagnosis.about_description({"services": {}, "unavailable": ["orders"]}), "not to be reached: orders", "running"),
    (diagnosis.about_call("newer", "newer: x"), "newer: x", "log"),
]

FINE: list[tuple[Finding, str, str | None]] = [
    (diagnosis.about_transport(TARGET, query=False), "wss://gateway.example.com:443/ws", None),
    (diagnosis.about_transport(TARGET, query=True), "with a query", "--token-file"),
    (diagnosis.about_transport(parse_url("ws://10.0.0.1/ws"), query=False), "ws://10.0.0.1:80/ws", "wss://"),
    (diagnosis.about_transport(parse_url("ws://127.0.0.1/ws"), query=False), "ws://127.0.0.1:80/ws", None),
    (diagnosis.about_health(200, 200, {"ready": True}), "alive and ready", None),
    (diagnosis.about_clock(9.0), "agree", None),
    (diagnosis.about_claims(CLAIMS, NOW), "of alice, good for 1 hour", None),
    (diagnosis.about_claims({"exp": NOW + 59}, NOW), "of nobody, good for 59 seconds", "(sub)"),
    (
        diagnosis.about_claims(CLAIMS | {"aud": "b"}, NOW, audience="a"),
        "alice",
        "its aud is b, and JWT_AUDIENCE here is a",
    ),
    (diagnosis.about_claims(CLAIMS, NOW, issuer="me"), "alice", "its iss is nobody, and JWT_ISSUER here is me"),
    (diagnosis.about_claims(CLAIMS | {"aud": ["a"], "iss": "me"}, NOW, audience="a", issuer="me"), "alice", None),
    (diagnosis.about_hello("nuropb.v1", "a\x1b", Limits(), expected="nuropb.v1"), "user a\\u001b; 64 calls", None),
    (diagnosis.about_description({"services": {"a": {"methods": {"x": {}}}}}), "1 method of 1 service", None),
    (diagnosis.about_description({"services": {}}), "nothing", "EXPOSE"),
]

UNKNOWN = [
    (diagnosis.about_health(200, 404, None), "alive; /readyz is not to be seen"),
    (diagnosis.about_health(404, 404, None), "HTTP 404"),
    (diagnosis.about_health(200, 200, "<html>"), "HTTP 200"),
    (diagnosis.about_clock(None), "what time it is"),
    (diagnosis.about_claims(None, NOW), "no JSON web token"),
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
    finding = diagnosis.about_call(code.value, "said")
    # These two are this program's own doing, which does neither.
    assert code in (ErrorCode.DUPLICATE_ID, ErrorCode.CANCELLED) or finding.mend != diagnosis.about_call("", "").mend


def test_a_certificate_that_ends_soon_is_worth_a_word() -> None:
    def about(days: float) -> Finding:
        return diagnosis.about_certificate(
            {"notAfter": "Jan  1 00:00:00 2030 GMT"}, "TLSv1.3", 1893456000 - days * 86400
        )

    assert about(30) == Finding("ok", "TLSv1.3, the certificate is good for 30 days", None)
    assert about(13.5) == Finding("ok", "TLSv1.3, the certificate is good for 13 days", "renew it soon")


@pytest.mark.parametrize(
    "token", ["", "a", "a.b", "a.b.c", "a.bnVsbA.c", "a..c", "a.\u00e4.c", "a." + "W1tb" * 50_000 + ".c"]
)
def test_what_is_no_web_token_has_no_claims(token: str) -> None:
    assert diagnosis.read_claims(token) is None


def test_the_claims_of_a_web_token_are_read() -> None:
    claims: dict[str, Any] = {"sub": "ä", "aud": ["x"]}
    read = diagnosis.read_claims(make(claims)) or {}
    assert {name: read.get(name) for name in claims} == claims


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0 seconds"), (59.4, "59 seconds"), (60, "1 minute"), (-3600, "1 hour"), (172800, "2 days")],
)
def test_how_long_it_is(seconds: float, said: str) -> None:
    assert diagnosis.span(seconds) == said


def test_close_codes_that_are_told_about_are_real() -> None:
    assert set(diagnosis._CLOSES) <= set(CloseCode)
