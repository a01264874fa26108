"""What does NuroPb put on the wire, and by which rules? The messages of a mesh and the interface to one.

``interface`` is what the gateway needs from a mesh; ``codec`` encodes and decodes messages; ``services`` calls the
methods of a service object; ``description`` reads what services say of themselves; ``encryption`` encrypts calls;
``errors`` are NuroPb's exceptions.
"""

from __future__ import annotations

from .description import Description
from .interface import CallMessage, EventMessage, Mesh, MeshReceiver, Reply

__all__ = ["CallMessage", "Description", "EventMessage", "Mesh", "MeshReceiver", "Reply"]
