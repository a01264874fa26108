"""Findings about a gateway that answers: handshake, hello, description, calls and subscriptions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from .._errors import TIMEOUT_REMEDY
from .._output import counted, printable
from .findings import Finding, ok, wrong
from .network_findings import PROXY_STATUSES
from .token_findings import after_refusal

__all__ = [
    "CLOSE_REMEDIES",
    "about_call",
    "about_close",
    "about_description",
    "about_hello",
    "about_origin",
    "about_refusal",
]


def about_refusal(status: int, said: str, claims: Mapping[str, Any] | None, now: float) -> Finding:
    """Explain an HTTP ``status`` instead of a WebSocket. ``said`` is a gateway's own description, or empty.

    ``claims`` are those of the token, and ``now`` is the gateway's time.
    """
    found = f"refused with HTTP status {status}{f': {printable(said)}' if said else ''}"
    if status == 401:
        return wrong(found, after_refusal(claims, now))
    if status in (400, 426):
        return wrong(found, "check that every proxy on the way forwards the WebSocket upgrade: see deploy/nginx.conf")
    if status in (403, 404, 405) or status < 400:
        # An application without a WebSocket at this path also answers 403.
        mend = (
            "no gateway at this path: the path is PATH (/ws), after the path at which the gateway is mounted; or a "
            "proxy has rules of its own, or does not forward the upgrade"
        )
        return wrong(found, mend)
    if status in (413, 414, 431):
        return wrong(found, "the token is too long for a header: have it issued with fewer claims")
    if status == 429:
        mend = "this user or address has too many connections or attempts: close some, or wait a minute"
        return wrong(found, mend)
    if status in PROXY_STATUSES:
        mend = "a proxy cannot reach the gateway: check that it runs, and at the address that the proxy has for it"
        return wrong(found, mend)
    if status == 503:
        mend = "it is stopping, full, or cannot check tokens now: try again, and look at its log and /readyz"
        return wrong(found, mend if said else f"if a proxy sent this, the gateway is not running; else {mend}")
    return wrong(found, "look at the logs of the gateway and of every proxy in front of it")


def about_origin(status: int | None, said: str, origin: str) -> Finding:
    """Explain the ``status`` of a handshake that a browser would send for a page of ``origin``; None for no answer."""
    page = f"a page of {printable(origin)}"
    if status == 101:
        return ok(f"{page} may connect")
    if status == 403 and said.startswith("Origin"):
        mend = f"add {printable(origin)} to ALLOWED_ORIGINS of the gateway; scheme, host and port are compared exactly"
        return wrong(f"{page} may not connect: {printable(said)}", mend)
    if status is None:
        return wrong("no answer to the handshake of a page", "check that this is a gateway")
    return about_refusal(status, said, None, 0.0)


#: How to fix what made the gateway close a connection, by close code.
CLOSE_REMEDIES: Final[Mapping[int, str]] = {
    1012: "the gateway is stopping: try again",
    1013: "the gateway is full: try again later, and look at MAX_CONNECTIONS",
    4001: "the gateway is stopping: try again",
    4005: "the token has expired: get a newer one",
    4029: "too many calls: wait a minute, and look at RATE_LIMIT",
    4502: "no token arrived in time: give one by --token-file",
    4503: "an operator or a service has disconnected this user: ask them",
    4504: "this user has too many connections: close some",
    4507: "the policy does not let this user connect: ask the operator",
    4509: "too many of this user's calls have failed: wait a minute",
    4511: "the token was revoked: get a new one",
}


def about_close(code: int, reason: str, claims: Mapping[str, Any] | None, now: float) -> Finding:
    """Explain the end of a connection. ``claims`` and ``now`` are as in :func:`about_refusal`."""
    found = f"closed with code {code}{f': {printable(reason)}' if reason else ''}"
    if code == 1006:
        mend = "check that this is a gateway; a proxy that does not support WebSocket looks the same"
        return wrong(printable(reason) or "the connection broke", mend)
    if code == 4510:
        return wrong(found, after_refusal(claims, now))
    return wrong(found, CLOSE_REMEDIES.get(code, "see the close codes in docs/protocol.md"))


def about_hello(protocol: str, user: str, limits: Any, *, expected: str) -> Finding:
    """Compare the gateway's protocol version with this client's, and report user and limits."""
    if protocol != expected:
        spoken = printable(protocol) or "a protocol without a name"
        return wrong(f"the gateway speaks {spoken}, this client {expected}", "use matching versions of both")
    size, room, patience = limits.max_message_size, limits.max_in_flight, limits.request_timeout
    found = (
        f"{protocol}, as user {printable(user)}; {counted(room, 'call')} at a time, {counted(size, 'byte')} each, "
        f"{patience:g} s"
    )
    return ok(found)


def about_description(description: Mapping[str, Any], *, mesh_is_lost: bool = False) -> Finding:
    """Count the methods that the token may call, and name the services that do not answer.

    Those count for nothing, even if the gateway still knows what they had. With ``mesh_is_lost`` the gateway has said
    that it cannot reach the broker, so no service can answer.
    """
    unavailable = description.get("unavailable", [])
    services = {name: each for name, each in description.get("services", {}).items() if name not in unavailable}
    methods = sum(len(each.get("methods", {})) for each in services.values())
    found = f"{counted(methods, 'method')} of {counted(len(services), 'service')}"
    if unavailable:
        names = printable(", ".join(map(str, unavailable)))
        mend = "check that these services run, on the gateway's vhost, or take them out of EXPOSE"
        return wrong(f"{found}; no answer from {names}", _ERROR_REMEDIES["mesh_unavailable"] if mesh_is_lost else mend)
    if not methods:
        mend = (
            "EXPOSE or POLICY of the gateway allows this user no method of the services that it knows; "
            "'nuropb-gateway explain' shows the rules"
        )
        return ok("no methods", mend)
    return ok(found)


#: How to fix a failed call or subscription, by error code.
_ERROR_REMEDIES: Final[Mapping[str, str]] = {
    "bad_request": "a service, method or topic cannot have this name: check its spelling",
    "invalid_params": "'nuropb-gateway describe' shows the parameters of the method",
    "unauthenticated": "the service rejects the token: check that it is meant for the service, too",
    "permission_denied": "'nuropb-gateway explain', with the gateway's settings, shows the rule that decides",
    "method_not_found": "'nuropb-gateway describe' lists the methods",
    "service_unavailable": "check that the service runs, on the gateway's vhost",
    "mesh_unavailable": "the gateway cannot reach RabbitMQ: 'nuropb-gateway check', with its settings, shows why",
    "timeout": TIMEOUT_REMEDY,
    "too_many_requests": "wait, or have the limits raised: RATE_LIMIT, and the rates in the policy",
    "payload_too_large": "look at MAX_MESSAGE_SIZE (calls) and OUTBOX_SIZE (results)",
    "deprecated": "call the method that the service names instead",
    "service_error": "the service failed: look for the trace id in its log, and in the gateway's",
    "internal": "the gateway failed: look for the trace id in its log",
}


def about_call(code: str, described: str) -> Finding:
    """Explain a failed call or subscription. ``described`` is the error in words."""
    return wrong(printable(described), _ERROR_REMEDIES.get(code, "look at the gateway's log"))
