"""The errors of a client, one class for each kind.

::

    GatewayError
    ├── CallError
    │   └── CallFailed         a call was answered by an error: one class for each code
    ├── ConnectionLost         the connection broke during a call; whether it ran is unknown
    ├── ConnectionClosed       the client is closed, by the application or for good by the gateway
    ├── Unsubscribed           the gateway has ended a subscription
    ├── TokenRefreshFailed     no newer token, or it was refused (a warning, never raised)
    └── UnexpectedFrame        the gateway sent a frame that the protocol does not define

``_link`` translates the exceptions of websockets, and keeps them as the cause.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, Self, TypeVar

from ..exceptions import CallError, GatewayError
from ..protocol import ErrorCode

__all__ = [
    "BadRequest",
    "CallFailed",
    "CallTimeout",
    "Cancelled",
    "ConnectionClosed",
    "ConnectionLost",
    "Deprecated",
    "DuplicateId",
    "GatewayError",
    "InternalError",
    "InvalidParams",
    "MeshUnavailable",
    "MethodNotFound",
    "PayloadTooLarge",
    "PermissionDenied",
    "ServiceError",
    "ServiceUnavailable",
    "TokenRefreshFailed",
    "TooManyRequests",
    "Unauthenticated",
    "UnexpectedFrame",
    "Unsubscribed",
    "call_failed",
    "caused_by",
    "is_final",
    "obeyed",
    "seconds",
]

#: Seconds that a client stays away at most, whatever the gateway asks for. A gateway that drains asks for a few.
MAX_WAIT: Final = 60.0

E = TypeVar("E", bound=BaseException)


class CallFailed(CallError):
    """A call that ended with an error. Codes without a class of their own are raised as this class.

    ``code`` is for programs, ``description`` for people, and ``error`` is the name of NuroPb's class. ``retryable``
    means that the call was not delivered and may be repeated without harm; ``retry_after`` is how long to wait before,
    in seconds, if the gateway names a time. Search the logs of gateway and service for ``trace_id``.
    """

    def __init__(
        self,
        code: str,
        description: str,
        *,
        error: str = "",
        retryable: bool = False,
        retry_after: float | None = None,
        trace_id: str | None = None,
    ) -> None:
        super().__init__(code, error, description, retryable=retryable)
        self.retry_after = retry_after
        self.trace_id = trace_id


class BadRequest(CallFailed):
    """An invalid frame, for example with an invalid name of a service, method or topic."""


class InvalidParams(CallFailed):
    """Parameters that the service does not accept."""


class Unauthenticated(CallFailed):
    """An invalid token, or one that the service does not accept."""


class PermissionDenied(CallFailed):
    """A call that the gateway's policy or the service does not allow."""


class MethodNotFound(CallFailed):
    """A method that the service does not have."""


class DuplicateId(CallFailed):
    """An id that is already in flight."""


class ServiceUnavailable(CallFailed):
    """A service that does not exist, or does not answer at the moment."""


class MeshUnavailable(CallFailed):
    """A gateway without a connection to the mesh."""


class CallTimeout(CallFailed, TimeoutError):
    """A call without an answer in time. Unless it is retryable, whether the call ran is unknown."""


class Cancelled(CallFailed):
    """A call that was cancelled, but not by this client."""


class TooManyRequests(CallFailed):
    """Too many calls in flight, waiting, or failing."""


class PayloadTooLarge(CallFailed):
    """Parameters or a result larger than a limit."""


class Deprecated(CallFailed):
    """A deprecated method: the service names another one to call."""


class ServiceError(CallFailed):
    """An error in the service."""


class InternalError(CallFailed):
    """An error in the gateway."""


_CLASSES: Final[Mapping[str, type[CallFailed]]] = {
    ErrorCode.BAD_REQUEST: BadRequest,
    ErrorCode.INVALID_PARAMS: InvalidParams,
    ErrorCode.UNAUTHENTICATED: Unauthenticated,
    ErrorCode.PERMISSION_DENIED: PermissionDenied,
    ErrorCode.METHOD_NOT_FOUND: MethodNotFound,
    ErrorCode.DUPLICATE_ID: DuplicateId,
    ErrorCode.SERVICE_UNAVAILABLE: ServiceUnavailable,
    ErrorCode.MESH_UNAVAILABLE: MeshUnavailable,
    ErrorCode.TIMEOUT: CallTimeout,
    ErrorCode.CANCELLED: Cancelled,
    ErrorCode.TOO_MANY_REQUESTS: TooManyRequests,
    ErrorCode.PAYLOAD_TOO_LARGE: PayloadTooLarge,
    ErrorCode.DEPRECATED: Deprecated,
    ErrorCode.SERVICE_ERROR: ServiceError,
    ErrorCode.INTERNAL: InternalError,
}


class _ConnectionEnded(GatewayError, ConnectionError):
    """The end of a connection. ``close_code`` is 1006 without a close frame, ``status`` that of a refused handshake."""

    _fact = ""

    def __init__(self, close_code: int, reason: str, *, status: int | None = None) -> None:
        super().__init__(f"{self._fact} ({close_code}: {reason})" if reason else f"{self._fact} ({close_code})")
        self.close_code = close_code
        self.reason = reason
        self.status = status

    def anew(self) -> Self:
        """Return a copy: each raised exception needs a traceback of its own."""
        other = type(self)(self.close_code, self.reason, status=self.status)
        other.__cause__ = self.__cause__
        return other


class ConnectionLost(_ConnectionEnded):
    """A connection that broke with the call in flight: no answer will come, and whether the call ran is unknown."""

    code: Final = "connection_lost"
    _fact = "the connection was lost"


class ConnectionClosed(_ConnectionEnded):
    """A closed client: by the application (close code 1000), or by a gateway that will not accept it again."""

    code: Final = "connection_closed"
    _fact = "the client is closed"


class Unsubscribed(GatewayError):
    """A subscription that ended while it was in force, for example because the policy no longer allows it."""

    code: Final = "unsubscribed"

    def __init__(self, topics: Sequence[str], reason: str) -> None:
        super().__init__(f"the subscription to {', '.join(topics)} has ended: {reason}")
        self.topics = topics
        self.reason = reason


class TokenRefreshFailed(GatewayError):
    """A token that could not be replaced before it expires; the cause is the reason."""

    code: Final = "token_refresh"


class UnexpectedFrame(GatewayError):
    """A frame that the protocol does not define, or a response to no call in flight."""

    code: Final = "unexpected_frame"


def call_failed(error: Mapping[str, Any], trace_id: str | None = None) -> CallFailed:
    """Make the exception for the error of a response, or for an error frame."""
    code = error.get("code")
    code = code if isinstance(code, str) else "internal"
    description, name = error.get("description"), error.get("error")
    milliseconds = error.get("retry_after_ms")
    return _CLASSES.get(code, CallFailed)(
        code,
        description if isinstance(description, str) else code,
        error=name if isinstance(name, str) else "",
        retryable=error.get("retryable") is True,
        retry_after=seconds(milliseconds),
        trace_id=trace_id,
    )


def seconds(milliseconds: object) -> float | None:
    """Convert a ``retry_after_ms`` to seconds; None unless it is a number."""
    if isinstance(milliseconds, bool) or not isinstance(milliseconds, int | float):
        return None
    try:
        return milliseconds / 1000 if math.isfinite(milliseconds) and milliseconds >= 0 else None
    except OverflowError:  # JSON allows an integer that no float can hold
        return None


def obeyed(retry_after: float | None) -> float:
    """Return the seconds that the client stays away when the gateway asks for ``retry_after``: `MAX_WAIT` at most."""
    return min(retry_after or 0.0, MAX_WAIT)


def is_final(close_code: int) -> bool:
    """Return whether the client must not reconnect after this close code.

    4500-4999 are final, and so are the three for a message that must not be sent again. After all other codes, another
    connection may work.
    """
    return 4500 <= close_code < 5000 or close_code in (1003, 1007, 1009)


def caused_by(error: E, cause: BaseException | None) -> E:
    """Return ``error`` with ``cause`` as its cause, for an error that is not raised here."""
    error.__cause__ = cause
    return error
