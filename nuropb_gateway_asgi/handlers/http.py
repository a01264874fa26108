"""HTTP endpoints: calls by ``POST /rpc/{service}/{method}``, and events by ``GET /events`` as Server-Sent Events.

A call is a handler with one frame and one answer; an event stream is a connection whose client only listens. Both use
the same manager as every other connection.
"""

from __future__ import annotations

import contextlib
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Final, Literal
from urllib.parse import parse_qsl

from starlette.types import ASGIApp, Receive, Scope, Send

from ..authentication.credentials import find_credentials
from ..authentication.origins import OriginPolicy
from ..exceptions import ProtocolError
from ..handler_manager import HandlerManager
from ..limits.admission import Arrival
from ..limits.prices import extra_for_size
from ..protocol import ErrorCode, Failure, encode_call
from ..settings import Settings
from .connection import ClientLeft
from .cross_origin import CrossOrigin
from .event_streams import EventStreamHandler, refuse_stream
from .exchange import FRAME_ID, Exchange, failed, refused, too_big
from .handshake import admitted, arrival_of, check_credentials, check_origin, register
from .http_calls import CallHandler
from .refusals import Reason, Refusal, count_refusal

__all__ = ["make_endpoints"]

_JSON = re.compile(r'application/json[ \t]*(?:;[ \t]*charset="?utf-8"?[ \t]*)?', re.IGNORECASE)
_WAIT = re.compile(r"wait[ \t]*=[ \t]*([1-9][0-9]{0,8})", re.IGNORECASE)
_REQUEST_HEADERS: Final = ("Authorization", "Content-Type", "Idempotency-Key", "Last-Event-ID", "Prefer", "X-Trace-Id")
#: Headers that tracing in pages adds to every request: W3C Trace Context and Baggage, Sentry, Datadog, and others.
_TRACING_HEADERS: Final = (
    "Baggage",
    "Sentry-Trace",
    "Traceparent",
    "Tracestate",
    "X-Datadog-Origin",
    "X-Datadog-Parent-Id",
    "X-Datadog-Sampled",
    "X-Datadog-Sampling-Priority",
    "X-Datadog-Tags",
    "X-Datadog-Trace-Id",
    "X-Requested-With",
)
_QUOTED: Final = re.compile(r'^"([^"\\]*)"$')
_RESPONSE_HEADERS: Final = ("Preference-Applied", "Retry-After", "WWW-Authenticate", "X-Trace-Id")


class Endpoint(ABC):
    """A URL of the gateway: admits requests, and answers refused ones."""

    method: ClassVar[str]
    #: Whether requests count as calls, which are many, or as connections.
    takes_calls: ClassVar[bool]

    def __init__(self, handler_manager: HandlerManager, settings: Settings, origins: OriginPolicy) -> None:
        self._manager = handler_manager
        self._settings = settings
        self._origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        exchange = Exchange(scope, receive, send, self._settings)
        with contextlib.suppress(ClientLeft):
            try:
                await self._admit(exchange)
            except Refusal as refusal:
                count_refusal(self._manager, refusal, exchange.address)
                await self.refuse(exchange, refusal)
            except Exception:
                # The server logs the exception; the client learns that the gateway is at fault.
                if not exchange.started:
                    failure = Failure(ErrorCode.INTERNAL, "The gateway could not handle this request")
                    await exchange.respond(failed(failure))
                raise

    async def _admit(self, exchange: Exchange) -> None:
        exchange.take_trace_id()
        method = exchange.scope["method"]
        if method != self.method:
            allowed = {"Allow": f"{self.method}, OPTIONS"}
            failure = Failure(ErrorCode.BAD_REQUEST, f"The method must be {self.method}")
            await exchange.respond(failed(failure)._replace(status=405, headers=allowed))
            return
        check_origin(exchange.headers, self._origins)
        credentials = find_credentials(exchange.headers, (), self._settings.auth_cookie or None)
        arrival = Arrival.CALL if self.takes_calls else arrival_of(credentials)
        with admitted(self._manager, exchange.address, arrival):
            # Browsers send no Origin with a page's GET requests to its own site, but they send this header, which no
            # page can set.
            same_site = method == "GET" and exchange.headers.getlist("sec-fetch-site") == ["same-origin"]
            check_credentials(credentials, exchange.headers, same_site=same_site)
            if credentials.token is None:
                if arrival is Arrival.WITHOUT_TOKEN:
                    self._manager.admission.on_failure(exchange.address, arrival, time.monotonic())
                raise Refusal(Reason.INVALID_TOKEN)
            await self.serve(exchange, credentials.token)

    async def refuse(self, exchange: Exchange, refusal: Refusal) -> None:
        """Answer a refused request. Raises ClientLeft."""
        await exchange.respond(refused(refusal))

    @abstractmethod
    async def serve(self, exchange: Exchange, token: str) -> None:
        """Answer an admitted request. Raises Refusal and ClientLeft."""


class CallEndpoint(Endpoint):
    """``POST /rpc/{service}/{method}``: parameters in the request's body, result in the response's."""

    method = "POST"
    takes_calls = True

    async def serve(self, exchange: Exchange, token: str) -> None:
        """Make the call, and send its answer."""
        headers = exchange.headers
        kinds, sizes = headers.getlist("content-type"), headers.getlist("content-length")
        if len(kinds) > 1 or not all(map(_JSON.fullmatch, kinds)):
            raise Refusal(Reason.NOT_JSON)
        limit = self._settings.max_message_size
        if any(not size.isdecimal() or len(size) > 18 or int(size) > limit for size in sizes):
            raise too_big(limit)
        call = CallHandler(exchange.address)
        await register(self._manager, call, token, exchange.address, Arrival.CALL, exchange.headers)
        try:
            body = await exchange.body()
            if body and not kinds:
                raise Refusal(Reason.NOT_JSON)
            await self._manager.shared_limits.large_frames.wait(1 + extra_for_size(len(body)))
            frame, applied = self._frame(exchange, body)
            self._manager.on_handler_message(call, frame, added=len(frame) - len(body))
            answer = await exchange.wait_for(call.answer)
            if answer.status == 200:
                status = 202 if applied.get("Preference-Applied") == "respond-async" else 200
                answer = answer._replace(status=status, headers=applied)
            await exchange.respond(answer)
        finally:
            self._manager.unregister(call)

    def _frame(self, exchange: Exchange, body: bytes) -> tuple[bytes, Mapping[str, str]]:
        """Return the frame of the call, and a header with the client's preferences that were applied (RFC 7240)."""
        preferences = [each.strip() for value in exchange.headers.getlist("prefer") for each in value.split(",")]
        wait = next((int(match[1]) for match in map(_WAIT.fullmatch, preferences) if match), None)
        kind: Literal["request", "command"] = "request"
        keys = exchange.headers.getlist("idempotency-key")
        if len(keys) > 1:
            raise Refusal(Reason.BAD_REQUEST, "Idempotency-Key: given more than once")
        # As a string of RFC 8941, in quotation marks, or as it is.
        key = (_QUOTED.sub(r"\1", keys[0]) or None) if keys else None
        applied = {} if wait is None else {"Preference-Applied": f"wait={wait}"}
        if "respond-async" in map(str.lower, preferences):
            kind, wait, applied = "command", None, {"Preference-Applied": "respond-async"}
        tracing = self._manager.tracing
        names: Mapping[str, str] = exchange.scope["path_params"]
        try:
            frame = encode_call(
                kind,
                names["service"],
                names["method"],
                body,
                id_=FRAME_ID,
                trace_id=exchange.trace_id,
                timeout=wait,
                idempotency_key=key,
                trace=None if tracing is None else tracing.ambient(exchange.headers),
            )
        except ProtocolError as error:
            raise Refusal(Reason.BAD_REQUEST, error.description) from error
        return frame, applied


class EventsEndpoint(Endpoint):
    """``GET /events?topic=...``, with one ``topic`` parameter for each topic to subscribe to."""

    method = "GET"
    takes_calls = False

    async def serve(self, exchange: Exchange, token: str) -> None:
        """Send events until the client or the gateway closes the stream."""
        if exchange.headers.get("content-length", "0") != "0" or "transfer-encoding" in exchange.headers:
            raise Refusal(Reason.BAD_REQUEST, "This request takes no body")
        try:
            query = parse_qsl(exchange.scope["query_string"].decode("latin-1"), True, errors="strict")
        except UnicodeDecodeError as error:
            raise Refusal(Reason.BAD_REQUEST, "The query is not valid UTF-8") from error
        topics = list(dict.fromkeys(value for name, value in query if name == "topic"))
        stream = EventStreamHandler(exchange, topics, self._manager, self._settings)
        try:
            await register(self._manager, stream, token, exchange.address, Arrival.WITH_TOKEN, exchange.headers)
            await stream.run()
        finally:
            self._manager.unregister(stream)

    async def refuse(self, exchange: Exchange, refusal: Refusal) -> None:
        """Refuse a stream; its client comes back if that may help, although an EventSource gives up after an error."""
        accepted = ",".join(exchange.headers.getlist("accept")).lower()
        if refusal.status in (429, 503) and "text/event-stream" in accepted:
            await refuse_stream(exchange, refusal)
        else:
            await super().refuse(exchange, refusal)


def make_endpoints(handler_manager: HandlerManager, settings: Settings, origins: OriginPolicy) -> Mapping[str, ASGIApp]:
    """Return the applications for calls and events, by path. The paths are patterns of Starlette."""
    # A service's name may contain slashes, a method's may not: the last slash is the one before the method.
    classes: Mapping[str, type[Endpoint]] = {"/rpc/{service:path}/{method}": CallEndpoint, "/events": EventsEndpoint}
    return {
        path: CrossOrigin(
            class_(handler_manager, settings, origins),
            origins,
            methods=[class_.method],
            request_headers=(*_REQUEST_HEADERS, *_TRACING_HEADERS, *settings.cors_headers),
            response_headers=_RESPONSE_HEADERS,
            cookies=bool(settings.auth_cookie),
        )
        for path, class_ in classes.items()
    }
