"""Parts of the Python client, without a connection."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nuropb_gateway_asgi.client import (
    Backoff,
    CallFailed,
    CallTimeout,
    Client,
    ClientOptions,
    ConnectionClosed,
    ConnectionLost,
    GatewayEvent,
    Hello,
    Limits,
    MeshUnavailable,
    PayloadTooLarge,
    Subscription,
    TooManyRequests,
    connect,
)
from nuropb_gateway_asgi.client._calls import Calls
from nuropb_gateway_asgi.client._state import read_hello
from nuropb_gateway_asgi.client._token import TokenSource
from nuropb_gateway_asgi.client.errors import call_failed, is_final, obeyed, seconds
from nuropb_gateway_asgi.protocol import CloseCode, Decoder, ErrorCode, Request

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


NOT_JSON = [
    (b"x", "params.a.b[1]: a value of type bytes, which JSON lacks"),
    ({1, 2}, "params.a.b[1]: a value of type set, which JSON lacks"),
    (float("nan"), "params.a.b[1]: nan, which JSON lacks"),
    (float("-inf"), "params.a.b[1]: -inf, which JSON lacks"),
    (print, "params.a.b[1]: a value of type builtin_function_or_method, which JSON lacks"),
    (object(), "params.a.b[1]: a value of type object, which JSON lacks"),
    ("ok \ud83d", "params.a.b[1]: a string with half of a surrogate pair, which UTF-8 cannot express"),
    ({"\ud83d": 1}, "params.a.b[1] (a key): a string with half of a surrogate pair, which UTF-8 cannot express"),
    ({(1, 2): 1}, "params.a.b[1]: a key of type tuple; expected str"),
]


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


async def test_a_call_that_may_run_twice_has_one_key_for_all_its_repetitions() -> None:
    wire = Wire()
    once = wire.start("once")
    wire.start("twice", idempotent=True)
    wire.start("other", idempotent=True)
    wire.calls.lost(ConnectionLost(1006, ""))
    assert once.exception() is not None
    wire.open()
    keys = [frame["payload"].get("idempotency_key") for frame in wire.sent]
    assert keys == [None, *keys[1:3], *keys[1:3]]
    assert len(set(keys)) == 3
    assert isinstance(Decoder().decode(json.dumps(wire.sent[-1])), Request)
    for number in (3, 4):
        wire.answer(number)


async def test_a_call_has_the_trace_context_of_its_caller() -> None:
    wire = Wire()
    contexts: list[dict[str, str] | None] = [{"traceparent": "00-1-2-01", "baggage": "a=b", "other": "x"}, None]
    wire.calls.trace = lambda: contexts.pop(0)
    wire.start("in a span")
    wire.start("outside")
    wire.open()
    traces = [frame["payload"].get("trace") for frame in wire.sent]
    assert traces == [{"traceparent": "00-1-2-01", "baggage": "a=b"}, None]


async def test_after_a_frame_that_the_gateway_could_not_read_no_call_is_repeated() -> None:
    wire = Wire()
    twice = wire.start(idempotent=True)
    wire.calls.lost(ConnectionLost(4501, ""), repeat=False)
    assert isinstance(twice.exception(), ConnectionLost)


async def test_a_request_to_the_gateway_itself_has_a_deadline() -> None:
    wire = Wire(grace=0.0, request_timeout=0.01)
    with pytest.raises(CallTimeout):
        await wire.calls.ask("subscribe", {"topics": ["a"]}).future


async def test_in_a_resumed_session_the_gateway_keeps_its_calls_and_gets_the_others_again() -> None:
    wire = Wire()
    calls = [
        wire.calls.start("request", {"service": "demo", "method": method, "params": {}})
        for method in ("there", "lost", "abandoned there", "abandoned lost")
    ]
    asked = wire.calls.ask("subscribe", {"topics": ["a"]}).future
    wire.calls.suspend(ConnectionLost(1006, ""))
    assert isinstance(asked.exception(), ConnectionLost)
    for call in calls[2:]:
        call.future.cancel()
        wire.calls.abandon(call)
    in_flight = {calls[0].id, calls[2].id}
    wire.sent.clear()
    wire.calls.connected(lambda text: wire.sent.append(json.loads(text)))
    wire.calls.resume(in_flight)
    wire.calls.release()
    assert [(frame["type"], frame["payload"].get("method")) for frame in wire.sent] == [
        ("cancel", None),
        ("request", "lost"),
    ]
    assert wire.calls.answer({"id": calls[0].id, "result": 1, "error": None}) is None
    assert calls[0].future.result() == 1
    # The late answer to the subscription is none that anybody waits for.
    assert wire.calls.answer({"id": "5", "result": {}, "error": None}) is None
    wire.calls.close(ConnectionClosed(1000, ""))
    assert isinstance(calls[1].future.exception(), ConnectionClosed)


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


async def test_a_call_that_could_not_be_sent_says_why_there_is_no_connection() -> None:
    wire = Wire()
    wire.calls.hold()
    lost = wire.calls.problem = ConnectionLost(1006, "connecting failed")
    with pytest.raises(CallTimeout, match=r"could not be sent in time: .*connecting failed.*doctor") as caught:
        await wire.start(timeout=0.01)
    assert caught.value.__cause__ is lost
    wire.calls.release()
    wire.calls.hold()
    with pytest.raises(CallTimeout, match=r"could not be sent in time$"):
        await wire.start(timeout=0.01)


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


@pytest.mark.parametrize(("value", "fault"), NOT_JSON)
async def test_a_value_that_json_lacks_is_refused_with_its_path(value: Any, fault: str) -> None:
    wire = Wire()
    with pytest.raises(TypeError) as caught:
        wire.start(params={"a": {"b": [1, value]}})
    assert str(caught.value) == fault
    assert not wire.sent


async def test_a_frame_has_as_many_levels_as_the_gateway_accepts() -> None:
    wire = Wire()
    deep: Any = 1
    for _ in range(30):
        deep = [deep]
    wire.start(params={"a": deep[0]})
    with pytest.raises(TypeError, match="nested more than"):
        wire.start(params={"a": deep})
    Decoder().decode(json.dumps(wire.sent[0]))


async def test_a_value_within_itself_is_refused() -> None:
    wire = Wire()
    value: dict[str, Any] = {}
    value["a"] = [value]
    with pytest.raises(TypeError, match="levels deep, or within itself"):
        wire.start(params=value)


@contextlib.asynccontextmanager
async def unconnected() -> AsyncIterator[Client]:
    """Make a client that finds no gateway."""
    client = Client("ws://127.0.0.1:1/ws", "token", ClientOptions(proxy=None))
    try:
        yield client
    finally:
        await client.close()


WRONG_CALLS = [
    ((None, "get"), {}, TypeError, "service"),
    (("", "get"), {}, ValueError, "service"),
    (("orders", 1), {}, TypeError, "method"),
    (("orders", "no method"), {}, ValueError, "method"),
    (("orders", "get", [1]), {}, TypeError, "params"),
    (("orders", "get"), {"trace_id": "x" * 129}, ValueError, "trace_id"),
    (("orders", "get"), {"trace_id": b"x"}, TypeError, "trace_id"),
    (("orders", "get"), {"idempotency_key": ""}, ValueError, "idempotency_key"),
    (("orders", "get"), {"idempotency_key": "x" * 65}, ValueError, "idempotency_key"),
    (("orders", "get", {"a": 2**64}), {}, TypeError, "params: an integer does not fit 64 bits"),
]


@pytest.mark.parametrize(("call", "options", "error", "argument"), WRONG_CALLS)
async def test_a_call_that_no_gateway_accepts_fails_at_once(
    call: Any, options: Any, error: type[Exception], argument: str
) -> None:
    async with unconnected() as client:
        for method in (client.request, client.command):
            with pytest.raises(error, match=argument):
                await method(*call, **options)


@pytest.mark.parametrize("topics", [[], "lab.foo*", ["a", ""], ["a", 1]])
async def test_a_topic_that_no_gateway_accepts_fails_at_once(topics: Any) -> None:
    async with unconnected() as client:
        with pytest.raises((TypeError, ValueError), match="topics"):
            client.subscribe(topics)


def test_without_an_event_loop_of_asyncio_the_client_says_what_to_do() -> None:
    async def main() -> None:
        async with connect("ws://127.0.0.1:1/ws", token="token"):
            raise AssertionError("it connected")

    # As any other library runs a coroutine.
    with pytest.raises(RuntimeError, match="with trio, use connect_sync"):
        main().send(None)


def subscription() -> Subscription:
    def leave(each: Subscription) -> None:
        each.end(None)

    return Subscription(["a"], None, 10, leave)


async def test_the_end_of_a_subscription_ends_a_pending_wait() -> None:
    events = subscription()
    waiting = asyncio.create_task(anext(events, None))
    await asyncio.sleep(0)
    await events.aclose()
    assert await waiting is None


async def test_only_one_task_can_wait_for_the_next_event() -> None:
    events = subscription()
    waiting = asyncio.create_task(anext(events, None))
    await asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="another task waits"):
        await anext(events)
    event = GatewayEvent("a", 1)
    events.deliver(event)
    assert await waiting is event


async def test_tokens_are_fetched_one_after_the_other_and_the_function_is_told_why() -> None:
    reasons: list[str] = []
    running = 0

    async def token(reason: str) -> str:
        nonlocal running
        running += 1
        assert running == 1
        await asyncio.sleep(0)
        running -= 1
        reasons.append(reason)
        return reason

    source = TokenSource(token)
    await asyncio.gather(source.fetch("connect"), source.fetch("refresh"))
    assert reasons == ["connect", "refresh"]


async def test_a_function_without_a_reason_is_called_without_it() -> None:
    assert await TokenSource(lambda length=5: "x" * length).fetch("connect") == "xxxxx"


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
