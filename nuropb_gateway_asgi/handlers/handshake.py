"""Who is let in, whatever the kind of connection, and what those are told who are not."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Sequence
from typing import Final

from starlette.datastructures import Headers
from starlette.responses import JSONResponse

from ..authentication.credentials import Credentials, find_credentials
from ..authentication.origins import OriginPolicy
from ..exceptions import AuthenticationFailed, AuthenticationUnavailable, ConnectionLimitReached
from ..handler_manager import CANNOT_AUTHENTICATE, Handler, HandlerManager
from ..protocol import SUBPROTOCOL, CloseCode, ErrorCode, Failure, error_members

__all__ = [
    "DenialLogFilter",
    "Refusal",
    "admitted",
    "check_credentials",
    "check_origin",
    "check_subprotocol",
    "register",
    "unauthenticated",
]

logger = logging.getLogger(__name__)

#: Seconds until a client that was turned away because of load should try again.
RETRY_AFTER: Final = 5


class Refusal(Exception):
    """The handshake ends here: as an HTTP status, or as a close code where there is no status."""

    def __init__(
        self, status: int, close: CloseCode, code: ErrorCode, description: str, *, retry: bool = False
    ) -> None:
        super().__init__(description)
        self.reason = close.name.lower()
        self.status = status
        self.close = close
        self.failure = Failure(code, description, retry_after_ms=RETRY_AFTER * 1000 if retry else None)
        self.headers = {"Retry-After": str(RETRY_AFTER)} if retry else {}
        if status == 401:
            self.headers["WWW-Authenticate"] = "Bearer"

    def response(self) -> JSONResponse:
        """The refusal as an HTTP response."""
        return JSONResponse(error_members(self.failure), status_code=self.status, headers=self.headers)


@contextlib.contextmanager
def admitted(manager: HandlerManager, address: str, *, is_call: bool = False) -> Iterator[None]:
    """A place for a connection, or a call, of a client at ``address``, for as long as the context lasts.

    Raises Refusal where there is none, also later on.
    """
    admission = manager.admission
    try:
        (admission.on_call if is_call else admission.on_handshake)(address, time.monotonic())
        with admission.connection(address):
            if manager.closed_for is not None:
                raise _not_open()
            yield
    except ConnectionLimitReached as error:
        logger.info("connection refused: %s", error)
        raise _limit_reached(error) from error


def check_origin(headers: Headers, origins: OriginPolicy) -> None:
    """Raise Refusal for a page of an origin that is not allowed."""
    named = headers.getlist("origin")
    if len(named) > 1 or (named and not origins.allows(named[0])):
        logger.info("connection refused: origin not allowed")
        raise _origin_not_allowed()


def check_credentials(headers: Headers, offered: Sequence[str], cookie: str, *, same_site: bool = False) -> Credentials:
    """The credentials of a handshake, if they can be used; raises Refusal if not.

    ``cookie`` is the name of the one that may have a token, or empty. Without an Origin, which has been checked, such a
    token could be used by any site, unless the browser itself said that the request is of the ``same_site``.
    """
    credentials = find_credentials(headers, offered, cookie or None)
    if credentials.channel == "cookie" and "origin" not in headers and not same_site:
        logger.info("connection refused: a cookie without an origin")
        raise _origin_not_allowed()
    if credentials.conflict or credentials.malformed:
        logger.info("connection refused: %s", "several tokens" if credentials.conflict else "unreadable token")
        raise unauthenticated()
    return credentials


def check_subprotocol(offered: Sequence[str]) -> str | None:
    """The subprotocol to select, of those that a client offers; raises Refusal if it is none of them."""
    if offered and SUBPROTOCOL not in offered:
        description = f"Only {SUBPROTOCOL} is spoken here"
        raise Refusal(400, CloseCode.SUBPROTOCOL_NOT_ACCEPTABLE, ErrorCode.BAD_REQUEST, description)
    return SUBPROTOCOL if offered else None


async def register(
    manager: HandlerManager, handler: Handler, token: str, address: str, *, listens: bool = True
) -> None:
    """Authorise and register ``handler``, of a client at ``address``. Raises Refusal, and then it is not registered."""
    if manager.closed_for is not None:
        raise _not_open()
    try:
        await manager.register(handler, token, listens=listens)
    except AuthenticationFailed as error:
        logger.info("connection refused: %s", error)
        manager.admission.on_failure(address, time.monotonic())
        raise unauthenticated() from error
    except AuthenticationUnavailable as error:
        logger.info("connection put off: %s", error)
        raise _cannot_authenticate() from error
    except ConnectionLimitReached as error:
        logger.info("connection refused: %s", error)
        raise _limit_reached(error) from error
    if manager.closed_for is not None:  # since the handshake began
        manager.unregister(handler)
        raise _not_open()


def unauthenticated() -> Refusal:
    """There is no token, or it is of no use."""
    # Why is for the log: it would tell an attacker how far the token got.
    return Refusal(401, CloseCode.INVALID_TOKEN, ErrorCode.UNAUTHENTICATED, "A valid bearer token is required")


def _not_open() -> Refusal:
    """The gateway has not been started, or is about to stop."""
    return Refusal(503, CloseCode.TRY_AGAIN_LATER, ErrorCode.MESH_UNAVAILABLE, "The gateway is not open", retry=True)


def _limit_reached(error: ConnectionLimitReached) -> Refusal:
    """There is no place for this connection."""
    if error.per_user:
        description = "This user has too many connections"
        return Refusal(429, CloseCode.CONNECTION_LIMIT, ErrorCode.TOO_MANY_REQUESTS, description, retry=True)
    return Refusal(503, CloseCode.TRY_AGAIN_LATER, ErrorCode.TOO_MANY_REQUESTS, "The gateway is full", retry=True)


def _cannot_authenticate() -> Refusal:
    code, description = CANNOT_AUTHENTICATE.code, CANNOT_AUTHENTICATE.description
    return Refusal(503, CloseCode.TRY_AGAIN_LATER, code, description, retry=True)


def _origin_not_allowed() -> Refusal:
    return Refusal(403, CloseCode.ORIGIN_NOT_ALLOWED, ErrorCode.PERMISSION_DENIED, "Origin not allowed")


class DenialLogFilter(logging.Filter):
    """Drops uvicorn's errors "ASGI callable returned without completing ..." where that is what was meant to happen.

    uvicorn 0.54 (websockets-sansio) logs one for every refusal of a handshake by an HTTP response, and one for every
    response that is broken off because nobody reads it, so anybody could fill a disk with them. Only as many are
    dropped as were expected.
    """

    expected = 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is to be logged."""
        if DenialLogFilter.expected > 0 and str(record.msg).startswith("ASGI callable returned without completing"):
            DenialLogFilter.expected -= 1
            return False
        return True
