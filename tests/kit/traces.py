"""OpenTelemetry's SDK, with an exporter that keeps the spans."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Final

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

__all__ = ["CLIENT_SPAN", "TRACE_ID", "UNSAMPLED", "Spans", "parent_of", "recorded", "traceparent_of"]

TRACE_ID: Final = "0af7651916cd43dd8448eb211c80319c"
#: A traceparent of a client whose span is recorded, and one of a client whose span is not.
CLIENT_SPAN: Final = f"00-{TRACE_ID}-b7ad6b7169203331-01"
UNSAMPLED: Final = f"00-{TRACE_ID}-b7ad6b7169203331-00"


@functools.cache
def _exporter() -> InMemorySpanExporter:
    """Return the exporter of the process, which has one tracer provider for good."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return exporter


class Spans:
    """The spans that have ended."""

    def __init__(self, exporter: InMemorySpanExporter) -> None:
        self._exporter = exporter

    @property
    def ended(self) -> Sequence[ReadableSpan]:
        """All of them, in the order of their ends."""
        return self._exporter.get_finished_spans()

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.ended if span.name == name]

    def one(self, name: str) -> ReadableSpan:
        (span,) = self.named(name)
        return span


@contextlib.contextmanager
def recorded() -> Iterator[Spans]:
    """Record all spans of the process for as long as the context lasts."""
    exporter = _exporter()
    exporter.clear()
    try:
        yield Spans(exporter)
    finally:
        exporter.clear()


def traceparent_of(span: ReadableSpan) -> str:
    """Return the traceparent that the children of a span get."""
    context = span.get_span_context()
    assert context is not None
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def parent_of(span: ReadableSpan) -> str | None:
    """Return the span id of a span's parent."""
    return None if span.parent is None else f"{span.parent.span_id:016x}"
