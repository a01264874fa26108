"""Percentiles and histograms of measurements, and bars of characters to draw them."""

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
    """Return the smallest value that ``percent`` of all values do not exceed (nearest rank). Needs a value."""
    # Rounded, as 99.9 per cent of 1000 are 999.0000000000001 in floating point.
    rank = math.ceil(round(percent * len(ordered) / 100, 9))
    return ordered[min(max(rank, 1), len(ordered)) - 1]


def histogram(ordered: Sequence[float], buckets: int) -> list[Bucket]:
    """Sort values into at most ``buckets`` buckets of geometrically growing width; no values give no buckets."""
    if not ordered:
        return []
    first, last = ordered[0], ordered[-1]
    if first == last or first <= 0:
        return [Bucket(first, last, len(ordered))]
    factor = (last / first) ** (1 / buckets)
    bounds = [first * factor**number for number in range(buckets)] + [last]
    # Both ends are exact; between them a rounding error only moves a value to the next bucket.
    places = [0, *(bisect.bisect_left(ordered, bound) for bound in bounds[1:-1]), len(ordered)]
    return [
        Bucket(bounds[number], bounds[number + 1], places[number + 1] - places[number]) for number in range(buckets)
    ]


def bar(share: float, width: int, *, plain: bool = False) -> str:
    """Draw ``share`` (0 to 1) of ``width`` characters, at least a visible bit. ``plain`` draws in ASCII."""
    if share <= 0:
        return ""
    if plain:
        return "#" * max(1, round(share * width))
    eighths = max(1, round(share * width * 8))
    full, rest = divmod(eighths, 8)
    return "█" * full + _EIGHTHS[rest].strip()
