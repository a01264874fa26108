"""Calls beyond what the process can do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from nuropb_gateway_asgi.limits.overload import RETRY_AFTER, SUSTAINED, Overload

from .fakes import HandlerHarness, request_frame

DELAY = 0.025


class FakeLoop:
    """An event loop that only keeps its timers."""

    def __init__(self) -> None:
        self.timers: list[Callable[[], None]] = []

    def call_later(self, _delay: float, callback: Callable[[], None]) -> None:
        self.timers.append(callback)


class Turns:
    """Frames in turns of an event loop."""

    def __init__(self, delay: float = DELAY) -> None:
        self.overload = Overload(delay)
        self.loop: Any = FakeLoop()
        self.overload.watch(self.loop)
        self.now = 100.0

    def turn(self, *frames: float) -> list[bool]:
        """Take frames, at times from the beginning of the turn, and end the turn; return which are refused."""
        refused = []
        for after in frames:
            now = self.now + after
            refused.append(now > self.overload.late_at and self.overload.refuses(now))
        self.now += frames[-1]
        timers, self.loop.timers = self.loop.timers, []
        for timer in timers:
            timer()
        return refused


def test_no_call_is_refused_in_short_turns() -> None:
    turns = Turns()
    for _ in range(100):
        assert turns.turn(0.0, 0.01, 0.02) == [False] * 3


def test_the_end_of_long_turns_is_refused_once_they_last() -> None:
    turns = Turns()
    for _ in range(int(SUSTAINED / 0.1)):
        assert turns.turn(0.0, 0.02, 0.03, 0.1) == [False] * 4
    turns.turn(0.0, 0.03, 0.1)
    assert turns.turn(0.0, 0.02, 0.03, 0.1) == [False, False, True, True]


def test_one_slow_function_is_no_overload() -> None:
    turns = Turns()
    for _ in range(20):
        assert turns.turn(0.0, 0.4, 0.41) == [False] * 3
        assert turns.turn(0.0, 0.01) == [False] * 2


def test_a_short_turn_ends_the_overload() -> None:
    turns = Turns()
    while not any(turns.turn(0.0, 0.1)):
        pass
    assert turns.turn(0.0) == [False]
    assert turns.turn(0.0, 0.1) == [False, False]


def test_a_turn_has_one_timer_and_an_idle_loop_has_none() -> None:
    turns = Turns()
    turns.overload.refuses(turns.now)
    for after in (0.0, 0.01, 0.02):
        assert turns.now + after <= turns.overload.late_at
    assert len(turns.loop.timers) == 1
    turns.turn(0.0)
    assert turns.loop.timers == []


@pytest.mark.parametrize("delay", [0.0, DELAY])
def test_without_a_limit_and_outside_the_lifespan_no_frame_is_late(delay: float) -> None:
    turns = Turns(delay)
    if delay:
        turns.overload.stop()
    assert turns.now + 1e9 <= turns.overload.late_at
    assert not turns.overload.refuses(turns.now)


def test_an_overload_is_logged_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    turns = Turns()
    for _ in range(100):
        turns.turn(0.0, 0.1, 0.11)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "more to do than it can" in caplog.text
    turns.now += 60.0
    turns.turn(0.0, 0.1)
    assert len(caplog.records) == 2


KINDS = [
    (request_frame(id="1", trace_id="t"), "response"),
    ({"type": "command", "payload": {"service": "orders", "method": "get", "id": "1"}}, "response"),
    ({"type": "describe", "payload": {"service": "orders", "id": "1"}}, "response"),
]


@pytest.mark.parametrize(("frame", "kind"), KINDS)
async def test_a_call_is_refused_unread_and_may_be_repeated(frame: dict[str, Any], kind: str) -> None:
    harness = HandlerHarness(rate_limit="1/h burst 100")
    handler = await harness.connect()
    overload(harness)
    for _ in range(200):
        harness.receive(handler, frame)
    assert harness.receiver.frames == []
    assert len(handler.frames) == 200
    error = handler.frames[0]["payload"]["error"]
    assert (handler.frames[0]["type"], handler.frames[0]["payload"]["id"]) == (kind, "1")
    assert (error["code"], error["retryable"]) == ("too_many_requests", True)
    assert RETRY_AFTER[0] <= error["retry_after_ms"] <= RETRY_AFTER[1]
    assert handler.closes == []
    assert harness.manager.statistics.limited == {"overload": 200}


async def test_pings_and_what_makes_work_less_are_taken_in_an_overload() -> None:
    harness = HandlerHarness()
    handler = await harness.connect()
    overload(harness)
    harness.receive(handler, {"type": "ping", "payload": {"n": 1}})
    assert handler.frames[-1] == {"type": "pong", "payload": {"n": 1}}
    harness.receive(handler, {"type": "cancel", "payload": {"id": "1"}})
    assert len(harness.receiver.frames) == 1


def overload(harness: HandlerHarness) -> None:
    """Have the process be overloaded for the rest of the test."""
    overloaded = harness.manager.shared_limits.overload
    overloaded.watch(asyncio.get_running_loop())
    overloaded.refuses(harness.clock.now)  # the first frame of the turn
    harness.clock.now += 1.0
    overloaded.refuses(harness.clock.now)  # a late one
    harness.clock.now += SUSTAINED
