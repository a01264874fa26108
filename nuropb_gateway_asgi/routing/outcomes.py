"""Outcomes of calls, as the mesh reports them: replies, returns, confirms, and messages that were not taken."""

from __future__ import annotations

from collections.abc import Callable

from ..limits.shared import SharedLimits
from ..protocol import ErrorCode, Failure
from ..settings import Settings
from ..wire.interface import Reply
from .calls import Call, ClientCall, OrphanCall
from .failures import MESH_UNAVAILABLE, service_failure
from .in_flight import CallsInFlight
from .statistics import MeshStatistics

__all__ = ["Outcomes"]


class Outcomes:
    """Ends calls by what the mesh reports, and counts failed ones for their users.

    Its methods are those of :class:`~nuropb_gateway_asgi.wire.interface.MeshReceiver` that concern calls. ``clock`` is
    a monotonic clock, in seconds.
    """

    def __init__(
        self,
        settings: Settings,
        calls: CallsInFlight,
        limits: SharedLimits,
        statistics: MeshStatistics,
        clock: Callable[[], float],
    ) -> None:
        self._settings = settings
        self._calls = calls
        self._limits = limits
        self._statistics = statistics
        self._clock = clock

    def expects(self, correlation_id: str) -> bool:
        """Tell whether a request waits for this reply, or its place does; count a reply that nothing waits for."""
        table = self._calls.table
        call = table.get(correlation_id)
        if call is None:
            call = table.get_orphan(correlation_id)
        if call is not None and call.message.kind == "request":
            return True
        waited_for = table.waited_for(correlation_id)
        if waited_for is None:
            self._statistics.unknown_replies += 1
        elif not waited_for:
            self._statistics.double_replies += 1
        else:
            self._statistics.late_replies += 1
            self._calls.breakers.on_late_answer(waited_for, self._clock())
        return False

    def on_reply(self, reply: Reply) -> None:
        """Answer a call by its first reply; nuropb 0.1.8 sends a second one for every failure."""
        call = self._take_answered(reply.correlation_id)
        if call is None:
            return
        if reply.error is not None:
            self._calls.count_error(call)
            if not isinstance(call, OrphanCall):
                known = self._calls.descriptions.get(call.message.service)
                self._calls.finish(call, service_failure(reply.error, call.message, self._settings, known))
        elif isinstance(call, ClientCall) and len(memoryview(reply.result)) > self._settings.outbox_size:
            self._calls.count_error(call)
            description = f"The result has more than {self._settings.outbox_size} bytes"
            self._calls.finish(call, Failure(ErrorCode.PAYLOAD_TOO_LARGE, description))
        elif not isinstance(call, OrphanCall):
            self._calls.finish(call, None, reply.result)

    def on_unreadable(self, correlation_id: str) -> None:
        """Fail a call whose reply was not valid JSON (NaN, Infinity)."""
        call = self._take_answered(correlation_id)
        if call is None:
            return
        self._calls.count_error(call)
        if not isinstance(call, OrphanCall):
            description = "The service's answer holds a value that JSON does not have"
            self._calls.finish(call, Failure(ErrorCode.SERVICE_ERROR, description))

    def _take_answered(self, correlation_id: str) -> Call | None:
        """Remove a call that its service has answered, be it one that its client gave up."""
        call = self._calls.take(correlation_id, answered=True)
        if call is not None:
            self._statistics.replies += 1
        else:
            call = self._calls.end_orphan(correlation_id, answered=True)
            if call is None:
                return None
            self._statistics.late_replies += 1
        now = self._clock()
        self._calls.breakers.on_answer(call.message.service, call.began, now)
        self._calls.places.on_answer(call, now)
        return call

    def on_returned(self, correlation_id: str) -> None:
        """Fail a call whose service does not exist."""
        call = self._find(correlation_id)
        if call is not None:
            self._statistics.returned += 1
            description = f"Service {call.message.service} is not available"
            self._on_not_taken(call, Failure(ErrorCode.SERVICE_UNAVAILABLE, description))

    def on_confirmed(self, correlation_id: str) -> None:
        """Answer a command that the mesh has taken."""
        call = self._find(correlation_id)
        if call is None:
            return
        self._calls.places.on_confirmed(call)
        if call.caller is not None:
            self._limits.command_users.add(correlation_id, call.caller)
        if self._calls.end_orphan(correlation_id) is None and self._calls.take(correlation_id) is not None:
            self._calls.finish(call, None)

    def on_rejected(self, correlation_id: str) -> None:
        """Fail a call that the mesh did not take."""
        call = self._find(correlation_id)
        if call is not None:
            self._on_not_taken(call, MESH_UNAVAILABLE)

    def _on_not_taken(self, call: Call, failure: Failure) -> None:
        """End a call whose message did not reach its service. A command counts for its user."""
        if call.message.kind == "command" and self._calls.mesh_stayed(call):
            self._calls.count_error(call)
        self._calls.end_orphan(call.message.correlation_id)
        self._calls.fail(call.message.correlation_id, failure)

    def on_too_large(self, correlation_id: str, description: str) -> None:
        """Fail a call whose message is above the size that the mesh takes."""
        self._calls.fail(correlation_id, Failure(ErrorCode.PAYLOAD_TOO_LARGE, description))

    def on_unconfirmed(self, correlation_id: str) -> None:
        """Fail a command that the mesh may have taken or not."""
        self._calls.end_orphan(correlation_id)
        description = "The connection to the mesh was lost; whether it took the command is unknown"
        self._calls.fail(correlation_id, Failure(ErrorCode.TIMEOUT, description))

    def on_dead_lettered(self, correlation_id: str) -> None:
        """Count a command that its service failed to run, or did not take in time. Failed requests have answers."""
        user_id = self._limits.command_users.get(correlation_id)
        if user_id is None:  # the confirm may come after it
            call = self._find(correlation_id)
            user_id = call.caller if call is not None and call.message.kind == "command" else None
        if user_id is not None:
            self._limits.budgets.on_error(user_id, self._clock())

    def _find(self, correlation_id: str) -> Call | None:
        return self._calls.table.get(correlation_id) or self._calls.table.get_orphan(correlation_id)
