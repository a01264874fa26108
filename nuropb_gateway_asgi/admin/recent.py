"""The latest warnings and errors of a process, for a debug bundle."""

from __future__ import annotations

import copy
import logging
from collections import deque
from types import TracebackType
from typing import Final, Self

from ..observability.logs import LogFilter, TextFormatter

__all__ = ["RecentLines"]

#: Lines that are kept, and characters of each.
LINES: Final = 200
LENGTH: Final = 2000


class RecentLines(logging.Handler):
    """Keeps the latest warnings and errors of the gateway's own loggers, without content of clients.

    A context manager: the handler is in place as long as the context lasts.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._filter = LogFilter(whole=True)
        formatter = TextFormatter()
        self.setFormatter(formatter)
        self._lines: deque[str] = deque(maxlen=LINES)

    @property
    def lines(self) -> list[str]:
        """The lines, the oldest first."""
        return list(self._lines)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record."""
        record = copy.copy(record)  # the filter changes it
        if self._filter.filter(record):
            record.exc_info = None  # the filtered text of the exception remains
            time = logging.Formatter().formatTime(record)
            self._lines.append(f"{time} {self.format(record)}"[:LENGTH])

    def __enter__(self) -> Self:
        logging.getLogger("nuropb_gateway_asgi").addHandler(self)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        logging.getLogger("nuropb_gateway_asgi").removeHandler(self)
