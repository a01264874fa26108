"""What can go wrong for a client, as types.

::

    GatewayError
    ├── CallError
    │   └── CallFailed         a call has an answer, and it is an error: one class for each code
    ├── ConnectionLost         the connection broke during a call; whether it ran is unknown
    ├── ConnectionClosed       the client is closed, by its owner or for good by the gateway
    ├── Unsubscribed           the gateway has ended a subscription
    ├── TokenRefreshFailed     there is no newer token, or it is refused (a warning, never raised)
    └── UnexpectedFrame        the gateway sent what the protocol does not know

The exceptions of websockets are translated in ``_link`` and kept as the cause.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, Self

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
    "is_final",
]


class CallFailed(CallError):
    """A call ended with an error. Codes that have no class of their own come as this one.

    ``code`` is for programs, ``description`` for people, ``error`` is the class that NuroPb uses for it.
    ``retryable`` says that the call was not delivered, so that it may be made again without harm; ``retry_after`` how
    long to wait before that, in seconds, if the gateway names a time. ``trace_id`` is what to look for in the logs.
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
    """Not a valid frame: a service, method or topic with a name that cannot be, for example."""


class InvalidParams(CallFailed):
    """The service does not accept the parameters."""


class Unauthenticated(CallFailed):
    """The token is not valid, or the service does not accept it."""


class PermissionDenied(CallFailed):
    """The gateway's policy or the service does not allow it."""


class MethodNotFound(CallFailed):
    """The service has no such method."""


class DuplicateId(CallFailed):
    """The id is in flight."""


class ServiceUnavailable(CallFailed):
    """There is no such service, or it answers nobody at the moment."""


class MeshUnavailable(CallFailed):
    """The gateway has no connection to the mesh."""


class CallTimeout(CallFailed, TimeoutError):
    """No answer in time. Unless it is retryable, whether the call ran is unknown."""


class Cancelled(CallFailed):
    """Cancelled, and not by this client."""


class TooManyRequests(CallFailed):
    """Too many calls, in flight, waiting, or failing."""


class PayloadTooLarge(CallFailed):
    """The parameters or the result are over a limit."""


class Deprecated(CallFailed):
    """The service wants another method to be called."""


class ServiceError(CallFailed):
    """The service failed."""


class InternalError(CallFailed):
    """The gateway failed."""


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
    """``close_code`` is 1006 if there was none; ``status`` the HTTP status if the handshake was refused."""

    _says = ""

    def __init__(self, close_code: int, reason: str, *, status: int | None = None) -> None:
        super().__init__(f"{self._says} ({close_code}: {reason})" if reason else f"{self._says} ({close_code})")
        self.close_code = close_code
        self.reason = reason
        self.status = status

    def anew(self) -> Self:
        """Another one that says the same: each that is raised gets a traceback of its own."""
        other = type(self)(self.close_code, self.reason, status=self.status)
        other.__cause__ = self.__cause__
        return other


class ConnectionLost(_ConnectionEnded):
    """The connection broke while the call was in flight: it has no answer any more, and whether it ran is unknown."""

    code: Final = "connection_lost"
    _says = "the connection was lost"


class ConnectionClosed(_ConnectionEnded):
    """The client is closed: by its owner (close code 1000), or by a gateway that does not want it back."""

    code: Final = "connection_closed"
    _says = "the client is closed"


class Unsubscribed(GatewayError):
    """A subscription has ended that was in force, for example because the user may not see it any more."""

    code: Final = "unsubscribed"

    def __init__(self, topics: Sequence[str], reason: str) -> None:
        super().__init__(f"the subscription to {', '.join(topics)} has ended: {reason}")
        self.topics = topics
        self.reason = reason


class TokenRefreshFailed(GatewayError):
    """The token of the connection could not be replaced; the cause says why."""

    code: Final = "token_refresh"


class UnexpectedFrame(GatewayError):
    """The gateway sent what the protocol does not know, or an answer to a question that is not open."""

    code: Final = "unexpected_frame"


def call_failed(error: Mapping[str, Any], trace_id: str | None = None) -> CallFailed:
    """The exception of its class for the error of a response, or for an error frame."""
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
    """A ``retry_after_ms`` in seconds, or None for what is none."""
    if isinstance(milliseconds, bool) or not isinstance(milliseconds, int | float):
        return None
    return milliseconds / 1000 if math.isfinite(milliseconds) and milliseconds >= 0 else None


def is_final(close_code: int) -> bool:
    """Whether a connection that was closed with this code must not be made again.

    4500-4999 are final, and so are the three that say: do not send that again. All else may heal.
    """
    return 4500 <= close_code < 5000 or close_code in (1003, 1007, 1009)
