"""Topics with history: settings, subscriptions that begin in the past, positions of live events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from nuropb_gateway_asgi import Settings
from nuropb_gateway_asgi.assembly import make_history
from nuropb_gateway_asgi.authorization import ExposePolicy
from nuropb_gateway_asgi.exceptions import MeshUnavailable, SettingsError
from nuropb_gateway_asgi.mesh.embedded import EmbeddedMesh
from nuropb_gateway_asgi.protocol import MAX_SUBSCRIPTIONS
from nuropb_gateway_asgi.routing.history import LEAVE_AFTER
from nuropb_gateway_asgi.wire.history import (
    After,
    KeptTopic,
    Last,
    Seconds,
    Start,
    parse_bytes,
    parse_kept_topics,
    parse_time,
)

from .fakes import FakeGateway, FakeHandler, FakeLog, FakeMesh, make_gateway, running, until

HISTORY = ("orders.#:1h", "prices.*:last")


@pytest.fixture
async def gateway() -> AsyncIterator[FakeGateway]:
    async with running(history=HISTORY) as gateway:
        yield gateway
        for handler in gateway.handlers.handlers:
            gateway.handlers.unregister(handler)
        gateway.assert_idle()


@pytest.fixture
def orders(gateway: FakeGateway) -> FakeLog:
    return gateway.mesh.logs["orders.#"]


def subscribe(gateway: FakeGateway, handler: FakeHandler, *topics: str, **payload: Any) -> None:
    gateway.receive(handler, "subscribe", topics=list(topics), **payload)


async def subscribe_since(gateway: FakeGateway, handler: FakeHandler, since: Any, topic: str = "orders.#") -> Any:
    """Subscribe to a topic that begins in the past; return its part of the answer."""
    before = len(handler.frames)
    subscribe(gateway, handler, topic, id="s", since={topic: since})
    await until(lambda: len(handler.frames) > before)
    payload = handler.frames[before]["payload"]
    assert payload["error"] is None, payload["error"]
    return payload["result"]["history"][topic]


def events(handler: FakeHandler) -> list[tuple[int, Any]]:
    """The offset and content of each event with a position."""
    payloads = [frame["payload"] for frame in handler.frames if frame["type"] == "event"]
    return [(each["position"]["offset"], each["event"]) for each in payloads]


def error_of(handler: FakeHandler) -> tuple[str, str]:
    error = handler.take()[-1]["payload"]["error"]
    return error["code"], error["description"]


# --- settings ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1s", 1), ("15m", 900), ("15min", 900), ("1h", 3600), ("365d", 365 * 86400), ("last", None)],
)
def test_a_time_is_a_number_and_a_unit(text: str, seconds: int | None) -> None:
    assert parse_time(text) == seconds


@pytest.mark.parametrize("text", ["", "1", "h", "0h", "1.5h", "-1h", "366d", "1y", "1h ", "LAST", "99999999999d"])
def test_any_other_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a time"):
        parse_time(text)


@pytest.mark.parametrize(("text", "size"), [("1048576", 2**20), ("1MiB", 2**20), ("2MB", 2_000_000), ("1GiB", 2**30)])
def test_a_size_is_a_number_and_a_unit(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "1", "1KiB", "-1MiB", "1.5MiB", "1 MiB", "999999999999999GiB"])
def test_any_other_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a number of bytes"):
        parse_bytes(text)


def test_the_setting_names_patterns_and_times() -> None:
    assert parse_kept_topics(HISTORY) == (KeptTopic("orders.#", 3600, 64 << 20), KeptTopic("prices.*", None, 16 << 20))


@pytest.mark.parametrize(
    ("history", "fault"),
    [
        ("orders.#", "'orders.#' names no time; expected a topic pattern, a colon and a time"),
        ("orders.#:soon", "'soon' is not a time; expected a time"),
        (":1h", "'' is not a topic pattern: empty; expected words"),
        ("a*:1h", "'a*' is not a topic pattern: a word that mixes * or # with other characters; expected words"),
        ("orders.#:1h,orders.new:1h", "'orders.new' and 'orders.#' overlap; expected patterns of which each event"),
    ],
)
def test_a_mistake_in_the_setting_is_one_line(history: str, fault: str) -> None:
    with pytest.raises(SettingsError) as caught:
        make_history(Settings(history=history.split(",")), None)
    assert str(caught.value).startswith(f"HISTORY: {fault}")


def test_a_mesh_that_keeps_no_events_is_a_mistake() -> None:
    class Forgetful(FakeMesh):
        keep_history = None  # type: ignore[assignment]

    with pytest.raises(SettingsError, match=r"^HISTORY: this mesh keeps no events; expected RabbitMQ, or the embedded"):
        make_gateway(mesh=Forgetful(), history=HISTORY)


# --- subscriptions without a past -------------------------------------------------------------------------------


async def test_a_topic_with_history_takes_no_binding_and_its_events_have_positions(
    gateway: FakeGateway, orders: FakeLog
) -> None:
    handler = await gateway.connect()
    orders.event("orders.old")
    subscribe(gateway, handler, "orders.#", id="1")
    orders.event("orders.new", {"n": 1}, trace_id="t")
    assert gateway.mesh.bindings == []
    answer, event = handler.frames
    assert answer["payload"]["result"] == {"topics": ["orders.#"]}
    assert event["payload"] == {
        "topic": "orders.new",
        "event": {"n": 1},
        "trace_id": "t",
        "position": {"epoch": "first", "offset": 1},
    }


async def test_a_narrower_pattern_gets_the_events_that_it_matches(gateway: FakeGateway, orders: FakeLog) -> None:
    handler = await gateway.connect()
    subscribe(gateway, handler, "orders.eu.*", "orders.eu.#", id="1")
    orders.event("orders.us.new")
    orders.event("orders.eu.new", 5)
    assert events(handler) == [(1, 5)]


async def test_a_wider_pattern_is_an_ordinary_topic(gateway: FakeGateway) -> None:
    handler = await gateway.connect()
    subscribe(gateway, handler, "#", id="1")
    gateway.mesh.event("orders.new", 5)
    assert gateway.mesh.bindings == [("+", "#")]
    assert handler.take()[-1]["payload"] == {"topic": "orders.new", "event": 5}


async def test_an_event_with_a_target_comes_by_the_event_queue_alone(gateway: FakeGateway, orders: FakeLog) -> None:
    handler = await gateway.connect()
    subscribe(gateway, handler, "orders.#")
    handler.take()
    orders.event("orders.new", target=["bob"])
    orders.event("orders.new", target=["alice"])
    assert handler.frames == []
    assert await subscribe_since(gateway, handler, {"last": 5}) == {
        "epoch": "first",
        "offset": 1,
        "recovered": True,
        "count": 0,
    }


async def test_a_topic_of_the_gateway_is_never_kept_for_clients(gateway: FakeGateway) -> None:
    mesh = FakeMesh()
    async with running(mesh=mesh, history=["#:1h"]) as wide:
        handler = await wide.connect()
        subscribe(wide, handler, "#")
        mesh.logs["#"].event("goodbye")
        assert events(handler) == []


async def test_the_history_is_followed_while_there_are_subscribers_and_a_moment_longer(
    gateway: FakeGateway, orders: FakeLog
) -> None:
    handler = await gateway.connect()
    assert orders.followers == []
    subscribe(gateway, handler, "orders.#")
    assert len(orders.followers) == 1
    gateway.receive(handler, "unsubscribe", topics=["orders.#"])
    await gateway.sweep(LEAVE_AFTER / 2)
    assert len(orders.followers) == 1
    await gateway.sweep(LEAVE_AFTER)
    assert orders.followers == []


async def test_a_subscriber_waits_until_live_events_come(gateway: FakeGateway, orders: FakeLog) -> None:
    orders.answers = False
    handler = await gateway.connect()
    subscribe(gateway, handler, "orders.#", id="1")
    assert handler.frames == []
    orders.start()
    assert handler.take()[0]["payload"]["id"] == "1"


async def test_a_subscriber_without_a_mesh_is_answered_and_told_of_the_gap_later(
    gateway: FakeGateway, orders: FakeLog
) -> None:
    orders.answers = False
    handler = await gateway.connect()
    gateway.mesh.lose()
    subscribe(gateway, handler, "orders.#", id="1")
    assert handler.take()[0]["payload"]["id"] == "1"
    gateway.mesh.find()
    orders.start()
    assert handler.take()[0]["payload"]["event"] == {"reason": "disconnected", "topics": ["orders.#"]}


async def test_a_subscriber_without_streams_is_answered_at_once(gateway: FakeGateway, orders: FakeLog) -> None:
    orders.answers = False
    handler = await gateway.connect()
    gateway.mesh.publishes = False
    subscribe(gateway, handler, "orders.#", id="1")
    assert handler.take()[0]["payload"]["id"] == "1"
    gateway.mesh.publishes = True
    orders.start()
    assert handler.take()[0]["payload"]["event"] == {"reason": "disconnected", "topics": ["orders.#"]}


async def test_a_gap_of_the_event_queue_concerns_no_topic_with_history(gateway: FakeGateway) -> None:
    one, other = await gateway.connect(), await gateway.connect("bob")
    subscribe(gateway, one, "orders.#", "news")
    subscribe(gateway, other, "orders.#")
    one.take(), other.take()
    gateway.mesh.told.on_gap("expired")
    assert one.take()[0]["payload"]["event"] == {"reason": "expired", "topics": ["news"]}
    assert other.frames == []


async def test_a_gap_of_a_history_concerns_its_topics_alone(gateway: FakeGateway, orders: FakeLog) -> None:
    handler = await gateway.connect()
    subscribe(gateway, handler, "orders.#", "prices.*", "news")
    handler.take()
    orders.followers[0].on_missed()
    assert handler.take()[0]["payload"]["event"] == {"reason": "expired", "topics": ["orders.#"]}


async def test_a_history_that_is_refused_makes_its_topics_ordinary(gateway: FakeGateway, orders: FakeLog) -> None:
    orders.answers = False
    handler = await gateway.connect()
    subscribe(gateway, handler, "orders.#", id="1")
    orders.available = False
    orders.followers[0].on_unavailable()
    assert handler.take()[0]["payload"]["result"] == {"topics": ["orders.#"]}
    gateway.mesh.event("orders.new", 5)
    assert handler.take()[0]["payload"] == {"topic": "orders.new", "event": 5}
    subscribe(gateway, handler, "orders.#", id="2", since={"orders.#": {"last": 1}})
    assert error_of(handler)[0] == "mesh_unavailable"


# --- one event, two ways ----------------------------------------------------------------------------------------


async def test_an_event_that_matches_an_ordinary_pattern_too_comes_once_with_its_position(
    gateway: FakeGateway, orders: FakeLog
) -> None:
    handler = await gateway.connect()
    subscribe(gateway, handler, "orders.#", "#")
    handler.take()
    gateway.mesh.event("orders.one", 1, id="one")
    orders.event("orders.one", 1, id="one")
    orders.event("orders.two", 2, id="two")
    gateway.mesh.event("orders.two", 2, id="two")
    assert events(handler) == [(0, 1), (1, 2)]


async def test_an_event_around_the_beginning_of_a_subscription_comes_once(
    gateway: FakeGateway, orders: FakeLog
) -> None:
    first, handler = await gateway.connect("bob"), await gateway.connect()
    subscribe(gateway, first, "orders.#")
    subscribe(gateway, handler, "#")
    orders.event("orders.one", 1, id="one")
    gateway.mesh.event("orders.two", 2, id="two")
    subscribe(gateway, handler, "orders.#")
    handler.take()
    gateway.mesh.event("orders.one", 1, id="one")  # from before the beginning
    orders.event("orders.two", 2, id="two")  # delivered before
    assert [frame["payload"]["event"] for frame in handler.take()] == [1]


# --- subscriptions in the past ----------------------------------------------------------------------------------


async def test_events_after_a_position_come_and_then_live_ones(gateway: FakeGateway, orders: FakeLog) -> None:
    handler = await gateway.connect()
    for number in range(5):
        orders.event("orders.new", number)
    found = await subscribe_since(gateway, handler, {"epoch": "first", "offset": 1})
    await until(lambda: len(events(handler)) == 3)
    orders.event("orders.new", "live")
    assert found == {"epoch": "first", "offset": 4, "recovered": True, "count": 3}
    assert events(handler) == [(2, 2), (3, 3), (4, 4), (6, "live")]
    statistics = gateway.manager.statistics
    assert (statistics.catch_ups, statistics.failed_catch_ups, statistics.replayed_events) == (1, 0, 3)


async def test_the_last_events_come(gateway: FakeGateway, orders: FakeLog) -> None:
    handler = await gateway.connect()
    for number in range(5):
        orders.event("orders.new", number)
    found = await subscribe_since(gateway, handler, {"last": 2})
    await until(lambda: len(events(handler)) == 2)
    assert (found["recovered"], found["count"]) == (True, 2)
    assert events(handler) == [(3, 3), (4, 4)]


@pytest.mark.parametrize(
    ("since", "start"),
    [
        ({"epoch": "first", "offset": 0}, After(0)),
        ({"last": 1000}, Last(1000)),
        ({"seconds": 0.5}, Seconds(0.5)),
        ({"seconds": 300}, Seconds(300.0)),
    ],
)
async def test_every_form_of_since_has_a_start(
    gateway: FakeGateway, orders: FakeLog, since: dict[str, Any], start: object
) -> None:
    handler = await gateway.connect()
    orders.event("orders.new")
    await subscribe_since(gateway, handler, since)
    assert orders.readings == [start]


async def test_an_empty_history_has_nothing_and_nothing_is_missing(gateway: FakeGateway) -> None:
    handler = await gateway.connect()
    found = await subscribe_since(gateway, handler, {"last": 5})
    assert found == {"epoch": "first", "offset": 0, "recovered": True, "count": 0}


async def test_a_position_without_events_since_stays(gateway: FakeGateway, orders: FakeLog) -> None:
    handler = await gateway.connect()
    orders.event("orders.new")
    found = await subscribe_since(gateway, handler, {"epoch": "first", "offset": 0})
    assert found == {"epoch": "first", "offset": 0, "recovered": True, "count": 0}


@pytest.mark.parametrize(
    "since",
    [
        {"epoch": "another", "offset": 4},
        {"epoch": "first", "offset": 1},  # the events 2 and 3 are lost
        {"epoch": "first", "offset": 2**63 - 1},
    ],
)
async def test_nothing_is_recovered_when_something_may_be_missing(
    gateway: FakeGateway, orders: FakeLog, since: dict[str, Any]
) -> None:
    handler = await gateway.connect()
    for number in range(6):
        orders.event("orders.new", number)
    orders.lost = 3
    found = await subscribe_since(gateway, handler, since)
    orders.event("orders.new", "live")
    assert found == {"epoch": "first", "offset": 6, "recovered": False, "count": 0}
    await until(lambda: events(handler) == [(7, "live")])
    assert gateway.manager.statistics.failed_catch_ups == 1


async def test_more_events_than_history_max_are_not_recovered() -> None:
    async with running(history=HISTORY, history_max=3) as gateway:
        handler = await gateway.connect()
        log = gateway.mesh.logs["orders.#"]
        for number in range(4):
            log.event("orders.new", number)
        assert (await subscribe_since(gateway, handler, {"seconds": 60}))["recovered"] is False
        assert (await subscribe_since(gateway, handler, {"last": 3}))["count"] == 3


async def test_more_bytes_than_the_outbox_are_not_recovered() -> None:
    async with running(history=HISTORY, outbox_size=1024) as gateway:
        handler = await gateway.connect()
        for _ in range(3):
            gateway.mesh.logs["orders.#"].event("orders.new", "x" * 400)
        assert (await subscribe_since(gateway, handler, {"last": 2}))["count"] == 2
        assert (await subscribe_since(gateway, handler, {"last": 3}))["recovered"] is False


async def test_live_events_wait_for_the_past_and_none_is_lost_or_doubled(gateway: FakeGateway, orders: FakeLog) -> None:
    handler = await gateway.connect()
    orders.answers = False
    orders.gate = asyncio.Event()
    orders.event("orders.new", "past")
    subscribe(gateway, handler, "orders.#", id="s", since={"orders.#": {"last": 10}})
    await until(lambda: orders.followers)
    orders.start()
    orders.event("orders.new", "before the mark")
    await until(lambda: orders.marks)
    orders.reach_marks()
    orders.event("orders.new", "behind the mark")
    await until(lambda: orders.readings)
    orders.event("orders.new", "during the reading")
    assert handler.frames == []
    orders.gate.set()
    await until(lambda: len(handler.frames) == 5)
    assert handler.frames[0]["payload"]["result"]["history"]["orders.#"]["count"] == 2
    assert [event for _, event in events(handler)] == [
        "past",
        "before the mark",
        "behind the mark",
        "during the reading",
    ]


async def test_a_slow_client_gets_the_past_no_faster_than_it_reads(gateway: FakeGateway, orders: FakeLog) -> None:
    class Slow(FakeHandler):
        waiting = 0

        @property
        def outbox_size(self) -> int:
            return self.waiting

    handler = Slow()
    await gateway.handlers.register(handler, "alice")
    handler.waiting = gateway.settings.outbox_size
    orders.event("orders.new", 1)
    await subscribe_since(gateway, handler, {"last": 1})
    orders.event("orders.new", 2)
    await asyncio.sleep(0)
    assert events(handler) == []
    handler.waiting = 0
    await until(lambda: events(handler) == [(0, 1), (2, 2)])


async def test_several_topics_of_one_history_bring_each_event_once(gateway: FakeGateway, orders: FakeLog) -> None:
    handler = await gateway.connect()
    for number, region in enumerate(("eu", "us", "eu")):
        orders.event(f"orders.{region}", number)
    since = {"orders.eu": {"last": 5}, "orders.#": {"last": 5}}
    subscribe(gateway, handler, "orders.eu", "orders.#", id="s", since=since)
    await until(lambda: len(handler.frames) == 4)
    history = handler.frames[0]["payload"]["result"]["history"]
    assert {topic: found["count"] for topic, found in history.items()} == {"orders.eu": 2, "orders.#": 1}
    assert events(handler) == [(0, 0), (1, 1), (2, 2)]


async def test_topics_of_two_histories_are_answered_together(gateway: FakeGateway, orders: FakeLog) -> None:
    handler = await gateway.connect()
    orders.event("orders.new", "order")
    gateway.mesh.logs["prices.*"].event("prices.eur", "price")
    since = {"orders.#": {"last": 1}, "prices.*": {"last": 1}}
    subscribe(gateway, handler, "orders.#", "prices.*", "news", id="s", since=since)
    await until(lambda: len(handler.frames) == 3)
    result = handler.frames[0]["payload"]["result"]
    assert result["topics"] == ["orders.#", "prices.*", "news"]
    assert result["history"].keys() == since.keys()
    assert {event for _, event in events(handler)} == {"order", "price"}


async def test_a_subscription_may_ask_for_the_past_once_more(gateway: FakeGateway, orders: FakeLog) -> None:
    handler = await gateway.connect()
    subscribe(gateway, handler, "orders.#")
    orders.event("orders.new", 1)
    handler.take()
    assert (await subscribe_since(gateway, handler, {"last": 1}))["count"] == 1
    await until(lambda: events(handler) == [(0, 1)])
    orders.event("orders.new", 2)
    assert events(handler) == [(0, 1), (2, 2)]


async def test_a_topic_of_a_frame_without_since_begins_now(gateway: FakeGateway, orders: FakeLog) -> None:
    handler = await gateway.connect()
    orders.event("orders.new", 1)
    gateway.mesh.logs["prices.*"].event("prices.eur", 1)
    subscribe(gateway, handler, "orders.#", "prices.*", id="s", since={"prices.*": {"last": 1}})
    await until(lambda: len(handler.frames) == 2)
    assert events(handler) == [(0, 1)]
    assert handler.frames[1]["payload"]["topic"] == "prices.eur"


# --- refusals ---------------------------------------------------------------------------------------------------


async def test_a_topic_without_history_cannot_begin_in_the_past(gateway: FakeGateway) -> None:
    handler = await gateway.connect()
    for topic in ("news", "#", "orders"[:-1]):
        subscribe(gateway, handler, topic, id="s", since={topic: {"last": 1}})
        assert error_of(handler) == ("bad_request", "payload.since: a topic without history")
    assert gateway.manager.events.topics_of(handler) == []


@pytest.mark.parametrize(
    ("since", "fault"),
    [
        ({"news": {"last": 1}}, "payload.since: a topic that is not in payload.topics"),
        (5, "payload.since: expected object | null, got int"),
        ([], "payload.since: expected object | null, got array"),
        ({"orders.#": None}, "payload.since[...]: expected object, got null"),
        ({"orders.#": "x" * 1000}, "payload.since[...]: expected object, got str"),
        ({"orders.#": {}}, "payload.since: expected one of epoch with offset, last, and seconds, for each topic"),
        (
            {"orders.#": {"last": 1, "seconds": 1}},
            "payload.since: expected one of epoch with offset, last, and seconds, for each topic",
        ),
        ({"orders.#": {"offset": 1}}, "payload.since: epoch must be 1 to 64 printable ASCII characters"),
        ({"orders.#": {"epoch": "", "offset": 1}}, "payload.since: epoch must be 1 to 64 printable ASCII characters"),
        ({"orders.#": {"epoch": "é", "offset": 1}}, "payload.since: epoch must be 1 to 64 printable ASCII characters"),
        (
            {"orders.#": {"epoch": "x" * 65, "offset": 1}},
            "payload.since: epoch must be 1 to 64 printable ASCII characters",
        ),
        ({"orders.#": {"epoch": "e"}}, "payload.since: offset must be a whole number from 0, of at most 63 bits"),
        (
            {"orders.#": {"epoch": "e", "offset": -1}},
            "payload.since: offset must be a whole number from 0, of at most 63 bits",
        ),
        (
            {"orders.#": {"epoch": "e", "offset": 2**63}},
            "payload.since: offset must be a whole number from 0, of at most 63 bits",
        ),
        ({"orders.#": {"epoch": "e", "offset": 1.5}}, "payload.since[...].offset: expected int | null, got float"),
        ({"orders.#": {"epoch": "e", "offset": True}}, "payload.since[...].offset: expected int | null, got bool"),
        ({"orders.#": {"last": 0}}, "payload.since: last must be from 1 to 1000"),
        ({"orders.#": {"last": 1001}}, "payload.since: last must be from 1 to 1000"),
        ({"orders.#": {"seconds": 0}}, "payload.since: seconds must be above 0 and at most 31536000"),
        ({"orders.#": {"seconds": -1}}, "payload.since: seconds must be above 0 and at most 31536000"),
        ({"orders.#": {"seconds": 1e300}}, "payload.since: seconds must be above 0 and at most 31536000"),
        ({"orders.#": {"seconds": "300"}}, "payload.since[...].seconds: expected float | null, got str"),
    ],
)
async def test_a_hostile_since_is_a_bad_request(gateway: FakeGateway, since: Any, fault: str) -> None:
    handler = await gateway.connect()
    subscribe(gateway, handler, "orders.#", id="s", since=since)
    assert error_of(handler) == ("bad_request", fault)


async def test_an_integer_beyond_64_bits_is_a_bad_request(gateway: FakeGateway) -> None:
    handler = await gateway.connect()
    for number in ("1" * 30, "9" * 300):
        text = '{"type":"subscribe","payload":{"id":"s","topics":["orders.#"],"since":{"orders.#":{"last":%s}}}}'
        gateway.handlers.on_handler_message(handler, text % number)
        assert error_of(handler)[0] == "bad_request"


async def test_a_since_of_null_or_nothing_is_an_ordinary_subscription(gateway: FakeGateway) -> None:
    handler = await gateway.connect()
    absent: tuple[Any, ...] = (None, {})
    for since in absent:
        subscribe(gateway, handler, "orders.#", id="s", since=since)
        assert handler.take()[0]["payload"]["result"] == {"topics": ["orders.#"]}


async def test_the_policy_is_asked_as_for_every_subscription() -> None:
    async with running(history=HISTORY, policy=ExposePolicy([], ["prices.*"])) as gateway:
        handler = await gateway.connect()
        subscribe(gateway, handler, "orders.#", id="s", since={"orders.#": {"last": 1}})
        assert error_of(handler)[0] == "permission_denied"
        assert gateway.mesh.logs["orders.#"].readings == []


async def test_too_many_subscriptions_are_refused_as_ever(gateway: FakeGateway) -> None:
    handler = await gateway.connect()
    subscribe(gateway, handler, *(f"orders.{number}" for number in range(MAX_SUBSCRIPTIONS)))
    await until(lambda: handler.take())
    subscribe(gateway, handler, "orders.more", id="s", since={"orders.more": {"last": 1}})
    assert error_of(handler)[0] == "bad_request"


@pytest.mark.parametrize("without", ["a mesh", "streams"])
async def test_without_a_mesh_the_past_is_unavailable(gateway: FakeGateway, without: str) -> None:
    handler = await gateway.connect()
    if without == "a mesh":
        gateway.mesh.lose()
    gateway.mesh.publishes = False
    subscribe(gateway, handler, "orders.#", id="s", since={"orders.#": {"last": 1}})
    assert error_of(handler)[0] == "mesh_unavailable"
    assert gateway.manager.events.topics_of(handler) == []


@pytest.mark.parametrize("error", [MeshUnavailable("lost"), RuntimeError("a defect")])
async def test_a_reading_that_fails_fails_its_subscription_alone(
    gateway: FakeGateway, orders: FakeLog, error: Exception
) -> None:
    handler = await gateway.connect()
    subscribe(gateway, handler, "orders.one")
    handler.take()
    orders.error = error
    subscribe(gateway, handler, "orders.#", "news", id="s", since={"orders.#": {"last": 1}})
    await until(lambda: handler.frames)
    assert error_of(handler)[0] == "mesh_unavailable"
    assert gateway.manager.events.topics_of(handler) == ["orders.one"]
    orders.event("orders.one", 5)
    assert [event for _, event in events(handler)] == [5]


# --- ends -------------------------------------------------------------------------------------------------------


async def test_a_client_that_leaves_meanwhile_leaves_nothing_behind(gateway: FakeGateway, orders: FakeLog) -> None:
    orders.gate = asyncio.Event()
    one, other = await gateway.connect(), await gateway.connect("bob")
    for handler in (one, other):
        subscribe(gateway, handler, "orders.#", id="s", since={"orders.#": {"last": 1}})
        subscribe(gateway, handler, "orders.#", id="t", since={"orders.#": {"last": 1}})
    await until(lambda: len(orders.readings) == 2)
    gateway.handlers.unregister(one)
    orders.gate.set()
    await until(lambda: len([frame for frame in other.frames if frame["type"] == "response"]) == 2)
    gateway.handlers.unregister(other)
    await until(lambda: gateway.manager.events.history.is_idle)


async def test_an_unsubscribed_topic_brings_nothing_of_its_past(gateway: FakeGateway, orders: FakeLog) -> None:
    orders.gate = asyncio.Event()
    orders.event("orders.new", 1)
    handler = await gateway.connect()
    subscribe(gateway, handler, "orders.#", id="s", since={"orders.#": {"last": 1}})
    await until(lambda: orders.readings)
    gateway.receive(handler, "unsubscribe", topics=["orders.#"], id="u")
    orders.gate.set()
    await until(lambda: len(handler.frames) == 2)
    orders.event("orders.new", 2)
    await until(lambda: gateway.manager.events.history.is_idle)
    assert [frame["payload"]["id"] for frame in handler.frames] == ["u", "s"]


async def test_a_denied_topic_brings_nothing_of_its_past(orders: FakeLog, gateway: FakeGateway) -> None:
    orders.gate = asyncio.Event()
    orders.event("orders.new", 1)
    handler = await gateway.connect()
    subscribe(gateway, handler, "orders.#", id="s", since={"orders.#": {"last": 1}})
    await until(lambda: orders.readings)
    gateway.manager.events.on_topic_refused("orders.#")  # concerns the event queue alone
    assert gateway.manager.events.topics_of(handler) == ["orders.#"]
    orders.gate.set()
    await until(lambda: events(handler) == [(0, 1)])


async def test_a_session_gets_its_connections_subscriptions_in_the_past(gateway: FakeGateway, orders: FakeLog) -> None:
    orders.gate = asyncio.Event()
    orders.event("orders.new", 1)
    handler = await gateway.connect()
    subscribe(gateway, handler, "orders.#", id="s", since={"orders.#": {"last": 1}})
    await until(lambda: orders.readings)
    successor = FakeHandler(handler.session_id)
    successor.identity = handler.identity
    gateway.handlers.replace(handler, successor)
    gateway.manager.events.replace(handler, successor)
    orders.event("orders.new", 2)
    orders.gate.set()
    await until(lambda: [event for _, event in events(successor)] == [1, 2])
    assert handler.frames == []


# --- the embedded mesh ------------------------------------------------------------------------------------------


@pytest.fixture
async def mesh() -> AsyncIterator[EmbeddedMesh]:
    mesh = EmbeddedMesh({})
    make_gateway(mesh=mesh, history=["orders.#:1h", "news:last"])  # type: ignore[arg-type]
    async with mesh:
        yield mesh


def publish(mesh: EmbeddedMesh, topic: str, event: bytes = b"1", target: list[str] | None = None) -> None:
    mesh.publish(topic, event, context=b"{}", trace_id="t", target=target)


async def test_the_embedded_mesh_keeps_events_without_subscribers(mesh: EmbeddedMesh) -> None:
    (log,) = mesh.keep_history([KeptTopic("orders.#", 3600, 1 << 20)]).values()
    for number in range(3):
        publish(mesh, f"orders.{number}")
    publish(mesh, "other")
    publish(mesh, "orders.private", target=["bob"])
    read = await log.read(Last(10), 100, lambda event: True, 10, 1000)
    assert [(offset, event.topic) for offset, event in read.events] == [
        (1, "orders.0"),
        (2, "orders.1"),
        (3, "orders.2"),
    ]
    assert read.complete


async def test_other_transports_share_what_the_embedded_mesh_keeps(mesh: EmbeddedMesh) -> None:
    topics = [KeptTopic("orders.#", 3600, 1 << 20)]
    (log,) = mesh.keep_history(topics).values()
    (other,) = mesh.for_transport("x").keep_history(topics).values()
    assert log.epoch == other.epoch
    publish(mesh, "orders.1")
    assert len((await other.read(Last(1), 1, lambda event: True, 1, 1000)).events) == 1


async def test_what_the_embedded_mesh_has_dropped_is_not_complete(mesh: EmbeddedMesh) -> None:
    (log,) = mesh.keep_history([KeptTopic("other", None, 1 << 20)]).values()
    for _ in range(12):
        publish(mesh, "other", b'"%b"' % (b"x" * 100_000))
    kept = (await log.read(Last(10), 12, lambda event: True, 100, 1 << 30)).events
    assert [offset for offset, _ in kept] == list(range(3, 13))
    starts: dict[Start, bool | None] = {
        After(1): False,
        After(2): True,
        Last(10): True,
        Last(11): False,
        Seconds(0.0001): None,
        Seconds(60): False,
    }
    for start, complete in starts.items():
        read = await log.read(start, 12, lambda event: True, 100, 1 << 30)
        assert complete is None or read.complete is complete, start
        assert read.complete or not read.events


# --- sessions that move -----------------------------------------------------------------------------------------


async def adopted(gateway: FakeGateway, *topics: str) -> FakeHandler:
    handler = await gateway.connect()
    await gateway.manager.events.adopt(handler, topics)
    return handler


async def test_a_session_takes_its_positions_along(gateway: FakeGateway, orders: FakeLog) -> None:
    handler = await gateway.connect()
    subscribe(gateway, handler, "orders.#", "news")
    orders.event("orders.new", 1)
    orders.event("orders.new", 2)
    positions = gateway.manager.events.positions_of(handler)
    assert positions == {"orders.#": ("first", 1)}
    other = await adopted(gateway, "orders.#", "news")
    orders.event("orders.new", 3)
    assert events(other) == []
    gateway.manager.events.continue_after(other, positions)
    await until(lambda: events(other) == [(2, 3)])
    orders.event("orders.new", 4)
    await until(lambda: [event for _, event in events(other)] == [3, 4])


async def test_a_session_that_moves_gets_an_event_that_matches_an_ordinary_pattern_too_once(
    gateway: FakeGateway, orders: FakeLog
) -> None:
    handler = await adopted(gateway, "orders.#", "#")
    for number, name in enumerate(("had", "missed", "later")):
        orders.event("orders.new", number, id=name)
        gateway.mesh.event("orders.new", number, id=name)  # before the history begins here
    gateway.manager.events.continue_after(handler, {"orders.#": ("first", 0)})
    await until(lambda: events(handler) == [(1, 1), (2, 2)])
    gateway.mesh.event("orders.new", 0, id="had")
    gateway.mesh.event("orders.new", 2, id="later")
    assert len(handler.frames) == 2


async def test_a_session_in_the_middle_of_its_past_takes_that_position_along(
    gateway: FakeGateway, orders: FakeLog
) -> None:
    orders.gate = asyncio.Event()
    for number in range(5):
        orders.event("orders.new", number)
    handler = await adopted(gateway, "orders.#")
    gateway.manager.events.continue_after(handler, {"orders.#": ("first", 1)})
    await until(lambda: orders.readings)
    orders.event("orders.new", "live")
    assert gateway.manager.events.positions_of(handler) == {"orders.#": ("first", 1)}
    orders.gate.set()
    await until(lambda: [event for _, event in events(handler)] == [2, 3, 4, "live"])
    assert gateway.manager.events.positions_of(handler) == {"orders.#": ("first", 6)}


@pytest.mark.parametrize("positions", [{}, {"orders.#": ("another", 1)}, {"orders.#": ("first", 0)}])
async def test_a_session_whose_events_are_lost_is_told(
    gateway: FakeGateway, orders: FakeLog, positions: dict[str, tuple[str, int]]
) -> None:
    for number in range(5):
        orders.event("orders.new", number)
    orders.lost = 2
    handler = await adopted(gateway, "orders.#")
    gateway.manager.events.continue_after(handler, positions)
    await until(lambda: handler.frames)
    assert handler.take()[0]["payload"]["event"] == {"reason": "expired", "topics": ["orders.#"]}
    orders.event("orders.new", "live")
    await until(lambda: [event for _, event in events(handler)] == ["live"])


async def test_a_session_whose_history_cannot_be_read_is_told_and_gets_live_events(
    gateway: FakeGateway, orders: FakeLog
) -> None:
    handler = await adopted(gateway, "orders.#")
    orders.error = MeshUnavailable("lost")
    gateway.manager.events.continue_after(handler, {"orders.#": ("first", 0)})
    await until(lambda: handler.take())
    orders.event("orders.new", "live")
    await until(lambda: [event for _, event in events(handler)] == ["live"])


async def test_a_session_moves_once_its_subscriptions_in_the_past_are_answered(
    gateway: FakeGateway, orders: FakeLog
) -> None:
    orders.gate = asyncio.Event()
    handler = await gateway.connect()
    moved: list[int] = []
    gateway.manager.events.history.when_answered(handler, lambda: moved.append(len(handler.frames)))
    assert moved == [0]
    subscribe(gateway, handler, "orders.#", id="s", since={"orders.#": {"last": 1}})
    await until(lambda: orders.readings)
    gateway.manager.events.history.when_answered(handler, lambda: moved.append(len(handler.frames)))
    assert moved == [0]
    orders.gate.set()
    await until(lambda: moved == [0, 1])
