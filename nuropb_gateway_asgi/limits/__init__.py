"""How much? Rate limits, admission of connections, circuit breakers and error budgets.

``buckets`` limits rates; ``admission`` counts connections and handshakes; ``circuits`` has the circuit breakers of
services and the error budgets of users; ``shared`` holds the limits that all transports of a process have in common.
"""

from __future__ import annotations

from .admission import Admission
from .buckets import RateLimits
from .circuits import Circuits, ErrorBudgets
from .shared import SharedLimits

__all__ = ["Admission", "Circuits", "ErrorBudgets", "RateLimits", "SharedLimits"]
