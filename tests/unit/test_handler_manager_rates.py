"""The HandlerManager: rate limits of connections, users and rules."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from nuropb_gateway_asgi.authentication import Identity
from nuropb_gateway_asgi.authorization import ExposePolicy
from nuropb_gateway_asgi.handler_manager import MAX_MALFORMED_FRAMES
from nuropb_gateway_asgi.limits.buckets import REFUSALS_ALLOWED
from nuropb_gateway_asgi.limits.slices import TOPICS_PER_SLICE
from nuropb_gateway_asgi.protocol import CloseCode
from nuropb_gateway_asgi.rates import CallRate, Rate

from .fakes import HandlerHarness, request_frame, until

HOUR = 3600.0


class Calm(ExposePolicy):
    """A policy that allows ``orders.create`` once a second for each user."""

    limit = CallRate(Rate(1, "s", 1))

    def rate(self, identity: Identity, service: str, method: str) -> CallRate | None:
        return self.limit if (service, method) == ("orders", "create") else None


def limited(*, policy: ExposePolicy | None = None, **settings: Any) -> HandlerHarness:
    """Make a harness without rate limits, except those in ``settings`` and in the policy."""
    return HandlerHarness(policy=policy, **{"rate_limit": "off", "rate_limit_user": "off", **settings})


def refusal(frame: dict[str, Any]) -> tuple[str, int]:
    """Return the error code and ``retry_after_ms`` of an answer."""
    error = frame if frame["type"] == "error" else frame["payload"]["error"]
    return error["code"], error["retry_after_ms"]


async def test_a_connection_may_send_so_many_frames_and_is_told_when_to_go_on() -> None:
    harness = limited(rate_limit="2/s burst 3")
    one, other = await harness.connect("alice"), await harness.connect("alice")
    for number in range(5):
        harness.receive(one, request_frame(id=str(number), trace_id="t"))
    assert len(harness.receiver.frames) == 3
    assert [refusal(frame) for frame in one.frames] == [("too_many_requests", 500)] * 2
    assert [frame["payload"]["id"] for frame in one.frames] == ["3", "4"]
    assert [frame["payload"]["trace_id"] for frame in one.frames] == ["t", "t"]
    assert one.frames[0]["payload"]["error"]["retryable"] is True
    harness.receive(other, request_frame(id="1"))
    assert len(harness.receiver.frames) == 4
    harness.clock.now += 0.25
    harness.receive(one, request_frame(id="5"))
    assert refusal(one.frames[-1]) == ("too_many_requests", 250)
    harness.clock.now += 0.25
    harness.receive(one, request_frame(id="6"))
    assert len(harness.receiver.frames) == 5
    assert harness.manager.statistics.limited == {"connection": 3}


async def test_a_user_has_one_limit_for_all_connections_and_keeps_it_when_these_end() -> None:
    harness = limited(rate_limit_user="1/s burst 3")
    one, two, bob = await harness.connect("alice"), await harness.connect("alice"), await harness.connect("bob")
    for handler in (one, two, one, two, bob):
        harness.receive(handler, request_frame(id="1"))
    assert [len(handler.frames) for handler in (one, two, bob)] == [0, 1, 0]
    harness.manager.unregister(one)
    harness.manager.unregister(two)
    again = await harness.connect("alice")
    harness.receive(again, request_frame(id="2"))
    assert refusal(again.frames[0]) == ("too_many_requests", 1000)
    assert harness.manager.statistics.limited == {"user": 2}


async def test_the_calls_of_a_rule_have_a_rate_of_their_own() -> None:
    harness = limited(policy=Calm(["orders.*"], []))
    alice, bob = await harness.connect("alice"), await harness.connect("bob")
    for handler in (alice, bob):
        harness.receive(handler, request_frame(method="create", id="1"))
        harness.receive(handler, {"type": "command", "payload": {"service": "orders", "method": "create", "id": "2"}})
        harness.receive(handler, request_frame(method="get", id="3"))
    assert len(harness.receiver.frames) == 4
    for handler in (alice, bob):
        assert [(frame["payload"]["id"], *refusal(frame)) for frame in handler.frames] == [
            ("2", "too_many_requests", 1000)
        ]
    harness.clock.now += 1
    harness.receive(alice, request_frame(method="create", id="4"))
    assert len(harness.receiver.frames) == 5
    assert harness.manager.statistics.limited == {"rule": 2}


async def test_what_the_policy_forbids_takes_nothing_from_the_rate_of_a_rule() -> None:
    harness = limited(policy=Calm([], []))
    handler = await harness.connect()
    for _ in range(3):
        harness.receive(handler, request_frame(method="create", id="1"))
    assert handler.codes == ["permission_denied"] * 3


LIMITED = [
    # frame, type of its answer (None: no answer), ids in the answer
    (request_frame(id="1", trace_id="t"), "response", {"id": "1", "trace_id": "t"}),
    (request_frame(id="1"), "response", {"id": "1"}),
    (request_frame(trace_id="t"), "response", {"trace_id": "t"}),
    (request_frame(), "error", {}),
    (request_frame(id=5, trace_id=["t"]), "error", {}),
    (request_frame(id="x" * 65, trace_id="t"), "response", {"trace_id": "t"}),
    (request_frame(id="1", params={"id": "2"}, more={"trace_id": "t"}), "response", {"id": "1"}),
    ({"type": "describe"}, "error", {}),
    ({"type": "describe", "payload": {"id": "1"}}, "response", {"id": "1"}),
    ({"type": "subscribe", "payload": {"topics": ["a"], "id": "1"}}, "response", {"id": "1"}),
    ({"type": "authorize", "payload": {"token": "alice/2", "id": "1"}}, "response", {"id": "1"}),
    # The id of a cancel belongs to a request, and the request has an answer of its own.
    ({"type": "cancel", "payload": {"id": "1"}}, "error", {}),
    ({"type": "ping", "payload": 5}, "error", {}),
    ({"type": "pong"}, None, {}),
    ({"type": "pong", "payload": {"id": "1"}}, None, {}),
    # Malformed frames count, too.
    ({"type": "unheard", "payload": {"id": "1"}}, "response", {"id": "1"}),
    ({"type": ["cancel"], "payload": {"id": "1"}}, "response", {"id": "1"}),
    ({"payload": {"id": "1", "trace_id": "t"}}, "response", {"id": "1", "trace_id": "t"}),
    ({"payload": [{"id": "1"}]}, "error", {}),
    ("{}", "error", {}),
    ("[]", "error", {}),
    ("", "error", {}),
    ("nonsense", "error", {}),
    ('{"type":"request","payload":{"id":"1"}} x', "error", {}),
    ("\ud800", "error", {}),
    ("[" * 5000, "error", {}),
    ('{"payload":{"id":' + "[" * 5000, "error", {}),
]


@pytest.mark.parametrize(("frame", "kind", "ids"), LIMITED)
async def test_every_frame_counts_and_is_refused_once_with_its_ids(
    frame: dict[str, Any] | str, kind: str | None, ids: dict[str, str]
) -> None:
    harness = limited(rate_limit="1/h")
    handler = await harness.connect()
    harness.receive(handler, {"type": "pong"})
    assert harness.receive(handler, frame) is None
    assert [answer["type"] for answer in handler.frames] == ([] if kind is None else [kind])
    for answer in handler.frames:
        assert refusal(answer)[0] == "too_many_requests"
        payload = answer.get("payload", {})
        assert {name: payload[name] for name in ("id", "trace_id") if name in payload} == ids
    assert harness.manager.statistics.limited == {"connection": 1}
    assert not harness.receiver.frames
    assert not handler.tasks
    # A refused frame is not counted as malformed.
    for _ in range(MAX_MALFORMED_FRAMES - 1):
        harness.clock.now += HOUR
        harness.receive(handler, "{")
    assert not handler.closes


async def test_a_frame_over_the_limit_may_come_as_bytes() -> None:
    harness = limited(rate_limit="1/h")
    handler = await harness.connect()
    harness.manager.on_handler_message(handler, b"{")
    harness.manager.on_handler_message(handler, json.dumps(request_frame(id="1")).encode())
    harness.manager.on_handler_message(handler, b'{"payload":{"id":"\xff"}}')
    assert handler.codes == ["bad_request", "too_many_requests", "too_many_requests"]
    assert handler.frames[1]["payload"]["id"] == "1"


async def test_a_message_that_is_too_big_is_answered_as_such_and_does_not_count() -> None:
    harness = limited(rate_limit="1/h", max_message_size=256)
    handler = await harness.connect()
    for _ in range(2):
        harness.receive(handler, "x" * 257)
    assert handler.codes == ["payload_too_large"] * 2
    assert harness.manager.statistics.limited == {}


@pytest.mark.parametrize("frame", [request_frame(id="1"), {"type": "pong"}, "nonsense"])
async def test_who_goes_on_in_spite_of_refusals_is_hung_up_on_after_the_last_answer(frame: Any) -> None:
    harness = limited(rate_limit="1/h")
    handler, other = await harness.connect("alice"), await harness.connect("alice")
    for each in (handler, other):
        harness.receive(each, {"type": "pong"})
    order: list[tuple[int, int]] = []
    handler.on_send = lambda: order.append((len(handler.frames), len(handler.closes)))
    for _ in range(REFUSALS_ALLOWED):
        harness.receive(handler, frame)
    assert not handler.closes
    harness.receive(handler, frame)
    assert handler.closes == [(CloseCode.TOO_MANY_REQUESTS, "too many requests")]
    assert len(handler.frames) in (0, REFUSALS_ALLOWED + 1)
    assert order[-1] == (len(handler.frames), 1)
    harness.receive(other, frame)
    assert not other.closes
    harness.manager.unregister(handler)
    harness.manager.unregister(other)
    assert not len(harness.manager.shared_limits.rates)


async def test_refusals_of_a_rule_count_as_well() -> None:
    harness = limited(policy=Calm(["orders.*"], []))
    handler = await harness.connect()
    for _ in range(REFUSALS_ALLOWED + 2):
        harness.receive(handler, request_frame(method="create", id="1"))
    assert handler.closes == [(CloseCode.TOO_MANY_REQUESTS, "too many requests")]


async def test_a_few_refusals_a_minute_are_nobodys_end() -> None:
    harness = limited(rate_limit="1/s")
    handler = await harness.connect()
    for _ in range(REFUSALS_ALLOWED * 3):
        harness.receive(handler, {"type": "pong"})
        harness.receive(handler, {"type": "pong"})
        harness.clock.now += 1
    assert harness.manager.statistics.limited["connection"] == REFUSALS_ALLOWED * 3
    assert not handler.closes


async def test_a_connection_that_is_not_registered_any_more_is_not_counted() -> None:
    harness = limited(rate_limit="1/h")
    handler = await harness.connect()
    harness.manager.unregister(handler)
    for _ in range(5):
        harness.receive(handler, request_frame())
    assert harness.manager.statistics.limited == {}
    assert handler.frames == []


async def test_with_the_defaults_an_eager_client_is_not_limited() -> None:
    harness = HandlerHarness()
    handler = await harness.connect()
    for number in range(400):
        harness.receive(handler, request_frame(id=str(number)))
    assert handler.frames == []


# --- prices and slices ----------------------------------------------------------------------------------


def subscribe_frame(count: int, kind: str = "subscribe", prefix: str = "t", **payload: Any) -> dict[str, Any]:
    return {"type": kind, "payload": {"topics": [f"{prefix}.{number}" for number in range(count)], **payload}}


@pytest.mark.parametrize(
    ("frame", "price"),
    [
        (request_frame(id="1"), 1),
        (request_frame(params={"text": "x" * 10_000}), 5),
        (subscribe_frame(1), 1),
        (subscribe_frame(100), 100),
        (subscribe_frame(100, "unsubscribe"), 100),
    ],
)
async def test_a_frame_costs_what_it_takes(frame: dict[str, Any], price: int) -> None:
    harness = limited(rate_limit="1/s burst 1000")
    handler = await harness.connect()
    harness.receive(handler, frame)
    await until(lambda: not len(harness.manager.slices))
    for _ in range(1000 - price):
        harness.receive(handler, {"type": "pong"})
    assert harness.manager.statistics.limited == {}
    harness.receive(handler, {"type": "pong"})
    assert harness.manager.statistics.limited == {"connection": 1}


async def test_a_subscription_to_many_topics_is_checked_in_slices_and_later_frames_wait_for_it() -> None:
    harness = limited()
    handler = await harness.connect()
    harness.receive(handler, subscribe_frame(100, id="1"))
    harness.receive(handler, request_frame(id="2"))
    harness.receive(handler, subscribe_frame(100, id="3"))
    harness.receive(handler, request_frame(id="4"))
    assert not harness.receiver.frames
    await until(lambda: len(harness.receiver.frames) == 4)
    assert [getattr(frame, "id", None) for _, frame in harness.receiver.frames] == ["1", "2", "3", "4"]
    assert harness.manager.slices.count == 2 * math.ceil(100 / TOPICS_PER_SLICE)


async def test_a_subscription_that_is_denied_in_a_later_slice_is_refused_as_a_whole_and_once() -> None:
    harness = limited(topics=["t.#"])
    handler = await harness.connect()
    frame = subscribe_frame(99)
    frame["payload"]["topics"].append("secret")
    harness.receive(handler, frame | {"payload": frame["payload"] | {"id": "1"}})
    await until(lambda: handler.frames)
    await until(lambda: not len(harness.manager.slices))
    assert [frame["payload"]["error"]["code"] for frame in handler.frames] == ["permission_denied"]
    assert not harness.receiver.frames


async def test_a_policy_that_changes_between_two_slices_decides_about_all_topics() -> None:
    policy = ExposePolicy([], ["t.#"])
    harness = limited(policy=policy)
    handler = await harness.connect()
    harness.receive(handler, subscribe_frame(100, id="1"))
    policy.replace(ExposePolicy([], [f"t.{number}" for number in range(1, 100)]).rules)
    harness.manager.topic_checks.restart()
    await until(lambda: handler.frames)
    assert handler.frames[0]["payload"]["error"]["description"] == "Subscribing to t.0 is not allowed"


async def test_a_token_that_is_replaced_between_two_slices_decides_about_all_topics() -> None:
    class Tokens(ExposePolicy):
        def may_subscribe(self, identity: Identity, pattern: str) -> bool:
            return identity.token == "alice" or pattern != "t.0"

    harness = limited(policy=Tokens([], []))
    handler = await harness.connect("alice")
    harness.receive(handler, subscribe_frame(100, id="1"))
    assert handler.identity is not None
    handler.identity = Identity(user_id="alice", username="alice", token="less")
    await until(lambda: handler.frames)
    assert handler.frames[0]["payload"]["error"]["code"] == "permission_denied"
    assert not harness.receiver.frames


async def test_a_connection_that_ends_between_two_slices_leaves_nothing() -> None:
    harness = limited()
    handler = await harness.connect()
    harness.receive(handler, subscribe_frame(100, id="1"))
    harness.receive(handler, request_frame(id="2"))
    harness.manager.unregister(handler)
    await until(lambda: not len(harness.manager.slices))
    assert not harness.receiver.frames
    assert not handler.frames
    harness.assert_empty()


async def test_a_defect_in_a_later_slice_is_answered_and_later_frames_go_on() -> None:
    class Broken(ExposePolicy):
        def may_subscribe(self, identity: Identity, pattern: str) -> bool:
            return 1 // (pattern != "t.50") > 0

    harness = limited(policy=Broken(["*.*"], []))
    handler = await harness.connect()
    harness.receive(handler, subscribe_frame(100, id="1"))
    harness.receive(handler, request_frame(id="2"))
    await until(lambda: harness.receiver.frames)
    assert [frame["payload"]["error"]["code"] for frame in handler.frames] == ["internal"]
