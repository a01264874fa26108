"""HTTP: calls by ``POST /rpc/{service}/{method}``, and events by ``GET /events``, as Server-Sent Events.

A call is a connection with one frame and one answer; a stream of events is one whose client only listens. Either goes
through the same manager as the frames of every other connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, ClassVar, Final, Literal
from urllib.parse import parse_qsl

import anyio
import msgspec
from msgspec import Raw, Struct
from starlette.types import ASGIApp, Receive, Scope, Send

from ..authentication import Identity
from ..authentication.origins import OriginPolicy
from ..authorization.rules import Delivery
from ..exceptions import ProtocolError
from ..handler_manager import HandlerManager
from ..identifiers import new_id
from ..protocol import (
    PING,
    CloseCode,
    ErrorCode,
    Failure,
    encode_call,
    encode_event,
    encode_json,
    encode_subscribe,
    on_one_line,
)
from ..settings import Settings
from .connection import ClientLeft, Connection
from .cross_origin import CrossOrigin
from .exchange import (
    FRAME_ID,
    UNREADABLE,
    Answer,
    Exchange,
    bad_request,
    failed,
    not_json,
    read_answer,
    refused,
    too_big,
)
from .handshake import Refusal, admitted, check_credentials, check_origin, register, unauthenticated

__all__ = ["CallHandler", "EventStreamHandler", "make_endpoints"]

#: Milliseconds after which a browser asks for a stream again that has ended.
RETRY: Final = 3000
#: Events of the gateway's own, which are named for listeners; to those of the mesh a page listens as to messages.
_OWN = re.compile(rb'\{"topic":"(hello|gap|dropped|unsubscribed|goodbye|closed)"')
_JSON = re.compile(r'application/json[ \t]*(?:;[ \t]*charset="?utf-8"?[ \t]*)?', re.IGNORECASE)
_WAIT = re.compile(r"wait[ \t]*=[ \t]*([1-9][0-9]{0,8})", re.IGNORECASE)
_REQUEST_HEADERS: Final = ("Authorization", "Content-Type", "Last-Event-ID", "Prefer", "X-Trace-Id")
_RESPONSE_HEADERS: Final = ("Preference-Applied", "Retry-After", "WWW-Authenticate", "X-Trace-Id")


# --- who may ask ---------------------------------------------------------------------------------------------------


class Endpoint(ABC):
    """One of the gateway's URLs: who may ask there, and how a refusal looks."""

    method: ClassVar[str]
    #: Whether requests are calls, which are many, or connections.
    takes_calls: ClassVar[bool]

    def __init__(self, handler_manager: HandlerManager, settings: Settings, origins: OriginPolicy) -> None:
        self._manager = handler_manager
        self._settings = settings
        self._origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        exchange = Exchange(scope, receive, send, self._settings)
        with contextlib.suppress(ClientLeft):
            try:
                await self._admit(exchange)
            except Refusal as refusal:
                self._manager.refused[refusal.reason] += 1
                await exchange.respond(refused(refusal))
            except Exception:
                # The server logs it. The client is told at least that it is not its fault.
                if not exchange.started:
                    await exchange.respond(failed(Failure(ErrorCode.INTERNAL, "The gateway could not handle this")))
                raise

    async def _admit(self, exchange: Exchange) -> None:
        exchange.take_trace_id()
        method = exchange.scope["method"]
        if method != self.method:
            allowed = {"Allow": f"{self.method}, OPTIONS"}
            failure = Failure(ErrorCode.BAD_REQUEST, f"The method has to be {self.method}")
            await exchange.respond(failed(failure)._replace(status=405, headers=allowed))
            return
        check_origin(exchange.headers, self._origins)
        with admitted(self._manager, exchange.address, is_call=self.takes_calls):
            # Browsers name no Origin when a page gets something from where it came from itself. That it did is said by
            # a header that no page can set.
            same_site = method == "GET" and exchange.headers.getlist("sec-fetch-site") == ["same-origin"]
            cookie = self._settings.auth_cookie
            credentials = check_credentials(exchange.headers, (), cookie, same_site=same_site)
            if credentials.token is None:
                raise unauthenticated()
            await self.serve(exchange, credentials.token)

    @abstractmethod
    async def serve(self, exchange: Exchange, token: str) -> None:
        """Answer a request that may be one. Raises Refusal and ClientLeft."""


# --- calls --------------------------------------------------------------------------------------------------------


class CallHandler:
    """A call by itself, as a :class:`~nuropb_gateway_asgi.Handler`: the first thing that it is told is its answer."""

    def __init__(self) -> None:
        self.session_id = new_id()
        self.identity: Identity | None = None
        self.connected_at = 0.0
        self.answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

    def on_registered(self, identity: Identity) -> None:
        """It is authorised."""
        self.identity = identity

    def send_frame(self, text: str) -> None:
        """Take the answer."""
        if not self.answer.done() and (answer := read_answer(text)) is not None:
            self.answer.set_result(answer)

    def send_event(self, text: str, topic: str, delivery: Delivery) -> None:
        """Events are not for calls."""

    def close(self, code: int, reason: str = "") -> None:
        """End it without an answer of the service."""
        if not self.answer.done():
            self.answer.set_result(failed(_ended(code)))

    def start_soon(self, function: Callable[..., Coroutine[Any, Any, None]], *args: Any) -> None:
        """Nothing goes on beside a call."""

    @property
    def outbox_size(self) -> int:
        """Nothing waits here: the answer is on its way at once."""
        return 0

    def check(self, now: float) -> None:
        """Its deadline is the call's own."""


def _ended(code: int) -> Failure:
    """What a call comes to that was hung up on, by the close code."""
    if code == CloseCode.TOKEN_REVOKED:
        return Failure(ErrorCode.UNAUTHENTICATED, "The token has been revoked")
    if code == CloseCode.TOO_MANY_ERRORS:
        return Failure(ErrorCode.TOO_MANY_REQUESTS, "Too many calls failed")
    if code == CloseCode.SERVICE_RESTART:
        return Failure(ErrorCode.TIMEOUT, "The gateway is shutting down; whether it ran is unknown")
    return Failure(ErrorCode.CANCELLED, "Ended by the operator or by a service")


class CallEndpoint(Endpoint):
    """``POST /rpc/{service}/{method}``: the parameters in the body, the result in that of the response."""

    method = "POST"
    takes_calls = True

    async def serve(self, exchange: Exchange, token: str) -> None:
        """Make the call."""
        headers = exchange.headers
        kinds, sizes = headers.getlist("content-type"), headers.getlist("content-length")
        if len(kinds) > 1 or not all(map(_JSON.fullmatch, kinds)):
            raise not_json()
        limit = self._settings.max_message_size
        if any(not size.isdecimal() or len(size) > 18 or int(size) > limit for size in sizes):
            raise too_big(limit)
        call = CallHandler()
        await register(self._manager, call, token, exchange.address, listens=False)
        try:
            body = await exchange.body()
            if body and not kinds:
                raise not_json()
            frame, applied = self._frame(exchange, body)
            self._manager.on_handler_message(call, frame)
            answer = await exchange.wait_for(call.answer)
            if answer.status == 200:
                status = 202 if applied.get("Preference-Applied") == "respond-async" else 200
                answer = answer._replace(status=status, headers=applied)
            await exchange.respond(answer)
        finally:
            self._manager.unregister(call)

    def _frame(self, exchange: Exchange, body: bytes) -> tuple[bytes, Mapping[str, str]]:
        """The frame of the call, and what tells the client which of its preferences (RFC 7240) were heeded."""
        preferences = [each.strip() for value in exchange.headers.getlist("prefer") for each in value.split(",")]
        wait = next((int(match[1]) for match in map(_WAIT.fullmatch, preferences) if match), None)
        kind: Literal["request", "command"] = "request"
        applied = {} if wait is None else {"Preference-Applied": f"wait={wait}"}
        if "respond-async" in map(str.lower, preferences):
            kind, wait, applied = "command", None, {"Preference-Applied": "respond-async"}
        names: Mapping[str, str] = exchange.scope["path_params"]
        try:
            frame = encode_call(
                kind, names["service"], names["method"], body, id_=FRAME_ID, trace_id=exchange.trace_id, timeout=wait
            )
        except ProtocolError as error:
            raise bad_request(error.description) from error
        return frame, applied


# --- events -------------------------------------------------------------------------------------------------------


class EventStreamHandler(Connection):
    """A stream of events. Its client can say nothing but that it has left."""

    def __init__(
        self, exchange: Exchange, topics: Sequence[str], handler_manager: HandlerManager, settings: Settings
    ) -> None:
        super().__init__(handler_manager, settings, exchange.address)
        self._expects_pongs = False
        self._exchange = exchange
        self._topics = topics
        self._subscribed: asyncio.Future[Answer | None] = asyncio.get_running_loop().create_future()
        self._count = 0

    async def subscribe(self) -> Answer | None:
        """Subscribe; what the answer to the request is if that is refused. Raises Refusal."""
        if not self._topics:
            self._subscribed.set_result(None)
            return None
        self._manager.on_handler_message(
            self, encode_subscribe(self._topics, id_=FRAME_ID, trace_id=self._exchange.trace_id)
        )
        try:
            with anyio.fail_after(self._settings.request_timeout):
                answer = await self._exchange.wait_for(self._subscribed)
        except TimeoutError as error:
            description = "The subscription did not take effect in time"
            raise Refusal(
                503, CloseCode.TRY_AGAIN_LATER, ErrorCode.MESH_UNAVAILABLE, description, retry=True
            ) from error
        return None if answer is None or answer.status == 200 else answer

    async def run(self) -> None:
        """Send events until either side hangs up."""
        await super().run()
        self._exchange.break_off()

    def on_registered(self, identity: Identity) -> None:
        """Say hello, and tell who comes back that events are lost that nobody kept."""
        super().on_registered(identity)
        if "last-event-id" in self._exchange.headers:
            gap = {"reason": "reconnected", "topics": self._topics}
            self.send_frame(encode_event("gap", encode_json(gap)))

    def send_frame(self, text: str) -> None:
        """Take a frame; the answer to the subscription is none for the stream."""
        if not self._subscribed.done() and (answer := read_answer(text)) is not None:
            self._subscribed.set_result(answer)
        else:
            super().send_frame(text)

    def close(self, code: int, reason: str = "") -> None:
        """Begin to hang up."""
        super().close(code, reason)
        if not self._subscribed.done():
            self._subscribed.set_result(None)

    async def receive_message(self) -> None:
        """Wait until the client has left."""
        with contextlib.suppress(ClientLeft):
            while True:
                await self._exchange.receive()

    async def send_text(self, text: str) -> None:
        """Send a frame."""
        if not self._exchange.started:
            await self._start()
        if text == PING:
            await self._send(b": ping\n\n")
            return
        self._count += 1
        await self._send(server_sent_event(text, self._count))

    async def send_close(self, code: int, reason: str) -> None:
        """Tell why the stream ends, in a last event."""
        await self.send_text(encode_event("closed", encode_json({"code": code, "reason": reason})))
        await self._exchange.send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _start(self) -> None:
        headers = {
            **self._exchange.response_headers,
            "Content-Type": "text/event-stream",
            "X-Accel-Buffering": "no",  # nginx would keep events until it has a buffer full of them
        }
        raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
        await self._exchange.send({"type": "http.response.start", "status": 200, "headers": raw})
        await self._send(b"retry: %d\n\n" % RETRY)

    async def _send(self, data: bytes) -> None:
        await self._exchange.send({"type": "http.response.body", "body": data, "more_body": True})


class EventsEndpoint(Endpoint):
    """``GET /events?topic=...``, as often as there are topics to subscribe to."""

    method = "GET"
    takes_calls = False

    async def serve(self, exchange: Exchange, token: str) -> None:
        """Send events until either side hangs up."""
        if exchange.headers.get("content-length", "0") != "0" or "transfer-encoding" in exchange.headers:
            raise bad_request("This request has no body")
        try:
            query = parse_qsl(exchange.scope["query_string"].decode("latin-1"), True, errors="strict")
        except UnicodeDecodeError as error:
            raise bad_request("The query is not valid UTF-8") from error
        topics = list(dict.fromkeys(value for name, value in query if name == "topic"))
        stream = EventStreamHandler(exchange, topics, self._manager, self._settings)
        try:
            await register(self._manager, stream, token, exchange.address)
            refusal = await stream.subscribe()
            if refusal is None:
                await stream.run()
                return
        finally:
            self._manager.unregister(stream)
        await exchange.respond(refusal)


class _EventFrame(Struct, tag_field="type", tag="event"):
    payload: Raw


class _Retry(Struct):
    retry_after_ms: int


class _Goodbye(Struct):
    event: _Retry


_decode_event_frame = msgspec.json.Decoder(_EventFrame).decode
_decode_goodbye = msgspec.json.Decoder(_Goodbye).decode


def server_sent_event(text: str, number: int) -> bytes:
    """A frame as a Server-Sent Event: the payload of an event, or else the whole frame, as one named "frame"."""
    text = on_one_line(text)
    try:
        payload = bytes(_decode_event_frame(text).payload)
    except UNREADABLE:  # of the host application's own making
        return b"event: frame\nid: %d\ndata: %b\n\n" % (number, text.encode())
    own = _OWN.match(payload)
    head = b"" if own is None else b"event: %b\n" % own[1]
    if own is not None and own[1] == b"goodbye":
        with contextlib.suppress(*UNREADABLE):
            head += b"retry: %d\n" % max(_decode_goodbye(payload).event.retry_after_ms, 0)
    return b"%bid: %d\ndata: %b\n\n" % (head, number, payload)


# --- endpoints ----------------------------------------------------------------------------------------------------


def make_endpoints(handler_manager: HandlerManager, settings: Settings, origins: OriginPolicy) -> Mapping[str, ASGIApp]:
    """The applications for calls and events, by their paths, which are Starlette's."""
    # The last slash is the one in front of the method: a service's name may have slashes in it.
    classes: Mapping[str, type[Endpoint]] = {"/rpc/{service:path}/{method}": CallEndpoint, "/events": EventsEndpoint}
    return {
        path: CrossOrigin(
            class_(handler_manager, settings, origins),
            origins,
            method=class_.method,
            request_headers=_REQUEST_HEADERS,
            response_headers=_RESPONSE_HEADERS,
            cookies=bool(settings.auth_cookie),
        )
        for path, class_ in classes.items()
    }
