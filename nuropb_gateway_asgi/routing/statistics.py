"""Counters of what passes between clients and the mesh."""

from __future__ import annotations

import msgspec

__all__ = ["MeshStatistics"]


class MeshStatistics(msgspec.Struct):
    """Counters since the start."""

    requests: int = 0
    commands: int = 0
    replies: int = 0
    returned: int = 0
    timeouts: int = 0
    cancelled: int = 0
    #: Calls whose client left before the answer came.
    abandoned: int = 0
    late_replies: int = 0
    double_replies: int = 0
    unknown_replies: int = 0
    events: int = 0
    oversized_events: int = 0
    #: Events with one of the gateway's own topics, which no client gets.
    reserved_events: int = 0
    dropped_controller_events: int = 0
    #: Subscriptions ended because the policy, or a newer token, allows them no longer.
    denied_subscriptions: int = 0
    #: Live events of topics with history, and events of the past that clients got.
    kept_events: int = 0
    replayed_events: int = 0
    #: Subscriptions that began in the past, and those of them of which a part was missing.
    catch_ups: int = 0
    failed_catch_ups: int = 0
