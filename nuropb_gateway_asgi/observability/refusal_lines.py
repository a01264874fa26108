"""Bounds on the log lines that a stranger without a token can cause at any rate."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

__all__ = ["LINES", "SECONDS", "RefusalFilter", "is_of_anybody"]

logger = logging.getLogger(__name__)

#: The refusals that are logged within SECONDS; further ones are counted.
LINES: Final = 100
SECONDS: Final = 10.0


def is_refusal(record: logging.LogRecord) -> bool:
    """Return whether the record is about a request or handshake that was refused."""
    if not record.name.startswith("uvicorn."):
        return record.levelno >= logging.INFO
    if '"WebSocket ' in str(record.msg):
        return "[accepted]" not in str(record.msg)
    if str(record.msg).startswith("Invalid HTTP request received") or str(record.msg).startswith("connection rejected"):
        return True
    if str(record.msg).startswith("Invalid UTF-8"):
        return True
    status = _status(record)
    return status is not None and status >= 400


def is_of_anybody(record: logging.LogRecord) -> bool:
    """Return whether the record is one of uvicorn about a connection, or a request that needs no token."""
    if "[accepted]" in str(record.msg):
        return True
    if str(record.msg).startswith("connection open") or str(record.msg).startswith("connection closed"):
        return True
    status = _status(record)
    return status is not None and status < 400 and not (isinstance(record.args, tuple) and _is_call(record.args))


def _status(record: logging.LogRecord) -> int | None:
    # uvicorn's line about a request ends with the status.
    status = record.args[-1] if isinstance(record.args, tuple) and record.args else None
    return status if record.name == "uvicorn.access" and isinstance(status, int) else None


def _is_call(args: tuple[object, ...]) -> bool:
    return args[1] == "POST" and "/rpc/" in str(args[2])


class RefusalFilter(logging.Filter):
    """Lets at most LINES lines about refusals pass within SECONDS, and logs the number of those left out.

    The number is logged before the next such line that passes, and by :meth:`report`. The metrics count every refusal.
    The filter is for uvicorn's loggers, of which other lines pass, and for loggers that log nothing but refusals.
    ``matches`` and ``what`` are for lines other than those about refusals; ``clock`` is a monotonic clock, in seconds.
    """

    def __init__(
        self,
        matches: Callable[[logging.LogRecord], bool] = is_refusal,
        what: str = "refused requests",
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self._matches = matches
        self._what = what
        self._clock = clock
        self._started_at = -SECONDS
        self._lines = 0
        self._left_out = 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to log the record."""
        if not self._matches(record):
            return True
        now = self._clock()
        if now - self._started_at >= SECONDS:
            self.report()
            self._started_at, self._lines = now, 0
        self._lines += 1
        if self._lines <= LINES:
            return True
        self._left_out += 1
        return False

    def report(self) -> None:
        """Log the number of lines that were left out since the last report, if there are any."""
        if self._left_out:
            count, self._left_out = self._left_out, 0
            logger.info("%d lines about %s are left out: more than %d in %g s", count, self._what, LINES, SECONDS)
