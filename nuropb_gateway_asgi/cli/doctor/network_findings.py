"""Findings about the way to a gateway: URL, DNS, TCP, TLS, HTTP, and the clocks at both ends."""

from __future__ import annotations

import errno
import socket
import ssl
from collections.abc import Mapping
from typing import Any, Final

from .._output import printable
from .._target import Target
from .findings import DAY, LEEWAY, Finding, not_checked, ok, span, wrong

__all__ = [
    "PROXY_STATUSES",
    "about_certificate",
    "about_clock",
    "about_health",
    "about_network",
    "about_tls",
    "about_transport",
    "says_mesh_is_lost",
]

#: Seconds before a certificate expires from which renewal is advised.
SOON: Final = 14 * DAY
#: HTTP statuses of a proxy that cannot reach the gateway behind it.
PROXY_STATUSES: Final = frozenset({502, 504})


def about_transport(target: Target, *, query: bool) -> Finding:
    """Warn about tokens in the URL, and about tokens sent unencrypted to another machine."""
    if query:
        advice = "a gateway ignores the query, and servers log it: give a token by --token-file"
        return ok(f"{target.shown}, with a query", advice)
    if not target.secure and not target.is_local:
        return ok(target.shown, "the token travels unencrypted: use wss:// if the gateway offers it")
    return ok(target.shown)


def about_network(error: OSError, address: str, *, proxied: bool = False) -> Finding:
    """Explain a failed name lookup or TCP connection. ``address`` is the gateway's, or with ``proxied`` a proxy's."""
    network = "check this machine's network and VPN"
    if isinstance(error, socket.gaierror):
        if error.errno == socket.EAI_AGAIN:
            return wrong("the name server does not answer", network)
        mend = "check the spelling; names inside a cluster or a company need its network or VPN"
        return wrong(f"the name {printable(address)} does not exist", mend)
    if proxied:
        mend = "this proxy comes from the environment (HTTPS_PROXY and the like); NO_PROXY excludes hosts"
        return wrong(f"the proxy {printable(address)} does not answer", mend)
    if isinstance(error, ConnectionRefusedError):
        mend = "check that the gateway runs, at this port; in a container it needs --host 0.0.0.0"
        return wrong(f"nothing listens at {address}", mend)
    if isinstance(error, TimeoutError):
        mend = "a firewall drops the packets, or the machine is off: check firewall rules and address"
        return wrong(f"{address} does not answer", mend)
    if error.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH):
        return wrong(f"no route to {address}", network)
    return wrong(f"{address}: {error.strerror or type(error).__name__}", network)


#: The fault of a certificate and its remedy, by the error number of OpenSSL (X509_V_ERR_...).
_CERTIFICATE_ERRORS: Final[Mapping[int, tuple[str, str]]] = {
    9: ("is not valid yet", "check this machine's clock"),
    10: ("has expired", "renew it and reload it in the server, or check this machine's clock"),
    18: ("is self-signed", "name it in SSL_CERT_FILE if it is yours, or have an authority sign it"),
    19: ("is signed by an unknown authority", "name the authority's certificate in SSL_CERT_FILE"),
    20: (
        "is signed by an unknown authority",
        "have the server send the intermediate certificates, or name the authority's in SSL_CERT_FILE",
    ),
    21: ("is sent without its intermediate certificates", "have the server send the whole chain"),
    62: ("is for another name", "connect by a name that it contains, or get a certificate for this name"),
    64: ("is for another address", "connect by a name that it contains, not by the address"),
}

#: Those of certificates that only OpenSSL's strict mode refuses, which Python 3.13 switched on.
_STRICT_CODES: Final = range(80, 95)


def about_tls(error: OSError, target: Target) -> Finding:
    """Explain a failed TLS handshake."""
    if isinstance(error, ssl.SSLCertVerificationError):
        known = _CERTIFICATE_ERRORS.get(error.verify_code)
        if known is not None:
            return wrong(f"the certificate of {target.host} {known[0]}", known[1])
        if error.verify_code in _STRICT_CODES:
            mend = "Python 3.13 and newer verify strictly (RFC 5280): have it issued with the named extension"
            return wrong(f"invalid certificate: {printable(error.verify_message)}", mend)
        return wrong(f"invalid certificate: {printable(error.verify_message)}", "have the server send a valid one")
    if isinstance(error, TimeoutError):
        mend = f"port {target.port} may not use TLS: try ws://"
        return wrong("the server does not answer the TLS handshake", mend)
    if isinstance(error, ssl.SSLError) and error.reason in (
        "WRONG_VERSION_NUMBER",
        "HTTP_REQUEST",
        "PACKET_LENGTH_TOO_LONG",
    ):
        return wrong(f"port {target.port} does not use TLS", "write ws://, or the port that uses TLS (443?)")
    reason = getattr(error, "reason", None) or type(error).__name__
    mend = "check that this port uses TLS, and that both ends have a TLS version in common"
    return wrong(f"the TLS handshake failed: {printable(str(reason))}", mend)


def about_certificate(certificate: Mapping[str, Any], version: str | None, now: float) -> Finding:
    """Say how long a valid certificate remains so."""
    ends = ssl.cert_time_to_seconds(str(certificate["notAfter"]))
    left = ends - now
    found = f"{version or 'TLS'}, certificate valid for {span(left)}"
    return ok(found, "renew the certificate soon" if left < SOON else None)


def about_health(live: int | None, ready: int | None, body: object) -> Finding:
    """Judge /livez and /readyz by their statuses (None: no HTTP answer) and the JSON ``body`` of /readyz."""
    if live is None:
        mend = "check that a gateway listens at this port; if it uses TLS, write wss://"
        return wrong("the server does not answer in HTTP", mend)
    answer = body if isinstance(body, dict) else {}
    if ready == 503 and isinstance(answer.get("reasons"), list):
        reasons = ", ".join(map(str, answer["reasons"]))
        mend = "'nuropb-gateway check', with the gateway's settings, tests its broker and its keys"
        return wrong(f"alive, but not ready: {printable(reasons)}", mend)
    if ready == 200 and answer.get("ready") is True:
        warnings = answer.get("warnings")
        if isinstance(warnings, list) and warnings:
            return ok("alive and ready", f"look at its warnings: {printable('; '.join(map(str, warnings)))}")
        return ok("alive and ready")
    if live == 200 and ready is not None and ready >= 400:
        return not_checked(f"alive; /readyz is not reachable from here (HTTP {ready}), which is usual behind a proxy")
    if live == 400:
        return wrong("HTTP 400 for /livez", "this port may expect TLS: try wss://")
    if live in PROXY_STATUSES:
        mend = "a proxy answered: check that the gateway runs, and at the address that the proxy has for it"
        return wrong(f"HTTP {live} for /livez", mend)
    return not_checked(f"not reachable from here (HTTP {live}): usual behind a proxy, or this is not a gateway")


def says_mesh_is_lost(body: object) -> bool:
    """Return whether the JSON ``body`` of /readyz says that the gateway has no connection to the mesh."""
    mesh = body.get("mesh") if isinstance(body, dict) else None
    return isinstance(mesh, dict) and mesh.get("connected") is False


def about_clock(skew: float | None) -> Finding:
    """Compare the clocks. ``skew`` is by how many seconds the server's clock is ahead of this machine's."""
    if skew is None:
        return not_checked("the server's answers have no date")
    if abs(skew) <= LEEWAY:
        return ok("the server's clock and this machine's agree")
    where = "ahead of" if skew > 0 else "behind"
    mend = "the lifetimes of tokens depend on both clocks: synchronise them by NTP"
    return wrong(f"the server's clock is {span(skew)} {where} this machine's", mend)
