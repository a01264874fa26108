"""Events that a client receives, and notices about events."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Dropped", "Gap", "GatewayEvent", "Position", "Recovered", "UnsubscribedNotice", "read_position"]


@dataclass(frozen=True)
class Position:
    """The place of an event in the history of its topic: a number that grows, within one ``epoch``."""

    epoch: str
    offset: int


@dataclass(frozen=True)
class GatewayEvent:
    """An event of the mesh. ``position`` is None unless its topic has a history."""

    topic: str
    event: Any
    trace_id: str | None = None
    position: Position | None = None


@dataclass(frozen=True)
class Gap:
    """A notice that events may have been missed: fetch the current state again.

    ``reason`` is ``reconnected`` after a lost connection, or one of the gateway's own reasons. ``topics`` are the
    patterns concerned.
    """

    reason: str
    topics: Sequence[str]


@dataclass(frozen=True)
class Dropped:
    """A notice that ``count`` events were dropped because they were read too slowly.

    ``topic`` is their topic, if they had only one.
    """

    count: int
    topic: str | None = None


@dataclass(frozen=True)
class Recovered:
    """A notice that a subscription has begun, or gone on, in the past: ``count`` events of it follow.

    Unless ``recovered`` is true, events may be missing: fetch the current state. ``topics`` are the patterns concerned.
    """

    topics: Sequence[str]
    recovered: bool
    count: int


@dataclass(frozen=True)
class UnsubscribedNotice:
    """A notice that the gateway has ended subscriptions."""

    topics: Sequence[str]
    reason: str


def read_position(value: object) -> Position | None:
    """Read a position from a frame. Returns None for anything else."""
    given = value if isinstance(value, dict) else {}
    epoch, offset = given.get("epoch"), given.get("offset")
    if isinstance(epoch, str) and isinstance(offset, int) and not isinstance(offset, bool):
        return Position(epoch, offset)
    return None
