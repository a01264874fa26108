from __future__ import annotations

from nuropb_gateway_asgi.routing.interest import ASKED_AT_ONCE, UNBIND_AFTER, Interest

from .fakes import Clock, FakeMesh


def no_observer(bound: bool) -> None: ...


def made() -> tuple[Interest, FakeMesh, Clock]:
    mesh, clock = FakeMesh(), Clock(100.0)
    return Interest(mesh, clock), mesh, clock


def test_a_topic_is_unbound_a_while_after_its_last_subscriber_left() -> None:
    interest, mesh, clock = made()
    interest.add("a", no_observer)
    interest.add("a", no_observer)
    interest.remove("a")
    clock.now += 2 * UNBIND_AFTER
    interest.sweep(clock.now)
    assert "a" in interest
    interest.remove("a")
    interest.sweep(clock.now + UNBIND_AFTER * 0.9)
    assert ("-", "a") not in mesh.bindings
    interest.sweep(clock.now + UNBIND_AFTER)
    assert mesh.bindings[-1] == ("-", "a")
    assert "a" not in interest


def test_a_subscriber_that_comes_back_in_time_finds_the_topic_bound() -> None:
    interest, mesh, clock = made()
    interest.add("a", no_observer)
    interest.remove("a")
    interest.add("a", no_observer)
    interest.sweep(clock.now + 10 * UNBIND_AFTER)
    assert ("-", "a") not in mesh.bindings


def test_each_topic_is_unbound_in_its_own_time() -> None:
    interest, mesh, clock = made()
    for topic in ("a", "b"):
        interest.add(topic, no_observer)
    interest.remove("b")
    clock.now += UNBIND_AFTER / 2
    interest.remove("a")
    interest.sweep(clock.now + UNBIND_AFTER / 2)
    assert [topic for sign, topic in mesh.bindings if sign == "-"] == ["b"]
    interest.sweep(clock.now + UNBIND_AFTER)
    assert [topic for sign, topic in mesh.bindings if sign == "-"] == ["b", "a"]


def test_all_topics_can_be_unbound_at_once() -> None:
    interest, mesh, _ = made()
    interest.add("a", no_observer)
    interest.add("b", no_observer)
    interest.remove("b")
    interest.clear()
    assert sorted(mesh.bindings[2:]) == [("-", "a"), ("-", "b")]
    assert "a" not in interest
    assert "b" not in interest


# --- new topics, and whose turn it is -------------------------------------------------------------------


def test_a_topic_whose_subscriber_leaves_before_it_is_bound_is_given_up_at_once_and_answered() -> None:
    interest, mesh, _ = made()
    mesh.binds_at_once = False
    answers: list[bool] = []
    interest.add("a", answers.append)
    interest.remove("a")
    assert mesh.bindings == [("+", "a"), ("-", "a")]
    assert answers == [True]
    assert "a" not in interest


def test_a_topic_that_nobody_wants_any_more_is_never_asked_for() -> None:
    interest, mesh, _ = made()
    mesh.binds_at_once = False
    for number in range(ASKED_AT_ONCE):
        interest.add(f"t.{number}", no_observer, user_id="alice")
    answers: list[bool] = []
    for number in range(1000):
        interest.add(f"u.{number}", answers.append, user_id="mallory")
    for number in range(1000):
        interest.remove(f"u.{number}")
    assert len(answers) == 1000
    assert interest.waiting == 0
    for number in range(ASKED_AT_ONCE):
        mesh.bound(f"t.{number}")
    assert len(mesh.bindings) == ASKED_AT_ONCE


def test_a_user_with_many_new_topics_delays_the_one_of_another_user_by_those_on_their_way_alone() -> None:
    interest, mesh, _ = made()
    mesh.binds_at_once = False
    for number in range(1000):
        interest.add(f"t.{number}", no_observer, user_id="mallory")
    interest.add("news", no_observer, user_id="alice")
    assert len(mesh.bindings) == ASKED_AT_ONCE
    for _, topic in tuple(mesh.bindings[:2]):
        mesh.bound(topic)
    assert ("+", "news") in mesh.bindings[: ASKED_AT_ONCE + 2]


def test_all_topics_are_bound_in_the_end() -> None:
    interest, mesh, _ = made()
    bound: list[bool] = []
    for number in range(5 * ASKED_AT_ONCE):
        interest.add(f"t.{number}", bound.append, user_id=f"user-{number % 3}")
    assert bound == [True] * 5 * ASKED_AT_ONCE
    mesh.binds_at_once = False
    for number in range(5 * ASKED_AT_ONCE):
        interest.add(f"u.{number}", bound.append, user_id=f"user-{number % 3}")
    while mesh.waiting:
        mesh.bound(next(iter(mesh.waiting)))
    assert bound == [True] * 10 * ASKED_AT_ONCE


def test_a_second_subscriber_of_a_topic_that_waits_for_its_turn_waits_with_the_first() -> None:
    interest, mesh, _ = made()
    mesh.binds_at_once = False
    for number in range(ASKED_AT_ONCE):
        interest.add(f"t.{number}", no_observer)
    answers: list[str] = []
    interest.add("a", lambda _: answers.append("first"))
    interest.add("a", lambda _: answers.append("second"))
    interest.remove("a")
    assert ("+", "a") not in mesh.bindings
    mesh.bound("t.0")
    mesh.bound("a")
    assert answers == ["first", "second"]
