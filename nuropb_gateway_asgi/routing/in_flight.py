"""Calls in flight: how a call is sent to the mesh, and how it ends."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

import msgspec
from msgspec import Raw

from ..authorization import Policy
from ..identifiers import new_id
from ..limits.circuits import ErrorBudgets
from ..protocol import ErrorCode, Failure
from ..settings import Settings
from ..wire.description import FRESH_SECONDS, MAX_AGE_SECONDS, Description
from ..wire.interface import CallMessage, Mesh, Reply
from .breakers import Breakers
from .calls import Call, CallTable, ClientCall, LookUpCall, refuse_unless
from .descriptions import Descriptions
from .failures import MESH_UNAVAILABLE, send_failure, service_failure
from .statistics import MeshStatistics

__all__ = ["CallsInFlight"]

logger = logging.getLogger(__name__)


class CallsInFlight:
    """Sends calls to the mesh and ends each exactly once: by its reply, its return, its deadline, or its caller.

    A call costs an entry in a table, no task and no future. ``clock`` is a monotonic clock, in seconds.
    """

    def __init__(
        self,
        settings: Settings,
        mesh: Mesh,
        policy: Policy,
        budgets: ErrorBudgets,
        statistics: MeshStatistics,
        clock: Callable[[], float],
    ) -> None:
        self._settings = settings
        self._mesh = mesh
        self._policy = policy
        self._budgets = budgets
        self._statistics = statistics
        self._clock = clock
        self._connection_changed_at = -math.inf
        self.table = CallTable()
        self.breakers = Breakers()
        self.descriptions = Descriptions(self._fetch_description, clock)
        #: Whether calls are taken: from the start of the gateway's lifespan to its end.
        self.running = False
        #: Called at the end of every call but the gateway's own: service, "ok" or an error code, seconds.
        self.on_call_ended: Callable[[str, str, float], None] = lambda service, code, seconds: None

    def close(self) -> None:
        """Take no more calls, and answer those in flight with ``mesh_unavailable``."""
        self.running = False
        # Look-ups end last: the calls that wait for a description would be sent otherwise.
        for correlation_id in sorted(self.table, key=self._is_look_up):
            self.fail(correlation_id, Failure(ErrorCode.MESH_UNAVAILABLE, "The gateway is shutting down"))

    def _is_look_up(self, correlation_id: str) -> bool:
        return isinstance(self.table.get(correlation_id), LookUpCall)

    # --- to the mesh ------------------------------------------------------------------------------------------

    def start(self, call: Call) -> None:
        """Send a call, or answer it with the reason why it cannot be sent; maybe after a look-up of its service."""
        message = call.message
        self.table.add(call)
        if not self._mesh.connected:
            self.fail(message.correlation_id, MESH_UNAVAILABLE)
            return
        failure = self.breakers.check(call, self._clock())
        if failure is not None:
            self.fail(message.correlation_id, failure)
            return
        known = self.descriptions.get(message.service)
        if known is None:
            self.descriptions.look_up(
                message.service, MAX_AGE_SECONDS, lambda found: self._on_described(message, found)
            )
            return
        if self._clock() - known.fetched_at > MAX_AGE_SECONDS:
            self.descriptions.renew(message.service)  # for the next calls; this one does not wait
        self._dispatch(message, known)

    def _on_described(self, message: CallMessage, found: Description | Failure) -> None:
        if message.correlation_id not in self.table:
            return  # cancelled, timed out or abandoned during the look-up
        if isinstance(found, Failure):
            self.fail(message.correlation_id, found)
        else:
            self._dispatch(message, found)

    def _on_renewed(self, message: CallMessage, found: Description | Failure) -> None:
        # A service that did not answer in time leaves the old description, which must not lead here again.
        if isinstance(found, Description):
            found = msgspec.structs.replace(found, fetched_at=self._clock())
        self._on_described(message, found)

    def _dispatch(self, message: CallMessage, known: Description) -> None:
        """Send a call by its service's description: in clear, encrypted, or not at all."""
        if known.is_gateway:
            description = f"Calling {message.service}.{message.method} is not allowed"  # as if the policy denied it
            failure = refuse_unless(self._policy.names_service, self.table.get(message.correlation_id), description)
            if failure is not None:
                self.fail(message.correlation_id, failure)
                return
        method = None if known.methods is None else known.methods.get(message.method)
        encrypted = method is not None and method.requires_encryption
        if known.methods is not None and (method is None or encrypted):
            if self._clock() - known.fetched_at > FRESH_SECONDS:
                self.descriptions.look_up(
                    message.service, FRESH_SECONDS, lambda found: self._on_renewed(message, found)
                )
                return
            if encrypted:
                message.public_key = known.public_key
        failure = self._obstacle(message, known) if method is None or encrypted else None
        if failure is not None:
            self.fail(message.correlation_id, failure)
            return
        try:
            self._mesh.send(message)
        except Exception as error:  # no caller above knows which client to answer, and calls may wait for a look-up
            self.fail(message.correlation_id, send_failure(error, message))

    def _obstacle(self, message: CallMessage, known: Description) -> Failure | None:
        """Return the reason why a call cannot be sent, for one of a method that is unknown or has to be encrypted."""
        if known.methods is None:
            # Such a service may have methods that it hides from clients, and a wildcard must not include these.
            description = (
                f"Service {message.service} cannot describe itself, and no rule names {message.method} in full"
            )
            return refuse_unless(self._policy.names, self.table.get(message.correlation_id), description)
        if message.method not in known.methods:
            description = f"Service {message.service} has no method {message.method}"
            return Failure(ErrorCode.METHOD_NOT_FOUND, description)
        if known.public_key is None or known.keys_differ:
            description = f"Service {message.service} cannot be called encrypted: it shows no public key, or several"
            return Failure(ErrorCode.SERVICE_ERROR, description)
        return None

    def _fetch_description(self, service: str, done: Callable[[bytes | Raw | Failure], None]) -> None:
        timeout = self._settings.request_timeout
        deadline = self._clock() + timeout
        ids = new_id(), new_id()
        message = CallMessage("request", *ids, service, "nuropb_describe", b"{}", b"{}", deadline, timeout)
        self.table.add(LookUpCall(message, done))
        try:
            self._mesh.send(message)
        except Exception as error:  # other calls wait for the description
            self.fail(message.correlation_id, send_failure(error, message))

    # --- the end of a call ------------------------------------------------------------------------------------

    def take(self, correlation_id: str) -> Call | None:
        """Remove a call from the table. Its caller must then answer it; a call is removed at most once."""
        call = self.table.take(correlation_id)
        if call is not None:
            call.release()
            self.breakers.on_ended(call)
        return call

    def finish(self, call: Call, failure: Failure | None, result: bytes | Raw = b"null") -> None:
        """Answer a removed call."""
        if failure is None:
            call.succeed(result)
        else:
            call.fail(failure)
        message = call.message
        if message.service and not isinstance(call, LookUpCall):
            # A name that no service answered to is a client's invention, and must not become a label.
            service = message.service if self.descriptions.get(message.service) is not None else "other"
            code = "ok" if failure is None else failure.code.value
            self.on_call_ended(service, code, self._clock() - message.deadline + message.timeout)

    def fail(self, correlation_id: str, failure: Failure) -> None:
        """End a call with an error, if it is still in flight."""
        call = self.take(correlation_id)
        if call is not None:
            self.finish(call, failure)

    def cancel(self, correlation_id: str) -> None:
        """End a call that its client has cancelled."""
        self._statistics.cancelled += 1
        self.fail(correlation_id, Failure(ErrorCode.CANCELLED, "Cancelled by the client"))
        self._mesh.forget(correlation_id)

    def abandon(self, correlation_id: str) -> bool:
        """Remove a call that is not to be answered: its caller is gone. Returns False if it had ended already."""
        if self.take(correlation_id) is None:
            return False
        self._mesh.forget(correlation_id)
        return True

    def sweep(self, now: float) -> None:
        """End the calls whose deadline has passed."""
        for correlation_id in self.table.due(now):
            self._expire(correlation_id, now)

    def _expire(self, correlation_id: str, now: float) -> None:
        call = self.table.get(correlation_id)
        if call is None:
            return
        self._statistics.timeouts += 1
        self._mesh.forget(correlation_id)
        message = call.message
        # A call that was in flight when the mesh came or went proves nothing about its caller or its service.
        if self._mesh.connected and message.deadline - message.timeout >= self._connection_changed_at:
            self._count_error(call)
            self.breakers.on_timeout(call, now)
        self.fail(correlation_id, Failure(ErrorCode.TIMEOUT, "No answer in time; whether it ran is unknown"))

    def _count_error(self, call: Call) -> None:
        if isinstance(call, ClientCall) and call.handler.identity is not None:
            self._budgets.on_error(call.handler.identity.user_id, self._clock())

    # --- from the mesh: see MeshReceiver ----------------------------------------------------------------------

    def expects(self, correlation_id: str) -> bool:
        """Tell whether a request waits for this reply; a reply that none waits for is counted."""
        call = self.table.get(correlation_id)
        if call is not None and call.message.kind == "request":
            return True
        waited_for = self.table.waited_for(correlation_id)
        if waited_for is None:
            self._statistics.unknown_replies += 1
        elif not waited_for:
            self._statistics.double_replies += 1
        else:
            self._statistics.late_replies += 1
            self.breakers.on_answer(waited_for)
        return False

    def on_reply(self, reply: Reply) -> None:
        """Answer a call by its first reply; nuropb 0.1.8 sends a second one for every failure."""
        call = self.take(reply.correlation_id)
        if call is None:
            return
        self.table.answered(reply.correlation_id)
        self._statistics.replies += 1
        self.breakers.on_answer(call.message.service)
        if reply.error is not None:
            self._count_error(call)
            self.finish(call, service_failure(reply.error, call.message, self._settings))
        elif isinstance(call, ClientCall) and len(memoryview(reply.result)) > self._settings.outbox_size:
            description = f"The result has more than {self._settings.outbox_size} bytes"
            self.finish(call, Failure(ErrorCode.PAYLOAD_TOO_LARGE, description))
        else:
            self.finish(call, None, reply.result)

    def on_unreadable(self, correlation_id: str) -> None:
        """Fail a call whose reply was not valid JSON (NaN, Infinity)."""
        description = "The service's answer holds a value that JSON does not have"
        self.fail(correlation_id, Failure(ErrorCode.SERVICE_ERROR, description))

    def on_returned(self, correlation_id: str) -> None:
        """Fail a call whose service does not exist."""
        call = self.table.get(correlation_id)
        if call is not None:
            self._statistics.returned += 1
            description = f"Service {call.message.service} is not available"
            self.fail(correlation_id, Failure(ErrorCode.SERVICE_UNAVAILABLE, description))

    def on_confirmed(self, correlation_id: str) -> None:
        """Answer a command that the mesh has taken."""
        call = self.take(correlation_id)
        if call is not None:
            self.finish(call, None)

    def on_rejected(self, correlation_id: str) -> None:
        """Fail a call that the mesh did not take."""
        self.fail(correlation_id, MESH_UNAVAILABLE)

    def on_unconfirmed(self, correlation_id: str) -> None:
        """Fail a command that the mesh may have taken or not."""
        description = "The connection to the mesh was lost; whether it took the command is unknown"
        self.fail(correlation_id, Failure(ErrorCode.TIMEOUT, description))

    def on_replies_lost(self) -> None:
        """Fail the requests whose replies cannot come any more."""
        # Look-ups end first: the calls that wait for a description were not sent, and are refused as such.
        for correlation_id in sorted(self.table, key=self._is_look_up, reverse=True):
            call = self.table.get(correlation_id)
            if isinstance(call, LookUpCall):
                self.fail(correlation_id, MESH_UNAVAILABLE)
            elif call is not None and call.message.kind == "request":
                description = "The mesh lost the answer with one of its nodes; whether the call ran is unknown"
                self.fail(correlation_id, Failure(ErrorCode.TIMEOUT, description))
            self._mesh.forget(correlation_id)

    def on_connection_change(self) -> None:
        """Reset circuit breakers and error budgets: the mesh was away, not the services."""
        self.breakers.reset()
        self._budgets.reset()
        if self.running:
            self._connection_changed_at = self._clock()
