"""What is written down about connections, calls and operators? Access lines, call summaries, and the audit log.

The lines are records of Python's logging with the name of an event and attributes; ``observability`` formats them.
``records`` has the table of events, which ``docs/logs.md`` explains.
"""

from __future__ import annotations

from .access import AccessLog, CountedWriter, Traffic
from .audit import AUDIT_LOGGER, Audit
from .journal import NO_JOURNAL, Journal
from .records import ACCESS_LOGGER, EVENTS, LineBudget

__all__ = [
    "ACCESS_LOGGER",
    "AUDIT_LOGGER",
    "EVENTS",
    "NO_JOURNAL",
    "AccessLog",
    "Audit",
    "CountedWriter",
    "Journal",
    "LineBudget",
    "Traffic",
]
