from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nuropb_gateway_asgi.cli._numbers import Bucket, bar, histogram, percentile

DURATIONS = st.lists(st.floats(min_value=1e-6, max_value=1e3), min_size=1, max_size=200).map(sorted)


@pytest.mark.parametrize(
    ("count", "percent", "rank"),
    [
        (1, 50, 1),
        (1, 99.9, 1),
        (2, 50, 1),
        (3, 50, 2),
        (100, 90, 90),
        (100, 99, 99),
        (100, 99.9, 100),
        (1000, 99.9, 999),
    ],
)
def test_a_percentile_is_one_of_the_values(count: int, percent: float, rank: int) -> None:
    assert percentile([float(each) for each in range(1, count + 1)], percent) == rank


@given(DURATIONS, st.sampled_from([50.0, 90.0, 99.0, 99.9]))
def test_so_many_values_are_not_above_a_percentile(ordered: list[float], percent: float) -> None:
    found = percentile(ordered, percent)
    assert sum(value <= found for value in ordered) >= percent * len(ordered) / 100 - 1e-6


@given(DURATIONS, st.integers(1, 20))
def test_a_histogram_has_every_value_once_from_the_first_to_the_last(ordered: list[float], buckets: int) -> None:
    found = histogram(ordered, buckets)
    assert sum(each.count for each in found) == len(ordered)
    assert all(each.count >= 0 for each in found)
    assert (found[0].low, found[-1].high) == (ordered[0], ordered[-1])
    assert [each.high for each in found[:-1]] == [each.low for each in found[1:]]


def test_histograms_of_little() -> None:
    assert histogram([], 3) == []
    assert histogram([1.0, 1.0], 3) == [Bucket(1.0, 1.0, 2)]
    assert histogram([0.0, 1.0], 3) == [Bucket(0.0, 1.0, 2)]
    assert [each.count for each in histogram([1.0, 2.0, 50.0, 100.0], 2)] == [2, 2]


@pytest.mark.parametrize(
    ("share", "plain", "drawn"),
    [
        (0.0, False, ""),
        (0.0, True, ""),
        (1.0, False, "████"),
        (1.0, True, "####"),
        (0.5, False, "██"),
        (0.375, False, "█▌"),
        (1e-9, False, "▏"),
        (1e-9, True, "#"),
    ],
)
def test_a_bar_shows_whatever_there_is(share: float, plain: bool, drawn: str) -> None:
    assert bar(share, 4, plain=plain) == drawn
