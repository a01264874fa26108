"""The interface of a mesh, for authors of another one: see :mod:`nuropb_gateway_asgi.wire.interface`."""

from ..wire.interface import CallMessage, EventMessage, Mesh, MeshReceiver, Reply

__all__ = ["CallMessage", "EventMessage", "Mesh", "MeshReceiver", "Reply"]
