"""The events of the journal with their attributes, and the form of their log records."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Final

__all__ = ["ACCESS_LOGGER", "AUDIT_LOGGER", "EVENTS", "MAX_TEXT", "LineBudget", "bounded", "record"]

#: The names of the loggers; those of modules are for developers, these are for operators.
ACCESS_LOGGER: Final = "nuropb_gateway.access"
AUDIT_LOGGER: Final = "nuropb_gateway.audit"
#: Characters of an attribute. A user id, a topic or a reason may come from a client or a service.
MAX_TEXT: Final = 256

_CONNECTION: Final = ("user.id", "session.id", "client.address", "nuropb.transport")
_SUM: Final = ("nuropb.left_out", "nuropb.left_out_by")
_TOKENS: Final = ("user.id", "session.id", "nuropb.token_id", "nuropb.issued_before")
#: All events, with the attributes that their records may have. Attributes without a value are left out.
EVENTS: Final[Mapping[str, tuple[str, ...]]] = {
    "nuropb.connection.ended": (
        *_CONNECTION,
        "nuropb.seconds",
        "nuropb.close_code",
        "nuropb.close_reason",
        "nuropb.ended_by",
        "nuropb.frames_received",
        "nuropb.bytes_received",
        "nuropb.frames_sent",
        "nuropb.bytes_sent",
    ),
    "nuropb.call.ended": (
        "user.id",
        "session.id",
        "nuropb.transport",
        "rpc.system",
        "rpc.service",
        "rpc.method",
        "rpc.response.status_code",
        "nuropb.kind",
        "nuropb.seconds",
        "nuropb.gateway_seconds",
        "nuropb.service_seconds",
        "nuropb.request_bytes",
        "nuropb.response_bytes",
    ),
    "nuropb.access.left_out": _SUM,
    "nuropb.audit.connected": _CONNECTION,
    "nuropb.audit.disconnected": (*_CONNECTION, "nuropb.close_code", "nuropb.ended_by"),
    "nuropb.audit.refused": ("user.id", "client.address", "nuropb.transport", "nuropb.reason", "nuropb.detail"),
    "nuropb.audit.revoked": (*_TOKENS, "nuropb.until"),
    "nuropb.audit.revocation_taken_back": _TOKENS,
    "nuropb.audit.closed": ("user.id", "session.id", "nuropb.close_code", "nuropb.close_reason", "nuropb.count"),
    "nuropb.audit.admin_action": ("client.address", "nuropb.action", "nuropb.parameters", "nuropb.outcome"),
    "nuropb.audit.admin_refused": ("client.address", "nuropb.reason"),
    "nuropb.audit.left_out": _SUM,
}


def bounded(value: Any) -> Any:
    """Cut a text to MAX_TEXT characters; any other value is returned unchanged."""
    if isinstance(value, str) and len(value) > MAX_TEXT:
        return f"{value[:MAX_TEXT]}... ({len(value)} characters)"
    return value


def record(
    logger: logging.Logger,
    event: str,
    body: str,
    attributes: Mapping[str, Any],
    *,
    trace_id: str | None = None,
) -> None:
    """Log an event of EVENTS at INFO. ``body`` is its text for people; attributes that are None are left out."""
    given = {name: bounded(value) for name, value in attributes.items() if value is not None}
    logger.info(body, extra={"event_name": event, "attributes": given, "trace_id": trace_id})


class LineBudget:
    """A number of lines within some seconds; further ones are counted by kind, and reported in one line.

    ``report`` gets the counts, at the end of the period in which there were any, and by :meth:`close`. ``clock`` is a
    monotonic clock, in seconds. For the event loop's thread alone.
    """

    def __init__(
        self,
        lines: int,
        seconds: float,
        report: Callable[[Counter[str]], None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._most = lines
        self._seconds = seconds
        self._report = report
        self._clock = clock
        self._began = -seconds
        self._lines = 0
        self._left_out: Counter[str] = Counter()
        self._timer: asyncio.TimerHandle | None = None

    def take(self, kind: str) -> bool:
        """Return whether there is room for a line of this kind; count the line otherwise."""
        now = self._clock()
        if now - self._began >= self._seconds:
            self.close()
            self._began, self._lines = now, 0
        self._lines += 1
        if self._lines <= self._most:
            return True
        self._left_out[kind] += 1
        if self._timer is None:  # or the sum would wait for the next line
            self._timer = asyncio.get_running_loop().call_later(self._seconds, self.close)
        return False

    def close(self) -> None:
        """Report the lines that were left out since the last report, if there are any."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._left_out:
            counts, self._left_out = self._left_out, Counter()
            self._report(counts)
