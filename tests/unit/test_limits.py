from __future__ import annotations

import gc
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nuropb_gateway_asgi.limits import buckets as buckets_module
from nuropb_gateway_asgi.limits.buckets import (
    NEW_BINDINGS,
    REFUSALS_ALLOWED,
    REFUSALS_WINDOW,
    Excess,
    RateLimits,
    TokenBuckets,
)
from nuropb_gateway_asgi.limits.prices import extra_for_methods, extra_for_size, extra_for_topics
from nuropb_gateway_asgi.rates import CallRate, Rate, parse_limit, parse_rate

START = 1000.0

# --- how a rate is written ------------------------------------------------------------------------------

RATES = [
    # text, count, unit, burst, seconds between two
    ("1/s", 1, "s", 1, 1.0),
    ("20/s", 20, "s", 20, 0.05),
    ("120/min", 120, "min", 120, 0.5),
    ("3600/h", 3600, "h", 3600, 1.0),
    ("1000000/s", 1_000_000, "s", 1_000_000, 1e-6),
    ("200/s burst 400", 200, "s", 400, 0.005),
    ("60/min burst 1", 60, "min", 1, 1.0),
]


@pytest.mark.parametrize(("text", "count", "unit", "burst", "interval"), RATES)
def test_a_limit_is_read(text: str, count: int, unit: str, burst: int, interval: float) -> None:
    rate = parse_limit(text)
    assert rate == Rate(count, unit, burst)
    assert rate.interval == interval
    assert parse_limit(str(rate)) == rate


def test_off_is_no_limit() -> None:
    assert parse_limit("off") is None


NO_RATES = [
    *("", "20", "/s", "s", "0/s", "-1/s", "1.5/s", "20/S", "20/sec", "20/d", "20 /s", " 20/s", "20/s ", "20//s"),
    *("1000001/s", "99999999999/s", "²/s", "٢/s", "1e3/s", "0x10/s", "20/s\n", "OFF", "none", "20/s burst"),
    *("20/s burst 0", "20/s burst -1", "20/s burst 1000001", "20/s burst 5 burst 6", "20/s  burst 5", "burst 5"),
    *("off burst 5", "20/s burst ٢", "20/sburst 5"),
]


@pytest.mark.parametrize("text", NO_RATES)
def test_an_invalid_rate_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^(not a rate|the burst is not a whole number from 1 to 1000000)$"):
        parse_limit(text)


def test_a_rate_by_itself_has_no_burst_in_it() -> None:
    with pytest.raises(ValueError, match="not a rate"):
        parse_rate("20/s burst 40")


# --- buckets --------------------------------------------------------------------------------------------


def test_as_many_as_the_burst_come_at_once_and_then_one_after_the_other() -> None:
    buckets = TokenBuckets(Rate(10, "s", 3))
    assert [buckets.take("a", START) for _ in range(3)] == [0.0] * 3
    assert buckets.take("a", START) == pytest.approx(0.1)
    assert buckets.take("a", START + 0.05) == pytest.approx(0.05)
    assert buckets.take("a", START + 0.1) == 0.0
    assert buckets.take("a", START + 0.1) == pytest.approx(0.1)
    assert [buckets.take("a", START + 60) for _ in range(3)] == [0.0] * 3
    assert buckets.take("a", START + 60) > 0


def test_waiting_for_the_returned_time_is_enough() -> None:
    buckets = TokenBuckets(Rate(7, "s", 1))
    now = START
    for _ in range(1000):
        wait = buckets.take("a", now)
        if wait:
            now += wait
            assert buckets.take("a", now) == 0.0


def test_a_bucket_belongs_to_one_key() -> None:
    buckets = TokenBuckets(Rate(1, "s", 1))
    assert buckets.take("a", START) == 0.0
    assert buckets.take("b", START) == 0.0
    assert buckets.take("a", START) > 0


def test_a_refused_take_costs_nothing() -> None:
    buckets = TokenBuckets(Rate(1, "s", 1))
    assert buckets.take("a", START) == 0.0
    for step in range(1, 10):
        assert buckets.take("a", START + step / 10) == pytest.approx(1 - step / 10)
    assert buckets.take("a", START + 1) == 0.0


class Refilled:
    """A plain bucket for comparison: tokens trickle in, up to the burst."""

    def __init__(self, rate: Rate) -> None:
        self.rate = rate
        self.tokens = float(rate.burst)
        self.at = 0.0

    def take(self, now: float) -> bool:
        self.tokens = min(self.rate.burst, self.tokens + (now - self.at) / self.rate.interval)
        self.at = now
        if self.tokens < 1 - 1e-6:
            return False
        self.tokens -= 1
        return True


@given(
    st.integers(1, 20),
    st.integers(1, 10),
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 40).map(lambda n: n / 20)), max_size=60),
)
def test_a_bucket_agrees_with_one_that_is_refilled(count: int, burst: int, steps: list[tuple[str, float]]) -> None:
    rate = Rate(count, "s", burst)
    buckets, models = TokenBuckets(rate), {key: Refilled(rate) for key in "abc"}
    now = START
    for key, pause in steps:
        now += pause
        assert (buckets.take(key, now) == 0.0) == models[key].take(now)


def test_only_full_buckets_are_forgotten() -> None:
    rate = Rate(10, "s", 20)
    buckets = TokenBuckets(rate)
    random_ = random.Random(1)
    models: dict[int, Refilled] = {}
    now = START
    for step in range(20_000):
        now += 0.01
        key = random_.randrange(step // 100, step // 100 + 50)  # each key is used for a while
        model = models.setdefault(key, Refilled(rate))
        assert (buckets.take(key, now) == 0.0) == model.take(now)
    assert len(models) > 200
    assert len(buckets) < 150


def test_no_bucket_is_forgotten_before_it_is_full() -> None:
    buckets = TokenBuckets(Rate(1, "s", 10))
    for step in range(200):  # so that a generation ends at every distance from a last use
        now = START + step * 0.5
        assert [buckets.take(step, now) for _ in range(10)] == [0.0] * 10
        if step >= 19:
            assert [bool(buckets.take(step - 19, now)) for _ in range(10)] == [False] * 9 + [True]


def test_buckets_do_not_grow_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buckets_module, "MAX_BUCKETS", 100)
    buckets = TokenBuckets(Rate(1, "h", 1))
    for number in range(1000):
        assert buckets.take(number, START) == 0.0
        assert len(buckets) <= 200
    assert buckets.take(999, START) > 0
    assert buckets.take(0, START) == 0.0


def test_as_many_connections_as_there_are_have_a_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buckets_module, "MAX_BUCKETS", 10)
    limits = RateLimits(Rate(1, "h", 1), None)
    for number in range(100):
        assert limits.on_frame(str(number), "alice", START) is None
    for number in range(100):
        assert limits.on_frame(str(number), "alice", START) == Excess("connection", 3600.0)


def test_a_forgotten_bucket_is_full() -> None:
    buckets = TokenBuckets(Rate(1, "h", 1))
    buckets.take("a", START)
    buckets.forget("a")
    buckets.forget("b")
    assert len(buckets) == 0
    assert buckets.take("a", START) == 0.0


# --- the limits of a process ----------------------------------------------------------------------------


def test_without_limits_everything_may_come() -> None:
    limits = RateLimits(None, None)
    assert {limits.on_frame("s", "alice", START) for _ in range(10_000)} == {None}
    limits.forget("s")


def test_a_connection_has_a_limit_and_so_have_all_connections_of_a_user() -> None:
    limits = RateLimits(Rate(1, "s", 2), Rate(1, "s", 3))
    assert [limits.on_frame("one", "alice", START) for _ in range(2)] == [None, None]
    assert limits.on_frame("one", "alice", START) == Excess("connection", 1.0)
    assert limits.on_frame("two", "alice", START) is None
    assert limits.on_frame("two", "alice", START) == Excess("user", 1.0)
    assert limits.on_frame("three", "bob", START) is None


def test_a_connection_that_ended_is_forgotten_and_its_user_is_not() -> None:
    limits = RateLimits(Rate(1, "h", 1), Rate(1, "h", 2))
    assert limits.on_frame("one", "alice", START) is None
    assert limits.on_refusal("one", START) is False
    limits.forget("one")
    assert len(limits) == 0
    assert limits.on_frame("one", "alice", START) is None
    limits.forget("one")
    assert limits.on_frame("one", "alice", START) == Excess("user", 3600.0)


def test_the_rate_of_a_rule_is_each_users_or_all_users() -> None:
    limits = RateLimits(None, None)
    each, together = CallRate(Rate(1, "s", 1)), CallRate(Rate(1, "s", 1), per="process")
    assert [limits.on_call(each, user, START) for user in ("alice", "bob")] == [None, None]
    assert limits.on_call(each, "alice", START) == Excess("rule", 1.0)
    assert limits.on_call(together, "alice", START) is None
    assert limits.on_call(together, "bob", START) == Excess("rule", 1.0)


def test_rules_have_buckets_of_their_own_and_take_them_along() -> None:
    limits = RateLimits(None, None)
    one, other = CallRate(Rate(1, "s", 1)), CallRate(Rate(1, "s", 1))
    assert limits.on_call(one, "alice", START) is None
    assert limits.on_call(other, "alice", START) is None
    del one
    gc.collect()
    assert limits.call_rates == [other]


def test_a_connection_that_ignores_refusals_is_to_be_closed() -> None:
    limits = RateLimits(None, None)
    assert [limits.on_refusal("one", START) for _ in range(REFUSALS_ALLOWED)] == [False] * REFUSALS_ALLOWED
    assert limits.on_refusal("other", START) is False
    assert limits.on_refusal("one", START + REFUSALS_WINDOW - 1) is True


def test_refusals_are_counted_within_a_minute() -> None:
    limits = RateLimits(None, None)
    for minute in range(3):
        now = START + minute * REFUSALS_WINDOW
        assert [limits.on_refusal("one", now) for _ in range(REFUSALS_ALLOWED)] == [False] * REFUSALS_ALLOWED


# --- prices ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "extra"), [(0, 0), (1, 0), (2048, 0), (2049, 1), (4096, 1), (4097, 2), (65536, 31), (65537, 32)]
)
def test_a_large_message_costs_a_unit_for_each_further_two_kilobytes(size: int, extra: int) -> None:
    assert extra_for_size(size) == extra


def test_topics_and_methods_have_their_price() -> None:
    assert [extra_for_topics(count) for count in (0, 1, 2, 100)] == [0, 0, 1, 99]
    assert [extra_for_methods(count) for count in (0, 9, 10, 400)] == [0, 0, 1, 40]


def test_a_costly_frame_is_possible_and_paid_by_those_after_it() -> None:
    limits = RateLimits(Rate(10, "s", 20), None)
    assert limits.on_frame("one", "alice", START) is None
    limits.charge("one", "alice", START, 29)
    excess = limits.on_frame("one", "alice", START)
    assert excess is not None
    assert excess.scope == "connection"
    assert excess.wait == pytest.approx(1.1)
    assert limits.on_frame("two", "alice", START) is None
    assert limits.on_frame("one", "alice", START + 1.2) is None


def test_a_bucket_owes_no_more_than_it_holds() -> None:
    limits = RateLimits(Rate(1, "s", 5), None)
    assert limits.on_frame("one", "alice", START) is None
    limits.charge("one", "alice", START, 1000)
    assert limits.on_frame("one", "alice", START) == Excess("connection", 6.0)


def test_new_bindings_of_a_user_have_a_rate() -> None:
    limits = RateLimits(None, None)
    assert limits.on_bindings("mallory", START, NEW_BINDINGS.burst) is None
    excess = limits.on_bindings("mallory", START, 1)
    assert excess is not None
    assert excess.scope == "bindings"
    assert limits.on_bindings("alice", START, 100) is None
    assert limits.on_bindings("mallory", START + excess.wait, 1) is None
