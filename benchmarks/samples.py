"""Percentiles, medians and ratios of samples. Pure.

A sample is the measurement of one contender in one cell (a number of requests in flight, for example) in one turn: the
``count`` of operations in ``seconds``, the ``cpu`` seconds by process, and further figures of the part. A contender
without a measurement has no sample, and so no median either.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

__all__ = [
    "Ratio",
    "Sample",
    "Turns",
    "Value",
    "cpu_per_thousand",
    "histogram",
    "median",
    "percentile",
    "percentile_of",
    "pooled_percentile",
    "rate",
    "ratio",
    "share_of_a_core",
]

Sample: TypeAlias = Mapping[str, Any]
#: One mapping per turn: contender, then cell, then sample.
Turns: TypeAlias = Sequence[Mapping[str, Mapping[str, Sample]]]
Value: TypeAlias = Callable[[Sample], float | None]

#: Ratio of a histogram's bucket to the bucket before it, and so the largest error of its percentiles.
RESOLUTION: Final = 1.01


class Ratio(NamedTuple):
    """Median, lowest and highest of the ratios within the turns."""

    median: float
    lowest: float
    highest: float


# --- percentiles --------------------------------------------------------------------------------------------------


def percentile(ordered: Sequence[float], share: float) -> float:
    """Return the smallest value that is at least as large as this share of the values, which must be sorted."""
    return ordered[max(0, math.ceil(len(ordered) * share) - 1)]


def histogram(seconds: Iterable[float]) -> dict[str, int]:
    """Count the values in each bucket; histograms can be added up."""
    return dict(Counter(str(round(math.log(max(each, 1e-9)) / math.log(RESOLUTION))) for each in seconds))


def percentile_of(histograms: Iterable[Mapping[str, int]], share: float) -> float | None:
    """Return the percentile of all values in the histograms, or None if they have no values."""
    total: Counter[int] = Counter()
    for each in histograms:
        for bucket, count in each.items():
            total[int(bucket)] += count
    wanted, seen = max(1, math.ceil(total.total() * share)), 0
    for exponent in sorted(total):
        seen += total[exponent]
        if seen >= wanted:
            return float(RESOLUTION**exponent)
    return None


# --- values of a sample -------------------------------------------------------------------------------------------


def cpu_per_thousand(sample: Sample) -> float | None:
    """Return the server's CPU seconds for 1000 operations, or None if it has no process of its own."""
    seconds: float | None = sample["cpu"].get("server")
    return None if seconds is None else seconds / float(sample["count"]) * 1000


def rate(sample: Sample) -> float:
    """Return the operations per second."""
    return float(sample["count"]) / float(sample["seconds"])


def share_of_a_core(process: str) -> Value:
    """Return a function that reads the share of one core that a process used."""

    def share(sample: Sample) -> float | None:
        return None if process not in sample["cpu"] else float(sample["cpu"][process] / sample["seconds"])

    return share


# --- over all turns -----------------------------------------------------------------------------------------------


def median(turns: Turns, name: str, cell: str, value: Value) -> float | None:
    """Return the median over the turns, or None without samples."""
    values = _values(turns, name, cell, value)
    return statistics.median(values) if values else None


def pooled_percentile(turns: Turns, name: str, cell: str, share: float) -> float | None:
    """Return a percentile of the latencies of all turns together: a single turn has too few for rare latencies."""
    return percentile_of((turn[name][cell]["latencies"] for turn in turns if cell in turn.get(name, {})), share)


def ratio(turns: Turns, name: str, base: str, cell: str, value: Value, *, base_cell: str | None = None) -> Ratio | None:
    """Divide the value of ``name`` by that of ``base``, turn by turn; ``base_cell`` defaults to ``cell``."""
    ratios = []
    for turn in turns:
        (own,) = _values([turn], name, cell, value) or (None,)
        (other,) = _values([turn], base, base_cell or cell, value) or (None,)
        if own is not None and other:
            ratios.append(own / other)
    return Ratio(statistics.median(ratios), min(ratios), max(ratios)) if ratios else None


def _values(turns: Turns, name: str, cell: str, value: Value) -> list[float]:
    found = (value(turn[name][cell]) for turn in turns if cell in turn.get(name, {}))
    return [each for each in found if each is not None]
