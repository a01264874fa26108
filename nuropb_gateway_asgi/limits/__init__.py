"""How much? Rate limits, admission of connections, circuit breakers, error budgets, prices and maximum lifetimes.

* ``buckets``: rate limits on the frames of connections and users, and on calls by the rules of the policy
* ``admission``: limits on the number of connections and on the rate of handshakes
* ``circuits``: circuit breakers of services, and error budgets of users
* ``prices``: prices of frames, in units of the rate limits
* ``overload``: calls beyond what a process can do
* ``slices``: long work, done in slices
* ``turns``: turns of the event loop, and the turn that large frames share
* ``lifetimes``: the maximum lifetime of connections
* ``shared``: the limits that all connection kinds of a process share
"""

from __future__ import annotations

from .admission import Admission
from .buckets import RateLimits
from .circuits import Circuits, ErrorBudgets
from .shared import SharedLimits

__all__ = ["Admission", "Circuits", "ErrorBudgets", "RateLimits", "SharedLimits"]
