"""The command ``record``: what do the clients of a gateway call, and what do they get?

* ``command``: the options and the help text;
* ``relay``: the WebSocket between a client and the gateway.
"""

from __future__ import annotations

from .command import record

__all__ = ["record"]
