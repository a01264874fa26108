"""Lines about calls that have ended, for the access log."""

from __future__ import annotations

from collections.abc import Callable

from ..journal import AccessLog
from .calls import Call, ClientCall, LookUpCall

__all__ = ["CallSummaries"]


class CallSummaries:
    """Writes a line for each call of a client or of the host application. ``clock`` is that of the calls."""

    def __init__(self, log: AccessLog, transport: str, clock: Callable[[], float]) -> None:
        self._log = log
        self._transport = transport
        self._clock = clock

    def write(self, call: Call, code: str, size: int) -> None:
        """Write the line of a call that ended with ``code``, and an answer of ``size`` bytes."""
        if isinstance(call, LookUpCall):
            return
        message, now = call.message, self._clock()
        start, began = message.deadline - message.timeout, call.began
        attributes = {
            "user.id": call.caller,
            "session.id": call.handler.session_id if isinstance(call, ClientCall) else None,
            "nuropb.transport": self._transport if isinstance(call, ClientCall) else "application",
            "rpc.service": message.service,
            "rpc.method": message.method,
            "nuropb.kind": message.kind,
            "nuropb.seconds": round(now - start, 6),
            "nuropb.gateway_seconds": round(began - start, 6),
            "nuropb.service_seconds": round(now - began, 6),
            "nuropb.request_bytes": len(memoryview(message.params)),
            "nuropb.response_bytes": size,
        }
        self._log.on_call_ended(code, attributes, message.trace_id)
