"""Where does each answer and event go? Calls in flight, descriptions of services, subscriptions.

* ``in_flight``: sends calls to the mesh and ends them; ``calls``: the kinds of calls, their table and their deadlines
* ``breakers``: the circuit breakers of the services that are called
* ``client_calls``: calls of clients; ``application``: calls of the host application
* ``failures``: errors of services, translated for clients and for the host application
* ``descriptions``: descriptions of services, cached; ``catalogue``: their part that one caller may use
* ``events``: subscriptions, and fan-out to subscribers; ``interest``: bindings of topics
* ``receiver``: passes replies, events and messages of peer processes from the mesh to these modules
* ``statistics``: counters
"""

from __future__ import annotations

from .application import Application
from .catalogue import Catalogue
from .client_calls import ClientCalls
from .descriptions import Descriptions
from .events import EventRouter
from .in_flight import CallsInFlight

__all__ = ["Application", "CallsInFlight", "Catalogue", "ClientCalls", "Descriptions", "EventRouter"]
