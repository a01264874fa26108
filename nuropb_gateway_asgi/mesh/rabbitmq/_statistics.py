"""Counters of the mesh on RabbitMQ."""

from __future__ import annotations

import msgspec

__all__ = ["RabbitMQStatistics"]


class RabbitMQStatistics(msgspec.Struct):
    """Counters since the start."""

    #: Connections made again.
    reconnects: int = 0
    published: int = 0
    #: Messages that expired before they could be published.
    expired_unsent: int = 0
    #: Replies to calls in flight.
    replies: int = 0
    #: Messages that break the wire protocol.
    dropped_replies: int = 0
    dropped_events: int = 0
    #: Events that the broker delivered again after a loss of the connection.
    repeated_events: int = 0
    #: Events that a queue refused, as one of a lost node does. Other queues have them.
    refused_events: int = 0
    #: Events that the broker had not confirmed when the connection was lost.
    unconfirmed_events: int = 0
