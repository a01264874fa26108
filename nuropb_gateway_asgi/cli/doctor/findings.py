"""Findings: what a step has found, and how to fix it, each in one line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from .._output import counted

__all__ = ["DAY", "LEEWAY", "Finding", "not_checked", "ok", "span", "wrong"]

#: Seconds by which clocks may differ: the default leeway of a gateway.
LEEWAY: Final = 10.0
#: In seconds.
DAY: Final = 86400.0


@dataclass(frozen=True)
class Finding:
    """The result of one step. ``mend`` is the remedy; after "ok" it is advice."""

    status: Literal["ok", "wrong", "not checked"]
    found: str
    mend: str | None = None


def ok(found: str, advice: str | None = None) -> Finding:
    """Make the finding of a step that succeeded."""
    return Finding("ok", found, advice)


def wrong(found: str, mend: str) -> Finding:
    """Make the finding of a step that failed: first the fact, then the remedy."""
    return Finding("wrong", found, mend)


def not_checked(reason: str) -> Finding:
    """Make the finding of a step that was skipped."""
    return Finding("not checked", reason)


def span(seconds: float) -> str:
    """Format a duration in its largest unit: ``2 hours``."""
    size = abs(seconds)
    for length, name in ((DAY, "day"), (3600.0, "hour"), (60.0, "minute")):
        if size >= length:
            return counted(int(size // length), name)
    return counted(round(size), "second")
