"""Calls in flight of a session that moved: they stay where they are, and their answers follow the session."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from ..authentication import Identity
from ..authorization.rules import Delivery
from ..routing.calls import ClientCall

__all__ = ["ForwardedCall", "Forwarder"]


class Forwarder:
    """The :class:`~nuropb_gateway_asgi.handler_manager.Handler` of one call that stayed behind.

    ``send`` takes the frame of its answer.
    """

    address = ""
    connected_at = 0.0
    outbox_size = 0

    def __init__(self, session_id: str, identity: Identity | None, send: Callable[[str], None]) -> None:
        self.session_id = session_id
        self.identity = identity
        self._send = send

    def on_registered(self, identity: Identity) -> None:
        """Do nothing: this is no connection."""

    def send_frame(self, text: str) -> None:
        """Send the call's answer after its session."""
        self._send(text)

    def send_event(self, text: str, topic: str, delivery: Delivery) -> None:
        """Do nothing: the session gets its events elsewhere."""

    def close(self, code: int, reason: str = "") -> None:
        """Do nothing: the session has its connection elsewhere."""

    def start_soon(self, function: Callable[..., Coroutine[Any, Any, None]], *args: Any) -> None:
        """Do nothing: tasks belong to connections."""

    def check(self, now: float) -> None:
        """Do nothing: deadlines belong to connections."""


class ForwardedCall(ClientCall):
    """A call of a session that came from another process, which still has the call.

    ``on_released`` is called when it leaves the table of calls in flight, for whatever reason.
    """

    __slots__ = ("key", "on_released", "origin")

    key: str
    #: The address of the process that has the call.
    origin: str
    on_released: Callable[[ForwardedCall], None]

    def release(self) -> None:
        """Give back the place among the session's calls."""
        self.places.pop(self.key, None)
        self.on_released(self)
