"""How do NuroPb's messages look on the wire, and by which rules are services called? No I/O in this room.

``interface``    the interface between the gateway and a mesh, and the messages that cross it
``codec``        names, headers and JSON bodies of NuroPb's messages
``publish``      the AMQP frames that publish a message
``context``      the context of a call: the service's view of its caller
``services``     the call of a service object's method, and the description of its methods
``description``  the descriptions of services, as the gateway reads them
``encryption``   encrypted calls and replies
``errors``       NuroPb's exceptions, for services to raise
"""

from __future__ import annotations

from .description import Description
from .interface import CallMessage, EventMessage, Mesh, MeshReceiver, Reply

__all__ = ["CallMessage", "Description", "EventMessage", "Mesh", "MeshReceiver", "Reply"]
