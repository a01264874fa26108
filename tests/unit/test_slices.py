"""Long work in slices: others come in between, and messages keep their order."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from nuropb_gateway_asgi.limits.slices import Slices

from .fakes import until


def counting(to: list[str], name: str, count: int) -> Iterator[None]:
    for number in range(count):
        if number:
            yield
        to.append(f"{name}{number}")


async def test_work_of_one_slice_is_done_at_once() -> None:
    slices, done = Slices(), list[str]()
    slices.run(counting(done, "a", 1), "session", lambda message: done.append(str(message)))
    assert done == ["a0"]
    assert (slices.count, len(slices), slices.held) == (0, 0, {})


async def test_each_turn_of_the_event_loop_does_one_slice_for_all_connections_together() -> None:
    slices, done = Slices(), list[str]()
    for name in "abc":
        slices.run(counting(done, name, 3))
    assert done == ["a0", "b0", "c0"]
    for number in range(6):
        await asyncio.sleep(0)
        assert len(done) == 4 + number
    assert done[3:] == ["a1", "b1", "c1", "a2", "b2", "c2"]
    assert not len(slices)


async def test_messages_behind_the_work_of_their_session_follow_it_in_their_order() -> None:
    slices, done = Slices(), list[str]()

    def receive(message: str | bytes) -> None:
        if "one" in slices.held:
            slices.hold("one", message)
        else:
            slices.run(counting(done, str(message), 2), "one", receive)

    for message in ("x", "y", "z"):
        receive(message)
    await until(lambda: not slices.held)
    assert done == ["x0", "x1", "y0", "y1", "z0", "z1"]


async def test_the_work_of_a_session_that_has_ended_is_given_up() -> None:
    slices, done = Slices(), list[str]()
    slices.run(counting(done, "a", 3), "one", lambda message: done.append(str(message)))
    slices.hold("one", "lost")
    slices.forget("one")
    await until(lambda: not len(slices))
    assert done == ["a0"]


def test_work_of_an_event_loop_that_has_ended_holds_nothing_up() -> None:
    slices, done = Slices(), list[str]()

    async def begin() -> None:
        slices.run(counting(done, "a", 10))

    async def go_on() -> None:
        slices.run(counting(done, "b", 2))
        await until(lambda: done[-1] == "b1")

    for function in (begin, go_on):
        loop = asyncio.new_event_loop()
        loop.run_until_complete(function())
        loop.close()
    assert done[-2:] == ["b0", "b1"]
    assert "a9" not in done


async def test_a_session_that_gets_another_id_keeps_its_work_and_its_messages() -> None:
    slices, done = Slices(), list[str]()
    slices.run(counting(done, "a", 3), "one", lambda message: done.append(str(message)))
    slices.hold("one", "x")
    slices.rename("one", "two")
    assert list(slices.held) == ["two"]
    slices.hold("two", "y")
    await until(lambda: not slices.held)
    assert done == ["a0", "a1", "a2", "x", "y"]
