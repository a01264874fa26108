"""The command ``dev``: how does a page work before its services do?

* ``command``: the options and the help text;
* ``running``: the gateway on mocked services, and the files that are watched;
* ``announcement``: the table of mocks, the console, and tokens of several users.
"""

from __future__ import annotations

from .command import dev

__all__ = ["dev"]
