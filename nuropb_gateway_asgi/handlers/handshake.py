"""Authentication of new connections: checks of a handshake, and registration."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Iterator, Sequence

from starlette.datastructures import Headers

from ..authentication.credentials import Credentials, find_credentials
from ..authentication.origins import OriginPolicy
from ..authentication.tokens import MAX_TOKEN
from ..exceptions import AuthenticationFailed, AuthenticationUnavailable, ConnectionLimitReached
from ..handler_manager import Handler, HandlerManager
from ..protocol import SUBPROTOCOL
from .refusals import Reason, Refusal, log_refusal

__all__ = ["admitted", "check_credentials", "check_origin", "check_subprotocol", "closed", "register"]

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def admitted(manager: HandlerManager, address: str, *, is_call: bool = False) -> Iterator[None]:
    """Hold a place for a connection, or for a call, of a client at ``address``, for as long as the context lasts.

    Raises Refusal if no place is left, at the start or later in the context.
    """
    admission = manager.admission
    try:
        (admission.on_call if is_call else admission.on_handshake)(address, time.monotonic())
        with admission.connection(address):
            if manager.closed_for is not None:
                raise closed(manager)
            yield
    except ConnectionLimitReached as error:
        raise log_refusal(error) from error


def closed(manager: HandlerManager) -> Refusal:
    """Return the refusal of every client, while the gateway admits none."""
    return Refusal(Reason.NOT_STARTED if manager.closed_for == math.inf else Reason.GATEWAY_CLOSED)


def check_origin(headers: Headers, origins: OriginPolicy) -> None:
    """Raise Refusal for a page of an origin that is not allowed."""
    named = headers.getlist("origin")
    if len(named) > 1 or (named and not origins.allows(named[0])):
        logger.info("connection refused: origin not allowed")
        raise Refusal(Reason.ORIGIN)


def check_credentials(headers: Headers, offered: Sequence[str], cookie: str, *, same_site: bool = False) -> Credentials:
    """Return the credentials of a handshake. Raises Refusal if they are ambiguous or unreadable.

    ``cookie`` is the name of the cookie that may hold a token, or empty. Without an Origin header, which has been
    checked before, any site could use such a cookie; it is accepted only if the browser itself marked the request as
    ``same_site``.
    """
    credentials = find_credentials(headers, offered, cookie or None)
    if credentials.channel == "cookie" and "origin" not in headers and not same_site:
        logger.info("connection refused: a cookie without an origin")
        raise Refusal(Reason.ORIGIN)
    if credentials.conflict or credentials.malformed:
        unreadable = f"unreadable token, or longer than {MAX_TOKEN} characters"
        logger.info("connection refused: %s", "several tokens" if credentials.conflict else unreadable)
        raise Refusal(Reason.INVALID_TOKEN)
    return credentials


def check_subprotocol(offered: Sequence[str]) -> str | None:
    """Return the subprotocol to select, or None for a client that offers none. Raises Refusal for unknown ones."""
    if offered and SUBPROTOCOL not in offered:
        raise Refusal(Reason.SUBPROTOCOL)
    return SUBPROTOCOL if offered else None


async def register(
    manager: HandlerManager, handler: Handler, token: str, address: str, *, listens: bool = True
) -> None:
    """Authorise and register ``handler``, of a client at ``address``. Raises Refusal; then it is not registered."""
    if manager.closed_for is not None:
        raise closed(manager)
    try:
        await manager.register(handler, token, listens=listens)
    except AuthenticationFailed as error:
        manager.admission.on_failure(address, time.monotonic())
        raise log_refusal(error) from error
    except (AuthenticationUnavailable, ConnectionLimitReached) as error:
        raise log_refusal(error) from error
    if manager.closed_for is not None:  # since the handshake began
        manager.unregister(handler)
        raise closed(manager)
