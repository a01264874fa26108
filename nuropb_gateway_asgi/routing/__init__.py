"""Where does each answer and event go? Calls in flight, descriptions of services, subscriptions.

``calls`` is the table of calls in flight; ``descriptions`` has what services say of themselves; ``events`` brings
events to subscribers and ``interest`` binds their topics; ``application`` is the interface for the host application.
"""

from __future__ import annotations

from .calls import CallTable
from .descriptions import Directory
from .events import EventRouter

__all__ = ["CallTable", "Directory", "EventRouter"]
