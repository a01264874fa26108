"""An HTTP request and its response, and the translation of answer frames into responses."""

from __future__ import annotations

import asyncio
import logging
import math
import re
from collections.abc import Mapping
from typing import Final, NamedTuple, TypeVar

import anyio
import msgspec
from msgspec import Raw, Struct
from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope, Send

from ..identifiers import new_id
from ..limits.admission import address_of
from ..protocol import MAX_TRACE_ID_LENGTH, ErrorCode, Failure, encode_json, error_members
from ..settings import Settings
from ..tracing import trace_id_of
from .connection import ClientLeft
from .direct import CUT
from .refusals import DenialLogFilter, Reason, Refusal

__all__ = ["FRAME_ID", "UNREADABLE", "Answer", "Exchange", "failed", "read_answer", "refused", "too_big"]

logger = logging.getLogger(__name__)

#: Bytes of a response that the server gets at a time. It suspends only between pieces if the client does not read.
CHUNK: Final = 65536
#: The id of the one frame that a request becomes.
FRAME_ID: Final = "1"
#: The exceptions of msgspec for text that does not have the expected form.
UNREADABLE: Final = (msgspec.MsgspecError, RecursionError)
_VALID_TRACE_ID = re.compile(f"[ -~]{{1,{MAX_TRACE_ID_LENGTH}}}")

T = TypeVar("T")


class Answer(NamedTuple):
    """The answer to a frame, as an HTTP response. ``body`` is JSON."""

    status: int
    body: bytes
    headers: Mapping[str, str]


class Exchange:
    """A request and its response. Every method that receives or sends raises ClientLeft."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, settings: Settings) -> None:
        self.scope = scope
        self.headers = Headers(scope=scope)
        self.address = address_of(scope.get("client"))
        self.trace_id = new_id()
        self.started = self.finished = self.left = False
        self._receive = receive
        self._send = send
        self._settings = settings

    def take_trace_id(self) -> None:
        """Use the client's trace id, if the request has one: in X-Trace-Id or traceparent. Raises Refusal."""
        named = set(self.headers.getlist("x-trace-id")) - {""}
        if len(named) > 1 or not all(map(_VALID_TRACE_ID.fullmatch, named)):
            description = f"X-Trace-Id: must be at most {MAX_TRACE_ID_LENGTH} printable ASCII characters"
            raise Refusal(Reason.BAD_REQUEST, description)
        self.trace_id = named.pop() if named else trace_id_of(self.headers.get("traceparent"), self.trace_id)

    @property
    def response_headers(self) -> dict[str, str]:
        """The headers of every response."""
        return {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "X-Trace-Id": self.trace_id}

    async def receive(self) -> Message:
        """Return the next part of the request."""
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self.left = True
            raise ClientLeft
        return message

    async def body(self) -> bytes:
        """Return the whole body. Raises Refusal if it is too big or too slow."""
        limit, body = self._settings.max_message_size, bytearray()
        try:
            with anyio.fail_after(self._settings.auth_timeout):
                more = True
                while more:
                    message = await self.receive()
                    body += message.get("body", b"")
                    more = message.get("more_body", False)
                    if len(body) > limit:
                        raise too_big(limit)
        except TimeoutError as error:
            raise Refusal(Reason.BODY_TIMEOUT) from error
        return bytes(body)

    async def wait_for(self, answer: asyncio.Future[T]) -> T:
        """Wait for the result of ``answer``, and stop waiting if the client leaves."""
        with anyio.CancelScope() as scope:
            answer.add_done_callback(lambda _: scope.cancel())
            while True:
                await self.receive()
        return answer.result()

    async def send(self, message: Message) -> None:
        """Send a part of the response. Waits until the client reads."""
        self.started = True
        try:
            await self._send(message)
        except (OSError, RuntimeError) as error:
            self.left = True
            raise ClientLeft from error
        self.finished = message["type"] == "http.response.body" and not message.get("more_body", False)

    async def respond(self, answer: Answer) -> None:
        """Send the whole response."""
        headers = {"Content-Type": "application/json", **self.response_headers, **answer.headers}
        raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
        raw.append((b"content-length", str(len(answer.body)).encode()))
        messages: list[Message] = [{"type": "http.response.start", "status": answer.status, "headers": raw}]
        for begin in range(0, max(len(answer.body), 1), CHUNK):
            end = begin + CHUNK
            body = answer.body[begin:end]
            messages.append({"type": "http.response.body", "body": body, "more_body": end < len(answer.body)})
        try:
            for message in messages:
                with anyio.fail_after(self._settings.write_timeout):
                    await self.send(message)
        except TimeoutError:
            self.cut()
            self.break_off()

    def cut(self) -> None:
        """End the connection of a client that does not read, where the server has a way to do so at once."""
        cut = self.scope.get("extensions", {}).get(CUT)
        if cut is not None and not self.finished:
            self.left = True
            cut()

    def break_off(self) -> None:
        """Leave the response incomplete, because the client does not read it."""
        if not self.finished and not self.left:
            logger.debug("trace %s: response broken off, the client does not read", self.trace_id)
            DenialLogFilter.expected += 1


# --- answers ------------------------------------------------------------------------------------------------------


class _Error(Struct):
    """An error as clients get it: the members of :func:`~nuropb_gateway_asgi.protocol.error_members`."""

    error: str
    description: str
    code: ErrorCode
    retryable: bool
    retry_after_ms: int | None = None


class _Response(Struct):
    id: str
    result: Raw
    error: _Error | None


class _ResponseFrame(Struct, tag_field="type", tag="response"):
    payload: _Response


class _ErrorFrame(_Error, tag_field="type", tag="error"):
    pass


_decode_answer = msgspec.json.Decoder(_ResponseFrame | _ErrorFrame).decode


def read_answer(text: str) -> Answer | None:
    """Translate the answer to the request's one frame. Returns None for every other frame."""
    try:
        frame = _decode_answer(text)
    except UNREADABLE:
        return None
    if isinstance(frame, _ErrorFrame):
        return _error(frame)
    if frame.payload.id != FRAME_ID:
        return None
    return Answer(200, bytes(frame.payload.result), {}) if frame.payload.error is None else _error(frame.payload.error)


def _error(error: _Error) -> Answer:
    members = {name: getattr(error, name) for name in _Error.__struct_fields__}
    headers = {}
    if error.retry_after_ms is not None:
        headers["Retry-After"] = str(max(math.ceil(error.retry_after_ms / 1000), 1))
    if error.code == ErrorCode.UNAUTHENTICATED:
        headers["WWW-Authenticate"] = "Bearer"
    return Answer(error.code.http_status, encode_json(members), headers)


def failed(failure: Failure) -> Answer:
    """Translate a failure that the gateway itself reports."""
    return _error(msgspec.convert(error_members(failure), _Error))


def refused(refusal: Refusal) -> Answer:
    """Translate a refusal."""
    return failed(refusal.failure)._replace(status=refusal.status, headers=refusal.headers)


def too_big(limit: int) -> Refusal:
    """Return the refusal of a body with more than ``limit`` bytes."""
    return Refusal(Reason.TOO_BIG, f"The request body has more than {limit} bytes")
