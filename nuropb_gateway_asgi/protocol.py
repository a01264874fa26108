"""The client protocol, version 1: frames, error codes and close codes.

Pure: bytes become typed structs, and values become frames; no I/O, no awaits, no clock. ``docs/protocol.md`` describes
the protocol to users. A frame from a client is decoded once, into a typed struct. Its ``params`` stay the text that the
client sent (:class:`msgspec.Raw`): they are checked, but never decoded and encoded again.
"""

from __future__ import annotations

import enum
import functools
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from itertools import accumulate
from operator import add
from typing import Any, Final, Literal, NamedTuple, TypeAlias

import msgspec
from msgspec import Raw, Struct

from .exceptions import ProtocolError
from .topics import check_pattern

__all__ = [
    "CALL_FRAMES",
    "FINAL",
    "PING",
    "SUBPROTOCOL",
    "Ack",
    "Authorize",
    "Cancel",
    "ClientFrame",
    "CloseCode",
    "Command",
    "Decoder",
    "Describe",
    "ErrorCode",
    "Failure",
    "Glance",
    "Ping",
    "Pong",
    "Request",
    "Resume",
    "Since",
    "Subscribe",
    "TraceContext",
    "Unsubscribe",
    "encode_call",
    "encode_dropped",
    "encode_error",
    "encode_event",
    "encode_failure",
    "encode_json",
    "encode_kept_event",
    "encode_pong",
    "encode_refusals",
    "encode_response",
    "encode_resume",
    "encode_subscribe",
    "error_members",
    "is_counted",
    "is_method",
    "is_service",
    "on_one_line",
]

SUBPROTOCOL: Final = "nuropb.v1"
#: Maximum length of a name (service, topic) in bytes: that of an AMQP routing key.
MAX_NAME_BYTES: Final = 255
MAX_ID_LENGTH: Final = 64
MAX_TRACE_ID_LENGTH: Final = 128
MAX_RESUME_KEY_LENGTH: Final = 256
#: Events, and seconds, of the past that a subscription may ask for.
MAX_LAST: Final = 1000
MAX_SINCE_SECONDS: Final = 365 * 86400.0
#: Topic patterns of one connection, and so of one frame.
MAX_SUBSCRIPTIONS: Final = 100
#: Characters of one number; a double needs 17 digits.
MAX_NUMBER_LENGTH: Final = 128

_SERVICE = re.compile(r"[!-~]{1,255}")


class ErrorCode(enum.StrEnum):
    """An error code of the protocol, for programs.

    ``nuropb_class`` is NuroPb's exception class for the error. ``http_status`` is the status of a response over HTTP.
    ``retryable`` tells whether a client may send the same frame again.
    """

    nuropb_class: str
    http_status: int
    retryable: bool

    def __new__(cls, value: str, nuropb_class: str, http_status: int, retryable: bool = False) -> ErrorCode:
        """Make a string with three more attributes."""
        member = str.__new__(cls, value)
        member._value_ = value
        member.nuropb_class = nuropb_class
        member.http_status = http_status
        member.retryable = retryable
        return member

    BAD_REQUEST = "bad_request", "NuropbMessageError", 400
    INVALID_PARAMS = "invalid_params", "NuropbValidationError", 422
    UNAUTHENTICATED = "unauthenticated", "NuropbAuthenticationError", 401
    PERMISSION_DENIED = "permission_denied", "NuropbAuthorizationError", 403
    METHOD_NOT_FOUND = "method_not_found", "NuropbHandlingError", 404
    DUPLICATE_ID = "duplicate_id", "NuropbMessageError", 409
    SERVICE_UNAVAILABLE = "service_unavailable", "NuropbNotDeliveredError", 503, True
    MESH_UNAVAILABLE = "mesh_unavailable", "NuropbTransportError", 503, True
    TIMEOUT = "timeout", "NuropbTimeoutError", 504
    CANCELLED = "cancelled", "NuropbException", 409
    TOO_MANY_REQUESTS = "too_many_requests", "NuropbException", 429, True
    PAYLOAD_TOO_LARGE = "payload_too_large", "NuropbMessageError", 413
    DEPRECATED = "deprecated", "NuropbDeprecatedError", 410
    SERVICE_ERROR = "service_error", "NuropbHandlingError", 502
    INTERNAL = "internal", "NuropbException", 500


#: The first of the close codes after which a client is not to come back.
FINAL: Final = 4500


class CloseCode(enum.IntEnum):
    """A close code of the gateway.

    After 4000-4499 clients reconnect, with backoff. After 4500-4999 they do not, because the next attempt would end in
    the same way.
    """

    NORMAL = 1000
    UNSUPPORTED_DATA = 1003
    INVALID_UTF8 = 1007
    MESSAGE_TOO_BIG = 1009
    INTERNAL_ERROR = 1011
    SERVICE_RESTART = 1012
    TRY_AGAIN_LATER = 1013
    DRAINING = 4001
    TOKEN_EXPIRED = 4005
    SLOW_CONSUMER = 4008
    NO_PONG = 4012
    TOO_MANY_REQUESTS = 4029
    BAD_REQUEST = 4501
    AUTHORISATION_TIMEOUT = 4502
    DISCONNECTED = 4503
    CONNECTION_LIMIT = 4504
    SUBPROTOCOL_NOT_ACCEPTABLE = 4505
    PERMISSION_DENIED = 4507
    TOO_MANY_ERRORS = 4509
    INVALID_TOKEN = 4510
    TOKEN_REVOKED = 4511
    ORIGIN_NOT_ALLOWED = 4513

    @property
    def reconnect(self) -> bool:
        """Return whether a client should reconnect (with backoff) after this close code."""
        if self >= CloseCode.DRAINING:
            return self < FINAL
        return self in (CloseCode.INTERNAL_ERROR, CloseCode.SERVICE_RESTART, CloseCode.TRY_AGAIN_LATER)


class Failure(NamedTuple):
    """An error for a client. ``retry_after_ms`` is a hint in milliseconds, or None."""

    code: ErrorCode
    description: str
    #: The NuroPb class name; if empty, that of the code.
    error: str = ""
    retry_after_ms: int | None = None


# --- frames from a client -------------------------------------------------------------------------------------


class TraceContext(Struct, gc=False):
    """The client's span, as the W3C writes it; it is ignored if it is invalid, or the gateway does not trace."""

    traceparent: str | None = None
    tracestate: str | None = None
    baggage: str | None = None


class Request(Struct, gc=False):
    """Call ``service.method`` and answer with its result. ``timeout`` is in seconds."""

    service: str
    method: str
    params: Raw = Raw(b"{}")
    id: str | None = None
    trace_id: str | None = None
    timeout: float | None = None
    idempotency_key: str | None = None
    trace: TraceContext | None = None


class Command(Struct, gc=False):
    """A call of ``service.method`` for its effect, answered once the mesh has taken it."""

    service: str
    method: str
    params: Raw = Raw(b"{}")
    id: str | None = None
    trace_id: str | None = None
    idempotency_key: str | None = None
    trace: TraceContext | None = None


class Describe(Struct, gc=False):
    """List the methods that the caller may call, of one service or of all."""

    service: str | None = None
    id: str | None = None
    trace_id: str | None = None
    trace: TraceContext | None = None


class Since(Struct, gc=False):
    """The start of a subscription in the past: behind a position, with the last events, or some seconds ago."""

    epoch: str | None = None
    offset: int | None = None
    last: int | None = None
    seconds: float | None = None


class Subscribe(Struct, gc=False):
    """Subscribe to events of these AMQP topic patterns: to all of them, or to none.

    ``since`` has topics among them that begin in the past.
    """

    topics: list[str]
    id: str | None = None
    trace_id: str | None = None
    since: dict[str, Since] | None = None


class Unsubscribe(Struct, gc=False):
    """Unsubscribe from these patterns."""

    topics: list[str]
    id: str | None = None
    trace_id: str | None = None


class Cancel(Struct, gc=False):
    """Cancel the client's request ``id``."""

    id: str


class Authorize(Struct, gc=False):
    """Present a token: the first one of this connection, or a newer one of the same user."""

    token: str
    id: str | None = None
    trace_id: str | None = None

    def __repr__(self) -> str:
        return f"Authorize(id={self.id!r}, token=<hidden>)"


class Resume(Struct, gc=False):
    """Make the session resumable or, with the ``key`` of an earlier one, come back to that.

    ``received`` is the number of counted frames that arrived in the earlier session (see :func:`is_counted`).
    """

    id: str | None = None
    trace_id: str | None = None
    key: str | None = None
    received: int = 0

    def __repr__(self) -> str:
        return f"Resume(id={self.id!r}, key=<hidden>, received={self.received})"


class Ack(Struct, gc=False):
    """Acknowledge the counted frames up to number ``received``. It has no answer."""

    received: int


class Ping(Struct, gc=False):
    """Ask for a pong with the same payload."""

    payload: Raw


class Pong(Struct, gc=False):
    """Answer the gateway's ping."""


ClientFrame: TypeAlias = (
    Request | Command | Describe | Subscribe | Unsubscribe | Cancel | Authorize | Resume | Ack | Ping | Pong
)
#: The frames that call a method. A tuple, because each evaluation of ``Request | Command`` makes an object.
CALL_FRAMES: Final = (Request, Command)


class _RequestFrame(Struct, tag_field="type", tag="request", gc=False):
    payload: Request


class _CommandFrame(Struct, tag_field="type", tag="command", gc=False):
    payload: Command


class _DescribeFrame(Struct, tag_field="type", tag="describe", gc=False):
    payload: Describe = msgspec.field(default_factory=Describe)


class _SubscribeFrame(Struct, tag_field="type", tag="subscribe", gc=False):
    payload: Subscribe


class _UnsubscribeFrame(Struct, tag_field="type", tag="unsubscribe", gc=False):
    payload: Unsubscribe


class _CancelFrame(Struct, tag_field="type", tag="cancel", gc=False):
    payload: Cancel


class _AuthorizeFrame(Struct, tag_field="type", tag="authorize", gc=False):
    payload: Authorize


class _ResumeFrame(Struct, tag_field="type", tag="resume", gc=False):
    payload: Resume


class _AckFrame(Struct, tag_field="type", tag="ack", gc=False):
    payload: Ack


class _PingFrame(Struct, tag_field="type", tag="ping", gc=False):
    payload: Raw = Raw(b"")


class _PongFrame(Struct, tag_field="type", tag="pong", gc=False):
    payload: Raw = Raw(b"")


_AnyFrame: TypeAlias = (
    _RequestFrame
    | _CommandFrame
    | _DescribeFrame
    | _SubscribeFrame
    | _UnsubscribeFrame
    | _CancelFrame
    | _AuthorizeFrame
    | _ResumeFrame
    | _AckFrame
    | _PingFrame
    | _PongFrame
)
FRAME_TYPES: Final = (
    "request",
    "command",
    "describe",
    "subscribe",
    "unsubscribe",
    "cancel",
    "authorize",
    "resume",
    "ack",
    "ping",
    "pong",
)


class _Correlation(Struct, gc=False):
    id: Any = None
    trace_id: Any = None


class _CorrelationFrame(Struct, gc=False):
    payload: _Correlation = msgspec.field(default_factory=_Correlation)
    type: Any = None


_decode_frame = msgspec.json.Decoder(_AnyFrame).decode
_decode_correlation = msgspec.json.Decoder(_CorrelationFrame).decode
_PONG = Pong()

# A translation of JSON text to the bytes that matter for its limits: "[" opens a level and "]" ends it, "0" is a digit
# or the plus of an exponent, and "e" begins an exponent. A search in translated text costs about a microsecond for a
# kilobyte; a loop over its tokens costs a hundred times that.
_SHAPE: Final = bytes(
    {
        **dict.fromkeys(b"{[", ord("[")),
        **dict.fromkeys(b"}]", ord("]")),
        **dict.fromkeys(b"0123456789+", ord("0")),
        **dict.fromkeys(b"eE", ord("e")),
    }.get(byte, ord(" "))
    for byte in range(256)
)
#: An integer with fewer digits than this fits 64 bits.
_LONG_RUN: Final = b"0" * 19
_NO_BRACKETS: Final = b" 0e"
#: Brackets and the quotes of strings, and nothing else.
_LEVELS: Final = bytes.maketrans(b"{}", b"[]")
_ALL_BUT_LEVELS: Final = bytes(set(range(256)) - set(b'{[]}"'))
#: An opening bracket is a bit that is set, so that a byte holds eight brackets. By how many levels each byte rises in
#: all, and how far above its start it gets.
_BITS: Final = bytes.maketrans(b"[]", b"10")
_STEPS: Final = [[1 if byte >> bit & 1 else -1 for bit in range(7, -1, -1)] for byte in range(256)]
_RISES: Final = [sum(steps) for steps in _STEPS]
_PEAKS: Final = [max(0, *accumulate(steps)) for steps in _STEPS]
_LONG_NUMBER = re.compile(rb"(?<![0-9.eE+-])-?[0-9](?:[0-9.eE+-]{18,}|[0-9.]*+[eE]\+?[0-9]{3,})")


def _may_hold_long_number(shape: bytes) -> bool:
    return _LONG_RUN in shape or b"0e000" in shape


def check_limits(text: bytes, max_depth: int) -> str | None:
    """Return the reason why ``text`` (valid JSON) may not be passed on, or None.

    JSON that nests deeper than the interpreter's stack crashes a NuroPb 0.1.8 service for good, and Python turns
    ``1e999`` into infinity, which JSON does not have. So the levels are limited, integers have to fit 64 bits (RFC
    8259, section 6, on interoperability), and other numbers have to fit a finite double.
    """
    shape = text.translate(_SHAPE)
    if shape.count(b"[") <= max_depth and not _may_hold_long_number(shape):
        return None
    # The brackets and digits may be within strings, or the brackets side by side: count again without the strings.
    text = b"".join(text.replace(rb"\\", b"").replace(rb"\"", b"").split(b'"')[::2])
    shape = text.translate(_SHAPE)
    if _is_deeper(shape.translate(None, _NO_BRACKETS), max_depth):
        return f"nested more than {max_depth} levels deep"
    for number in _LONG_NUMBER.findall(text) if _may_hold_long_number(shape) else ():
        if len(number) > MAX_NUMBER_LENGTH:
            return f"a number has more than {MAX_NUMBER_LENGTH} characters"
        if number.lstrip(b"-").isdigit():
            if not (-(2**63) <= int(number) < 2**64 or _is_double(number)):
                return "an integer does not fit 64 bits"
        elif math.isinf(float(number)):
            return "a number is out of range"
    return None


def nests_deeper(text: bytes, max_depth: int) -> bool:
    """Tell whether ``text``, valid JSON, nests deeper than ``max_depth`` levels.

    It cannot if it is short or has few brackets, which costs nothing or a search. 64 KiB with two thousand brackets
    take a fifth of a millisecond.
    """
    if len(text) <= 2 * max_depth or text.count(b"[") + text.count(b"{") <= max_depth:
        return False
    # Strings without brackets become pairs of quotes, side by side. Without these pairs, each bracket that is left has
    # as many quotes before it as it had, by an even number.
    levels = text.replace(rb"\\", b"").replace(rb"\"", b"").translate(_LEVELS, _ALL_BUT_LEVELS).replace(b'""', b"")
    return _is_deeper(b"".join(levels.split(b'"')[::2]), max_depth)


def _is_deeper(levels: bytes, max_depth: int) -> bool:
    """Tell whether ``levels``, balanced brackets, nest deeper than ``max_depth``.

    A valley between two brackets side by side, ``][``, makes no text deeper, and most texts have little else. The rest
    is walked through in steps of eight brackets: 64 KiB of brackets take less than a millisecond, however they nest.
    """
    levels = levels.replace(b"][", b"").replace(b"][", b"")
    if len(levels) <= 2 * max_depth:
        return False
    size = -(-len(levels) // 8)
    packed = int(levels.translate(_BITS).ljust(8 * size, b"0"), base=2).to_bytes(size, "big")
    starts = accumulate(map(_RISES.__getitem__, packed), initial=0)
    deepest: int = max(map(add, starts, map(_PEAKS.__getitem__, packed)))
    return deepest > max_depth


def _is_double(digits: bytes) -> bool:
    """Tell whether an integer is a double as JavaScript writes it: 1e20 is ``100000000000000000000`` there."""
    try:
        return Decimal(repr(float(digits))) == int(digits)
    except OverflowError:
        return False


class Glance(NamedTuple):
    """The type and the ids of a message that was not decoded."""

    type: str | None
    id: str | None
    trace_id: str | None


class Decoder:
    """Decodes the frames of clients under the limits of one gateway.

    ``max_size`` is in bytes of UTF-8, ``max_depth`` in levels of JSON; the frame itself is the first level.
    """

    __slots__ = ("max_depth", "max_size")

    def __init__(self, *, max_size: int = 65536, max_depth: int = 32) -> None:
        self.max_size = max_size
        self.max_depth = max_depth

    def decode(self, data: str | bytes) -> ClientFrame:
        """Decode the frame in ``data``.

        Raises :class:`ProtocolError`, and nothing else, for an invalid frame. The size is not checked here: a message
        that is too big closes the connection (see :meth:`is_too_big`).
        """
        try:
            text = data.encode() if isinstance(data, str) else data
            if text is data:
                text.decode()  # msgspec accepts invalid UTF-8 within a Raw when it decodes bytes
            frame = _decode_frame(text)
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            raise self._explain(error, data) from error
        reason = check_limits(text, self.max_depth)
        if reason is not None:
            raise self._error(f"Error decoding JSON: {reason}", text)
        if isinstance(frame, _RequestFrame):
            request = frame.payload
            reason = (
                _check_ids(request.id, request.trace_id)
                or _check_call(request.service, request.method, request.params)
                or _check_timeout(request.timeout)
                or (None if request.idempotency_key is None else _check_key(request.idempotency_key))
            )
            if reason is not None:
                raise self._error(reason, text)
            return request
        if isinstance(frame, _PingFrame):
            return Ping(frame.payload)
        if isinstance(frame, _PongFrame):
            return _PONG
        reason = _check_other(frame.payload)
        if reason is not None:
            raise self._error(reason, text)
        payload: ClientFrame = frame.payload
        return payload

    def is_too_big(self, data: str | bytes) -> bool:
        """Return whether a message exceeds ``max_size``."""
        size = len(data)
        if size > self.max_size:
            return True
        # A character takes at most four bytes of UTF-8, so short texts need not be encoded to be measured.
        if isinstance(data, bytes) or data.isascii() or size * 4 <= self.max_size:
            return False
        return len(data.encode(errors="surrogatepass")) > self.max_size

    def glance(self, data: str | bytes) -> Glance:
        """Find the type and ids of a message without decoding it. Never raises; unreadable ones are None."""
        try:
            frame = _decode_correlation(data.encode() if isinstance(data, str) else data)
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            return Glance(None, None, None)
        kind = frame.type if isinstance(frame.type, str) else None
        return Glance(kind, *_sound_ids(frame.payload))

    def _explain(self, error: Exception, data: str | bytes) -> ProtocolError:
        if isinstance(error, UnicodeError):
            return ProtocolError("Error decoding JSON: not valid UTF-8", id=_find_id(data))
        if isinstance(error, RecursionError):
            return ProtocolError(f"Error decoding JSON: nested more than {self.max_depth} levels deep")
        if not isinstance(error, msgspec.ValidationError):
            return ProtocolError(f"Error decoding JSON: {_plain(str(error))}", id=_find_id(data))
        return self._error(_explain_field(str(error)), data if isinstance(data, bytes) else data.encode())

    @staticmethod
    def _error(description: str, text: bytes) -> ProtocolError:
        """Make a ProtocolError with the ids of the broken frame, if these are valid."""
        try:
            id_, trace_id = _sound_ids(_decode_correlation(text).payload)
        except (msgspec.MsgspecError, RecursionError):
            return ProtocolError(description)
        return ProtocolError(description, id=id_, trace_id=trace_id)


def _sound_ids(correlation: _Correlation) -> tuple[str | None, str | None]:
    """Return the valid ids of a frame."""
    id_ = correlation.id if isinstance(correlation.id, str) else None
    trace_id = correlation.trace_id if isinstance(correlation.trace_id, str) else None
    return None if _check_ids(id_, None) else id_, None if _check_ids(None, trace_id) else trace_id


def _find_id(data: str | bytes) -> str | None:
    """Return the id of a frame that is JSON but for a string that is no text, such as half of a surrogate pair."""
    try:
        frame = json.loads(data)
    except (ValueError, RecursionError):
        return None
    # The id of a "cancel" is that of a request, which has an answer of its own.
    payload = frame.get("payload") if isinstance(frame, dict) and frame.get("type") != "cancel" else None
    id_ = payload.get("id") if isinstance(payload, dict) else None
    return id_ if isinstance(id_, str) and _check_ids(id_, None) is None else None


def _plain(message: str) -> str:
    """Adapt a message of msgspec to the middle of a sentence: no capital, no backticks."""
    message = message.removeprefix("JSON is malformed: ").replace("`", "")
    return message[:1].lower() + message[1:]


def _explain_field(message: str) -> str:
    # msgspec's message is "Expected `str`, got `int` - at `$.payload.method`". Only the path of an unknown key or the
    # value of a wrong tag could quote the client; the path does not, and the tag is left out here.
    what, _, where = message.partition(" - at ")
    field = where.strip("`").removeprefix("$.")
    if field == "type":
        return f"type: must be one of {', '.join(FRAME_TYPES)}"
    if field.startswith("key") or not field:
        return f"Not a frame: {_plain(what)}"
    return f"{field}: {_plain(what)}"


def _check_ids(id_: str | None, trace_id: str | None) -> str | None:
    if id_ is not None and not (0 < len(id_) <= MAX_ID_LENGTH and id_.isascii() and id_.isprintable()):
        return f"payload.id: must be 1 to {MAX_ID_LENGTH} printable ASCII characters"
    if trace_id is not None and not (len(trace_id) <= MAX_TRACE_ID_LENGTH and trace_id.isprintable()):
        return f"payload.trace_id: must be at most {MAX_TRACE_ID_LENGTH} printable characters"
    return None


def is_service(name: str) -> bool:
    """Return whether a service of this name can be called through the gateway."""
    return _SERVICE.fullmatch(name) is not None


def is_method(name: str) -> bool:
    """Return whether a method of this name can be called through the gateway, if it is not private."""
    return name.isidentifier() and name.isascii() and len(name) <= MAX_NAME_BYTES


def _check_call(service: str, method: str, params: Raw) -> str | None:
    try:
        _accept_names(service, method)
    except ValueError as error:
        return str(error)
    return None if memoryview(params)[0] == 0x7B else "payload.params: expected object"


# Clients call the same methods again and again. It does not keep names that it refuses, which may be long; others that
# a client makes up push known ones out, which costs a check.
@functools.lru_cache(maxsize=1024)
def _accept_names(service: str, method: str) -> None:
    """Raise ValueError, with the reason, for names of a call that cannot be passed on."""
    if not is_service(service):
        raise ValueError(f"payload.service: must be 1 to {MAX_NAME_BYTES} printable ASCII characters without spaces")
    if not is_method(method):
        raise ValueError(
            f"payload.method: must be a name of at most {MAX_NAME_BYTES} ASCII letters, digits and underscores"
        )
    if method[0] == "_":
        raise ValueError("payload.method: names that start with an underscore are private to the service")


def _check_timeout(timeout: float | None) -> str | None:
    if timeout is not None and not timeout > 0:
        return "payload.timeout: must be greater than 0 seconds"
    return None


def _check_key(key: str) -> str | None:
    if not (0 < len(key) <= MAX_ID_LENGTH and key.isascii() and key.isprintable()):
        return f"payload.idempotency_key: must be 1 to {MAX_ID_LENGTH} printable ASCII characters"
    return None


def _check_resume(payload: Resume) -> str | None:
    key = payload.key
    if key is not None and not (0 < len(key) <= MAX_RESUME_KEY_LENGTH and key.isascii() and key.isprintable()):
        return f"payload.key: must be 1 to {MAX_RESUME_KEY_LENGTH} printable ASCII characters"
    if payload.received < 0:
        return "payload.received: must not be negative"
    return None


def _check_since(since: dict[str, Since], topics: list[str]) -> str | None:
    if not since.keys() <= set(topics):
        return "payload.since: a topic that is not in payload.topics"
    for each in since.values():
        is_position = each.epoch is not None or each.offset is not None
        if is_position + (each.last is not None) + (each.seconds is not None) != 1:
            return "payload.since: expected one of epoch with offset, last, and seconds, for each topic"
        if is_position:
            epoch, offset = each.epoch, each.offset
            if epoch is None or not (0 < len(epoch) <= MAX_ID_LENGTH and epoch.isascii() and epoch.isprintable()):
                return f"payload.since: epoch must be 1 to {MAX_ID_LENGTH} printable ASCII characters"
            if offset is None or not 0 <= offset < 2**63:
                return "payload.since: offset must be a whole number from 0, of at most 63 bits"
        elif each.last is not None and not 1 <= each.last <= MAX_LAST:
            return f"payload.since: last must be from 1 to {MAX_LAST}"
        elif each.seconds is not None and not 0 < each.seconds <= MAX_SINCE_SECONDS:
            return f"payload.since: seconds must be above 0 and at most {MAX_SINCE_SECONDS:.0f}"
    return None


def _check_other(
    payload: Command | Describe | Subscribe | Unsubscribe | Cancel | Authorize | Resume | Ack,
) -> str | None:
    if isinstance(payload, Cancel):
        return _check_ids(payload.id, None)
    if isinstance(payload, Ack):
        return "payload.received: must not be negative" if payload.received < 0 else None
    reason = _check_ids(payload.id, payload.trace_id)
    if reason is not None:
        return reason
    if isinstance(payload, Command):
        reason = _check_call(payload.service, payload.method, payload.params)
        return reason if payload.idempotency_key is None else reason or _check_key(payload.idempotency_key)
    if isinstance(payload, Resume):
        return _check_resume(payload)
    if isinstance(payload, Subscribe | Unsubscribe):
        if len(payload.topics) > MAX_SUBSCRIPTIONS:
            return f"payload.topics: more than {MAX_SUBSCRIPTIONS}"
        for topic in payload.topics:
            reason = check_pattern(topic)
            if reason is not None:
                return f"payload.topics: {reason}"
        if isinstance(payload, Subscribe) and payload.since:
            return _check_since(payload.since, payload.topics)
    elif isinstance(payload, Describe) and payload.service is not None:
        return _check_call(payload.service, "describe", Raw(b"{}"))
    return None


# --- frames made of HTTP requests ---------------------------------------------------------------------------------

_decode_raw = msgspec.json.Decoder(Raw).decode


def encode_call(
    kind: Literal["request", "command"],
    service: str,
    method: str,
    params: bytes,
    *,
    id_: str,
    trace_id: str,
    timeout: float | None = None,
    idempotency_key: str | None = None,
    trace: TraceContext | None = None,
) -> bytes:
    """Encode the frame of a call whose ``params`` (JSON, or empty) came apart from it.

    Raises ProtocolError unless they are exactly one JSON value: they become a part of the frame, and text after a first
    value would add members to it. The decoder of the frame checks the rest.
    """
    try:
        params.decode()
        value = _decode_raw(params) if params else b"{}"
        names = encode_json(service), encode_json(method)
    except msgspec.MsgspecError as error:
        raise ProtocolError(f"Error decoding JSON: {_plain(str(error))}", id=id_, trace_id=trace_id) from error
    except (UnicodeError, RecursionError) as error:
        what = "not valid UTF-8" if isinstance(error, UnicodeError) else "nested too deeply"
        raise ProtocolError(f"Error decoding JSON: {what}", id=id_, trace_id=trace_id) from error
    more = b"" if timeout is None else b'"timeout":%b,' % encode_json(timeout)
    if idempotency_key is not None:
        more += b'"idempotency_key":%b,' % encode_json(idempotency_key)
    if trace is not None:
        more += b'"trace":%b,' % encode_json(trace)
    ids = _ids(id_, trace_id)
    return b'{"type":"%b","payload":{%b%b"service":%b,"method":%b,"params":%b}}' % (
        kind.encode(),
        ids,
        more,
        *names,
        value,
    )


def encode_subscribe(topics: Sequence[str], *, id_: str, trace_id: str, last: int = 0) -> bytes:
    """Encode the frame of a subscription, which begins with the ``last`` events of each topic."""
    since = b"" if not last else b',"since":%b' % encode_json({topic: {"last": last} for topic in topics})
    return b'{"type":"subscribe","payload":{%b"topics":%b%b}}' % (_ids(id_, trace_id), encode_json(topics), since)


def encode_resume(key: str | None, received: int, *, id_: str, trace_id: str) -> bytes:
    """Encode the frame that resumes a session, or without a key makes one resumable."""
    more = b"" if key is None else b',"key":%b,"received":%d' % (encode_json(key), received)
    return b'{"type":"resume","payload":{%b%b}}' % (_ids(id_, trace_id).rstrip(b","), more)


# --- frames from the gateway ----------------------------------------------------------------------------------

encode_json = msgspec.json.Encoder(decimal_format="string").encode
#: The gateway's ping; a client answers with ``{"type":"pong"}``.
PING: Final = '{"type":"ping"}'


def _ids(id_: str | None, trace_id: str | None) -> bytes:
    """Encode the members ``id`` and ``trace_id`` that are given, each with a comma behind it."""
    if id_ is None:
        return b"" if trace_id is None else b'"trace_id":%b,' % encode_json(trace_id)
    if trace_id is None:
        return b'"id":%b,' % encode_json(id_)
    return b'"id":%b,"trace_id":%b,' % (encode_json(id_), encode_json(trace_id))


def encode_response(id_: str | None, trace_id: str | None, result: bytes | Raw) -> str:
    """Encode the answer to a frame. ``result`` is JSON."""
    return (b'{"type":"response","payload":{%b"result":%b,"error":null}}' % (_ids(id_, trace_id), result)).decode()


def encode_failure(id_: str | None, trace_id: str | None, failure: Failure) -> str:
    """Encode the answer to a failed frame."""
    return encode_failed(id_, trace_id, encode_json(error_members(failure)))


def encode_failed(id_: str | None, trace_id: str | None, error: bytes) -> str:
    """Encode the answer to a failed frame. ``error`` is JSON, an object with the :func:`error_members`."""
    return (b'{"type":"response","payload":{%b"result":null,"error":%b}}' % (_ids(id_, trace_id), error)).decode()


class _CallIds(Struct, gc=False):
    id: str
    trace_id: str | None = None


class _LateRequest(Struct, tag_field="type", tag="request", gc=False):
    payload: _CallIds


class _LateCommand(Struct, tag_field="type", tag="command", gc=False):
    payload: _CallIds


class _LateDescribe(Struct, tag_field="type", tag="describe", gc=False):
    payload: _CallIds


#: Ids that :func:`_check_ids` lets pass, and that JSON has as they are, without escapes.
_is_plain_id = re.compile(rf"[ !#-\[\]-~]{{1,{MAX_ID_LENGTH}}}").fullmatch
_is_plain_trace_id = re.compile(rf"[ !#-\[\]-~]{{0,{MAX_TRACE_ID_LENGTH}}}").fullmatch
_decode_late = msgspec.json.Decoder(_LateRequest | _LateCommand | _LateDescribe).decode


def encode_refusals(texts: Iterable[str], errors: Iterator[str]) -> list[str]:
    """Encode the answers to the calls at the beginning of ``texts``, which fail unread.

    ``errors`` are as the error of :func:`encode_failed`. It stops at the first frame that is no call, or whose ids need
    a closer look. No function of Python is called for a frame: a refusal has to cost far less than a call.
    """
    answers: list[str] = []
    try:
        for text in texts:
            ids = _decode_late(text).payload
            id_, trace_id = ids.id, ids.trace_id
            if not _is_plain_id(id_) or not (trace_id is None or _is_plain_trace_id(trace_id)):
                break
            more = "" if trace_id is None else f'"trace_id":"{trace_id}",'
            answers.append(
                f'{{"type":"response","payload":{{"id":"{id_}",{more}"result":null,"error":{next(errors)}}}}}'
            )
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        pass  # the frame is looked at as usual
    return answers


def encode_error(failure: Failure) -> str:
    """Encode an error without a frame to answer. Its fields are flat, as in nuropb_gw."""
    frame = {"type": "error", **error_members(failure)}
    if failure.retry_after_ms is None:
        del frame["retry_after_ms"]
    return encode_json(frame).decode()


def error_members(failure: Failure) -> dict[str, object]:
    """Return the members of an error, as clients see it."""
    return {
        "error": failure.error or failure.code.nuropb_class,
        "description": failure.description,
        "code": failure.code.value,
        "retryable": failure.code.retryable,
        "retry_after_ms": failure.retry_after_ms,
    }


def encode_event(topic: str, event: bytes | Raw, trace_id: str | None = None) -> str:
    """Encode an event. ``event`` is JSON."""
    trace = b"" if trace_id is None else b',"trace_id":%b' % encode_json(trace_id)
    return (b'{"type":"event","payload":{"topic":%b,"event":%b%b}}' % (encode_json(topic), event, trace)).decode()


def encode_kept_event(topic: str, event: bytes | Raw, trace_id: str | None, epoch: str, offset: int) -> str:
    """Encode an event of a topic with history, with its position there."""
    frame = encode_event(topic, event, trace_id)
    return f'{frame[:-2]},"position":{{"epoch":"{epoch}","offset":{offset}}}}}}}'


def on_one_line(frame: str) -> str:
    """Return ``frame`` without line breaks, which in JSON stand between tokens only and mean nothing."""
    return frame.replace("\r", " ").replace("\n", " ") if "\n" in frame or "\r" in frame else frame


def encode_dropped(topic: str | None, count: int) -> str:
    """Encode the notice for a client that was too slow: the number of events dropped, of one topic or of several."""
    return encode_event("dropped", encode_json({"count": count, "topic": topic}))


def encode_pong(payload: Raw) -> str:
    """Encode the answer to a client's ping, with the same payload."""
    text = bytes(payload)
    return (b'{"type":"pong","payload":%b}' % text).decode() if text else '{"type":"pong"}'


def encode_topics(topics: Sequence[str], history: Mapping[str, object] | None = None) -> bytes:
    """Encode the result of a subscribe or unsubscribe: the topics that the connection is subscribed to now.

    ``history`` tells, for each topic that begins in the past, the events that follow.
    """
    return encode_json({"topics": topics} if not history else {"topics": topics, "history": history})


# --- counted frames -------------------------------------------------------------------------------------------

_COUNTED: Final = ('{"type":"response"', '{"type":"event"', '{"type":"error"')
_NOT_COUNTED: Final = tuple(f'{{"type":"event","payload":{{"topic":"{topic}"' for topic in ("hello", "goodbye"))
_NOT_COUNTED_TOPICS: Final = ("hello", "goodbye")


class _TypedFrame(Struct, gc=False):
    type: Any = None
    payload: Any = None


_decode_typed = msgspec.json.Decoder(_TypedFrame).decode


def is_counted(text: str) -> bool:
    """Tell whether a resumable session counts this frame of the gateway.

    Responses, events and errors are counted, but for ``hello`` and ``goodbye``, which belong to one connection.
    """
    if text.startswith(_COUNTED):
        return not text.startswith(_NOT_COUNTED)
    if text.startswith('{"type":"p'):
        return False
    # A frame of the host application may be written in another way.
    try:
        frame = _decode_typed(text)
    except (msgspec.MsgspecError, RecursionError):
        return False
    if frame.type not in ("response", "event", "error"):
        return False
    topic = frame.payload.get("topic") if isinstance(frame.payload, dict) else None
    return not (frame.type == "event" and topic in _NOT_COUNTED_TOPICS)
