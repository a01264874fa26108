"""Where does each answer and event go? Calls in flight, descriptions of services, subscriptions.

* ``calls``: the kinds of calls, and the table in which each call ends exactly once
* ``in_flight``: sends calls to the mesh and ends them; ``outcomes``: ends them by what the mesh reports
* ``places``: places of users at services; ``breakers``: the circuit breakers of services
* ``client_calls``: calls of clients; ``application``: calls, events and users for the host application
* ``failures``: errors of services and of the mesh, translated for the caller
* ``descriptions``: descriptions of services, cached; ``catalogue``: their part that one caller may use
* ``events``: subscriptions and fan-out; ``controller_events``: events for the controller; ``interest``: bindings
* ``receiver``: passes replies and events from the mesh to these modules; ``statistics``: counters
"""

from __future__ import annotations

from .application import Application
from .catalogue import Catalogue
from .client_calls import ClientCalls
from .descriptions import Descriptions
from .events import EventRouter
from .in_flight import CallsInFlight

__all__ = ["Application", "CallsInFlight", "Catalogue", "ClientCalls", "Descriptions", "EventRouter"]
