"""Events that a client receives, and notices about events."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Dropped", "Gap", "GatewayEvent", "UnsubscribedNotice"]


@dataclass(frozen=True)
class GatewayEvent:
    """An event of the mesh."""

    topic: str
    event: Any
    trace_id: str | None = None


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
class UnsubscribedNotice:
    """A notice that the gateway has ended subscriptions."""

    topics: Sequence[str]
    reason: str
