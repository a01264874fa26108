"""The message that a process sends through the broker to itself: what counts as its loss."""

from __future__ import annotations

import time
from typing import Any, cast

import pytest

from nuropb_gateway_asgi.mesh.rabbitmq._lane import Publisher
from nuropb_gateway_asgi.mesh.rabbitmq._link import Link
from nuropb_gateway_asgi.mesh.rabbitmq._self_check import BUSY, LOOKS, PING_INTERVAL, PING_TIMEOUT, SelfCheck
from nuropb_gateway_asgi.mesh.rabbitmq._statistics import RabbitMQStatistics

#: Looks that fit into the time for the message to come back.
ALLOWED = round(PING_TIMEOUT / PING_INTERVAL * LOOKS)


class FakeLink:
    """A connection that is up until it is dropped."""

    def __init__(self) -> None:
        self.up = True

    def abort(self, problem: str) -> None:
        self.up = False


class Broker:
    """Two connections, and the bodies of the messages that the process has sent to itself."""

    plain_channel = 1
    frame_max = 131072

    def __init__(self, other: SelfCheck | None = None) -> None:
        self.links = FakeLink(), FakeLink()
        self.statistics = RabbitMQStatistics()
        self.blocked = False
        self.sent: list[bytes] = []
        self.now = 100.0
        self.self_check = SelfCheck(
            "replies",
            *cast("tuple[Link, Link]", self.links),
            self.statistics,
            drops=cast("tuple[Link, ...]", self.links),
            other=other,
            publisher=lambda: cast("Publisher", self),
            blocked=lambda: self.blocked,
            on_change=lambda: None,
        )

    def put(self, deadline: float, correlation_id: str, frames: bytes, **options: Any) -> None:
        self.sent.append(str(len(self.sent) + 1).encode())
        assert self.sent[-1] in frames

    def look(self, count: int = 1, *, seconds: float = PING_INTERVAL / LOOKS, replies: int = 0) -> bool:
        """Have looks, with replies before each; return whether the connections are up still."""
        for _ in range(count):
            self.now += seconds
            self.statistics.replies += replies
            self.self_check.look(self.now)
        return all(link.up for link in self.links)


def test_connections_that_say_nothing_are_dropped_in_time() -> None:
    broker = Broker()
    assert broker.look()
    assert broker.sent == [b"1"]
    assert broker.look(ALLOWED)
    assert not broker.look()
    assert not broker.self_check.proven


def test_a_process_that_runs_late_gives_its_message_as_many_looks() -> None:
    broker = Broker()
    assert broker.look(ALLOWED, seconds=60.0)
    broker.self_check.on_return(broker.sent[-1])
    assert broker.self_check.proven
    assert broker.look(ALLOWED, seconds=60.0)


def test_a_message_behind_many_replies_is_waited_for_longer() -> None:
    broker = Broker()
    assert broker.look()
    assert broker.look(BUSY * ALLOWED, replies=1)
    broker.self_check.on_return(broker.sent[-1])
    assert broker.look()


def test_replies_keep_a_connection_by_which_no_message_comes_back_for_half_a_minute() -> None:
    broker = Broker()
    assert broker.look()
    assert broker.look(BUSY * ALLOWED, replies=1)
    assert not broker.look(replies=1)


def test_replies_to_calls_do_not_keep_the_connection_of_events_whose_message_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = Broker()
    events = Broker(calls.self_check)
    monkeypatch.setattr(time, "monotonic", lambda: calls.now)
    assert events.look()
    calls.now = events.now
    assert calls.look()
    # The way in is slow: neither message has come back.
    assert events.look(ALLOWED + 1, replies=1)
    calls.self_check.on_return(calls.sent[-1])
    # It was sent later, and is back.
    assert events.look(ALLOWED, replies=1)
    assert not events.look(replies=1)


def test_a_message_of_an_earlier_connection_proves_nothing() -> None:
    broker = Broker()
    broker.look()
    broker.self_check.forget()
    broker.self_check.on_return(broker.sent[-1])
    assert not broker.self_check.proven
    broker.look()
    broker.self_check.on_return(broker.sent[0])
    assert not broker.self_check.proven
    broker.self_check.on_return(broker.sent[-1])
    assert broker.self_check.proven


def test_a_broker_that_blocks_publishers_has_lost_no_message() -> None:
    broker = Broker()
    broker.look()
    broker.blocked = True
    assert broker.look(10 * ALLOWED)
    broker.blocked = False
    assert broker.look()
    assert len(broker.sent) == 2
