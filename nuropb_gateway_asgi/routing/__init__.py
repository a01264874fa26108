"""Where does each answer and event go? Calls in flight, descriptions of services, subscriptions.

``calls`` has the kinds of calls and their table; ``in_flight`` sends calls and ends them, with the circuit ``breakers``
of their services; ``client_calls`` makes them
of clients' frames and ``application`` for the host application; ``failures`` translates errors; ``descriptions``
fetches what services say of themselves and ``catalogue`` cuts it down to one caller; ``events`` brings events to
subscribers and ``interest`` binds their topics; ``receiver`` is the mesh's way into all of these.
"""

from __future__ import annotations

from .application import Application
from .catalogue import Catalogue
from .client_calls import ClientCalls
from .descriptions import Descriptions
from .events import EventRouter
from .in_flight import CallsInFlight

__all__ = ["Application", "CallsInFlight", "Catalogue", "ClientCalls", "Descriptions", "EventRouter"]
