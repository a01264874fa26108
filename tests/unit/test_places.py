from __future__ import annotations

import functools
from collections.abc import Callable

import pytest

from nuropb_gateway_asgi.limits import places as places_module
from nuropb_gateway_asgi.limits.places import SLOW, SLOW_FOR, Orphans, SentCommands, Shares


def nothing() -> None:
    pass


@pytest.fixture
def resumed() -> list[str]:
    return []


@pytest.fixture
def resuming(resumed: list[str]) -> Callable[[str], Callable[[], None]]:
    return lambda name: functools.partial(resumed.append, name)


# --- calls that were given up ---------------------------------------------------------------------------


def test_calls_that_were_given_up_are_counted_by_user() -> None:
    orphans = Orphans()
    orphans.add("alice")
    orphans.add("alice")
    orphans.add("bob")
    orphans.remove("alice")
    assert orphans.counts == {"alice": 1, "bob": 1}


def test_nothing_is_kept_for_users_without_such_calls() -> None:
    orphans = Orphans()
    orphans.add("alice")
    orphans.remove("alice")
    orphans.remove("alice")
    assert len(orphans) == 0


# --- shares ---------------------------------------------------------------------------------------------


def test_a_user_has_so_many_places_at_each_service() -> None:
    shares = Shares(2)
    assert [shares.take("alice", "orders", 0.0) for _ in range(3)] == [True, True, False]
    assert shares.take("alice", "users", 0.0)
    assert shares.take("bob", "orders", 0.0)


def test_a_place_goes_to_the_call_that_has_waited_longest(
    resumed: list[str], resuming: Callable[[str], Callable[[], None]]
) -> None:
    shares = Shares(1)
    shares.take("alice", "orders", 0.0)
    for name in ("1", "2", "3"):
        shares.wait("alice", "orders", name, resuming(name))
    shares.withdraw("alice", "orders", "2")
    while (resume := shares.give_back("alice", "orders", 0.0)) is not None:
        assert not shares.take("alice", "orders", 0.0)  # the place has been passed on
        resume()
    assert resumed == ["1", "3"]
    assert len(shares) == 0


def test_a_wait_that_is_over_is_withdrawn_without_effect() -> None:
    shares = Shares(1)
    shares.withdraw("alice", "orders", "1")
    shares.take("alice", "orders", 0.0)
    shares.wait("alice", "orders", "1", nothing)
    shares.withdraw("alice", "orders", "1")
    shares.withdraw("alice", "orders", "1")
    assert shares.give_back("alice", "orders", 0.0) is None
    assert shares.take("alice", "orders", 0.0)


def test_a_service_is_quick_from_its_first_answer_to_a_slow_one() -> None:
    shares = Shares(1)
    assert not shares.is_quick("orders", 0.0)
    shares.on_answer("orders", 0.01, 0.0)
    assert shares.is_quick("orders", 0.0)
    assert not shares.is_quick("users", 0.0)
    shares.on_answer("orders", SLOW, 10.0)
    shares.on_answer("orders", 0.01, 10.0)  # a quick method does not hide a slow one
    assert not shares.is_quick("orders", 9.9 + SLOW_FOR)
    assert shares.is_quick("orders", 10.0 + SLOW_FOR)


def quick(limit: int) -> Shares:
    """Make shares in which the service orders is quick."""
    shares = Shares(limit)
    shares.on_answer("orders", 0.01, 0.0)
    return shares


def test_a_quick_service_has_places_without_limit_which_are_given_back_like_others() -> None:
    shares = quick(1)
    assert [shares.take("alice", "orders", 0.0) for _ in range(3)] == [True, True, True]
    for _ in range(3):
        assert shares.give_back("alice", "orders", 0.0) is None
    assert len(shares) == 0


def test_a_service_that_becomes_slow_has_as_few_places_as_others() -> None:
    shares = quick(2)
    assert all(shares.take("alice", "orders", 0.0) for _ in range(5))
    shares.on_answer("orders", SLOW, 1.0)
    assert not shares.take("alice", "orders", 1.0)
    shares.wait("alice", "orders", "1", nothing)
    passed_on = [shares.give_back("alice", "orders", 1.0) is not None for _ in range(4)]
    assert passed_on == [False, False, False, True]


def test_calls_that_wait_while_a_service_becomes_quick_are_next() -> None:
    shares = Shares(1)
    shares.take("alice", "orders", 0.0)
    for name in ("1", "2"):
        shares.wait("alice", "orders", name, nothing)
    shares.on_answer("orders", 0.01, 0.0)
    assert shares.take("alice", "orders", 0.0)
    assert [shares.give_back("alice", "orders", 0.0) for _ in range(4)] == [nothing, nothing, None, None]


def test_services_are_not_kept_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places_module, "MAX_SERVICES", 3)
    shares = Shares(1)
    for number in range(4):
        shares.on_answer(f"service{number}", 0.1, 0.0)
    assert [shares.is_quick(f"service{number}", 0.0) for number in range(4)] == [False, True, True, True]


# --- commands -------------------------------------------------------------------------------------------


def test_an_answer_proves_that_the_commands_before_its_request_are_taken() -> None:
    commands = SentCommands()
    for now, user_id in ((1.0, "alice"), (2.0, "bob"), (3.0, "alice")):
        commands.add("orders", user_id, now)
    commands.add("users", "carol", 1.0)
    assert commands.on_answer("orders", 0.5) == []
    assert commands.on_answer("orders", 2.0) == ["alice", "bob"]
    assert commands.on_answer("orders", 9.0) == ["alice"]
    assert "orders" not in commands.sent
    assert "users" in commands.sent


def test_commands_expire_with_their_messages() -> None:
    commands = SentCommands()
    commands.add("orders", "alice", 1.0)
    commands.add("users", "bob", 2.0)
    commands.add("users", "bob", 4.0)
    assert sorted(commands.expired(3.0)) == [("alice", "orders"), ("bob", "users")]
    assert commands.expired(4.0) == [("bob", "users")]
    assert len(commands) == 0
