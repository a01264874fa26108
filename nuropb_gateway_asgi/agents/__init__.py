"""What may an agent do? Services as tools of the Model Context Protocol (MCP), for each caller.

* ``endpoint`` admits the requests at ``/mcp``; ``metadata`` names the provider of tokens (RFC 9728).
* ``handler`` is the gateway's side of one request: its frames, answers and events.
* ``serving`` knows the library ``mcp``: it answers the protocol's requests.
* ``calls`` makes a frame of a tool's call, and an outcome of its answer; ``audit`` logs each call, and
  ``recent`` keeps the latest ones for the console.
* ``tool_lists`` has the tools of each caller; ``tools``, ``names`` and ``text`` make a tool of a method.
"""

from __future__ import annotations

from .agents import Agents
from .metadata import PATH

__all__ = ["PATH", "Agents"]
