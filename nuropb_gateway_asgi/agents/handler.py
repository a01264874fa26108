"""The gateway's side of one request of an agent: a handler that asks with frames and waits for the answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from ..authorization.rules import Delivery
from ..handler_manager import HandlerManager
from ..handlers.exchange import FRAME_ID, Answer
from ..handlers.http_calls import CallHandler
from ..protocol import encode_json

__all__ = ["AgentHandler"]


class AgentHandler(CallHandler):
    """A handler of one request, which has one frame at a time in flight.

    ``listens`` tells whether it is registered for events that come as long as the request lasts.
    """

    def __init__(self, manager: HandlerManager, token: str, trace_id: str, *, listens: bool) -> None:
        super().__init__()
        self._manager = manager
        self.token = token
        self.trace_id = trace_id
        self.listens = listens
        #: Called with the topic and the frame of each event.
        self.on_event: Callable[[str, str], None] = lambda topic, text: None
        #: Called once the gateway ends the request: the token has expired or is revoked, or the gateway stops.
        self.on_ended: Callable[[], None] = lambda: None
        self._closed: tuple[int, str] | None = None

    @property
    def has_ended(self) -> bool:
        """Whether the gateway has ended the request."""
        return self._closed is not None

    async def ask(self, frame: bytes) -> Answer:
        """Send a frame with the id FRAME_ID to the gateway and return its answer.

        A cancellation stops the wait; the call ends when the handler is unregistered.
        """
        if self.answer.done():
            self.answer = asyncio.get_running_loop().create_future()
        if self._closed is not None:
            super().close(*self._closed)
        else:
            self._manager.on_handler_message(self, frame)
        return await asyncio.shield(self.answer)

    def cancel(self) -> None:
        """End the frame in flight, as a client does by a cancel frame."""
        if not self.answer.done():
            self._manager.on_handler_message(self, encode_json({"type": "cancel", "payload": {"id": FRAME_ID}}))

    def send_event(self, text: str, topic: str, delivery: Delivery) -> None:
        """Hand the event on."""
        self.on_event(topic, text)

    def close(self, code: int, reason: str = "") -> None:
        """Answer the frame in flight in place of the gateway, and end the request."""
        super().close(code, reason)
        if self._closed is None:
            self._closed = code, reason
            self.on_ended()
