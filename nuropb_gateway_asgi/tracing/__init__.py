"""How is a call followed through all programs? Spans of OpenTelemetry, and the trace context of the W3C."""

from __future__ import annotations

from .carriers import carrier_of, trace_id_of
from .spans import CallTrace, ServiceTracing, Tracing

__all__ = ["CallTrace", "ServiceTracing", "Tracing", "carrier_of", "trace_id_of"]
