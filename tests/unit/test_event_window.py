"""The events that the broker has not confirmed yet, and their order with everything that is compared with them."""

from __future__ import annotations

import asyncio
import time

import pamqp.frame
import pytest
from pamqp import commands

from nuropb_gateway_asgi.exceptions import MeshUnavailable
from nuropb_gateway_asgi.mesh.rabbitmq._event_window import MAX_HELD, PATIENCE, WINDOW, EventWindow, can_confirm_events
from nuropb_gateway_asgi.mesh.rabbitmq._fast import FastLane
from nuropb_gateway_asgi.mesh.rabbitmq._frames import HEARTBEAT_FRAME
from nuropb_gateway_asgi.mesh.rabbitmq._lane import Publisher
from nuropb_gateway_asgi.mesh.rabbitmq._statistics import RabbitMQStatistics
from nuropb_gateway_asgi.wire.publish import encode_publish, on_channel

from .test_lone_messages import Channel, Connection, Wire

PLAIN, CONFIRMED = 1, 2


class Broker:
    """A publisher on the fast lane, and the broker at the other end, played by the test."""

    def __init__(self, *, confirms: bool = True) -> None:
        self.wire = Wire()
        self.lane = FastLane()
        self.lane.on_connect(self.wire)
        self.statistics = RabbitMQStatistics()
        #: Calls that were confirmed or refused.
        self.settled: list[tuple[str, bool]] = []
        self.publisher: Publisher = self.lane.publisher(
            Connection(),  # type: ignore[arg-type]
            Channel(PLAIN),  # type: ignore[arg-type]
            Channel(CONFIRMED),  # type: ignore[arg-type]
            self.statistics,
            confirm_events=confirms,
            on_return=lambda _: None,
            on_confirm=lambda correlation_id, accepted: self.settled.append((correlation_id, accepted)),
        )

    def event(self, name: str, deadline: float = float("inf")) -> None:
        self.publisher.put_event(deadline, frames(name, self.publisher.event_channel))

    def events(self, *names: object) -> None:
        for name in names:
            self.event(str(name))

    def call(self, name: str, *, confirmed: bool = False) -> None:
        channel = CONFIRMED if confirmed else PLAIN
        self.publisher.put(float("inf"), name, frames(name, channel), confirmed=confirmed)

    async def read(self) -> list[tuple[int, str]]:
        """Return the channels and names of the messages that have come since the last time."""
        await asyncio.sleep(0)
        data, self.wire.writes[:] = b"".join(self.wire.writes), []
        found = []
        while data:
            size, channel, frame = pamqp.frame.unmarshal(data)
            data = data[size:]
            if isinstance(frame, commands.Basic.Publish):
                found.append((channel, str(frame.routing_key)))
        return found

    def answer(self, frame: commands.Basic.Ack | commands.Basic.Nack) -> None:
        rest = self.lane.feed(pamqp.frame.marshal(frame, CONFIRMED))
        assert rest in (b"", HEARTBEAT_FRAME)  # the lane's sign of life for aiormq

    def confirm(self, tag: int, *, multiple: bool = False) -> None:
        self.answer(commands.Basic.Ack(tag, multiple=multiple))


@pytest.fixture
async def broker() -> Broker:
    return Broker()


def frames(name: str, channel: int) -> bytes:
    return encode_publish(
        channel=channel,
        exchange="events",
        routing_key=name,
        kind="event",
        correlation_id=f"id of {name}",
        trace_id=None,
        body=b"{}",
        frame_max=131072,
    )


def on(channel: int, *names: object) -> list[tuple[int, str]]:
    return [(channel, str(name)) for name in names]


def stand_still(broker: Broker) -> bool:
    """Look twice, with nothing in between for as long as events are patient."""
    now = time.monotonic()
    return broker.publisher.look_after_events(now) or broker.publisher.look_after_events(now + PATIENCE + 1)


async def test_events_go_by_the_confirmed_channel_and_calls_as_before(broker: Broker) -> None:
    broker.call("request")
    broker.event("first")
    broker.call("command", confirmed=True)
    broker.event("second")
    assert await broker.read() == [(PLAIN, "request"), *on(CONFIRMED, "first", "command", "second")]
    assert broker.publisher.unconfirmed() == ["command"]
    assert broker.publisher.unsettled_events == 2


async def test_confirms_of_events_are_counted_and_those_of_calls_told(broker: Broker) -> None:
    broker.events("first", "second")
    broker.call("command", confirmed=True)
    broker.event("third")
    await broker.read()
    broker.confirm(2)
    assert broker.publisher.unsettled_events == 2
    broker.confirm(3, multiple=True)
    assert (broker.publisher.unsettled_events, broker.settled) == (1, [("command", True)])
    broker.confirm(3, multiple=True)  # again, as no broker does
    broker.confirm(4)
    broker.confirm(4)
    assert (broker.publisher.unsettled_events, broker.settled) == (0, [("command", True)])


async def test_a_refused_event_is_counted_and_not_published_again(broker: Broker) -> None:
    broker.events("first", "second", "third")
    await broker.read()
    broker.answer(commands.Basic.Nack(2, multiple=True))
    broker.confirm(3)
    assert await broker.read() == []
    assert broker.statistics.refused_events == 2
    assert (broker.publisher.unsettled_events, broker.settled) == (0, [])


async def test_events_wait_behind_those_that_are_not_confirmed_and_calls_do_not(broker: Broker) -> None:
    broker.events(*range(WINDOW + 3))
    assert await broker.read() == on(CONFIRMED, *range(WINDOW))
    broker.call("request")
    broker.call("command", confirmed=True)
    broker.event("last")
    assert await broker.read() == [(PLAIN, "request"), (CONFIRMED, "command")]
    assert (broker.publisher.queued, broker.publisher.unsettled_events) == (4, WINDOW + 4)
    broker.confirm(2, multiple=True)
    assert await broker.read() == on(CONFIRMED, WINDOW, WINDOW + 1)
    broker.event("later")  # behind those that wait, although the broker has confirmed more by now
    broker.confirm(5, multiple=True)
    assert await broker.read() == on(CONFIRMED, WINDOW + 2, "last", "later")
    assert broker.publisher.queued == 0


async def test_events_that_expire_make_room_for_others(broker: Broker) -> None:
    broker.lane.pause_writing()
    broker.event("short", deadline=time.monotonic())
    broker.events(*range(WINDOW))
    broker.lane.resume_writing()
    assert await broker.read() == on(CONFIRMED, *range(WINDOW))
    assert broker.statistics.expired_unsent == 1
    assert (broker.publisher.queued, broker.publisher.unsettled_events) == (0, WINDOW)


async def test_too_many_bytes_of_events_are_refused_and_calls_are_not(broker: Broker) -> None:
    broker.events(*range(WINDOW))
    size = MAX_HELD // 4
    for _ in range(4):
        broker.publisher.put_event(float("inf"), bytes(size))
    with pytest.raises(MeshUnavailable, match="the broker does not confirm events"):
        broker.event("more")
    broker.call("request")
    assert (PLAIN, "request") in await broker.read()


async def test_events_go_without_a_confirm_while_none_comes_for_long(broker: Broker) -> None:
    broker.events(*range(WINDOW + 1))
    await broker.read()
    assert not stand_still(broker)
    broker.event("next")
    assert await broker.read() == on(PLAIN, WINDOW, "next")
    broker.events(*range(2 * WINDOW))
    assert len(await broker.read()) == 2 * WINDOW
    broker.confirm(WINDOW - 1, multiple=True)
    assert not broker.publisher.look_after_events(time.monotonic())  # one is still on its way


async def test_a_broker_that_blocks_publishers_does_not_stand_still(broker: Broker) -> None:
    broker.events(*range(WINDOW + 1))
    await broker.read()
    now = time.monotonic()
    for minute in range(5):
        assert not broker.publisher.look_after_events(now + minute * 60, blocked=True)
    assert not broker.publisher.look_after_events(now + 240 + PATIENCE)
    assert broker.publisher.event_channel == CONFIRMED
    broker.publisher.look_after_events(now + 241 + PATIENCE)
    assert broker.publisher.event_channel == PLAIN


async def test_events_are_confirmed_again_once_those_without_a_confirm_have_arrived(broker: Broker) -> None:
    broker.events(*range(WINDOW + 1))
    stand_still(broker)
    broker.event("plain")
    await broker.read()
    broker.confirm(WINDOW, multiple=True)
    assert broker.publisher.look_after_events(time.monotonic())
    broker.events("a", "b")
    assert broker.publisher.look_after_events(time.monotonic())  # until they are
    assert await broker.read() == []
    broker.publisher.confirm_events()
    broker.event("c")
    assert await broker.read() == on(CONFIRMED, "a", "b", "c")
    assert broker.publisher.unsettled_events == 3


async def test_confirms_that_come_slowly_are_no_standstill(broker: Broker) -> None:
    broker.events(*range(WINDOW + 10))
    await broker.read()
    now = time.monotonic()
    for tag in range(1, 10):
        broker.confirm(tag)
        assert not broker.publisher.look_after_events(now + tag * 2 * PATIENCE)
        assert broker.publisher.event_channel == CONFIRMED


async def test_the_end_waits_for_the_confirms_of_events(broker: Broker) -> None:
    await broker.publisher.finish_events()  # there is none
    broker.events(*range(WINDOW + 1))
    finishing = asyncio.create_task(broker.publisher.finish_events())
    await broker.read()
    broker.confirm(WINDOW, multiple=True)
    assert await broker.read() == on(CONFIRMED, WINDOW)
    assert not finishing.done()
    broker.confirm(WINDOW + 1)
    await finishing


async def test_a_broker_that_cannot_confirm_events_is_not_asked_to() -> None:
    broker = Broker(confirms=False)
    broker.events(*range(2 * WINDOW))
    assert not stand_still(broker)
    broker.event("last")
    assert await broker.read() == on(PLAIN, *range(2 * WINDOW), "last")
    assert broker.publisher.unsettled_events == 0


@pytest.mark.parametrize(
    ("version", "can"),
    [("4.0.5", True), ("4.3.6", True), ("4.10.0-rc.1", True), ("4.0.4", False), ("3.13.7", False), ("3.10.8", False)],
)
def test_a_broker_confirms_events_from_the_version_on_that_sends_a_stream_what_it_missed(
    version: str, can: bool
) -> None:
    assert can_confirm_events({"product": "RabbitMQ", "version": version}) is can


@pytest.mark.parametrize("properties", [{}, {"version": "4.1"}, {"version": 4}, {"version": "main"}])
def test_a_broker_without_a_version_confirms_no_events(properties: dict[str, object]) -> None:
    assert not can_confirm_events(properties)


def test_a_window_that_has_not_been_looked_at_has_not_stood_still() -> None:
    window = EventWindow(can_confirm=True)
    for _ in range(WINDOW):
        window.admit()
    window.hold(float("inf"), b"frames")
    assert not window.stands_still(1e9)
    assert window.stands_still(1e9 + PATIENCE + 1)


def test_frames_can_be_moved_to_another_channel() -> None:
    def of(channel: int) -> bytes:
        return encode_publish(
            channel=channel,
            exchange="e",
            routing_key="k",
            kind="event",
            correlation_id="c",
            trace_id="t",
            body=b"\xce" * 1000,
            frame_max=100,
        )

    assert on_channel(of(1), 300) == of(300)
