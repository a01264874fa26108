"""The fast lane writes a lone message at once, and the messages of one turn of the event loop together."""

from __future__ import annotations

import asyncio
import time

import pytest

from nuropb_gateway_asgi.mesh.rabbitmq._fast import LONE, FastLane
from nuropb_gateway_asgi.mesh.rabbitmq._lane import Publisher
from nuropb_gateway_asgi.mesh.rabbitmq._statistics import RabbitMQStatistics


class Wire(asyncio.Transport):
    """A transport that keeps what is written, in a list of writes."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []

    def is_closing(self) -> bool:
        return False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.writes.append(bytes(data))


class Channel:
    def __init__(self, number: int) -> None:
        self.number = number


class Connection:
    """The parts of a connection that a publisher asks for."""

    class connection_tune:  # noqa: N801 - as in aiormq
        frame_max = 131072


@pytest.fixture
def wire() -> Wire:
    return Wire()


@pytest.fixture
def lane(wire: Wire) -> FastLane:
    lane = FastLane()
    lane.on_connect(wire)
    return lane


@pytest.fixture
async def publisher(lane: FastLane) -> Publisher:
    return lane.publisher(
        Connection(),  # type: ignore[arg-type]
        Channel(1),  # type: ignore[arg-type]
        Channel(2),  # type: ignore[arg-type]
        RabbitMQStatistics(),
        confirm_events=True,
        on_return=lambda _: None,
        on_confirm=lambda *_: None,
    )


def put(publisher: Publisher, *messages: bytes) -> None:
    for each in messages:
        publisher.put(time.monotonic() + 60.0, each.decode(), each)


async def a_while() -> None:
    until = time.monotonic() + 2 * LONE
    while time.monotonic() < until:
        await asyncio.sleep(0)


async def test_a_message_after_a_lone_one_is_written_at_once(publisher: Publisher, wire: Wire) -> None:
    put(publisher, b"a")
    await a_while()
    put(publisher, b"b")
    assert wire.writes == [b"a", b"b"]


async def test_messages_of_one_turn_are_written_together(publisher: Publisher, wire: Wire) -> None:
    put(publisher, b"a", b"b", b"c")
    assert wire.writes == []
    await a_while()
    assert wire.writes == [b"abc"]


async def test_after_messages_that_came_together_the_next_ones_are_awaited(publisher: Publisher, wire: Wire) -> None:
    put(publisher, b"a", b"b")
    await a_while()
    put(publisher, b"c", b"d")
    await a_while()
    assert wire.writes == [b"ab", b"cd"]


async def test_no_message_overtakes_another_one_while_the_broker_does_not_read(
    publisher: Publisher, lane: FastLane, wire: Wire
) -> None:
    put(publisher, b"a")
    await a_while()
    lane.pause_writing()
    put(publisher, b"b")
    await a_while()
    put(publisher, b"c")
    assert wire.writes == [b"a"]
    lane.resume_writing()
    assert wire.writes == [b"a", b"bc"]
