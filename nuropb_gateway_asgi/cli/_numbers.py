"""What many measurements come to: percentiles, and a histogram out of characters."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Bucket", "bar", "histogram", "percentile"]

_EIGHTHS = " ▏▎▍▌▋▊▉"


@dataclass(frozen=True)
class Bucket:
    """``count`` values from ``low`` up to ``high``."""

    low: float
    high: float
    count: int


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The smallest value that ``percent`` of all are not above (the nearest rank). There must be one at least."""
    # Rounded, as 99.9 per cent of 1000 are 999.0000000000001 in floating point.
    rank = math.ceil(round(percent * len(ordered) / 100, 9))
    return ordered[min(max(rank, 1), len(ordered)) - 1]


def histogram(ordered: Sequence[float], buckets: int) -> list[Bucket]:
    """At most so many buckets of growing width, as what takes ten times as long is rare; nothing for no values."""
    if not ordered:
        return []
    first, last = ordered[0], ordered[-1]
    if first == last or first <= 0:
        return [Bucket(first, last, len(ordered))]
    factor = (last / first) ** (1 / buckets)
    bounds = [first * factor**number for number in range(buckets)] + [last]
    # Both ends are exactly those of the values; in between a rounding error decides nothing.
    places = [0, *(bisect.bisect_left(ordered, bound) for bound in bounds[1:-1]), len(ordered)]
    return [
        Bucket(bounds[number], bounds[number + 1], places[number + 1] - places[number]) for number in range(buckets)
    ]


def bar(share: float, width: int, *, plain: bool = False) -> str:
    """A bar of ``share`` (0 to 1) of so many characters; whatever there is can be seen. ``plain`` is ASCII."""
    if share <= 0:
        return ""
    if plain:
        return "#" * max(1, round(share * width))
    eighths = max(1, round(share * width * 8))
    full, rest = divmod(eighths, 8)
    return "█" * full + _EIGHTHS[rest].strip()
