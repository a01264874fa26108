"""The command ``serve``: how does the gateway run as a server?

* ``command``: the options and the help text;
* ``options``: the parsed options;
* ``processes``: uvicorn with the gateway, in one process or in several;
* ``workers``: the applications of worker processes, and the supervisor that signals them;
* ``listener``: the socket, and its URL; ``activation``: a socket that systemd passes;
* ``announcement``: the lines that are printed once the server listens.
"""

from __future__ import annotations

from .command import serve

__all__ = ["serve"]
