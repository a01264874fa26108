from __future__ import annotations

import pytest

from nuropb_gateway_asgi import _guards
from nuropb_gateway_asgi._guards import (
    ERRORS_ALLOWED,
    OPEN_AFTER,
    REFUSALS_ALLOWED,
    SHORTEST_COUNTED_TIMEOUT,
    WINDOW,
    Circuits,
    ErrorBudgets,
)


def opened(service: str = "orders") -> Circuits:
    circuits = Circuits()
    for number in range(OPEN_AFTER):
        assert circuits.admits(service, str(number))
        assert circuits.on_timeout(service, str(number), 1.0) is (number == OPEN_AFTER - 1)
    return circuits


# --- circuits -------------------------------------------------------------------------------------------


def test_a_circuit_opens_after_so_many_timeouts_in_a_row() -> None:
    circuits = opened()
    assert circuits.open() == ["orders"]
    assert circuits.admits("users", "x")


def test_an_answer_in_between_begins_the_count_anew() -> None:
    circuits = Circuits()
    for number in range(3 * OPEN_AFTER):
        assert not circuits.on_timeout("orders", str(number), 1.0)
        if number % (OPEN_AFTER - 1) == 0:
            assert not circuits.on_answer("orders")
    assert circuits.open() == []


def test_who_gives_up_soon_says_nothing_about_the_service() -> None:
    circuits = Circuits()
    for number in range(2 * OPEN_AFTER):
        assert not circuits.on_timeout("orders", str(number), SHORTEST_COUNTED_TIMEOUT / 2)
    assert circuits.open() == []


def test_one_call_at_a_time_finds_out_whether_the_service_is_back() -> None:
    circuits = opened()
    assert circuits.admits("orders", "probe")
    assert not circuits.admits("orders", "other")
    circuits.on_ended("orders", "other")
    assert not circuits.admits("orders", "other")
    circuits.on_ended("orders", "probe")
    assert circuits.admits("orders", "next")


def test_a_probe_that_times_out_makes_way_for_the_next_and_is_no_news() -> None:
    circuits = opened()
    assert circuits.admits("orders", "probe")
    assert not circuits.on_timeout("orders", "probe", 1.0)
    assert circuits.admits("orders", "next")
    assert circuits.open() == ["orders"]


def test_the_first_answer_closes_a_circuit() -> None:
    circuits = opened()
    assert circuits.on_answer("orders")
    assert not circuits.on_answer("orders")
    assert circuits.open() == []
    assert circuits.admits("orders", "a")
    assert circuits.admits("orders", "b")


def test_what_is_forgotten_is_closed() -> None:
    circuits = opened()
    circuits.reset()
    assert circuits.open() == []


def test_circuits_do_not_grow_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_guards, "MAX_ENTRIES", 3)
    circuits = opened("oldest")
    for number in range(3):
        circuits.on_timeout(f"guess{number}", "x", 1.0)
    assert len(circuits._circuits) == 3
    assert circuits.open() == []


# --- error budgets --------------------------------------------------------------------------------------


def spent(user_id: str = "alice", now: float = 1000.0) -> ErrorBudgets:
    budgets = ErrorBudgets()
    for _ in range(ERRORS_ALLOWED):
        assert budgets.refuses(user_id, now) is None
        budgets.on_error(user_id, now)
    return budgets


def test_so_many_errors_in_a_minute_and_the_user_has_to_wait_for_its_end() -> None:
    budgets = spent(now=1000.0)
    assert budgets.refuses("alice", 1010.0) == WINDOW - 10
    assert budgets.refuses("bob", 1010.0) is None
    assert budgets.refuses("alice", 1000.0 + WINDOW) is None


def test_who_goes_on_all_the_same_has_gone_too_far() -> None:
    budgets = spent()
    for _ in range(REFUSALS_ALLOWED):
        assert budgets.refuses("alice", 1000.0) is not None
        assert not budgets.exhausted("alice")
    budgets.refuses("alice", 1000.0)
    assert budgets.exhausted("alice")
    assert not budgets.exhausted("bob")
    assert budgets.refuses("alice", 1000.0 + WINDOW) is None
    assert not budgets.exhausted("alice")


def test_the_window_begins_with_the_first_error() -> None:
    budgets = ErrorBudgets()
    budgets.on_error("alice", 1000.0)
    for _ in range(ERRORS_ALLOWED - 1):
        budgets.on_error("alice", 1000.0 + WINDOW - 1)
    assert budgets.refuses("alice", 1000.0 + WINDOW - 1) == 1
    budgets.on_error("alice", 1000.0 + WINDOW)
    assert budgets.refuses("alice", 1000.0 + WINDOW) is None


def test_a_budget_may_be_forgotten() -> None:
    budgets = spent()
    budgets.reset()
    assert budgets.refuses("alice", 1000.0) is None


def test_budgets_do_not_grow_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_guards, "MAX_ENTRIES", 3)
    budgets = spent("oldest")
    for number in range(3):
        budgets.on_error(f"user{number}", 1000.0)
    assert len(budgets._budgets) == 3
    assert budgets.refuses("oldest", 1000.0) is None
