"""Calls beyond what the process can do."""

from __future__ import annotations

import asyncio
import dataclasses
import math
from collections.abc import Callable
from typing import Any, cast

import pytest

from nuropb_gateway_asgi import Settings
from nuropb_gateway_asgi.limits.overload import Overload
from nuropb_gateway_asgi.limits.shared import SharedLimits

from .fakes import HandlerHarness, request_frame

DELAY = 0.05


@dataclasses.dataclass
class FakeTimer:
    when: float
    callback: Callable[[], None]

    def cancel(self) -> None:
        self.when = math.inf


class FakeLoop:
    """An event loop whose timers run when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0
        self.timers: list[FakeTimer] = []
        self.soon: list[Callable[[], None]] = []

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, callback: Callable[[], None]) -> FakeTimer:
        self.timers.append(FakeTimer(when, callback))
        return self.timers[-1]

    def call_soon(self, callback: Callable[[], None]) -> None:
        self.soon.append(callback)


class Turns:
    """Calls in turns of an event loop."""

    def __init__(self, delay: float = DELAY) -> None:
        self.cpu = 5.0
        self.overload = Overload(delay, lambda: self.cpu)
        self.loop = FakeLoop()
        self.overload.watch(cast("asyncio.AbstractEventLoop", self.loop))

    def turn(self, *calls: float, wall: float | None = None) -> list[bool]:
        """Take calls, at CPU times from the beginning of the turn, and end the turn; return which are refused."""
        soon, self.loop.soon = self.loop.soon, []
        for callback in soon:
            callback()
        began, refused = self.cpu, []
        for after in calls:
            self.cpu = began + after
            refused.append(self.overload.active and self.overload.refuses())
        self.loop.now += self.cpu - began if wall is None else wall
        timers, self.loop.timers = self.loop.timers, []
        for timer in timers:
            if timer.when <= self.loop.now:
                timer.callback()
            else:
                self.loop.timers.append(timer)
        return refused

    def until_active(self) -> int:
        """Have long turns until calls are refused; return their number."""
        for number in range(100):
            if self.overload.active:
                return number
            self.turn(0.0, 0.2)
        raise AssertionError("no overload")


def test_no_call_is_refused_in_short_turns() -> None:
    turns = Turns()
    for _ in range(1000):
        assert turns.turn(0.0, 0.005, 0.01) == [False] * 3


def test_the_end_of_a_turn_is_refused_once_turns_are_long() -> None:
    turns = Turns()
    assert turns.until_active() >= 2
    assert turns.turn(0.0, 0.005, 0.011, 0.1) == [False, False, True, True]
    assert turns.turn(0.0, 0.005, 0.011, 0.1) == [False, False, True, True]
    assert turns.overload.refused == 4


def test_one_slow_function_is_no_overload() -> None:
    turns = Turns()
    for _ in range(5):
        assert turns.turn(0.0, 0.12, 0.13) == [False] * 3
        for _ in range(100):
            assert turns.turn(0.0, 0.02) == [False] * 2


def test_short_turns_end_the_overload() -> None:
    turns = Turns()
    turns.until_active()
    for _ in range(200):
        turns.turn(0.0, 0.01)
    assert not turns.overload.active
    assert turns.overload.refused == 0


def test_a_process_without_cpu_time_refuses_no_more_calls_for_it() -> None:
    turns = Turns()
    turns.until_active()
    for _ in range(10):
        assert turns.turn(0.0, 0.009, wall=1.0) == [False, False]
    assert turns.overload.active


@pytest.mark.parametrize("delay", [0.0, DELAY])
def test_without_a_limit_and_outside_the_lifespan_no_call_is_refused(delay: float) -> None:
    turns = Turns(delay)
    if delay:
        turns.until_active()
        turns.overload.stop()
        turns.overload.stop()
    for _ in range(50):
        assert turns.turn(0.0, 1.0) == [False, False]


def test_an_overload_is_logged_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    turns = Turns()
    for _ in range(3):
        turns.until_active()
        while turns.overload.active:
            turns.turn(0.0, 0.001)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "more to do than it can" in caplog.text
    turns.loop.now += 60.0
    turns.until_active()
    assert len(caplog.records) == 2


def test_an_overload_lasts_while_its_turns_are_short_because_calls_are_refused() -> None:
    turns = Turns()
    turns.until_active()
    for _ in range(100):
        assert turns.turn(0.0, 0.009, 0.011, 0.03) == [False, False, True, True]


class Always(Overload):
    """An overload in which every call is late."""

    def __init__(self) -> None:
        super().__init__(DELAY)
        self.active = True

    def refuses(self) -> bool:
        return True


def overloaded(**settings: Any) -> HandlerHarness:
    """Make a harness of an overloaded process."""
    limits = SharedLimits.of(Settings(**settings))
    return HandlerHarness(shared_limits=dataclasses.replace(limits, overload=Always()), **settings)


KINDS = [
    (request_frame(id="1", trace_id="t"), "response"),
    ({"type": "command", "payload": {"service": "orders", "method": "get", "id": "1"}}, "response"),
    ({"type": "describe", "payload": {"service": "orders", "id": "1"}}, "response"),
]


@pytest.mark.parametrize(("frame", "kind"), KINDS)
async def test_a_call_is_refused_unread_and_may_be_repeated(frame: dict[str, Any], kind: str) -> None:
    harness = overloaded(rate_limit="1/h burst 100")
    handler = await harness.connect()
    for _ in range(200):
        harness.receive(handler, frame)
    assert harness.receiver.frames == []
    assert len(handler.frames) == 200
    error = handler.frames[0]["payload"]["error"]
    assert (handler.frames[0]["type"], handler.frames[0]["payload"]["id"]) == (kind, "1")
    assert (error["code"], error["retryable"]) == ("too_many_requests", True)
    assert 500 <= error["retry_after_ms"] <= 1500
    assert len({frame["payload"]["error"]["retry_after_ms"] for frame in handler.frames}) > 50
    assert handler.closes == []
    assert harness.manager.statistics.limited == {"overload": 200}


async def test_pings_and_what_makes_work_less_are_taken_in_an_overload() -> None:
    harness = overloaded()
    handler = await harness.connect()
    harness.receive(handler, {"type": "ping", "payload": {"n": 1}})
    assert handler.frames[-1] == {"type": "pong", "payload": {"n": 1}}
    harness.receive(handler, {"type": "cancel", "payload": {"id": "1"}})
    assert len(harness.receiver.frames) == 1


async def test_a_call_without_ids_is_refused_as_well() -> None:
    harness = overloaded()
    handler = await harness.connect()
    harness.receive(handler, request_frame())
    assert (handler.frames[0]["type"], handler.frames[0]["code"]) == ("error", "too_many_requests")
