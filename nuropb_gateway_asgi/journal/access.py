"""Access lines: one for each connection that has ended, and one for each call."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Final, Protocol

from .records import ACCESS_LOGGER, LineBudget, record

__all__ = ["AccessLog", "CountedWriter", "Traffic"]

logger: Final = logging.getLogger(ACCESS_LOGGER)


def size_of(text: str | bytes) -> int:
    """Return the bytes of a message."""
    return len(text) if isinstance(text, bytes) or text.isascii() else len(text.encode("utf-8", "surrogatepass"))


class Traffic:
    """The messages and bytes of one connection, without those of the handshake and of the transport."""

    __slots__ = ("began", "bytes_received", "bytes_sent", "received", "sent")

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.received = self.bytes_received = self.sent = self.bytes_sent = 0

    def on_received(self, message: str | bytes) -> None:
        """Count a message of the client."""
        self.received += 1
        self.bytes_received += size_of(message)

    def on_sent(self, text: str) -> None:
        """Count a message for the client."""
        self.sent += 1
        self.bytes_sent += size_of(text)


class _Writer(Protocol):
    @property
    def is_writable(self) -> bool: ...

    def prepare(self, max_size: int) -> bool: ...

    @property
    def attach(self) -> Callable[..., None]: ...

    def write(self, text: str) -> None: ...

    def write_all(self, texts: list[str]) -> None: ...

    def close(self, code: int, reason: str) -> None: ...

    def cut(self) -> None: ...


class CountedWriter:
    """A direct WebSocket whose written messages are counted. It is in place while there is an access log alone."""

    __slots__ = ("_traffic", "_writer", "attach", "close", "cut", "prepare")

    def __init__(self, writer: _Writer, traffic: Traffic) -> None:
        self._writer = writer
        self._traffic = traffic
        self.prepare, self.attach, self.close, self.cut = writer.prepare, writer.attach, writer.close, writer.cut

    @property
    def is_writable(self) -> bool:
        """Whether the client keeps up."""
        return self._writer.is_writable

    def write(self, text: str) -> None:
        """Send a text message, and count it."""
        self._traffic.on_sent(text)
        self._writer.write(text)

    def write_all(self, texts: list[str]) -> None:
        """Send some text messages, and count them."""
        for text in texts:
            self._traffic.on_sent(text)
        self._writer.write_all(texts)


class AccessLog:
    """The access lines of a process: ``rate`` of them a second; further ones are summed up in a line."""

    def __init__(self, rate: int, *, calls: bool, clock: Callable[[], float] = time.monotonic) -> None:
        #: Whether there is a line for each call.
        self.has_calls = calls
        self._budget = LineBudget(rate, 1.0, _report, clock=clock)

    def close(self) -> None:
        """Report the lines that were left out."""
        self._budget.close()

    def on_connection_ended(self, who: dict[str, Any], how: dict[str, Any], traffic: Traffic) -> None:
        """Write the line of a connection: ``who`` had it, and ``how`` it ended, as attributes."""
        if self._budget.take("connection"):
            attributes = {
                **who,
                "nuropb.seconds": round(time.monotonic() - traffic.began, 3),
                **how,
                "nuropb.frames_received": traffic.received,
                "nuropb.bytes_received": traffic.bytes_received,
                "nuropb.frames_sent": traffic.sent,
                "nuropb.bytes_sent": traffic.bytes_sent,
            }
            record(logger, "nuropb.connection.ended", "connection ended", attributes)

    def on_call_ended(self, code: str, attributes: dict[str, Any], trace_id: str) -> None:
        """Write the line of a call that was answered with ``ok`` or an error code, or was abandoned."""
        if self._budget.take(code):
            attributes = {"rpc.system": "nuropb", "rpc.response.status_code": code, **attributes}
            record(logger, "nuropb.call.ended", "call ended", attributes, trace_id=trace_id)


def _report(counts: Counter[str]) -> None:
    attributes = {"nuropb.left_out": counts.total(), "nuropb.left_out_by": dict(counts)}
    record(logger, "nuropb.access.left_out", "access lines are left out", attributes)
