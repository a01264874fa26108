"""Rates as operators write them: ``20/s``, ``100/min burst 200``. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal

__all__ = ["MAX_COUNT", "RATE_SYNTAX", "CallRate", "Rate", "parse_burst", "parse_limit", "parse_rate"]

MAX_COUNT: Final = 1_000_000
RATE_SYNTAX: Final = "a whole number up to 1000000 and a unit, as in 20/s, 100/min or 1000/h"

_SECONDS: Final = {"s": 1.0, "min": 60.0, "h": 3600.0}
_RATE = re.compile(r"([1-9][0-9]{0,6})/(s|min|h)")
_COUNT = re.compile(r"[1-9][0-9]{0,6}")


@dataclass(frozen=True, slots=True)
class Rate:
    """A rate of ``count`` per ``unit`` on average, and up to ``burst`` at once."""

    count: int
    unit: str
    burst: int

    @property
    def interval(self) -> float:
        """Seconds from one event to the next."""
        return _SECONDS[self.unit] / self.count

    def __str__(self) -> str:
        return f"{self.count}/{self.unit} burst {self.burst}"


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class CallRate:
    """The rate of some calls: for each user, or for all users of a process together.

    Its buckets belong to this very object, so a policy has to return the same object each time.
    """

    rate: Rate
    per: Literal["user", "process"] = "user"


def parse_rate(text: str) -> Rate:
    """Parse ``20/s``, with a burst of as many as in one unit. Raises ValueError."""
    match = _RATE.fullmatch(text)
    if match is None or int(match[1]) > MAX_COUNT:
        raise ValueError("not a rate")
    return Rate(int(match[1]), match[2], burst=int(match[1]))


def parse_burst(text: str) -> int:
    """Parse a burst. Raises ValueError."""
    if _COUNT.fullmatch(text) is None or int(text) > MAX_COUNT:
        raise ValueError(f"the burst is not a whole number from 1 to {MAX_COUNT}")
    return int(text)


def parse_limit(text: str) -> Rate | None:
    """Parse ``200/s``, ``200/s burst 400`` or, for no limit, ``off``. Raises ValueError."""
    if text == "off":
        return None
    rate, separator, burst = text.partition(" burst ")
    parsed = parse_rate(rate)
    return Rate(parsed.count, parsed.unit, parse_burst(burst)) if separator else parsed
