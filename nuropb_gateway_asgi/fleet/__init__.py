"""What do the other processes do? The peer processes of a gateway, and users wherever they are connected.

``members`` knows the peer processes and carries questions and news; ``users`` sends to users and closes their
connections in all processes; ``online`` and ``presence`` tell which users are connected; ``revocations`` spreads
revoked tokens.
"""

from __future__ import annotations

from .members import Fleet
from .users import Connections, Online, Reached, Session, Sessions

__all__ = ["Connections", "Fleet", "Online", "Reached", "Session", "Sessions"]
