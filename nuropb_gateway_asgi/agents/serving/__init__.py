"""How is a request of the protocol answered? The one place that knows the library ``mcp``.

* ``server`` has the tools; ``resources`` has the topics, as resources.
* ``handshake`` carries the requests of the versions that begin with a handshake; the library carries the others.
* ``listening`` waits for what a host is told of; ``sessions`` has the streams and the topics of hosts with a handshake.
"""

from __future__ import annotations

from .server import SESSION, AgentServer, has_handshake

__all__ = ["SESSION", "AgentServer", "has_handshake"]
