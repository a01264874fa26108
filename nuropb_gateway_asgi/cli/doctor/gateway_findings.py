"""What is wrong between a client and a gateway, and how to mend it, in plain words.

Nothing here asks anybody: what was seen comes in, and a :class:`Finding` goes out.
"""

from __future__ import annotations

import base64
import binascii
import errno
import json
import math
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from .._output import printable
from .._target import Target

__all__ = [
    "LEEWAY",
    "Finding",
    "about_call",
    "about_certificate",
    "about_claims",
    "about_clock",
    "about_close",
    "about_description",
    "about_health",
    "about_hello",
    "about_network",
    "about_refusal",
    "about_tls",
    "about_transport",
    "not_checked",
    "read_claims",
    "span",
]

#: Seconds by which clocks may differ: what a gateway tolerates unless it was told otherwise.
LEEWAY: Final = 10.0
DAY: Final = 86400.0
#: Seconds before its end at which a certificate is worth a word.
SOON: Final = 14 * DAY
#: What stands in front of a gateway and cannot reach it answers so.
_PROXY_STATUSES: Final = frozenset({502, 504})


@dataclass(frozen=True)
class Finding:
    """What a step found, in a line, and what to do about it. ``mend`` may also be advice where all is well."""

    status: Literal["ok", "wrong", "not checked"]
    found: str
    mend: str | None = None


def not_checked(why: str) -> Finding:
    """It could not be looked at, or need not be."""
    return Finding("not checked", why)


def _ok(found: str, mend: str | None = None) -> Finding:
    return Finding("ok", found, mend)


def _wrong(found: str, mend: str) -> Finding:
    return Finding("wrong", found, mend)


def span(seconds: float) -> str:
    """So many seconds, as people say it."""
    size = abs(seconds)
    for length, name in ((DAY, "day"), (3600.0, "hour"), (60.0, "minute")):
        if size >= length:
            count = int(size // length)
            return f"{count} {name}{'' if count == 1 else 's'}"
    return f"{size:.0f} seconds"


# --- on the way there ---------------------------------------------------------------------------------------------


def about_transport(target: Target, *, query: bool) -> Finding:
    """What its URL says of a gateway."""
    if query:
        mend = "a gateway reads no token there, and servers log it: give it by --token-file"
        return _ok(f"{target.shown}, with a query", mend)
    if not target.secure and not target.is_local:
        return _ok(target.shown, "without TLS whoever is on the way can read the token: wss://, if it is offered")
    return _ok(target.shown)


def about_network(error: OSError, address: str, *, proxied: bool = False) -> Finding:
    """Why there is no name, no way, or nobody at ``address``, that of the gateway or of a proxy on the way to it."""
    network = "look at the network of this machine, and at its VPN"
    if isinstance(error, socket.gaierror):
        if error.errno == socket.EAI_AGAIN:
            return _wrong("the name server does not answer", network)
        mend = "is it spelt right? A name within a cluster or a company is known there only: look at the VPN"
        return _wrong(f"there is no such name as {printable(address)}", mend)
    if proxied:
        mend = "the environment names this proxy (HTTPS_PROXY and the like); NO_PROXY leaves it out for some hosts"
        return _wrong(f"the proxy {printable(address)} does not answer", mend)
    if isinstance(error, ConnectionRefusedError):
        mend = "is the gateway running, at this port? In a container it needs --host 0.0.0.0"
        return _wrong(f"nothing listens at {address}", mend)
    if isinstance(error, TimeoutError):
        mend = "a firewall drops what comes, or the machine is off: look at its rules and its address"
        return _wrong(f"{address} does not answer", mend)
    if error.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH):
        return _wrong(f"there is no way to {address}", network)
    return _wrong(f"{address}: {error.strerror or type(error).__name__}", network)


_CERTIFICATE_ERRORS: Final[Mapping[int, tuple[str, str]]] = {
    9: ("is not valid yet", "look at the clock of this machine"),
    10: ("has expired", "renew it, and have the server load it; or look at the clock of this machine"),
    18: ("is signed by itself", "name it in SSL_CERT_FILE if it is yours, or have an authority sign it"),
    19: ("is of an authority that is unknown here", "name the authority's certificate in SSL_CERT_FILE"),
    20: (
        "is of an authority that is unknown here",
        "have the server send the certificates in between, or name the authority's in SSL_CERT_FILE",
    ),
    21: ("comes without those in between", "have the server send the whole chain"),
    62: ("is for another name", "use the name that it is for, or get one for this name"),
    64: ("is for another address", "use the name that it is for in place of the address"),
}


def about_tls(error: OSError, target: Target) -> Finding:
    """Why there is no TLS."""
    if isinstance(error, ssl.SSLCertVerificationError):
        known = _CERTIFICATE_ERRORS.get(error.verify_code)
        if known is not None:
            return _wrong(f"the certificate of {target.host} {known[0]}", known[1])
        return _wrong(f"the certificate: {printable(error.verify_message)}", "have the server send one that holds")
    if isinstance(error, TimeoutError):
        return _wrong("the server does not answer the handshake", f"is it TLS at all at port {target.port}? Try ws://")
    if isinstance(error, ssl.SSLError) and error.reason in (
        "WRONG_VERSION_NUMBER",
        "HTTP_REQUEST",
        "PACKET_LENGTH_TOO_LONG",
    ):
        return _wrong(f"there is no TLS at port {target.port}", "write ws://, or the port that has TLS (443?)")
    reason = getattr(error, "reason", None) or type(error).__name__
    return _wrong(f"no TLS: {printable(str(reason))}", "is it TLS at this port? Do both ends have a version in common?")


def about_certificate(certificate: Mapping[str, Any], version: str | None, now: float) -> Finding:
    """A certificate that holds: for how long."""
    ends = ssl.cert_time_to_seconds(str(certificate["notAfter"]))
    left = ends - now
    found = f"{version or 'TLS'}, the certificate is good for {span(left)}"
    return _ok(found, "renew it soon" if left < SOON else None)


# --- what the server says over HTTP -------------------------------------------------------------------------------


def about_health(live: int | None, ready: int | None, body: object) -> Finding:
    """What /livez and /readyz said: a status each, None if there was no HTTP, and what the second one's JSON has."""
    if live is None:
        mend = "is it a gateway, at this port? If there is TLS, write wss://"
        return _wrong("the server does not answer in HTTP", mend)
    said = body if isinstance(body, dict) else {}
    if ready == 503 and isinstance(said.get("reasons"), list):
        reasons = ", ".join(map(str, said["reasons"]))
        mend = "'nuropb-gateway check', with the gateway's settings, looks at its broker and its keys"
        return _wrong(f"alive, and not ready: {printable(reasons)}", mend)
    if ready == 200 and said.get("ready") is True:
        return _ok("alive and ready")
    if live == 200 and ready is not None and ready >= 400:
        return not_checked(f"alive; /readyz is not to be seen from here (HTTP {ready}), as behind a proxy")
    if live == 400:
        return _wrong("HTTP 400 for /livez", "does this port want TLS? Then write wss://")
    if live in _PROXY_STATUSES:
        mend = "a proxy answers in its place: is the gateway running, and where the proxy looks for it?"
        return _wrong(f"HTTP {live} for /livez", mend)
    return not_checked(f"not to be seen from here (HTTP {live}), as behind a proxy, or there is no gateway")


def about_clock(skew: float | None) -> Finding:
    """By how many seconds the clock of the server is ahead of this machine's."""
    if skew is None:
        return not_checked("the server does not say what time it is")
    if abs(skew) <= LEEWAY:
        return _ok("that of the server and that here agree")
    where = "ahead of" if skew > 0 else "behind"
    mend = "tokens begin and end by these clocks: have both set theirs by NTP"
    return _wrong(f"that of the server is {span(skew)} {where} that here", mend)


# --- the token ----------------------------------------------------------------------------------------------------


def read_claims(token: str) -> dict[str, Any] | None:
    """What a JSON web token says of itself, unchecked; None if it is none."""
    parts = token.split(".")
    if len(parts) != 3:
        return None
    try:
        text = base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4))
        claims = json.loads(text)
    except (binascii.Error, ValueError, RecursionError):
        return None
    return claims if isinstance(claims, dict) else None


def about_claims(claims: Mapping[str, Any] | None, now: float, *, issuer: str = "", audience: str = "") -> Finding:
    """A token, by its claims (None: it has none) and the time where it is judged.

    ``issuer`` and ``audience`` are what the gateway's settings want, where these are known here.
    """
    if claims is None:
        return not_checked("it is no JSON web token, so only the gateway can tell")
    another = "get another one from whoever issues them ('nuropb-gateway token', for development)"
    expires, begins = _number(claims.get("exp")), _number(claims.get("nbf"))
    if expires is None:
        return _wrong(
            "it says not when it ends (exp)", "a gateway takes none that is good for ever: have it issued with exp"
        )
    if expires <= now:
        return _wrong(f"it has expired {span(now - expires)} ago", another)
    if begins is not None and begins > now + LEEWAY:
        return _wrong(f"it is not good before {span(begins - now)} from now (nbf)", "wait, or look at the clocks")
    advice = []
    if "sub" not in claims:
        advice.append("it says not whose it is (sub), which a gateway wants to know")
    for claim, named, setting, wanted in (
        ("aud", _audiences(claims), "JWT_AUDIENCE", audience),
        ("iss", [str(claims.get("iss", "nobody"))], "JWT_ISSUER", issuer),
    ):
        if wanted and wanted not in named:
            has = printable(", ".join(named)) or "nobody"
            advice.append(f"its {claim} is {has}, and {setting} here is {printable(wanted)}")
    found = f"of {printable(str(claims.get('sub', 'nobody')))}, good for {span(expires - now)}"
    return _ok(found, "; ".join(advice) or None)


def _about_refused_token(claims: Mapping[str, Any] | None, now: float) -> str:
    """What to compare with the settings of a gateway that does not take a token."""
    there = "'nuropb-gateway explain --token-file ...', with the gateway's settings, says what it does not like"
    if claims is None:
        return f"is it complete, and for this gateway? {there}"
    expires = _number(claims.get("exp"))
    if expires is None or expires <= now:
        return "see what is said of the token above"
    issuer = f"issuer {printable(str(claims['iss']))}" if "iss" in claims else "no issuer"
    audience = f"audience {printable(', '.join(_audiences(claims)))}" if "aud" in claims else "no audience"
    named = f"{issuer} (JWT_ISSUER), {audience} (JWT_AUDIENCE)"
    return f"it has {named}, and may be signed with another key: are these the gateway's? {there}"


def _audiences(claims: Mapping[str, Any]) -> list[str]:
    audience = claims.get("aud")
    return [str(each) for each in audience] if isinstance(audience, list) else [str(audience)] if audience else []


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


# --- the handshake ------------------------------------------------------------------------------------------------


def about_refusal(status: int, said: str, claims: Mapping[str, Any] | None, now: float) -> Finding:
    """A status in the place of a WebSocket; ``said`` is what a gateway, and nobody else, says to it.

    ``claims`` are those of the token, and ``now`` the time where it is judged.
    """
    found = f"refused with HTTP status {status}{f': {printable(said)}' if said else ''}"
    if status == 401:
        return _wrong(found, _about_refused_token(claims, now))
    if status in (400, 426):
        return _wrong(found, "does a proxy on the way pass the upgrade on? See deploy/nginx.conf")
    if status in (403, 404, 405) or status < 400:
        # An application without a WebSocket at this path says 403, too.
        mend = (
            "there is no gateway at this path: it is PATH (/ws), behind the path at which the gateway is mounted; or a "
            "proxy has rules of its own, or does not pass the upgrade on"
        )
        return _wrong(found, mend)
    if status in (413, 414, 431):
        return _wrong(found, "the token is too long for a header: have it issued with fewer claims")
    if status == 429:
        return _wrong(found, "too many connections or attempts, of this user or address: close some, or wait a minute")
    if status in _PROXY_STATUSES:
        return _wrong(found, "a proxy cannot reach the gateway: is it running, and where the proxy looks for it?")
    if status == 503:
        mend = "it is about to stop, full, or cannot check tokens now: try again, and look at its log and /readyz"
        return _wrong(found, mend if said else f"if that is a proxy, the gateway is not running; else {mend}")
    return _wrong(found, "look at the log of the gateway, and of what is in front of it")


_CLOSES: Final[Mapping[int, str]] = {
    1012: "it is about to stop: try again",
    1013: "it is full: try again later, and look at MAX_CONNECTIONS",
    4001: "it is about to stop: try again",
    4005: "the token has expired: get a newer one",
    4029: "too many calls: wait a minute, and look at RATE_LIMIT",
    4502: "there was no token in time: give one by --token-file",
    4503: "an operator or a service has disconnected this user: ask them",
    4504: "this user has too many connections: close some",
    4507: "the policy does not let this user in: ask the operator",
    4509: "too many of this user's calls have failed: wait a minute",
    4511: "the token was revoked: get another one",
}


def about_close(code: int, reason: str, claims: Mapping[str, Any] | None, now: float) -> Finding:
    """A connection that has ended. ``claims`` and ``now`` are as in :func:`about_refusal`."""
    found = f"closed with code {code}{f': {printable(reason)}' if reason else ''}"
    if code == 1006:
        mend = "is it a gateway? A proxy that does not speak WebSocket, or does not pass on what comes, also does this"
        return _wrong(printable(reason) or "the connection broke", mend)
    if code == 4510:
        return _wrong(found, _about_refused_token(claims, now))
    return _wrong(found, _CLOSES.get(code, "look for it among the close codes in docs/protocol.md"))


def about_hello(protocol: str, user: str, limits: Any, *, expected: str) -> Finding:
    """What the gateway said first."""
    if protocol != expected:
        spoken = printable(protocol) or "something without a name"
        return _wrong(f"it speaks {spoken}, and this client {expected}", "use versions of both that fit together")
    size, room, patience = limits.max_message_size, limits.max_in_flight, limits.request_timeout
    found = f"{protocol}, as user {printable(user)}; {room} calls at a time, {size} bytes each, {patience:g} s"
    return _ok(found)


# --- using it -----------------------------------------------------------------------------------------------------


def about_description(description: Mapping[str, Any]) -> Finding:
    """What may be called."""
    services, unavailable = description.get("services", {}), description.get("unavailable", [])
    methods = sum(len(each.get("methods", {})) for each in services.values())
    found = f"{_count(methods, 'method')} of {_count(len(services), 'service')}"
    if unavailable:
        names = printable(", ".join(map(str, unavailable)))
        return _wrong(
            f"{found}; not to be reached: {names}", "are these services running, on the vhost of the gateway?"
        )
    if not methods:
        mend = (
            "the gateway's EXPOSE or POLICY lets this user call nothing that it knows of; see 'nuropb-gateway explain'"
        )
        return _ok("nothing", mend)
    return _ok(found)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


_MENDS: Final[Mapping[str, str]] = {
    "bad_request": "no service, method or topic has such a name",
    "invalid_params": "'nuropb-gateway describe' says what it takes",
    "unauthenticated": "the service does not take the token: is it meant for it, too?",
    "permission_denied": "'nuropb-gateway explain', with the gateway's settings, says which rule it is",
    "method_not_found": "'nuropb-gateway describe' has the methods",
    "service_unavailable": "is the service running, on the vhost of the gateway?",
    "mesh_unavailable": "the gateway cannot reach RabbitMQ: 'nuropb-gateway check', with its settings, says why",
    "timeout": "is the service busy, or stuck? It may have run; see --timeout",
    "too_many_requests": "wait, or have the limits raised: RATE_LIMIT, and the rates in the policy",
    "payload_too_large": "look at MAX_MESSAGE_SIZE (of calls) and OUTBOX_SIZE (of results)",
    "deprecated": "call what it names in its place",
    "service_error": "the service failed: look for the trace id in its log, and the gateway's",
    "internal": "the gateway failed: look for the trace id in its log",
}


def about_call(code: str, described: str) -> Finding:
    """A call or a subscription that failed; ``described`` is what was said of it."""
    return _wrong(printable(described), _MENDS.get(code, "look at the log of the gateway"))
