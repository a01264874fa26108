"""Authentication of new connections: checks of a handshake, and registration."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from typing import Final

from starlette.datastructures import Headers

from ..authentication.credentials import Credentials
from ..authentication.origins import OriginPolicy, shown_origin
from ..authentication.tokens import MAX_TOKEN
from ..exceptions import AuthenticationFailed, AuthenticationUnavailable, ConnectionLimitReached, UnknownKey
from ..handler_manager import Handler, HandlerManager
from ..limits.admission import UNKNOWN_KEY_COST, Admission, Arrival, Place
from ..protocol import SUBPROTOCOL
from ..settings import ENV_PREFIX
from .refusals import Reason, Refusal, log_refusal

__all__ = [
    "admitted",
    "arrival_of",
    "check_credentials",
    "check_origin",
    "check_subprotocol",
    "closed",
    "count_failure",
    "register",
]

logger = logging.getLogger(__name__)
#: Without the bound that the loggers of refusals have together: these lines have their own, and must not get lost in a
#: flood of others.
origins_log = logging.getLogger(f"{__name__}.origins")

_SEVERAL_TOKENS: Final = "The handshake has several tokens; send one, in a header, a subprotocol or a cookie"


class admitted:  # noqa: N801 - a context manager, which a generator would make four times as big
    """Holds a place for a connection, or for a call, of a client at ``address``, for as long as the context lasts.

    Raises Refusal if no place is left, at the start or later in the context.
    """

    __slots__ = ("_address", "_arrival", "_manager", "_place")

    def __init__(self, manager: HandlerManager, address: str, arrival: Arrival) -> None:
        self._manager = manager
        self._address = address
        self._arrival = arrival
        self._place: Place | None = None

    def __enter__(self) -> None:
        admission = self._manager.admission
        try:
            admission.on_arrival(self._address, self._arrival, time.monotonic())
        except ConnectionLimitReached as error:
            raise log_refusal(error) from error
        try:
            self._place = admission.connection(self._address)
        except ConnectionLimitReached as error:
            admission.on_refusal(self._arrival, time.monotonic())
            raise log_refusal(error) from error
        if self._manager.closed_for is not None:
            refusal = closed(self._manager)
            self._leave(refusal)
            raise refusal

    def __exit__(self, type_: object, error: BaseException | None, traceback: object) -> None:
        self._leave(error)
        if isinstance(error, ConnectionLimitReached):
            raise log_refusal(error) from error

    def _leave(self, error: BaseException | None) -> None:
        if self._place is not None:
            self._place.__exit__()
        if isinstance(error, ConnectionLimitReached | Refusal):
            self._manager.admission.on_refusal(self._arrival, time.monotonic())


def arrival_of(credentials: Credentials) -> Arrival:
    """Return whether a handshake has a token, readable or not."""
    return Arrival.WITHOUT_TOKEN if credentials == Credentials() else Arrival.WITH_TOKEN


def closed(manager: HandlerManager) -> Refusal:
    """Return the refusal of every client, while the gateway admits none."""
    return Refusal(Reason.NOT_STARTED if manager.closed_for == math.inf else Reason.GATEWAY_CLOSED)


def check_origin(headers: Headers, origins: OriginPolicy) -> None:
    """Raise Refusal, which names the origin, for a page of an origin that is not allowed.

    A warning names each such origin once a minute, and the setting that would allow it.
    """
    named = headers.getlist("origin")
    if len(named) > 1:
        logger.info("connection refused: several origins")
        raise Refusal(Reason.ORIGIN)
    if named and not origins.allows(named[0]):
        origin = shown_origin(named[0])
        refused = origins.refused
        if refused.note(origin, time.monotonic()):
            more = f" (and {refused.left_out} more, of origins that are not named)" if refused.left_out else ""
            refused.left_out = 0
            origins_log.warning(
                "connection refused: a page of origin %s%s; to allow its origin, add it to %sALLOWED_ORIGINS",
                origin,
                more,
                ENV_PREFIX,
            )
        raise Refusal(Reason.ORIGIN, f"Origin not allowed: {origin}")


def check_credentials(credentials: Credentials, headers: Headers, *, same_site: bool = False) -> None:
    """Raise Refusal for credentials that are ambiguous or unreadable.

    Without an Origin header, which has been checked before, any site could use a cookie with a token; it is accepted
    only if the browser itself marked the request as ``same_site``.
    """
    if credentials.channel == "cookie" and "origin" not in headers and not same_site:
        logger.info("connection refused: a cookie without an origin")
        raise Refusal(Reason.ORIGIN)
    if credentials.conflict or credentials.malformed:
        unreadable = f"unreadable token, or longer than {MAX_TOKEN} characters"
        logger.info("connection refused: %s", "several tokens" if credentials.conflict else unreadable)
        raise Refusal(Reason.INVALID_TOKEN, _SEVERAL_TOKENS if credentials.conflict else "")


def check_subprotocol(offered: Sequence[str]) -> str | None:
    """Return the subprotocol to select, or None for a client that offers none. Raises Refusal for unknown ones."""
    if offered and SUBPROTOCOL not in offered:
        raise Refusal(Reason.SUBPROTOCOL)
    return SUBPROTOCOL if offered else None


def count_failure(admission: Admission, address: str, arrival: Arrival, error: Exception) -> None:
    """Count a token that was refused, or that a client may have made up, for its address."""
    if isinstance(error, AuthenticationFailed):
        admission.on_failure(address, arrival, time.monotonic())
    elif isinstance(error, UnknownKey):
        admission.on_failure(address, arrival, time.monotonic(), UNKNOWN_KEY_COST)


async def register(
    manager: HandlerManager,
    handler: Handler,
    token: str,
    address: str,
    arrival: Arrival,
    headers: Headers | None = None,
) -> None:
    """Authorise and register ``handler``, of a client at ``address``. Raises Refusal; then it is not registered.

    ``headers`` are those of its request, which may have the client's trace context.
    """
    if manager.closed_for is not None:
        raise closed(manager)
    try:
        trace = None if manager.tracing is None or headers is None else manager.tracing.ambient(headers)
        await manager.register(handler, token, listens=arrival is not Arrival.CALL, handshake=trace)
    except (AuthenticationFailed, AuthenticationUnavailable, ConnectionLimitReached) as error:
        count_failure(manager.admission, address, arrival, error)
        raise log_refusal(error) from error
    if manager.closed_for is not None:  # since the handshake began
        manager.unregister(handler)
        raise closed(manager)
