"""What do the other processes do? The peer processes of a gateway, and users wherever they are connected.

``members`` knows the peer processes and carries questions and news between them; ``users`` sends to users and closes
their connections in all processes, ``local`` in this one, with the ``results``; ``online`` and ``presence`` tell which
users are connected; ``revocations`` revokes tokens in every process.
"""

from __future__ import annotations

from .local import LocalUsers
from .members import Fleet
from .online import OnlineWatch
from .results import Connections, Online, Reached, Session, Sessions
from .revocations import Revoker
from .users import FleetUsers

__all__ = [
    "Connections",
    "Fleet",
    "FleetUsers",
    "LocalUsers",
    "Online",
    "OnlineWatch",
    "Reached",
    "Revoker",
    "Session",
    "Sessions",
]
