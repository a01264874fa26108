"""``/mcp`` and ``/mcp/calls``: admit requests, each with the bearer token of its user."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

import anyio
import anyio.lowlevel
import msgspec
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..authentication.credentials import find_credentials
from ..authentication.origins import OriginPolicy
from ..handler_manager import HandlerManager
from ..handlers.connection import ClientLeft
from ..handlers.cross_origin import CrossOrigin
from ..handlers.exchange import Answer, Exchange, too_big
from ..handlers.handshake import admitted, arrival_of, check_credentials, check_origin, register
from ..handlers.refusals import Reason, Refusal, count_refusal
from ..identifiers import new_id
from ..limits.admission import Arrival
from ..protocol import CloseCode, ErrorCode, Failure, check_limits, encode_json, error_members
from ..settings import Settings
from .handler import AgentHandler
from .metadata import ResourceMetadata
from .recent import RecentCalls
from .serving import SESSION, AgentServer, has_handshake

__all__ = ["AgentEndpoint", "RecentCallsEndpoint", "make_endpoint"]

#: The methods whose requests get events for as long as they last. The protocol has the method in this header, too.
_LISTENING: Final = frozenset({"subscriptions/listen", "resources/read"})
_JSON = re.compile(r'application/json[ \t]*(?:;[ \t]*charset="?utf-8"?[ \t]*)?', re.IGNORECASE)
#: The code of JSON-RPC for errors of a server's own.
_SERVER_ERROR: Final = -32000
#: Levels of JSON around the arguments of a call.
_LEVELS: Final = 3
_REQUEST_HEADERS: Final = (
    "Accept", "Authorization", "Content-Type", "Last-Event-ID", "Mcp-Method", "Mcp-Name", "Mcp-Protocol-Version",
    "Mcp-Session-Id", "X-Trace-Id",
)  # fmt: skip
_NO_HEADERS: Final[Mapping[str, str]] = MappingProxyType({})
_RESPONSE_HEADERS: Final = ("Mcp-Session-Id", "Retry-After", "WWW-Authenticate", "X-Trace-Id")


class _Params(msgspec.Struct):
    #: The request that a notification cancels.
    request_id: str | int | None = msgspec.field(default=None, name="requestId")


class _Envelope(msgspec.Struct):
    method: str = ""
    id: str | int | None = None
    params: _Params | None = None


_decode = msgspec.json.Decoder(_Envelope).decode
_decode_any = msgspec.json.Decoder().decode


class AgentEndpoint:
    """The tools' URL. It keeps nothing between two requests but the requests that a later one may cancel."""

    def __init__(
        self,
        handler_manager: HandlerManager,
        settings: Settings,
        origins: OriginPolicy,
        server: AgentServer,
        metadata: ResourceMetadata,
    ) -> None:
        self._manager = handler_manager
        self._settings = settings
        self._origins = origins
        self._server = server
        self._metadata = metadata
        #: Requests in flight by user, session and id. A client chooses the ids, and another user's are not its own.
        self._in_flight: dict[tuple[str, str, str | int], AgentHandler] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        exchange = Exchange(scope, receive, send, self._settings)
        with contextlib.suppress(ClientLeft):
            try:
                await self._admit(exchange, receive)
            except Refusal as refusal:
                count_refusal(self._manager, refusal, exchange.address)
                await exchange.respond(self._refused(exchange, refusal))
            except Exception:
                # The server logs the exception; the client learns that the gateway is at fault.
                if not exchange.started:
                    failure = Failure(ErrorCode.INTERNAL, "The gateway could not handle this request")
                    await exchange.respond(_answer(failure, 500))
                raise

    def _refused(self, exchange: Exchange, refusal: Refusal) -> Answer:
        answer = _answer(refusal.failure, refusal.status)
        headers = dict(refusal.headers)
        if refusal.status == 401:
            headers["WWW-Authenticate"] = self._metadata.challenge(Request(exchange.scope), headers["WWW-Authenticate"])
        return answer._replace(headers=headers)

    async def _admit(self, exchange: Exchange, receive: Receive) -> None:
        method = exchange.scope["method"]
        streams = method == "GET" and has_handshake(exchange.headers)
        if method != "POST" and not streams:
            # Clients of some versions end a session by DELETE, which is optional.
            await _refuse_method(exchange, "POST, or GET in a version with a handshake", "GET, POST, OPTIONS")
            return
        listens = streams or exchange.headers.get("mcp-method") in _LISTENING
        async with self._registered(exchange, listens=listens, has_body=not streams) as handler:
            if streams:
                await self._hand_over(exchange, self._server.stream, handler, receive)
            else:
                await self._serve(exchange, handler, receive)

    @contextlib.asynccontextmanager
    async def _registered(self, exchange: Exchange, *, listens: bool, has_body: bool) -> AsyncIterator[AgentHandler]:
        """Admit a request, and register a handler for as long as the context lasts. Raises Refusal."""
        exchange.take_trace_id()
        check_origin(exchange.headers, self._origins)
        # Not from a cookie: a page of another site could use it.
        credentials = find_credentials(exchange.headers, ())
        arrival = arrival_of(credentials) if listens else Arrival.CALL
        with admitted(self._manager, exchange.address, arrival):
            check_credentials(credentials, exchange.headers)
            token = credentials.token
            if token is None:
                if arrival is Arrival.WITHOUT_TOKEN:
                    self._manager.admission.on_failure(exchange.address, arrival, time.monotonic())
                raise Refusal(Reason.INVALID_TOKEN)
            if has_body:
                self._check_head(exchange)
            handler = AgentHandler(self._manager, exchange.address, token, exchange.trace_id, listens=listens)
            await register(self._manager, handler, token, exchange.address, arrival)
            try:
                yield handler
            finally:
                self._manager.unregister(handler)
                handler.close(CloseCode.DISCONNECTED)  # nothing that still waits for it would get an answer

    def _check_head(self, exchange: Exchange) -> None:
        kinds, sizes = exchange.headers.getlist("content-type"), exchange.headers.getlist("content-length")
        if len(kinds) != 1 or not _JSON.fullmatch(kinds[0]):
            raise Refusal(Reason.NOT_JSON)
        limit = self._settings.max_message_size
        if any(not size.isdecimal() or len(size) > 18 or int(size) > limit for size in sizes):
            raise too_big(limit)

    async def _serve(self, exchange: Exchange, handler: AgentHandler, receive: Receive) -> None:
        body = await exchange.body()
        envelope = self._read(body)
        session = exchange.headers.get(SESSION, "")
        assert handler.identity is not None  # noqa: S101 - it is registered
        user_id = handler.identity.user_id
        if envelope.method == "notifications/cancelled" and envelope.params and envelope.params.request_id is not None:
            cancelled = self._in_flight.get((user_id, session, envelope.params.request_id))
            if cancelled is not None:
                cancelled.cancel()
        key = None
        if session and envelope.id is not None and (user_id, session, envelope.id) not in self._in_flight:
            key = (user_id, session, envelope.id)
            self._in_flight[key] = handler
        try:
            read = False

            async def receive_again() -> Message:
                nonlocal read
                if not read:
                    read = True
                    return {"type": "http.request", "body": body, "more_body": False}
                return await receive()

            # By its session a client may cancel a request and listen. It gives access to nothing.
            more = {SESSION: new_id()} if envelope.method == "initialize" else {}
            await self._hand_over(exchange, self._server.serve, handler, receive_again, more)
        finally:
            if key is not None:
                del self._in_flight[key]

    def _read(self, body: bytes) -> _Envelope:
        """Return the members of a message that matter here. The library checks the rest. Raises Refusal."""
        try:
            body.decode()
            _decode_any(body)
            if (reason := check_limits(body, self._settings.max_json_depth + _LEVELS)) is not None:
                raise Refusal(Reason.BAD_REQUEST, f"The request body is refused: {reason}")
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            raise Refusal(Reason.BAD_REQUEST, "The request body is not JSON, or not UTF-8") from error
        try:
            return _decode(body)
        except msgspec.MsgspecError:
            return _Envelope()  # not a request: the library says so to the client

    async def _hand_over(
        self,
        exchange: Exchange,
        serve: Callable[[AgentHandler, Scope, Receive, Send], Awaitable[None]],
        handler: AgentHandler,
        receive: Receive,
        more: Mapping[str, str] = _NO_HEADERS,
    ) -> None:
        """Have the server answer the request, with ``more`` headers."""
        sent = {**exchange.response_headers, **more}
        headers = {name.lower().encode(): value.encode("latin-1") for name, value in sent.items()}

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = [(name, value) for name, value in message["headers"] if name.lower() not in headers]
                message = {**message, "headers": [*own, *headers.items()]}
            try:
                with anyio.fail_after(self._settings.write_timeout):
                    await exchange.send(message)
            except (TimeoutError, ClientLeft):
                scope.cancel()
                await anyio.lowlevel.checkpoint()

        with anyio.CancelScope() as scope:
            await serve(handler, exchange.scope, receive, send)
        if not exchange.finished:
            exchange.break_off()


class RecentCallsEndpoint(AgentEndpoint):
    """The URL of the latest tool calls of the token's user, for the console."""

    def __init__(self, *args: Any, recent: RecentCalls) -> None:
        super().__init__(*args)
        self._recent = recent

    async def _admit(self, exchange: Exchange, receive: Receive) -> None:
        if exchange.scope["method"] != "GET":
            await _refuse_method(exchange, "GET", "GET, OPTIONS")
            return
        async with self._registered(exchange, listens=False, has_body=False) as handler:
            assert handler.identity is not None  # noqa: S101 - it is registered
            await exchange.respond(Answer(200, encode_json({"calls": self._recent.of(handler.identity.user_id)}), {}))


def make_endpoint(endpoint: AgentEndpoint, origins: OriginPolicy) -> ASGIApp:
    """Return the endpoint with CORS, for hosts in browsers."""
    return CrossOrigin(
        endpoint, origins, methods=("GET", "POST"), request_headers=_REQUEST_HEADERS, response_headers=_RESPONSE_HEADERS
    )


async def _refuse_method(exchange: Exchange, expected: str, allowed: str) -> None:
    failure = Failure(ErrorCode.BAD_REQUEST, f"The method must be {expected}")
    await exchange.respond(_answer(failure, 405)._replace(headers={"Allow": allowed}))


def _answer(failure: Failure, status: int) -> Answer:
    """Return the answer to a request that did not reach the protocol, as an error of JSON-RPC."""
    error = {"code": _SERVER_ERROR, "message": failure.description, "data": error_members(failure)}
    return Answer(status, encode_json({"jsonrpc": "2.0", "id": None, "error": error}), {})
