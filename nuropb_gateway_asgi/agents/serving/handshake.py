"""Requests of the protocol's versions that begin with a handshake (up to 2025-11-25), each answered by itself.

The library's own carrier of these versions needs a task for each request and the event streams of sse-starlette, which
starts a task that nobody owns and breaks off all streams at SIGTERM, before the drain.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

import anyio
import mcp_types as types
from mcp.server.connection import Connection
from mcp.server.lowlevel.server import NotificationOptions, Server
from mcp.server.runner import ServerRunner, modern_error_data
from mcp.server.streamable_http import check_accept_headers
from mcp.shared.exceptions import NoBackChannelError
from mcp.shared.inbound import MCP_PROTOCOL_VERSION_HEADER
from mcp.shared.jsonrpc_dispatcher import progress_token_from_params
from mcp.shared.message import ServerMessageMetadata
from mcp.shared.transport_context import TransportContext
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from ...handlers.event_streams import EVENT_STREAM_HEADERS
from ...protocol import encode_json

__all__ = ["EVENT_STREAM", "HandshakeCarrier", "event_of", "leaving_cancels", "refuse"]

#: The headers of a stream of events, as ASGI has them.
EVENT_STREAM: Final = [(name.lower().encode(), value.encode()) for name, value in EVENT_STREAM_HEADERS.items()]
_JSON: Final = [(b"content-type", b"application/json")]
#: The version of a request without the header, by the specification.
_DEFAULT_VERSION: Final = "2025-03-26"


def event_of(message: bytes) -> bytes:
    """Return a message (JSON on one line) as an event of a stream."""
    return b"event: message\ndata: %b\n\n" % message


@contextlib.asynccontextmanager
async def leaving_cancels(receive: Receive) -> AsyncIterator[None]:
    """Cancel the block when the client leaves."""

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch)
        yield
        tasks.cancel_scope.cancel()


class HandshakeCarrier:
    """Carries requests to the server of the library, and its answers back."""

    def __init__(self, server: Server[Any]) -> None:
        self._server = server
        self._options = server.create_initialization_options(NotificationOptions(tools_changed=True))

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a message: by JSON, or by a stream of events if something is to be told before the answer."""
        request = Request(scope)
        has_json, has_stream = check_accept_headers(request)
        if not has_json:
            await refuse(send, 406, "The client must accept application/json")
            return
        body = (await receive())["body"]
        try:
            message = types.jsonrpc_message_adapter.validate_json(body, by_name=False)
        except ValueError:
            await refuse(send, 400, "The request body must be a single JSON-RPC message")
            return
        if not isinstance(message, types.JSONRPCRequest):
            await _respond(send, 202, b"")
            return
        version = request.headers.get(MCP_PROTOCOL_VERSION_HEADER, _DEFAULT_VERSION)
        exchange = _Exchange(request, message, send if has_stream else None)
        async with leaving_cancels(receive):
            answer = await self._run(exchange, message, version)
            if exchange.streams:
                await send({"type": "http.response.body", "body": event_of(answer), "more_body": False})
            else:
                await _respond(send, 200, answer)

    async def _run(self, exchange: _Exchange, message: types.JSONRPCRequest, version: str) -> bytes:
        connection = Connection.from_envelope(version, None, None)
        runner = ServerRunner(self._server, connection, {}, init_options=self._options)
        try:
            async with connection.exit_stack:
                result = await runner.on_request(exchange, message.method, message.params)
        except Exception as error:  # the library logs those that are not the client's
            return _encoded(types.JSONRPCError(jsonrpc="2.0", id=message.id, error=modern_error_data(error)))
        return _encoded(types.JSONRPCResponse(jsonrpc="2.0", id=message.id, result=result))


class _Exchange:
    """The library's context of one request (its ``DispatchContext``). Notifications go into the answer's stream."""

    can_send_request = False

    def __init__(self, request: Request, message: types.JSONRPCRequest, send: Send | None) -> None:
        self.transport = TransportContext(kind="streamable-http", can_send_request=False, headers=request.headers)
        self.request_id = message.id
        self.message_metadata = ServerMessageMetadata(request_context=request)
        self.cancel_requested = anyio.Event()
        self.streams = False
        self._token = progress_token_from_params(message.params)
        self._send = send

    async def send_raw_request(self, method: str, params: Mapping[str, Any] | None, opts: Any = None) -> dict[str, Any]:
        """Refuse: nothing would carry the client's answer."""
        raise NoBackChannelError(method)

    async def notify(self, method: str, params: Mapping[str, Any] | None, opts: Any = None) -> None:
        """Send a notification, if the client takes a stream."""
        if self._send is None:
            return
        if not self.streams:
            self.streams = True
            await self._send({"type": "http.response.start", "status": 200, "headers": EVENT_STREAM})
        message = {"jsonrpc": "2.0", "method": method, "params": params or {}}
        await self._send({"type": "http.response.body", "body": event_of(encode_json(message)), "more_body": True})

    async def progress(self, progress: float, total: float | None = None, message: str | None = None) -> None:
        """Report progress, if the client has asked for it."""
        if self._token is not None:
            told = {"progressToken": self._token, "progress": progress, "total": total, "message": message}
            params = {name: value for name, value in told.items() if value is not None}
            await self.notify("notifications/progress", params)


async def refuse(send: Send, status: int, message: str) -> None:
    """Answer a request that is none of the protocol."""
    error = {"code": types.INVALID_REQUEST, "message": message}
    await _respond(send, status, encode_json({"jsonrpc": "2.0", "id": None, "error": error}))


async def _respond(send: Send, status: int, body: bytes) -> None:
    await send({"type": "http.response.start", "status": status, "headers": _JSON if body else []})
    await send({"type": "http.response.body", "body": body, "more_body": False})


def _encoded(message: types.JSONRPCError | types.JSONRPCResponse) -> bytes:
    encoded: str = message.model_dump_json(by_alias=True, exclude_unset=True)
    return encoded.encode()
