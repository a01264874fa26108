"""The gateway's side of one request of an agent: a handler that asks with frames and waits for the answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec

from ..authorization.rules import Delivery
from ..handler_manager import HandlerManager
from ..handlers.exchange import FRAME_ID, UNREADABLE, Answer, read_answer
from ..handlers.http_calls import CallHandler
from ..protocol import encode_json
from ..tracing import Tracing

__all__ = ["AgentHandler"]


class _EventFrame(msgspec.Struct, tag_field="type", tag="event"):
    payload: msgspec.Raw


class _Event(msgspec.Struct):
    topic: str


_decode_event = msgspec.json.Decoder(_EventFrame).decode
_decode_topic = msgspec.json.Decoder(_Event).decode


class AgentHandler(CallHandler):
    """A handler of one request, which has one frame at a time in flight.

    ``listens`` tells whether it is registered for events that come as long as the request lasts.
    """

    def __init__(self, manager: HandlerManager, address: str, token: str, trace_id: str, *, listens: bool) -> None:
        super().__init__(address)
        self._manager = manager
        self.token = token
        self.trace_id = trace_id
        self.listens = listens
        #: Called with the topic and the payload (JSON) of each event.
        self.on_event: Callable[[str, str], None] = lambda topic, payload: None
        #: Called once the gateway ends the request: the token has expired or is revoked, or the gateway stops.
        self.on_ended: Callable[[], None] = lambda: None
        self._closed: tuple[int, str] | None = None

    @property
    def has_ended(self) -> bool:
        """Whether the gateway has ended the request."""
        return self._closed is not None

    @property
    def tracing(self) -> Tracing | None:
        """The spans of the gateway's calls, if it traces."""
        return self._manager.tracing

    async def ask(self, frame: bytes, *, added: int = 0) -> Answer:
        """Send a frame with the id FRAME_ID to the gateway and return its answer.

        ``added`` bytes of it are the gateway's own, and count for no limit.
        A cancellation stops the wait; the call ends when the handler is unregistered.
        """
        if self.answer.done():
            self.answer = asyncio.get_running_loop().create_future()
        if self._closed is not None:
            super().close(*self._closed)
        else:
            self._manager.on_handler_message(self, frame, added=added)
        return await asyncio.shield(self.answer)

    def cancel(self) -> None:
        """End the frame in flight, as a client does by a cancel frame."""
        if not self.answer.done():
            self._manager.on_handler_message(self, encode_json({"type": "cancel", "payload": {"id": FRAME_ID}}))

    def send_frame(self, text: str) -> None:
        """Take the answer, or hand an event on."""
        if not self.answer.done() and (answer := read_answer(text)) is not None:
            self.answer.set_result(answer)
            return
        try:
            payload = _decode_event(text).payload
            self.on_event(_decode_topic(payload).topic, bytes(payload).decode())
        except UNREADABLE:
            return  # a frame of another kind, or one that a host application has sent

    def send_event(self, text: str, topic: str, delivery: Delivery) -> None:
        """Hand the event on."""
        self.send_frame(text)

    def close(self, code: int, reason: str = "") -> None:
        """Answer the frame in flight in place of the gateway, and end the request."""
        super().close(code, reason)
        if self._closed is None:
            self._closed = code, reason
            self.on_ended()
