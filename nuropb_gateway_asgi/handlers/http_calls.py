"""A call over HTTP: a handler for one frame and its answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final

from ..authentication import Identity
from ..authorization.rules import Delivery
from ..identifiers import new_id
from ..protocol import CloseCode, ErrorCode, Failure
from .exchange import Answer, failed, read_answer

__all__ = ["CallHandler"]

#: The answer to a call that is closed before the service answers, by close code.
_CLOSED: Final[Mapping[int, Failure]] = {
    CloseCode.TOKEN_REVOKED: Failure(ErrorCode.UNAUTHENTICATED, "The token has been revoked"),
    CloseCode.TOO_MANY_ERRORS: Failure(ErrorCode.TOO_MANY_REQUESTS, "Too many calls failed"),
    CloseCode.SERVICE_RESTART: Failure(
        ErrorCode.TIMEOUT, "The gateway is shutting down; whether the call ran is unknown"
    ),
}
_CLOSED_OTHERWISE: Final = Failure(ErrorCode.CANCELLED, "Ended by the operator or by a service")


class CallHandler:
    """A single call, as a :class:`~nuropb_gateway_asgi.Handler`. The first answer frame completes :attr:`answer`."""

    #: Whether idempotency keys are the user's, and not the session's: every call is a session of its own.
    keys_are_the_users = True

    def __init__(self, address: str) -> None:
        self.session_id = new_id()
        self.address = address
        self.identity: Identity | None = None
        self.connected_at = 0.0
        self.answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

    def on_registered(self, identity: Identity) -> None:
        """Keep the identity. There is no hello."""
        self.identity = identity

    def send_frame(self, text: str) -> None:
        """Take the answer. Other frames are ignored."""
        if not self.answer.done() and (answer := read_answer(text)) is not None:
            self.answer.set_result(answer)

    def send_event(self, text: str, topic: str, delivery: Delivery) -> None:
        """Ignore the event: a call has no subscriptions."""

    def close(self, code: int, reason: str = "") -> None:
        """Answer the call in place of the service."""
        if not self.answer.done():
            self.answer.set_result(failed(_CLOSED.get(code, _CLOSED_OTHERWISE)))

    def start_soon(self, function: Callable[..., Coroutine[Any, Any, None]], *args: Any) -> None:
        """Ignore the function: a call has no tasks."""

    @property
    def outbox_size(self) -> int:
        """Always 0: the answer is sent at once."""
        return 0

    def check(self, now: float) -> None:
        """Do nothing: the call has its own deadline."""
