"""What outlives a connection? Sessions that a client comes back to, at this process or at another one.

* ``resumption``: the frames ``resume`` and ``ack``
* ``keeper``: sessions without a connection, and the end of sessions; ``store``: the tables of both; ``keys``: the keys
  that clients come back with
* ``departures``: sessions that another process takes; ``arrivals``: sessions that come from another process;
  ``handover``: the messages between both; ``forwarding``: the answers of calls that stayed behind
* ``interface``: a connection and a session, as this room sees them
"""

from __future__ import annotations

from .resumption import Resumption

__all__ = ["Resumption"]
