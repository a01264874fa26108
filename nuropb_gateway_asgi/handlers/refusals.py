"""Refusals of connections and requests: the HTTP status, close code, error code and text of each, in one table."""

from __future__ import annotations

import enum
import logging
from typing import Final

from starlette.responses import JSONResponse

from ..exceptions import AuthenticationFailed, AuthenticationUnavailable, ConnectionLimitReached, TokenExpired
from ..handler_manager import CANNOT_AUTHENTICATE, EXPIRED, HandlerManager
from ..protocol import SUBPROTOCOL, CloseCode, ErrorCode, Failure, error_members

__all__ = ["DenialLogFilter", "Reason", "Refusal", "audit_refusal", "count_refusal", "log_refusal"]

logger = logging.getLogger(__name__)

#: Seconds until a client that was refused because of load should try again.
RETRY_AFTER: Final = 5


class Reason(enum.Enum):
    """The table: HTTP status, close code, error code, and text for the client.

    Status 429 and 503 ask the client to try again after :data:`RETRY_AFTER` seconds.
    """

    # Handshakes. A bad token always gets the same text: the cause, which is logged, would tell an attacker how far the
    # token got. Only a genuine token is told that it has expired.
    INVALID_TOKEN = 401, CloseCode.INVALID_TOKEN, ErrorCode.UNAUTHENTICATED, "A valid bearer token is required"
    EXPIRED_TOKEN = 401, CloseCode.TOKEN_EXPIRED, ErrorCode.UNAUTHENTICATED, EXPIRED
    CANNOT_CHECK_TOKEN = 503, CloseCode.TRY_AGAIN_LATER, *CANNOT_AUTHENTICATE[:2]
    NO_TOKEN_IN_TIME = 408, CloseCode.AUTHORISATION_TIMEOUT, ErrorCode.UNAUTHENTICATED, "The token did not come in time"
    TOO_MANY_FRAMES = 400, CloseCode.BAD_REQUEST, ErrorCode.BAD_REQUEST, "Too many frames before authorize"
    ORIGIN = 403, CloseCode.ORIGIN_NOT_ALLOWED, ErrorCode.PERMISSION_DENIED, "Origin not allowed"
    SUBPROTOCOL = 400, CloseCode.SUBPROTOCOL_NOT_ACCEPTABLE, ErrorCode.BAD_REQUEST, f"Subprotocol must be {SUBPROTOCOL}"
    USER_LIMIT = 429, CloseCode.CONNECTION_LIMIT, ErrorCode.TOO_MANY_REQUESTS, "This user has too many connections"
    GATEWAY_FULL = 503, CloseCode.TRY_AGAIN_LATER, ErrorCode.TOO_MANY_REQUESTS, "The gateway is full"
    GATEWAY_CLOSED = 503, CloseCode.TRY_AGAIN_LATER, ErrorCode.MESH_UNAVAILABLE, "The gateway is not open"
    NOT_STARTED = (
        503,
        CloseCode.TRY_AGAIN_LATER,
        ErrorCode.MESH_UNAVAILABLE,
        "The gateway was not started: its lifespan did not run; its log says what to do",
    )

    # Messages and requests.
    TOO_BIG = 413, CloseCode.MESSAGE_TOO_BIG, ErrorCode.PAYLOAD_TOO_LARGE, "Message too big"
    BINARY = 400, CloseCode.UNSUPPORTED_DATA, ErrorCode.BAD_REQUEST, "Messages must be text"
    BAD_REQUEST = 400, CloseCode.BAD_REQUEST, ErrorCode.BAD_REQUEST, "Bad request"
    BODY_TIMEOUT = 408, CloseCode.BAD_REQUEST, ErrorCode.BAD_REQUEST, "The request body did not come in time"
    NOT_JSON = 415, CloseCode.UNSUPPORTED_DATA, ErrorCode.BAD_REQUEST, "The Content-Type must be application/json"
    SUBSCRIBE_TIMEOUT = 503, CloseCode.TRY_AGAIN_LATER, ErrorCode.MESH_UNAVAILABLE, "Subscribing took too long"

    def __init__(self, status: int, close: CloseCode, code: ErrorCode, description: str) -> None:
        self.status = status
        self.close = close
        self.code = code
        self.description = description


class Refusal(Exception):
    """The end of a handshake or request: by an HTTP status, or by a close code where there is no status.

    ``description`` takes the place of the table's text.
    """

    def __init__(self, reason: Reason, description: str = "") -> None:
        description = description or reason.description
        super().__init__(description)
        self.status = reason.status
        self.close = reason.close
        #: The ``reason`` of the metric that counts refusals.
        self.label = reason.close.name.lower()
        retry = reason.status in (429, 503)
        self.failure = Failure(reason.code, description, retry_after_ms=RETRY_AFTER * 1000 if retry else None)
        self.headers = {"Retry-After": str(RETRY_AFTER)} if retry else {}
        if reason.status == 401:
            expired = f'Bearer error="invalid_token", error_description="{EXPIRED}"'  # RFC 6750, 3
            self.headers["WWW-Authenticate"] = expired if reason is Reason.EXPIRED_TOKEN else "Bearer"

    def response(self) -> JSONResponse:
        """Return the refusal as an HTTP response."""
        return JSONResponse(error_members(self.failure), status_code=self.status, headers=self.headers)


def log_refusal(
    error: AuthenticationFailed | AuthenticationUnavailable | ConnectionLimitReached, what: str = "connection"
) -> Refusal:
    """Log why a connection (or ``what`` else) is refused, and return the refusal that its client gets."""
    if isinstance(error, AuthenticationUnavailable):
        logger.info("%s put off: %s", what, error)
        return Refusal(Reason.CANNOT_CHECK_TOKEN)
    logger.info("%s refused: %s", what, error)
    if isinstance(error, ConnectionLimitReached):
        return Refusal(Reason.USER_LIMIT if error.per_user else Reason.GATEWAY_FULL)
    return Refusal(Reason.EXPIRED_TOKEN if isinstance(error, TokenExpired) else Reason.INVALID_TOKEN)


def count_refusal(manager: HandlerManager, refusal: Refusal, address: str) -> None:
    """Count a refused handshake or request of a client at ``address``, and note it in the audit log."""
    manager.statistics.refused[refusal.label] += 1
    audit_refusal(manager, refusal, address)


def audit_refusal(manager: HandlerManager, refusal: Refusal, address: str) -> None:
    """Note a refused client in the audit log, with the cause that the log has and the client is not told."""
    journal = manager.journal
    if journal.audit is not None:
        cause = refusal.__cause__
        detail = refusal.failure.description if cause is None or not str(cause) else str(cause)
        journal.audit.refused(refusal.label, detail, address, journal.transport)


class DenialLogFilter(logging.Filter):
    """Drops uvicorn's error "ASGI callable returned without completing ..." for intended refusals.

    uvicorn 0.54 (websockets-sansio) logs this error for every handshake that is refused by an HTTP response, and for
    every response that is broken off because its client does not read. Any client could fill a disk with these lines.
    The filter drops as many of them as the gateway has announced in ``expected``.
    """

    expected = 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to log the record."""
        if DenialLogFilter.expected > 0 and str(record.msg).startswith("ASGI callable returned without completing"):
            DenialLogFilter.expected -= 1
            return False
        return True
