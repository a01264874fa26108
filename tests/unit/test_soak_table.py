"""The judgement of a day's soak on memory: growth is seen, noise and filled tables are not."""

from __future__ import annotations

import random

import pytest

from tests.kit.soak_table import Row, fit, growth_of_memory

MEBIBYTE = 1 << 20


def day(growth: float, noise: float, entries: int = 0) -> list[Row]:
    """Make the rows of 24 hours with a growth and a noise in bytes, and so many new remembered calls in an hour."""
    chance = random.Random(7)
    return [
        Row(
            int(60 * MEBIBYTE + growth * hour + chance.gauss(0, noise)),
            11,
            2,
            42,
            {"remembered_calls": entries * hour, "remembered_sessions": 0},
        )
        for hour in range(24)
    ]


def test_a_line_through_values_on_a_line_is_that_line() -> None:
    assert fit([1.0, 3.0, 5.0, 7.0]) == pytest.approx((2.0, 0.0, 0.0))


@pytest.mark.parametrize("noise", [0, MEBIBYTE / 4])
def test_memory_that_swings_has_not_grown(noise: float) -> None:
    more, bound, _ = growth_of_memory(day(0, noise))
    assert more <= bound


@pytest.mark.parametrize("noise", [0, MEBIBYTE / 16])
def test_a_leak_of_128_kibibytes_in_an_hour_is_seen(noise: float) -> None:
    more, bound, line = growth_of_memory(day(128 * 1024, noise))
    assert more > bound
    assert line.slope == pytest.approx(128 * 1024, rel=0.1)


def test_bounded_tables_that_fill_up_are_no_leak() -> None:
    more, bound, _ = growth_of_memory(day(100_000, 0, entries=300))
    assert more <= bound
