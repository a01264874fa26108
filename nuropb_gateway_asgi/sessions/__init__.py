"""What outlives a connection? Sessions that a client comes back to, at this process or at another one.

* ``resumption``: the frames ``resume`` and ``ack``, and the end of sessions that nobody came back to
* ``store``: the sessions of a process by the digests of their keys, those without a connection, and how others ended
* ``keys``: the keys that clients come back with
* ``handover``: a session on its way to another process; ``forwarding``: the answers of its calls in flight
* ``interface``: a connection and a session, as this room sees them
"""

from __future__ import annotations

from .resumption import Resumption

__all__ = ["Resumption"]
