"""What is made of what was measured: percentiles, medians, and ratios within a turn. Pure.

A sample is one contender in one cell (so many requests in flight, say) in one turn: ``count`` of what was done in
``seconds``, the ``cpu`` seconds by process, and what else there is to know about it. A contender that could not be
measured is not there, and then there is no median either.
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
#: Turn by turn: contender, cell, sample.
Turns: TypeAlias = Sequence[Mapping[str, Mapping[str, Sample]]]
Value: TypeAlias = Callable[[Sample], float | None]

#: A bucket of a histogram is so much wider than the one before; so large an error may its percentiles have.
RESOLUTION: Final = 1.01


class Ratio(NamedTuple):
    """The median of the ratios within the turns, and the lowest and the highest of them."""

    median: float
    lowest: float
    highest: float


# --- percentiles --------------------------------------------------------------------------------------------------


def percentile(ordered: Sequence[float], share: float) -> float:
    """The smallest of the values that is not smaller than this share of them; they have to be in order."""
    return ordered[max(0, math.ceil(len(ordered) * share) - 1)]


def histogram(seconds: Iterable[float]) -> dict[str, int]:
    """How many values there are in each bucket; histograms can be added up."""
    return dict(Counter(str(round(math.log(max(each, 1e-9)) / math.log(RESOLUTION))) for each in seconds))


def percentile_of(histograms: Iterable[Mapping[str, int]], share: float) -> float | None:
    """The percentile of all values in some histograms, or None if there are none."""
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
    """CPU seconds of the server for 1000 of what was done; None if it has no process of its own."""
    seconds: float | None = sample["cpu"].get("server")
    return None if seconds is None else seconds / float(sample["count"]) * 1000


def rate(sample: Sample) -> float:
    """How many were done in a second."""
    return float(sample["count"]) / float(sample["seconds"])


def share_of_a_core(process: str) -> Value:
    """How much of one core a process used."""

    def share(sample: Sample) -> float | None:
        return None if process not in sample["cpu"] else float(sample["cpu"][process] / sample["seconds"])

    return share


# --- over all turns -----------------------------------------------------------------------------------------------


def median(turns: Turns, name: str, cell: str, value: Value) -> float | None:
    """The median over the turns."""
    values = _values(turns, name, cell, value)
    return statistics.median(values) if values else None


def pooled_percentile(turns: Turns, name: str, cell: str, share: float) -> float | None:
    """A percentile of the latencies of all turns together: a single turn has too few for the rare ones."""
    return percentile_of((turn[name][cell]["latencies"] for turn in turns if cell in turn.get(name, {})), share)


def ratio(turns: Turns, name: str, base: str, cell: str, value: Value, *, base_cell: str | None = None) -> Ratio | None:
    """What ``name`` has for what ``base`` has in the same turn (in ``base_cell``, if that is another one)."""
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
