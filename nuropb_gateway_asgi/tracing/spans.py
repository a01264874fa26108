"""Spans of calls, connections, checks of tokens and events. They need ``opentelemetry-api`` (the extra ``otel``).

The spans go to the tracer provider that the process has, for example that of ``opentelemetry-instrument``. Without a
provider nothing is recorded, and the trace context of callers is passed on all the same.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Awaitable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec
from msgspec import Raw

from ..exceptions import SettingsError
from ..protocol import ErrorCode, TraceContext
from .carriers import MAX_LENGTH, UNRECORDED, carrier_of, is_recorded

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span, Tracer

__all__ = ["CallTrace", "ServiceTracing", "Tracing"]

_T = TypeVar("_T")
SYSTEM: Final = "nuropb"
#: Codes of errors that are a fault of the gateway, the mesh or the service, and not of the caller.
FAULTS: Final = frozenset(
    {
        ErrorCode.TIMEOUT,
        ErrorCode.INTERNAL,
        ErrorCode.MESH_UNAVAILABLE,
        ErrorCode.SERVICE_UNAVAILABLE,
        ErrorCode.SERVICE_ERROR,
    }
)


class CallTrace:
    """The trace of one call: its context for the service, and its span if the call is recorded."""

    __slots__ = ("_began", "_sent", "carrier", "span")

    def __init__(self, carrier: dict[str, str], span: Span | None) -> None:
        #: Members for the call's context.
        self.carrier = carrier
        self.span = span
        self._began = time.monotonic()
        self._sent: float | None = None

    def on_sent(self) -> None:
        """Note that the mesh has the call: until now it has waited in the gateway, from now on for its service."""
        self._sent = time.monotonic()
        if self.span is not None:
            self.span.add_event("sent")

    def end(self, code: str) -> None:
        """End the span of a call that was answered with ``ok`` or an error code."""
        span, now = self.span, time.monotonic()
        if span is None:
            return
        sent = now if self._sent is None else self._sent
        span.set_attribute("rpc.response.status_code", code)
        span.set_attribute("nuropb.gateway_seconds", sent - self._began)
        span.set_attribute("nuropb.service_seconds", now - sent)
        _end(span, None if code == "ok" else code, is_fault=code in FAULTS)


class _Spans:
    """A tracer, and the parts of OpenTelemetry's interface that are in use."""

    def __init__(self) -> None:
        from opentelemetry import context, propagate, trace

        self._context = context
        self._trace = trace
        self._extract = propagate.extract
        self._tracer: Tracer = trace.get_tracer("nuropb_gateway_asgi")
        self._root: Context = context.Context()

    def _parent(self, carrier: Mapping[str, str] | None) -> Context:
        return self._root if carrier is None else self._extract(carrier, context=self._root)


class Tracing(_Spans):
    """The spans of the connections of one transport, and of their calls."""

    def __init__(self) -> None:
        super().__init__()
        #: Spans of connections that are recorded, by session.
        self._connections: dict[str, Span] = {}
        #: Trace context of connections that are not recorded, by session.
        self._unrecorded: dict[str, dict[str, str]] = {}

    @classmethod
    def of(cls, setting: str) -> Tracing | None:
        """Return the tracing for the setting TRACING. Raises SettingsError if its packages are missing."""
        if setting == "off":
            return None
        try:
            return cls()
        except ModuleNotFoundError as error:
            raise SettingsError(
                "NUROPB_GATEWAY_TRACING: OpenTelemetry is not installed; "
                'expected pip install "nuropb-gateway-asgi[otel]", or the value off'
            ) from error

    def __len__(self) -> int:
        """Return the number of connections for which anything is kept."""
        return len(self._connections) + len(self._unrecorded)

    # --- calls ------------------------------------------------------------------------------------------------

    def unrecorded(self, given: TraceContext | None, session_id: str) -> dict[str, str] | None:
        """Return the trace context to pass on for a call that is not recorded, or None for one that may be.

        A client decides for its call by the flag in ``given``, its trace context. Without one, the call belongs to its
        connection. So most calls cost a look-up: a tracer's decision takes as long as a quarter of a call.
        """
        if given is None or given.traceparent is None:
            return self._unrecorded.get(session_id)
        if UNRECORDED.fullmatch(given.traceparent) is None:
            return None
        return _carrier(given) if given.tracestate or given.baggage else {"traceparent": given.traceparent}

    def call(self, kind: str, service: str, method: str, given: TraceContext | None, session_id: str) -> CallTrace:
        """Begin the span of a client's request or command."""
        attributes = {"rpc.system": SYSTEM, "rpc.service": service, "rpc.method": method, "nuropb.kind": kind}
        return self._begin(f"{service}/{method}", given, attributes, session_id)

    def describe(self, service: str | None, given: TraceContext | None, session_id: str) -> CallTrace:
        """Begin the span of a client's ``describe``."""
        attributes = {"rpc.system": SYSTEM, "nuropb.kind": "describe"}
        if service is not None:
            attributes["rpc.service"] = service
        return self._begin("describe", given, attributes, session_id)

    def _begin(self, name: str, given: TraceContext | None, attributes: dict[str, str], session_id: str) -> CallTrace:
        connection = self._connections.get(session_id)
        carrier, links = _carrier(given), None
        parent = self._parent(carrier)
        if connection is not None:
            if carrier is None:
                parent = self._trace.set_span_in_context(connection, self._root)
            else:
                links = [self._trace.Link(connection.get_span_context())]
        server = self._trace.SpanKind.SERVER
        span = self._tracer.start_span(name, parent, server, attributes | {"session.id": session_id}, links)
        passed = carrier or {}
        if span.get_span_context().is_valid:
            passed["traceparent"] = _traceparent(span)
        return CallTrace(passed, span if span.is_recording() else None)

    def ambient(self, source: Mapping[str, Any]) -> TraceContext | None:
        """Return the trace context of a request: that of the current span if there is one, else of its headers."""
        carrier = self._current() or carrier_of(source)
        return None if carrier is None else TraceContext(**carrier)

    def _current(self) -> dict[str, str] | None:
        """Return the context of the span in which this runs, for example that of a host application's middleware."""
        if not self._trace.get_current_span().get_span_context().is_valid:
            return None
        from opentelemetry.propagate import inject

        carrier: dict[str, str] = {}
        inject(carrier)
        return carrier_of(carrier)

    # --- connections ------------------------------------------------------------------------------------------

    def on_connected(self, session_id: str, handshake: TraceContext | None) -> None:
        """Begin the span of a registered connection; ``handshake`` is the trace context of its request."""
        server = self._trace.SpanKind.SERVER
        parent = self._parent(_carrier(handshake))
        span = self._tracer.start_span("connection", parent, server, {"session.id": session_id})
        if span.is_recording():
            self._connections[session_id] = span
        elif span.get_span_context().is_valid:
            self._unrecorded[session_id] = {"traceparent": _traceparent(span)}

    def on_disconnected(self, session_id: str) -> None:
        """End the span of a connection."""
        self._unrecorded.pop(session_id, None)
        span = self._connections.pop(session_id, None)
        if span is not None:
            span.end()

    def rename(self, old: str, new: str) -> None:
        """Give the connection of a session another session id."""
        carrier = self._unrecorded.pop(old, None)
        if carrier is not None:
            self._unrecorded[new] = carrier
        span = self._connections.pop(old, None)
        if span is not None:
            span.set_attribute("session.id", new)
            self._connections[new] = span

    async def check(self, checking: Awaitable[_T], handshake: TraceContext | None) -> _T:
        """Await the check of a token, in a span. Raises the exceptions of the check."""
        span = self._tracer.start_span("token check", self._parent(_carrier(handshake)))
        with self._trace.use_span(span, record_exception=False, set_status_on_exception=False):
            try:
                result = await checking
            except BaseException as error:
                _end(span, type(error).__name__, is_fault=False)  # its text may quote the token
                raise
        _end(span, None)
        return result

    # --- events -----------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def delivering(self, topic: str, context: bytes | Raw) -> Iterator[None]:
        """Have a span for as long as an event goes to its receivers, if its publisher's is recorded.

        ``context`` is the publisher's, as JSON.
        """
        carrier = _carrier_in(context)
        if carrier is None or not is_recorded(carrier):
            yield
            return
        attributes = {
            "messaging.system": SYSTEM,
            "messaging.operation.type": "process",
            "messaging.destination.name": topic,
        }
        consumer = self._trace.SpanKind.CONSUMER
        span = self._tracer.start_span("event fan-out", self._parent(carrier), consumer, attributes)
        try:
            yield
        finally:
            span.end()


class ServiceTracing(_Spans):
    """The spans of a hosted service."""

    @contextlib.contextmanager
    def calling(self, service: str, method: str, context: Mapping[str, Any]) -> Iterator[Span]:
        """Have a span for as long as a method runs, which is current: the method's own spans are its children."""
        attributes = {"rpc.system": SYSTEM, "rpc.service": service, "rpc.method": method}
        server = self._trace.SpanKind.SERVER
        parent = self._parent(carrier_of(context))
        with self._tracer.start_as_current_span(
            f"{service}/{method}",
            parent,
            server,
            attributes,
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            yield span

    @staticmethod
    def fail(span: Span, error: str) -> None:
        """Note the class of the exception that a method has raised."""
        _mark(span, error, is_fault=True)


def _carrier(given: TraceContext | None) -> dict[str, str] | None:
    return None if given is None else carrier_of(msgspec.structs.asdict(given))


def _traceparent(span: Span) -> str:
    own = span.get_span_context()
    return f"00-{own.trace_id:032x}-{own.span_id:016x}-{own.trace_flags:02x}"


def _end(span: Span, error: str | None, *, is_fault: bool = True) -> None:
    if error is not None:
        _mark(span, error, is_fault=is_fault)
    span.end()


def _mark(span: Span, error: str, *, is_fault: bool) -> None:
    from opentelemetry.trace import StatusCode

    span.set_attribute("error.type", error)
    if is_fault:
        span.set_status(StatusCode.ERROR)


def _carrier_in(context: bytes | Raw) -> dict[str, str] | None:
    """Return the trace context within the context of an event."""
    if b"traceparent" not in bytes(context) or len(memoryview(context)) > 2 * MAX_LENGTH:
        return None
    try:
        members = msgspec.json.decode(context)
    except (msgspec.MsgspecError, RecursionError):
        return None
    return carrier_of(members) if isinstance(members, dict) else None
