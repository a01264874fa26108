"""What do the other processes do? The peer processes of a gateway, and users wherever they are connected.

* ``members``: the peer processes, and their signs of life; ``talk``: questions and news between them, ``messages``
* ``roster``: the members as their leader tells them; ``whereabouts``: the processes that have a user, by the register
  (``directory``) of one of them
* ``users``: messages to users, and the end of their connections, in all processes; ``local``: in this process
* ``results``: the results of these, summed over the processes
* ``presence``: the debounced online state of users; ``online``: presence events made of it
* ``revocations``: revoked tokens, in every process
"""

from __future__ import annotations

from .local import LocalUsers
from .members import Fleet
from .online import OnlineWatch
from .results import Connections, Online, Reached, Session, Sessions
from .revocations import Revoker
from .users import FleetUsers
from .whereabouts import Whereabouts

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
    "Whereabouts",
]
