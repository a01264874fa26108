"""Counters of the mesh on RabbitMQ."""

from __future__ import annotations

import msgspec

__all__ = ["RabbitMQStatistics"]


class RabbitMQStatistics(msgspec.Struct):
    """Counters since the start."""

    #: Connections made after the first ones.
    reconnects: int = 0
    published: int = 0
    #: Messages whose time was up before they could be published.
    expired_unsent: int = 0
    #: Replies and events that are not what the wire protocol says.
    dropped_replies: int = 0
    dropped_events: int = 0
    #: Events that came again after a loss of the connection.
    repeated_events: int = 0
