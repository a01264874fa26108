"""The streams of topics with history, without a broker: stamps, marks, and readings that end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
from aiormq.exceptions import ChannelPreconditionFailed

from nuropb_gateway_asgi.exceptions import MeshUnavailable, SettingsError
from nuropb_gateway_asgi.mesh.rabbitmq import RabbitMQMesh, _history, _marks
from nuropb_gateway_asgi.mesh.rabbitmq._history import StreamLog
from nuropb_gateway_asgi.mesh.rabbitmq._stamps import read_stamp
from nuropb_gateway_asgi.wire import codec
from nuropb_gateway_asgi.wire.history import KeptTopic, Last
from nuropb_gateway_asgi.wire.interface import EventMessage

from .fakes import until

TOPIC = KeptTopic("orders.#", 3600, 1 << 26)


def make_log(published: list[tuple[str, str]]) -> StreamLog:
    return StreamLog("gateway", TOPIC, lambda *message: published.append(message), lambda: True, lambda: None)


def test_a_mesh_has_a_stream_for_each_pattern() -> None:
    mesh = RabbitMQMesh("amqp://localhost", service_name="gateway")
    logs = mesh.keep_history([TOPIC, KeptTopic("prices.*", None, 1 << 24)])
    assert list(logs) == ["orders.#", "prices.*"]
    assert [log.stream for log in mesh.histories.values()] == [
        "nuropb-gateway-history-orders.#",
        "nuropb-gateway-history-prices.*",
    ]


def test_a_pattern_that_is_too_long_for_a_queue_is_a_mistake() -> None:
    with pytest.raises(SettingsError, match=r"^HISTORY: the queue of 'a+' would have a name of more than 255 bytes"):
        RabbitMQMesh("amqp://localhost").keep_history([KeptTopic("a" * 250, 60, 1 << 20)])


@pytest.mark.parametrize(
    ("correlation_id", "offset", "epoch"),
    [
        ("nuropb-history-epoch-abc-5", 6, "abc"),
        ("nuropb-history-epoch-abc--1", 0, "abc"),
        # written by a process that knew a former stream of this name
        ("nuropb-history-epoch-abc-5", 5, None),
        ("nuropb-history-epoch-abc-1041", 3, None),
        ("nuropb-history-epoch-abc-x", 5, None),
        ("nuropb-history-epoch-abc", 5, None),
        ("nuropb-history-mark-abc-1", 5, None),
        ("abc", 5, None),
        (None, 5, None),
    ],
)
def test_a_stamp_is_one_of_this_stream_only_behind_the_offset_that_its_writer_knew(
    correlation_id: str | None, offset: int, epoch: str | None
) -> None:
    assert read_stamp(correlation_id, offset) == epoch


class Listener:
    """A follower that keeps all that it gets."""

    def __init__(self, log: StreamLog) -> None:
        self._log = log
        #: The offset and epoch of each event; "started" and "missed" between them.
        self.got: list[Any] = []

    def on_started(self, offset: int) -> None:
        self.got.append("started")

    def on_kept(self, offset: int, event: EventMessage) -> None:
        self.got.append((offset, self._log.epoch))

    def on_missed(self) -> None:
        self.got.append("missed")

    def on_unavailable(self) -> None:
        raise AssertionError("it is available")


def incoming(offset: int, correlation_id: str = "") -> Any:
    body = codec.encode_event("orders.new", b"1", context=b"{}", trace_id="t", correlation_id="c", target=None)
    kind = "event"
    return SimpleNamespace(stream_offset=offset, correlation_id=correlation_id or str(offset), kind=kind, body=body)


@dataclass
class FakeStream:
    """A stream whose messages come as soon as it is consumed, before the broker's answer is read."""

    messages: list[Any]
    #: Called while a consumer is opened.
    meanwhile: Callable[[], None] = lambda: None

    async def open(self, connection: Any, stream: str, start: Any, take: Any, on_cancel: Any) -> Any:
        for message in self.messages if start != "next" else ():
            take(message.stream_offset, message)
        self.meanwhile()
        await asyncio.sleep(0)
        self.take = take
        return SimpleNamespace(channel=None, stop=lambda: None)

    async def collect(self, connection: Any, stream: str, start: Any, take: Any) -> None:
        for message in self.messages:
            if take(message.stream_offset, message):
                return


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> FakeStream:
    made = FakeStream([incoming(0, "nuropb-history-epoch-abc--1"), *map(incoming, range(1, 4))])
    monkeypatch.setattr(_history, "StreamConsumer", made)
    monkeypatch.setattr(_history, "collect", made.collect)
    return made


async def following(log: StreamLog, stream: FakeStream, published: list[tuple[str, str]]) -> Listener:
    """Follow the stream, up to its third event."""
    listener = Listener(log)
    log.follow(listener)
    await log.consume(object())  # type: ignore[arg-type]
    stream.take(1, incoming(1, published[-1][1]))  # the mark behind which live events begin
    for offset in (2, 3):
        stream.take(offset, incoming(offset))
    assert listener.got == ["started", (2, "abc"), (3, "abc")]
    listener.got.clear()
    return listener


async def test_marks_within_a_moment_are_one_message(stream: FakeStream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_marks, "MARK_INTERVAL", 0.01)
    published: list[tuple[str, str]] = []
    log = make_log(published)
    await following(log, stream, published)
    published.clear()
    for _ in range(100):
        log.mark(lambda offset: None)
    assert len(published) == 1
    await until(lambda: len(published) == 2)
    await asyncio.sleep(0.02)
    assert len(published) == 2


async def test_a_mark_that_cannot_be_written_is_an_error(stream: FakeStream) -> None:
    published: list[tuple[str, str]] = []
    log = make_log(published)
    await following(log, stream, published)

    def publish(stream: str, correlation_id: str) -> None:
        raise MeshUnavailable("not connected")

    log._marks._publish = publish
    with pytest.raises(MeshUnavailable):
        log.mark(lambda offset: None)


async def test_no_mark_is_written_into_a_stream_that_is_not_read(stream: FakeStream) -> None:
    published: list[tuple[str, str]] = []
    log = make_log(published)
    with pytest.raises(MeshUnavailable):
        log.mark(lambda offset: None)
    await following(log, stream, published)
    published.clear()
    log._on_cancelled()
    with pytest.raises(MeshUnavailable):
        log.mark(lambda offset: None)
    assert published == []


@pytest.mark.parametrize(
    ("refusal", "available"),
    [
        ("PRECONDITION_FAILED - stream queue 'a' in vhost '/' does not have a running replica on the local node", True),
        (
            "PRECONDITION_FAILED - queue 'queue 'a' in vhost '/'' does not have a replica on the local node",
            True,
        ),
        ("PRECONDITION_FAILED - inequivalent arg 'x-queue-type' for queue 'a' in vhost '/'", False),
    ],
)
async def test_a_stream_without_a_copy_at_this_node_stays_a_history(refusal: str, available: bool) -> None:
    """3.10 and 4.0 have these words for the first consumer after a change of the leader."""
    told: list[str] = []
    log = make_log([])
    log.follow(SimpleNamespace(on_unavailable=lambda: told.append("unavailable")))

    async def declare(connection: Any) -> bool:
        raise ChannelPreconditionFailed(refusal)

    log._queue.declare = declare  # type: ignore[method-assign]
    with pytest.raises(ChannelPreconditionFailed):
        await log.declare(object())  # type: ignore[arg-type]
    assert (log.available, told) == (available, [] if available else ["unavailable"])


async def test_messages_that_come_before_the_brokers_answer_to_a_consumer_count(stream: FakeStream) -> None:
    published: list[tuple[str, str]] = []
    log = make_log(published)
    listener = await following(log, stream, published)
    stream.messages += map(incoming, range(4, 7))
    await log.consume(object())  # type: ignore[arg-type]  # on another connection
    stream.take(7, incoming(7))
    assert [each for each in listener.got if each != "started"] == [(offset, "abc") for offset in range(4, 8)]
    assert listener.got.count("started") == 1


async def test_a_follower_is_told_of_a_lost_stream_once_events_of_the_new_one_come(stream: FakeStream) -> None:
    published: list[tuple[str, str]] = []
    log = make_log(published)
    listener = await following(log, stream, published)
    stream.messages = [incoming(0, "nuropb-history-epoch-def--1")]
    await log.consume(object())  # type: ignore[arg-type]
    assert (listener.got, log.epoch) == ([], None)
    stream.take(1, incoming(1, published[-1][1]))
    stream.take(2, incoming(2))
    assert listener.got == ["missed", "started", (2, "def")]


async def test_a_follower_that_leaves_while_a_consumer_is_made_gets_nothing_of_it(stream: FakeStream) -> None:
    published: list[tuple[str, str]] = []
    log = make_log(published)
    listener = await following(log, stream, published)

    def leave_and_come_back() -> None:
        log.leave()
        log.follow(listener)

    stream.meanwhile = leave_and_come_back
    await log.consume(object())  # type: ignore[arg-type]
    stream.take(4, incoming(4))
    assert listener.got == []


async def test_without_a_connection_nothing_is_read() -> None:
    wanted: Any = lambda event: True  # noqa: E731
    with pytest.raises(MeshUnavailable):
        await make_log([]).read(Last(1), 10, wanted, 10, 1000)
