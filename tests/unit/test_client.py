"""Parts of the Python client, without a connection."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nuropb_gateway_asgi.client import (
    Backoff,
    CallFailed,
    CallTimeout,
    ConnectionClosed,
    ConnectionLost,
    Hello,
    Limits,
    MeshUnavailable,
    PayloadTooLarge,
    TooManyRequests,
)
from nuropb_gateway_asgi.client._calls import Calls
from nuropb_gateway_asgi.client._state import read_hello
from nuropb_gateway_asgi.client.errors import call_failed, is_final, obeyed, seconds
from nuropb_gateway_asgi.protocol import CloseCode, Decoder, ErrorCode, Request

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


class Wire:
    """A connection that records the frames that are sent."""

    def __init__(self, **options: Any) -> None:
        self.calls = Calls(Backoff(0.0, 0.0), options.pop("grace", 60.0), options.pop("max_queue", 100))
        self.sent: list[dict[str, Any]] = []
        self.open(**options)

    def open(self, **limits: Any) -> None:
        self.calls.limits = Limits(**limits)
        self.calls.connected(lambda text: self.sent.append(json.loads(text)))
        self.calls.release()

    def start(self, method: str = "echo", params: Any = None, **options: Any) -> asyncio.Future[Any]:
        payload = {"service": "demo", "method": method, "params": params or {}}
        return self.calls.start("request", payload, **options).future

    def answer(self, number: int, **outcome: Any) -> None:
        """Answer the frame that was sent at position ``number``, counted from 0."""
        self.calls.answer({"id": self.sent[number]["payload"]["id"], "result": None, "error": None, **outcome})


async def test_a_call_is_a_frame_that_the_gateway_understands() -> None:
    wire = Wire()
    future = wire.start("add", {"a": 2, "é": [None, 1e300, "\u2028"]}, trace_id="t", timeout=5)
    frame = Decoder().decode(json.dumps(wire.sent[0]))
    assert isinstance(frame, Request)
    assert (frame.service, frame.method, frame.trace_id) == ("demo", "add", "t")
    assert json.loads(bytes(frame.params)) == {"a": 2, "é": [None, 1e300, "\u2028"]}
    assert frame.timeout is not None
    assert 4 < frame.timeout <= 5
    wire.answer(0, result=5)
    assert await future == 5


@given(st.dictionaries(st.text(), JSON))
def test_parameters_arrive_as_they_were(params: dict[str, Any]) -> None:
    async def send() -> Any:
        wire = Wire(max_message_size=10**9)
        try:
            wire.start(params=params)
        except (UnicodeEncodeError, OverflowError, TypeError):  # not in JSON: a lone surrogate, a huge number
            return params
        return wire.sent[0]["payload"]["params"]

    # NaN and infinity become null.
    expected = json.loads(json.dumps(params), parse_constant=lambda _: None)
    given_back = asyncio.run(send())
    assert given_back in (expected, params)


async def test_the_window_is_as_large_as_the_gateway_allows() -> None:
    wire = Wire(max_in_flight=2)
    futures = [wire.start() for _ in range(5)]
    assert len(wire.sent) == wire.calls.in_flight == 2
    wire.answer(1, result="b")
    assert (len(wire.sent), futures[1].result()) == (3, "b")
    wire.calls.ask("subscribe", {"topics": ["a"]})
    assert wire.sent[-1]["type"] == "subscribe"
    for number in (0, 2, 4, 5):
        wire.answer(number)
    assert all(future.done() for future in futures)


async def test_what_may_run_twice_is_sent_again_first_and_the_rest_is_lost() -> None:
    wire = Wire(max_in_flight=2)
    once, twice, waits = wire.start("once"), wire.start("twice", idempotent=True), wire.start("waits")
    wire.calls.lost(ConnectionLost(1006, ""))
    assert isinstance(once.exception(), ConnectionLost)
    wire.sent.clear()
    wire.open()
    assert [frame["payload"]["method"] for frame in wire.sent] == ["twice", "waits"]
    wire.calls.close(ConnectionClosed(4503, "kicked", status=None))
    errors = [future.exception() for future in (twice, waits)]
    assert all(isinstance(error, ConnectionClosed) for error in errors)
    # Each call raises an exception of its own, with its own traceback.
    assert errors[0] is not errors[1]


async def test_a_call_that_is_made_again_has_waited_in_between() -> None:
    wire = Wire()
    future = wire.start(retries=1)
    wire.answer(0, error={"code": "mesh_unavailable", "retryable": True})
    assert (len(wire.sent), wire.calls.in_flight) == (1, 0)
    await asyncio.sleep(0)
    while len(wire.sent) == 1:
        await asyncio.sleep(0)
    wire.answer(1, error={"code": "mesh_unavailable", "retryable": True})
    with pytest.raises(MeshUnavailable):
        await future


@pytest.mark.parametrize("when", ["waiting", "pausing", "in flight"])
async def test_a_call_that_nobody_waits_for_any_more_is_forgotten(when: str) -> None:
    wire = Wire()
    if when == "waiting":
        wire.calls.hold()
    call = wire.calls.start("request", {"service": "demo", "method": "echo", "params": {}}, retries=5)
    if when == "pausing":
        wire.calls.backoff = Backoff(9.0, 9.0, random=lambda: 1.0)
        wire.answer(0, error={"code": "mesh_unavailable", "retryable": True})
    call.future.cancel()
    wire.calls.abandon(call)
    cancels = [frame for frame in wire.sent if frame["type"] == "cancel"]
    assert len(cancels) == (when == "in flight")
    wire.calls.lost(ConnectionLost(1006, ""))
    wire.sent.clear()
    wire.open()
    assert wire.sent == []


async def test_deadlines_hold_wherever_a_call_is() -> None:
    wire = Wire(grace=0.0)
    sent = wire.start(timeout=0.01)
    wire.calls.hold()
    waiting = wire.start(timeout=0.01)
    with pytest.raises(CallTimeout) as in_flight:
        await sent
    with pytest.raises(CallTimeout) as unsent:
        await waiting
    assert (in_flight.value.retryable, unsent.value.retryable) == (False, True)


async def test_what_can_never_be_sent_is_refused() -> None:
    wire = Wire(max_message_size=200, max_queue=1)
    with pytest.raises(PayloadTooLarge):
        await wire.start(params={"text": "x" * 200})
    wire.calls.hold()
    wire.start().cancel()
    with pytest.raises(TooManyRequests):
        wire.start()
    for timeout in (0, -1, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="greater than 0"):
            wire.start(timeout=timeout)


@given(JSON)
def test_any_hello_is_a_hello(event: Any) -> None:
    hello = read_hello(event)
    assert isinstance(hello, Hello)
    assert hello.limits.max_in_flight >= 1


@pytest.mark.parametrize(("milliseconds", "stays_away"), [(0, 0.0), (250, 0.25), (86_400_000, 60.0), (10**400, 0.0)])
def test_a_client_stays_away_for_a_minute_at_most(milliseconds: int, stays_away: float) -> None:
    assert obeyed(seconds(milliseconds)) == stays_away


@given(st.dictionaries(st.sampled_from(["code", "description", "error", "retryable", "retry_after_ms"]), JSON))
def test_any_error_is_an_error(error: dict[str, Any]) -> None:
    failure = call_failed(error)
    assert isinstance(failure, CallFailed)
    assert failure.retry_after is None or failure.retry_after >= 0


def test_every_error_code_has_a_class() -> None:
    classes = {type(call_failed({"code": code.value})) for code in ErrorCode}
    assert len(classes) == len(ErrorCode)
    assert CallFailed not in classes


@pytest.mark.parametrize("code", CloseCode)
def test_a_close_code_is_final_unless_the_gateway_wants_the_client_back(code: CloseCode) -> None:
    assert is_final(code) == (not code.reconnect and code != CloseCode.NORMAL)


def test_waits_have_a_limit_and_full_jitter() -> None:
    longest = Backoff(0.5, 30.0, random=lambda: 1.0)
    assert [longest.delay(attempt) for attempt in (0, 1, 5, 6, 7, 100_000)] == [0.5, 1, 16, 30, 30, 30]
    delays = [Backoff().delay(3) for _ in range(1000)]
    assert 0 <= min(delays) < 0.5 < 3.5 < max(delays) <= 4
