"""Calls beyond what the process can do."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import json
import math
import string
from collections.abc import Callable
from typing import Any, cast

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nuropb_gateway_asgi import Settings
from nuropb_gateway_asgi.exceptions import ProtocolError
from nuropb_gateway_asgi.limits.overload import Overload
from nuropb_gateway_asgi.limits.shared import SharedLimits
from nuropb_gateway_asgi.protocol import (
    CloseCode,
    Command,
    Decoder,
    Describe,
    Request,
    encode_failed,
    encode_refusals,
)

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
    assert turns.turn(0.0, 0.005, 0.016, 0.1) == [False, False, True, True]
    assert turns.turn(0.0, 0.005, 0.016, 0.1) == [False, False, True, True]
    assert turns.overload.refused == 4


def test_two_long_turns_in_a_row_begin_a_sudden_overload() -> None:
    turns = Turns()
    turns.turn(0.0, 0.12)
    assert not turns.overload.active
    turns.turn(0.0, 0.12)
    assert turns.overload.active


def test_a_machine_that_stands_still_twice_begins_no_overload() -> None:
    turns = Turns()
    for _ in range(3):
        for _ in range(2):
            turns.turn(0.0, 0.01, wall=0.12)
        for _ in range(100):
            turns.turn(0.0, 0.02)
        assert not turns.overload.active


def test_an_overload_of_another_lifespan_refuses_calls_as_well() -> None:
    turns = Turns()
    turns.until_active()
    turns.turn(0.0, 0.1)
    turns.overload.stop()
    turns.turn()
    turns.overload.watch(cast("asyncio.AbstractEventLoop", turns.loop))
    turns.until_active()
    assert turns.turn(0.0, 0.1) == [False, True]


def test_all_calls_behind_the_first_refused_one_are_late_until_the_turn_ends() -> None:
    turns = Turns()
    turns.until_active()
    assert turns.turn(0.0, 0.02)[-1]
    assert turns.overload.late
    turns.turn()
    assert not turns.overload.late


def test_work_that_a_turn_leaves_to_the_next_counts_there() -> None:
    turns = Turns()
    turns.until_active()
    turns.turn(0.0, 0.01)
    # The first call of a turn is taken always, so that some are in any case.
    assert turns.turn(0.02, 0.02, 0.02) == [False, True, True]


def test_work_between_two_turns_with_calls_counts_in_none() -> None:
    turns = Turns()
    turns.until_active()
    turns.turn(0.0)
    for _ in range(2):
        turns.turn()
        turns.cpu += 1.0
    assert turns.turn(0.0, 0.001) == [False, False]


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
        assert turns.turn(0.0, 0.1) == [False, True]
        while turns.overload.active:
            turns.turn(0.0, 0.001)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "has refused a part of the calls (1 so far)" in caplog.text
    turns.loop.now += 60.0
    turns.until_active()
    assert len(caplog.records) == 1
    assert turns.turn(0.0, 0.1) == [False, True]
    assert len(caplog.records) == 2


def test_a_process_that_the_machine_makes_late_warns_of_no_overload(caplog: pytest.LogCaptureFixture) -> None:
    turns = Turns()
    for _ in range(100):
        assert turns.turn(0.0, 0.009, wall=1.0) == [False, False]
    assert turns.overload.active
    assert caplog.records == []


def test_an_overload_lasts_while_its_turns_are_short_because_calls_are_refused() -> None:
    turns = Turns()
    turns.until_active()
    for _ in range(100):
        assert turns.turn(0.0, 0.009, 0.016, 0.03) == [False, False, True, True]


class Always(Overload):
    """An overload in which every call is late."""

    def __init__(self) -> None:
        super().__init__(DELAY)
        self.active = self.late = True

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


# --- refusals in front of the decoder ---------------------------------------------------------------------------------

CALL_TYPES = ("request", "command", "describe")
ERROR = '{"code":"too_many_requests"}'

ids = st.one_of(
    st.text(max_size=70),
    st.text(string.printable, max_size=5),
    st.sampled_from(["1", "a" * 64, "a" * 65, "\\u0041", '"', "\x7f", "\u2028", ""]),
    st.none(),
    st.integers(),
    st.lists(st.text(max_size=3), max_size=2),
)
payloads = st.lists(
    st.tuples(st.sampled_from(["id", "trace_id", "service", "method", "params", "more"]), st.one_of(ids, st.just({}))),
    max_size=6,
)
kinds = st.one_of(st.sampled_from([*CALL_TYPES, "ping", "cancel", "subscribe", "pong"]), ids)


def as_object(members: list[tuple[str, str]]) -> str:
    """Write an object of JSON whose members may have the same name."""
    return "{" + ",".join(f"{json.dumps(name)}:{value}" for name, value in members) + "}"


@st.composite
def hostile_frames(draw: st.DrawFn) -> str:
    """Make frames with members that are missing, repeated, in any order, of any type, escaped or cut off."""
    escaped = draw(st.booleans())
    members: list[tuple[str, str]] = []
    for _ in range(draw(st.integers(0, 3))):
        members.append(("type", json.dumps(draw(kinds))))
    for _ in range(draw(st.integers(0, 2))):
        payload = [(name, json.dumps(value, ensure_ascii=escaped)) for name, value in draw(payloads)]
        members.append(("payload", as_object(payload)))
    text = as_object(draw(st.permutations(members)))
    return text[: len(text) - draw(st.sampled_from([0, 0, 0, 0, 1, 5]))]


def hostile_or_plain() -> st.SearchStrategy[str]:
    plain = st.builds(
        lambda kind, id_, trace_id: json.dumps(
            {"type": kind, "payload": {"service": "orders", "method": "get", "id": id_, "trace_id": trace_id}}
        ),
        st.sampled_from(CALL_TYPES),
        st.text(string.ascii_letters + string.punctuation + " ", min_size=1, max_size=64),
        st.one_of(st.none(), st.text(max_size=20)),
    )
    return st.one_of(hostile_frames(), plain, st.text(max_size=30))


@given(hostile_or_plain())
@example('{"type":"request","payload":{"id":"1","id":"2"}}')
@example('{"type":"request","payload":{"id":"1"},"payload":{"id":"2"}}')
@example('{"type":"ping","type":"request","payload":{"id":"1"}}')
@example('{"type":"request","payload":{"id":"1"},"type":"pong"}')
@example('{"type":"request","payload":{"id":"1\\n"}}')
@example('{"type":"request","payload":{"id":"1","params":' + "[" * 5000 + "]" * 5000 + "}}")
@example('{"type":"request","payload":{"id":"\\ud800"}}')
@example("\ud800")
def test_a_fast_refusal_is_the_answer_of_the_slow_one(text: str) -> None:
    decoder = Decoder()
    answers = encode_refusals([text], itertools.repeat(ERROR))
    if not answers:
        return
    glance = decoder.glance(text)
    assert glance.type in CALL_TYPES
    assert answers == [encode_failed(glance.id, glance.trace_id, ERROR.encode())]
    try:
        frame = decoder.decode(text)
    except ProtocolError:
        return
    assert isinstance(frame, Request | Command | Describe)
    assert (frame.id, frame.trace_id) == (glance.id, glance.trace_id)


@pytest.mark.parametrize("kind", CALL_TYPES)
@pytest.mark.parametrize("more", [{}, {"trace_id": "t-1"}, {"trace_id": None}, {"params": {"id": 'x"'}}])
def test_an_ordinary_call_is_refused_fast(kind: str, more: dict[str, Any]) -> None:
    text = json.dumps({"type": kind, "payload": {"service": "orders", "method": "get", "id": "a 1", **more}})
    assert len(encode_refusals([text] * 3, itertools.repeat(ERROR))) == 3


CALL = json.dumps(request_frame(id="1"))


async def test_late_calls_are_refused_up_to_the_first_other_frame() -> None:
    harness = overloaded()
    handler = await harness.connect()
    answers = harness.manager.refuse_late(handler, [CALL, CALL, '{"type":"ping"}', CALL])
    assert [json.loads(answer)["payload"]["id"] for answer in answers] == ["1", "1"]
    assert harness.manager.statistics.limited == {"overload": 2}
    assert harness.manager.shared_limits.overload.refused == 2


async def test_refused_calls_are_charged_so_that_a_flood_ends() -> None:
    harness = overloaded(rate_limit="1/h burst 10")
    handler = await harness.connect()
    for _ in range(20):
        harness.manager.refuse_late(handler, [CALL] * 16)
    assert handler.closes == []
    harness.manager.shared_limits.overload.active = False
    for _ in range(101):
        harness.receive(handler, CALL)
    assert harness.receiver.frames == []
    assert [code for code, _ in handler.closes] == [CloseCode.TOO_MANY_REQUESTS]


async def test_calls_of_an_ended_connection_and_behind_a_frame_in_slices_are_not_refused_fast() -> None:
    harness = overloaded()
    handler = await harness.connect()
    harness.receive(handler, {"type": "subscribe", "payload": {"topics": [f"t.{n}" for n in range(100)], "id": "s"}})
    assert harness.manager.slices.held
    assert harness.manager.refuse_late(handler, [CALL]) == []
    harness.manager.unregister(handler)
    assert harness.manager.refuse_late(handler, [CALL]) == []


async def test_messages_are_measured_one_by_one_where_the_limit_is_low() -> None:
    harness = overloaded(max_message_size=1024)
    handler = await harness.connect()
    assert harness.manager.refuse_late(handler, [CALL]) == []
