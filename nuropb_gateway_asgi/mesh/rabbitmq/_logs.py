"""The log of this package's connections: aiormq's own lines about them become debug lines here."""

from __future__ import annotations

import logging
import time
from contextvars import ContextVar
from typing import Final

from ._aiormq import LIBRARY_LOGGERS

__all__ = ["Occasional", "quiet_aiormq"]

logger = logging.getLogger(__name__)

#: Seconds between two warnings of the same kind.
INTERVAL: Final = 60.0


class Occasional:
    """Logs a warning at most once a minute, and the others of its kind, which a peer may cause by thousands, as debug.

    The next warning tells how many there were meanwhile.
    """

    def __init__(self) -> None:
        self._due = 0.0
        self._left_out = 0

    def __call__(self, log: logging.Logger, text: str, *args: object) -> None:
        """Log ``text % args``."""
        now = time.monotonic()
        if now < self._due:
            self._left_out += 1
            log.debug(text, *args)
            return
        log.warning(text, *args)
        if self._left_out:
            log.warning("%d more of this kind were not shown", self._left_out)
        self._due, self._left_out = now + INTERVAL, 0


#: Set in the task of a link, and so in the tasks that aiormq starts for its connection.
_within_link: ContextVar[bool] = ContextVar("nuropb_gateway_within_link", default=False)


class _DemoteToDebug(logging.Filter):
    """Replaces aiormq's lines about this package's connections by debug lines of this package.

    A link reports a fault to the operator once; aiormq logs an error for each attempt to connect and a traceback for
    each loss. Lines about other connections of a host application pass unchanged.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the record is logged unchanged."""
        if not _within_link.get():
            return True
        if record.levelno > logging.DEBUG:  # aiormq's debug lines show every frame, with bodies and the password
            logger.debug("%s: %s", record.name, record.getMessage())
        return False


_demote_to_debug = _DemoteToDebug()


def quiet_aiormq() -> None:
    """Leave the log lines about the current task's connections to this package."""
    _within_link.set(True)
    for name in LIBRARY_LOGGERS:
        logging.getLogger(name).addFilter(_demote_to_debug)
