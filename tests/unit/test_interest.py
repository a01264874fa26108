from __future__ import annotations

from nuropb_gateway_asgi.routing.interest import UNBIND_AFTER, Interest

from .fakes import Clock, FakeMesh


def nobody() -> None: ...


def made() -> tuple[Interest, FakeMesh, Clock]:
    mesh, clock = FakeMesh(), Clock(100.0)
    return Interest(mesh, clock), mesh, clock


def test_a_topic_is_let_go_of_a_while_after_the_last_who_wanted_it() -> None:
    interest, mesh, clock = made()
    interest.add("a", nobody)
    interest.add("a", nobody)
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


def test_who_comes_back_in_time_finds_it_bound() -> None:
    interest, mesh, clock = made()
    interest.add("a", nobody)
    interest.remove("a")
    interest.add("a", nobody)
    interest.sweep(clock.now + 10 * UNBIND_AFTER)
    assert ("-", "a") not in mesh.bindings


def test_topics_are_let_go_of_each_in_its_time() -> None:
    interest, mesh, clock = made()
    for topic in ("a", "b"):
        interest.add(topic, nobody)
    interest.remove("b")
    clock.now += UNBIND_AFTER / 2
    interest.remove("a")
    interest.sweep(clock.now + UNBIND_AFTER / 2)
    assert [topic for sign, topic in mesh.bindings if sign == "-"] == ["b"]
    interest.sweep(clock.now + UNBIND_AFTER)
    assert [topic for sign, topic in mesh.bindings if sign == "-"] == ["b", "a"]


def test_everything_can_be_let_go_of_at_once() -> None:
    interest, mesh, _ = made()
    interest.add("a", nobody)
    interest.add("b", nobody)
    interest.remove("b")
    interest.clear()
    assert sorted(mesh.bindings[2:]) == [("-", "a"), ("-", "b")]
    assert "a" not in interest
    assert "b" not in interest
