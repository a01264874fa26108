"""Errors of a gateway as a user sees them: one line, and an exit code."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from ..client import ConnectionClosed, ConnectionLost, GatewayError

__all__ = ["BROKEN", "EXIT_CODES", "TIMEOUT_REMEDY", "describe_error", "exit_code", "refusal_text"]

#: The close code of a connection that broke, or was never established.
BROKEN: Final = 1006

#: For help texts.
EXIT_CODES: Final = """\b
Exit codes:
  0    success
  1    the call failed: service_error, deprecated, cancelled, internal
  2    invalid command line
  3    no connection; nothing was called
  4    invalid call: bad_request, invalid_params, method_not_found, payload_too_large
  5    not allowed: unauthenticated, permission_denied, or the token was refused
  6    not delivered, try again: service_unavailable, mesh_unavailable, too_many_requests
  7    the call may have run: timeout, or the connection was lost
  130  interrupted"""

#: The next step after a call without an answer, which may have run.
TIMEOUT_REMEDY: Final = (
    "the service is busy, stuck or stopped: check that it runs (a nuropb service has to be restarted after a restart "
    "of the broker), or wait longer with --timeout"
)
#: By error code; all other codes give 1.
_BY_ERROR_CODE: Final = {
    "bad_request": 4,
    "invalid_params": 4,
    "method_not_found": 4,
    "payload_too_large": 4,
    "duplicate_id": 4,
    "unauthenticated": 5,
    "permission_denied": 5,
    "unsubscribed": 5,
    "service_unavailable": 6,
    "mesh_unavailable": 6,
    "too_many_requests": 6,
    "timeout": 7,
    "connection_lost": 7,
    "connection_closed": 3,
}
#: HTTP statuses and close codes by which a gateway rejects a token or its user.
_REJECTED: Final = frozenset({401, 403, 4005, 4502, 4503, 4507, 4510, 4511, 4513})


def exit_code(error: GatewayError) -> int:
    """Return the exit code of a command that ends with ``error``."""
    from ..client import CallFailed, ConnectionClosed, ConnectionLost

    if isinstance(error, ConnectionClosed | ConnectionLost) and {error.status, error.close_code} & _REJECTED:
        return 5
    if isinstance(error, CallFailed) and error.retryable:
        return 6
    return _BY_ERROR_CODE.get(getattr(error, "code", ""), 1)


def describe_error(error: BaseException) -> str:
    """Describe ``error`` in one line. A failed call is named by its code, and by its trace id for the logs."""
    from ..client import CallFailed, ConnectionClosed, ConnectionLost

    if isinstance(error, CallFailed):
        wait = "" if error.retry_after is None else f"; try again in {error.retry_after:g} s"
        named = error.trace_id is None or error.trace_id in error.description
        trace = "" if named else f" (trace id {error.trace_id})"
        return f"{error.code}: {error.description}{wait}{trace}"
    if isinstance(error, ConnectionClosed | ConnectionLost):
        return _describe_ending(error)
    because = "" if error.__cause__ is None else f": {describe_error(error.__cause__)}"
    return f"{error}{because}"


def _describe_ending(error: ConnectionClosed | ConnectionLost) -> str:
    """Describe the end of a connection by its reason, its close code, and its cause."""
    from ..client import GatewayError

    reason = error.reason or "the connection was closed"
    cause, why = error.__cause__, ""
    if isinstance(cause, OSError) and _is_refused(cause):
        return f"{reason}: nothing listens there; start the gateway ('nuropb-gateway serve'), or name its URL by --url"
    if error.status is not None:
        why = refusal_text(cause)
    elif isinstance(cause, GatewayError) or (cause is not None and error.close_code == BROKEN):
        why = str(cause) or type(cause).__name__
    number = "" if error.close_code == BROKEN or error.status is not None else f" (close code {error.close_code})"
    return f"{reason}{number}{f': {why}' if why else ''}"


def _is_refused(error: OSError) -> bool:
    # For a host with several addresses asyncio's error has the errors of all in its text, and no number.
    return isinstance(error, ConnectionRefusedError) or f"[Errno {errno.ECONNREFUSED}]" in str(error)


def refusal_text(error: BaseException | None) -> str:
    """Return the description in the body of a refused handshake; empty if the answer is not a gateway's."""
    import msgspec

    body = getattr(getattr(error, "response", None), "body", None)
    try:
        answer = msgspec.json.decode(body or b"")
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return ""
    description = answer.get("description") if isinstance(answer, dict) else None
    return description if isinstance(description, str) else ""
