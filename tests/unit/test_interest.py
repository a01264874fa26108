from __future__ import annotations

from nuropb_gateway_asgi.routing.interest import UNBIND_AFTER, Interest

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
