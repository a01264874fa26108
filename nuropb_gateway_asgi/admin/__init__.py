"""What may an operator do to a running gateway? The admin API, at an address and with a token of its own.

* ``api``: the actions with their parameters, and the operations on all processes behind them;
* ``local``: the part of one process, for the admin API of any process;
* ``report``: the state of a process for a debug bundle, without secrets;
* ``guard``: the token, and requests that a browser was tricked into;
* ``endpoint``: HTTP; ``address``: the socket, which one process has at a time.

The gateway imports this room only if ``ADMIN_LISTEN`` is set.
"""

from __future__ import annotations

from .admin import Admin
from .local import Parts

__all__ = ["Admin", "Parts"]
