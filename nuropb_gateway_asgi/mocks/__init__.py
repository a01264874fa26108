"""What answers in the place of a service? Mocks for development and tests, on an embedded mesh.

* ``service``: a service made of answers;
* ``call_log``: the calls that an embedded mesh has carried.
"""

from __future__ import annotations

from .call_log import Call, CallLog
from .service import MockMethod, MockService, in_order

__all__ = ["Call", "CallLog", "MockMethod", "MockService", "in_order"]
