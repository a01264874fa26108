"""The streams of topics with history, without a broker: stamps, marks, and readings that end."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from nuropb_gateway_asgi.exceptions import MeshUnavailable, SettingsError
from nuropb_gateway_asgi.mesh.rabbitmq import RabbitMQMesh, _history
from nuropb_gateway_asgi.mesh.rabbitmq._history import StreamLog, read_stamp
from nuropb_gateway_asgi.wire.history import KeptTopic, Last

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


async def test_marks_within_a_moment_are_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_history, "MARK_INTERVAL", 0.01)
    published: list[tuple[str, str]] = []
    log = make_log(published)
    for _ in range(100):
        log.mark(lambda offset: None)
    assert len(published) == 1
    await until(lambda: len(published) == 2)
    await asyncio.sleep(0.02)
    assert len(published) == 2


async def test_a_mark_that_cannot_be_written_is_an_error() -> None:
    def publish(stream: str, correlation_id: str) -> None:
        raise MeshUnavailable("not connected")

    log = StreamLog("gateway", TOPIC, publish, lambda: False, lambda: None)
    with pytest.raises(MeshUnavailable):
        log.mark(lambda offset: None)


async def test_without_a_connection_nothing_is_read() -> None:
    wanted: Any = lambda event: True  # noqa: E731
    with pytest.raises(MeshUnavailable):
        await make_log([]).read(Last(1), 10, wanted, 10, 1000)
