"""Streams of Server-Sent Events: connections whose clients only listen."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Sequence
from typing import Final

import anyio
import msgspec
from msgspec import Struct

from ..handler_manager import HandlerManager
from ..protocol import (
    CloseCode,
    encode_event,
    encode_json,
    encode_resume,
    encode_subscribe,
)
from ..settings import Settings
from .connection import ClientLeft
from .direct import RESPONSE, DirectResponse
from .direct_connection import DirectConnection
from .exchange import FRAME_ID, Answer, Exchange, read_answer
from .refusals import Reason, Refusal
from .server_sent_events import DirectStream, EventNumbers, payload_of

__all__ = ["EVENT_STREAM_HEADERS", "EventStreamHandler", "refuse_stream"]

#: The headers of every stream of events.
EVENT_STREAM_HEADERS: Final = {
    "Content-Type": "text/event-stream",
    "X-Accel-Buffering": "no",  # otherwise nginx keeps events until its buffer is full
}
#: Milliseconds after which a browser reconnects to a stream that has ended, at the earliest.
RECONNECT_DELAY: Final = 3000


class EventStreamHandler(DirectConnection):
    """A stream of events. Its client cannot send anything; it can only leave.

    A stream with a resumable session gives each event an id of the session's key and the event's number, which a
    client sends back when it reconnects.
    """

    forgets_frames = True

    def __init__(
        self, exchange: Exchange, topics: Sequence[str], handler_manager: HandlerManager, settings: Settings
    ) -> None:
        super().__init__(handler_manager, settings, exchange.address)
        self._expects_pongs = False
        self._exchange = exchange
        self._topics = topics
        self._subscribed: asyncio.Future[Answer | None] = asyncio.get_running_loop().create_future()
        self._resumed: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        #: The response to a subscription that is refused.
        self._refused: Answer | None = None
        self._has_begun = False
        self._numbers = EventNumbers()
        #: Set once the last frame before the end is written by plain calls.
        self._written = asyncio.Event()

    async def _resume(self) -> None:
        """Continue the session of the stream that the client had before, or make a resumable one."""
        last = self._exchange.headers.get("last-event-id", "")
        if not self._settings.resume_window:
            if last:
                self._send_gap()
            return
        key, _, count = last.rpartition(":")
        known = bool(key) and key.isascii() and key.isprintable() and count.isdecimal() and len(count) < 16
        number = int(count) if known else 0
        self._manager.on_handler_message(
            self, encode_resume(key if known else None, number, id_=FRAME_ID, trace_id=self._exchange.trace_id)
        )
        answer = await self._resumed
        found = _decode_resumed(answer.body) if answer.status == 200 else _NOT_RESUMED
        self._numbers.stem = f"{found.key}:" if found.key else ""
        self._numbers.count = number if found.resumed else 0
        if last and not found.resumed:
            self._send_gap()

    def _send_gap(self) -> None:
        gap = encode_event("gap", encode_json({"reason": "reconnected", "topics": self._topics}))
        (self if self._session is None else self._session).send_frame(gap)

    def take_answer(self, answer: str) -> bool:
        """Take the answer to ``resume``, which the client did not send."""
        if not self._resumed.done() and (taken := read_answer(answer)) is not None:
            self._resumed.set_result(taken)
        return True

    async def run(self) -> None:
        """Subscribe, and send events until the client or the gateway closes the connection.

        Raises Refusal if the subscription takes too long.
        """
        await super().run()
        if self._refused is None:
            self._exchange.break_off()
        else:
            await self._exchange.respond(self._refused)

    async def _write(self) -> None:
        """Continue the client's session, subscribe, then write events.

        The reader runs already: one task waits for the client to leave, from the first to the last moment of the
        stream. Some servers, such as gunicorn's asgi worker, take a ``receive()`` that is cancelled for a client that
        has left.
        """
        await self._resume()
        self._refused = await self._subscribe()
        if self._refused is None:
            self._has_begun = True
            await self._write_directly()
            await super()._write()

    async def _write_directly(self) -> None:
        """Have frames written as they come, where the server has a way, until the connection is to be closed."""
        response: DirectResponse | None = self._exchange.scope.get("extensions", {}).get(RESPONSE)
        if response is None:
            return
        response.prepare()
        self._writing_since = self._clock()
        try:
            begun = await self._start()
        except ClientLeft:
            return
        finally:
            self._writing_since = None
        if response.attach(self._flush, begun):
            self._direct = DirectStream(response, self._numbers, self._traffic, self._written.set)
            try:
                self._flush()
                await self._written.wait()
            finally:
                self._direct = None

    async def _subscribe(self) -> Answer | None:
        """Subscribe to the topics. Returns the response if the subscription is refused, else None. Raises Refusal."""
        if not self._topics:
            self._subscribed.set_result(None)
            return None
        frame = encode_subscribe(self._topics, id_=FRAME_ID, trace_id=self._exchange.trace_id)
        session = self._session
        if session is not None:
            session.tap = self._hear
        self._manager.on_handler_message(self if session is None else session, frame)
        try:
            with anyio.fail_after(self._settings.request_timeout):
                answer = await self._subscribed
        except TimeoutError as error:
            raise Refusal(Reason.SUBSCRIBE_TIMEOUT) from error
        finally:
            if session is not None:
                session.tap = None
        return None if answer is None or answer.status == 200 else answer

    def cut(self) -> None:
        """End the connection at once, where the server has a way."""
        self._exchange.cut()

    def _hear(self, text: str) -> None:
        if not self._subscribed.done() and (answer := read_answer(text)) is not None:
            self._subscribed.set_result(answer)

    @property
    def ended_on_purpose(self) -> bool:
        """Whether the gateway ended the stream for good, or never began it."""
        return super().ended_on_purpose or not self._has_begun

    def send_frame(self, text: str) -> None:
        """Put a frame into the outbox, except the answer to the subscription."""
        answer = None if self._subscribed.done() and self._resumed.done() else read_answer(text)
        if answer is None:
            super().send_frame(text)
        elif not self._resumed.done():
            self._resumed.set_result(answer)
        elif not self._subscribed.done():
            self._subscribed.set_result(answer)

    def close(self, code: int, reason: str = "") -> None:
        """Begin to close the stream."""
        super().close(code, reason)
        if not self._subscribed.done():
            self._subscribed.set_result(None)

    async def receive_message(self) -> None:
        """Wait until the client has left."""
        with contextlib.suppress(ClientLeft):
            while True:
                await self._exchange.receive()

    async def send_text(self, text: str) -> None:
        """Send a frame as an event, or a ping as a comment."""
        if not self._exchange.started:
            await self._start()
        data = self._numbers.encode(text)
        if data:
            await self._send(data)

    async def send_close(self, code: int, reason: str) -> None:
        """Send code and reason in a last event, and end the response."""
        if not self._exchange.started:
            await self._start()
        text = encode_event("closed", encode_json({"code": code, "reason": reason}))
        await self._send(self._numbers.encode_last(text))
        await self._exchange.send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _start(self) -> bytes:
        """Begin the response, and return its first bytes."""
        await _begin(self._exchange)
        begun = b"retry: %d\n\n" % _jittered(RECONNECT_DELAY)
        await self._send(begun)
        return begun

    async def _send(self, data: bytes) -> None:
        await self._exchange.send({"type": "http.response.body", "body": data, "more_body": True})


async def refuse_stream(exchange: Exchange, refusal: Refusal) -> None:
    """Answer by a stream of one ``closed`` event, which says why and when to come back. Raises ClientLeft.

    It has no id, so a browser keeps the id of the last event that it has got.
    """
    wait = refusal.failure.retry_after_ms or RECONNECT_DELAY
    event = encode_event(
        "closed", encode_json({"code": int(CloseCode.TRY_AGAIN_LATER), "reason": refusal.failure.description})
    )
    body = b"retry: %d\n\nevent: closed\ndata: %b\n\n" % (_jittered(wait), payload_of(event))
    await _begin(exchange)
    await exchange.send({"type": "http.response.body", "body": body, "more_body": False})


async def _begin(exchange: Exchange) -> None:
    headers = {**exchange.response_headers, **EVENT_STREAM_HEADERS}
    raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
    await exchange.send({"type": "http.response.start", "status": 200, "headers": raw})


def _jittered(milliseconds: int) -> int:
    """Return a wait between the given time and twice as long: browsers add no jitter of their own."""
    return round(milliseconds * random.uniform(1.0, 2.0))  # noqa: S311 - it spreads clients


class _Resumed(Struct):
    """The result of ``resume``, as far as a stream needs it."""

    resumed: bool = False
    key: str = ""


_NOT_RESUMED: Final = _Resumed()
_decode_resumed = msgspec.json.Decoder(_Resumed).decode
