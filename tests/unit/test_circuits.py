from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence

import pytest

from nuropb_gateway_asgi.limits import circuits as circuits_module
from nuropb_gateway_asgi.limits.circuits import (
    ERROR_REFUSALS_ALLOWED,
    ERROR_WINDOW,
    ERRORS_ALLOWED,
    EVERYBODY,
    MEMORY,
    OPEN_AFTER,
    PAUSE,
    SHORTEST_COUNTED_TIMEOUT,
    SILENCE,
    Caller,
    Circuits,
    ErrorBudgets,
)


def opened(service: str = "orders", callers: Sequence[Caller] = ("alice",)) -> Circuits:
    """Open a circuit by timeouts of the callers in turn."""
    circuits = Circuits()
    for number, caller in zip(range(OPEN_AFTER), itertools.cycle(callers), strict=False):
        assert circuits.refuses(service, caller, str(number), LATER) is None
        whom = circuits.on_timeout(service, caller, str(number), 1.0, 0.0)
        assert (whom is not False) is (number == OPEN_AFTER - 1)
    return circuits


# --- circuits -------------------------------------------------------------------------------------------

#: The circuits here open at 0.0.
LATER = PAUSE
CALLERS = [["alice"], [None], ["alice", "bob", "carol"]]


@pytest.mark.parametrize("callers", CALLERS)
def test_a_circuit_opens_after_so_many_timeouts_in_a_row(callers: list[Caller]) -> None:
    circuits = opened(callers=callers)
    assert circuits.open() == ["orders"]
    assert circuits.refuses("users", "alice", "x", LATER) is None


def test_the_timeouts_of_one_caller_do_not_cut_off_other_callers() -> None:
    circuits = opened(callers=["alice"])
    assert circuits.refuses("orders", "alice", "probe", LATER) is None
    assert circuits.refuses("orders", "alice", "another", LATER) == PAUSE
    for number in range(3):
        assert circuits.refuses("orders", "bob", str(number), LATER) is None
        assert circuits.refuses("orders", None, str(number), LATER) is None
    assert circuits.on_timeout("orders", "bob", "0", 1.0, 0.0) is False
    assert circuits.refuses("orders", "carol", "x", LATER) is None


def test_the_timeouts_of_two_callers_do_not_cut_off_other_callers() -> None:
    circuits = Circuits()
    opens = [circuits.on_timeout("orders", caller, "x", 1.0, 0.0) for caller in ["alice", "bob"] * OPEN_AFTER]
    assert [whom for whom in opens if whom is not False] == ["alice", "bob"]
    assert circuits.refuses("orders", "carol", "x", LATER) is None


def test_the_timeouts_of_several_callers_open_it_for_everybody() -> None:
    circuits = opened(callers=["alice", "bob", "carol"])
    assert circuits.refuses("orders", "dave", "probe", LATER) is None
    for caller in ("alice", "bob", "dave", "eve", None):
        assert circuits.refuses("orders", caller, "another", LATER) == PAUSE


def test_an_opened_circuit_is_reported_once() -> None:
    circuits = Circuits()
    callers = ["alice"] * 10 + ["bob"] * 10 + ["carol"] * 10
    opens = [circuits.on_timeout("orders", caller, "x", 1.0, 0.0) for caller in callers]
    assert [whom for whom in opens if whom is not False] == ["alice", "bob", EVERYBODY]


def test_an_answer_in_between_begins_the_count_anew() -> None:
    circuits = Circuits()
    for number in range(3 * OPEN_AFTER):
        assert circuits.on_timeout("orders", "alice", str(number), 1.0, 0.0) is False
        if number % (OPEN_AFTER - 1) == 0:
            assert not circuits.on_answer("orders", 0.1, 0.0)
    assert circuits.open() == []


def test_short_timeouts_do_not_count() -> None:
    circuits = Circuits()
    for number in range(2 * OPEN_AFTER):
        assert circuits.on_timeout("orders", "alice", str(number), SHORTEST_COUNTED_TIMEOUT / 2, 0.0) is False
    assert circuits.open() == []


@pytest.mark.parametrize("callers", CALLERS)
def test_an_open_circuit_refuses_calls_until_the_pause_is_over(callers: list[Caller]) -> None:
    circuits, caller = opened(callers=callers), callers[0]
    assert circuits.refuses("orders", caller, "a", 0.0) == PAUSE
    assert circuits.refuses("orders", caller, "a", PAUSE / 4) == PAUSE * 3 / 4
    assert circuits.refuses("orders", caller, "probe", PAUSE) is None
    circuits.on_timeout("orders", caller, "probe", 1.0, PAUSE * 3 / 2)
    assert circuits.refuses("orders", caller, "a", PAUSE * 3 / 2) == PAUSE / 2
    assert circuits.refuses("orders", caller, "a", PAUSE * 2) is None


@pytest.mark.parametrize("callers", CALLERS)
def test_one_call_of_a_caller_at_a_time_probes_the_service(callers: list[Caller]) -> None:
    circuits, caller = opened(callers=callers), callers[0]
    assert circuits.refuses("orders", caller, "probe", LATER) is None
    assert circuits.refuses("orders", caller, "other", LATER) == PAUSE
    circuits.on_ended("orders", caller, "other")
    assert circuits.refuses("orders", caller, "other", LATER + 10 * PAUSE) == PAUSE
    circuits.on_ended("orders", caller, "probe")
    assert circuits.refuses("orders", caller, "next", LATER + PAUSE / 2) == PAUSE / 2
    assert circuits.refuses("orders", caller, "next", LATER + PAUSE) is None


def test_a_probe_that_times_out_is_followed_by_the_next() -> None:
    circuits = opened()
    assert circuits.refuses("orders", "alice", "probe", LATER) is None
    assert circuits.on_timeout("orders", "alice", "probe", 1.0, 0.0) is False
    assert circuits.refuses("orders", "alice", "next", LATER + PAUSE) is None
    assert circuits.open() == ["orders"]


@pytest.mark.parametrize("callers", CALLERS)
def test_the_first_answer_closes_a_circuit(callers: list[Caller]) -> None:
    circuits = opened(callers=callers)
    assert circuits.on_answer("orders", 0.1, LATER)
    assert not circuits.on_answer("orders", 0.1, LATER)
    assert circuits.open() == []
    assert circuits.refuses("orders", "alice", "a", LATER) is None
    assert circuits.refuses("orders", "alice", "b", LATER) is None


def test_a_reset_closes_all_circuits() -> None:
    circuits = opened()
    circuits.reset()
    assert circuits.open() == []


def test_circuits_do_not_grow_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(circuits_module, "MAX_ENTRIES", 3)
    circuits = opened("oldest")
    for number in range(3):
        circuits.on_timeout(f"guess{number}", "alice", "x", 1.0, 0.0)
    assert len(circuits) == 3
    assert circuits.open() == []


# --- hostile callers ------------------------------------------------------------------------------------

ATTACKERS = ["alice", "bob", "carol"]


def test_no_caller_waits_for_the_probes_of_others() -> None:
    circuits = opened(callers=ATTACKERS)
    for number, attacker in enumerate(ATTACKERS):
        assert circuits.refuses("orders", attacker, attacker, LATER + number * PAUSE) is None
    assert circuits.refuses("orders", "dave", "x", LATER + 3 * PAUSE) is None


def test_callers_take_turns_with_probes_however_soon_theirs_end() -> None:
    circuits, now = opened(callers=ATTACKERS), LATER
    for number in range(len(ATTACKERS) + 1):
        # All of them are refused, and an attacker is always the first to try again.
        assert [circuits.refuses("orders", caller, "early", now - 0.1) for caller in (*ATTACKERS, "dave")]
        probing = [caller for caller in ATTACKERS if circuits.refuses("orders", caller, f"{number}", now) is None]
        if not probing:
            break
        circuits.on_timeout("orders", probing[0], f"{number}", 0.9, now + 0.9)
        now += PAUSE
    assert circuits.refuses("orders", "dave", "x", now) is None


def test_a_turn_that_no_caller_takes_is_the_next_ones() -> None:
    circuits = opened(callers=ATTACKERS)
    assert circuits.refuses("orders", "dave", "x", 0.0) == PAUSE
    assert circuits.refuses("orders", "alice", "1", LATER) is None
    circuits.on_ended("orders", "alice", "1")
    assert circuits.refuses("orders", "alice", "2", LATER + PAUSE) == PAUSE
    assert circuits.refuses("orders", "alice", "2", LATER + 2 * PAUSE) is None


def test_later_timeouts_do_not_put_the_next_probe_off() -> None:
    circuits = opened(callers=ATTACKERS)
    for number in range(100):
        circuits.on_timeout("orders", ATTACKERS[number % 3], "x", 1.0, LATER)
    assert circuits.refuses("orders", "dave", "x", LATER) is None


def test_the_cost_of_a_timeout_does_not_grow_with_the_number_of_callers() -> None:
    circuits = Circuits()
    steps: list[int] = []

    def count(frame: object, event: str, argument: object) -> None:
        steps[-1] += 1

    for number in range(500):
        steps.append(0)
        sys.setprofile(count)
        circuits.on_timeout("orders", f"user{number}", "x", 1.0, 0.0)
        circuits.refuses("orders", f"user{number}", "y", 0.0)
        sys.setprofile(None)
    assert len(set(steps[10:])) == 1


# --- evidence -------------------------------------------------------------------------------------------

USERS = ["alice", "bob", "carol", "dave", "eve", "frank"]


def test_timeouts_open_no_circuit_for_everybody_while_the_service_answers() -> None:
    circuits = Circuits()
    for number in range(100):
        now = number * 0.5
        circuits.on_answer("orders", 0.2, now)
        for user in USERS:
            circuits.on_timeout("orders", user, "x", 5.0, now + 0.4)
        assert circuits.refuses("orders", "zoe", "y", now + 0.4) is None


def test_a_silence_is_longer_than_the_timeout_of_every_counted_call() -> None:
    circuits = Circuits()
    circuits.on_answer("orders", 0.2, 0.0)
    for user in USERS:
        circuits.on_timeout("orders", user, "x", 5.0, 4.9)
    assert circuits.refuses("orders", "zoe", "y", 4.9) is None
    opened_for = [circuits.on_timeout("orders", user, "x", 5.0, 5.0) for user in USERS]
    assert EVERYBODY in opened_for


def test_a_silence_takes_a_while_however_short_the_timeouts() -> None:
    circuits = Circuits()
    circuits.on_answer("orders", 0.01, 0.0)
    for user in USERS:
        assert circuits.on_timeout("orders", user, "x", 0.11, SILENCE - 0.1) is False
    assert circuits.refuses("orders", "zoe", "y", SILENCE) is None


@pytest.mark.parametrize("age", [0.0, MEMORY - 1, MEMORY + 1])
def test_timeouts_shorter_than_the_service_has_lately_needed_count_for_their_users_alone(age: float) -> None:
    circuits = Circuits()
    circuits.on_answer("orders", 3.0, 0.0)
    circuits.on_answer("orders", 0.01, age)  # a quick method does not hide a slow one
    now = age + 20.0
    for user in USERS * OPEN_AFTER:
        circuits.on_timeout("orders", user, "x", 2.9, now)
    assert circuits.refuses("orders", "zoe", "y", now) is None
    assert circuits.refuses("orders", "alice", "y", now) == PAUSE
    for user in USERS:
        circuits.on_timeout("orders", user, "x", 3.0, now)
    assert circuits.refuses("orders", "zoe", "y", now) == PAUSE


@pytest.mark.parametrize("answers", [[], [MEMORY * 2.5, MEMORY * 3.6]])
def test_the_time_that_a_service_needed_long_ago_is_forgotten(answers: list[float]) -> None:
    circuits = Circuits()
    circuits.on_answer("orders", 60.0, 0.0)
    for now in answers:
        circuits.on_answer("orders", 0.01, now)
    now = max([0.0, *answers]) + 2 * MEMORY + 1
    opens = [circuits.on_timeout("orders", user, "x", 1.0, now) for user in USERS]
    assert EVERYBODY in opens


def test_paces_do_not_grow_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(circuits_module, "MAX_ENTRIES", 3)
    circuits = Circuits()
    for number in range(10):
        circuits.on_answer(f"service{number}", 0.1, 0.0)
    assert len(circuits) == 3


# --- error budgets --------------------------------------------------------------------------------------


def spent(user_id: str = "alice", now: float = 1000.0) -> ErrorBudgets:
    budgets = ErrorBudgets()
    for _ in range(ERRORS_ALLOWED):
        assert budgets.refuses(user_id, now) is None
        budgets.on_error(user_id, now)
    return budgets


def test_a_user_with_too_many_errors_waits_for_the_end_of_the_minute() -> None:
    budgets = spent(now=1000.0)
    assert budgets.refuses("alice", 1010.0) == ERROR_WINDOW - 10
    assert budgets.refuses("bob", 1010.0) is None
    assert budgets.refuses("alice", 1000.0 + ERROR_WINDOW) is None


def test_a_user_who_ignores_refusals_exhausts_the_budget() -> None:
    budgets = spent()
    for _ in range(ERROR_REFUSALS_ALLOWED):
        assert budgets.refuses("alice", 1000.0) is not None
        assert not budgets.exhausted("alice")
    budgets.refuses("alice", 1000.0)
    assert budgets.exhausted("alice")
    assert not budgets.exhausted("bob")
    assert budgets.refuses("alice", 1000.0 + ERROR_WINDOW) is None
    assert not budgets.exhausted("alice")


def test_the_window_begins_with_the_first_error() -> None:
    budgets = ErrorBudgets()
    budgets.on_error("alice", 1000.0)
    for _ in range(ERRORS_ALLOWED - 1):
        budgets.on_error("alice", 1000.0 + ERROR_WINDOW - 1)
    assert budgets.refuses("alice", 1000.0 + ERROR_WINDOW - 1) == 1
    budgets.on_error("alice", 1000.0 + ERROR_WINDOW)
    assert budgets.refuses("alice", 1000.0 + ERROR_WINDOW) is None


def test_a_budget_may_be_forgotten() -> None:
    budgets = spent()
    budgets.reset()
    assert budgets.refuses("alice", 1000.0) is None


def test_budgets_do_not_grow_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(circuits_module, "MAX_ENTRIES", 3)
    budgets = spent("oldest")
    for number in range(3):
        budgets.on_error(f"user{number}", 1000.0)
    assert len(budgets) == 3
    assert budgets.refuses("oldest", 1000.0) is None
