"""The gateway's ear on the mesh: the parts that take what the mesh tells."""

from __future__ import annotations

import logging

from ..fleet import Fleet, Revoker
from .events import EventRouter
from .in_flight import CallsInFlight
from .outcomes import Outcomes

__all__ = ["GatewayReceiver"]

logger = logging.getLogger(__name__)


class GatewayReceiver:
    """The :class:`~nuropb_gateway_asgi.wire.interface.MeshReceiver` of a gateway.

    Most of its methods are those of the parts themselves, so that no call lies between the mesh and a part. ``name``
    is the transport's, for the log; "" for the first one.
    """

    def __init__(
        self,
        calls: CallsInFlight,
        outcomes: Outcomes,
        events: EventRouter,
        fleet: Fleet,
        revoker: Revoker,
        name: str = "",
    ) -> None:
        self.expects = outcomes.expects
        self.on_reply = outcomes.on_reply
        self.on_unreadable = outcomes.on_unreadable
        self.on_returned = outcomes.on_returned
        self.on_confirmed = outcomes.on_confirmed
        self.on_rejected = outcomes.on_rejected
        self.on_too_large = outcomes.on_too_large
        self.on_unconfirmed = outcomes.on_unconfirmed
        self.on_dead_lettered = outcomes.on_dead_lettered
        self.on_replies_lost = calls.on_replies_lost
        self.on_event = events.on_event
        self.on_gap = events.on_gap
        self.on_topic_refused = events.on_topic_refused
        self.on_peer_message = fleet.on_message
        self.on_record = revoker.on_record
        self.on_records_read = revoker.on_records_read
        self._calls = calls
        self._events = events
        self._fleet = fleet
        self._suffix = f" ({name})" if name else ""

    def on_connection_change(self, *, connected: bool) -> None:
        """Log that the mesh came or went, and tell the parts that it concerns. Connections of clients stay."""
        self._fleet.on_connection_change(connected=connected)
        self._events.on_connection_change(connected=connected)
        self._calls.on_connection_change()
        level = logging.INFO if connected or not self._calls.running else logging.WARNING
        logger.log(level, "mesh %s%s", "connected" if connected else "disconnected", self._suffix)
