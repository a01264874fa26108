"""Trace context as the W3C writes it: ``traceparent``, ``tracestate`` and ``baggage``. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

__all__ = ["MAX_LENGTH", "MEMBERS", "UNRECORDED", "carrier_of", "is_recorded", "trace_id_of"]

#: Names of the headers, in lower case, and of the members in frames, in the context of calls and in MCP's ``_meta``.
MEMBERS: Final = ("traceparent", "tracestate", "baggage")
#: Characters of ``tracestate`` and ``baggage`` that are passed on at most: the W3C's limits for both together suffice.
MAX_LENGTH: Final = 8192
#: A valid ``traceparent`` of this or a later version: ids of only zeros, and the version ff, are invalid.
_TRACEPARENT: Final = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})(?P<trace>[0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?"
)
#: A valid ``traceparent`` of a span that is not recorded: the last bit of its flags is 0.
UNRECORDED: Final = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f][02468ace](?:-.*)?"
)


def trace_id_of(traceparent: object, otherwise: str) -> str:
    """Return the trace id of a ``traceparent``, or ``otherwise`` if it has none."""
    match = _TRACEPARENT.fullmatch(traceparent) if isinstance(traceparent, str) else None
    return otherwise if match is None else match["trace"]


def carrier_of(source: Mapping[str, Any]) -> dict[str, str] | None:
    """Return the trace context among headers or other members, or None without a valid ``traceparent``."""
    if trace_id_of(source.get("traceparent"), "") == "":
        return None
    found = ((name, source.get(name)) for name in MEMBERS)
    return {name: value for name, value in found if isinstance(value, str) and 0 < len(value) <= MAX_LENGTH}


def is_recorded(carrier: Mapping[str, str]) -> bool:
    """Return whether the span of a carrier's ``traceparent`` is recorded."""
    return UNRECORDED.fullmatch(carrier["traceparent"]) is None
