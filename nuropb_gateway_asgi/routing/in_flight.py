"""Calls in flight: how a call is sent to the mesh, and how it ends."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable
from typing import Final

import msgspec
from msgspec import Raw

from ..authorization import Policy
from ..identifiers import new_id
from ..limits.shared import SharedLimits
from ..protocol import ErrorCode, Failure
from ..settings import Settings
from ..wire.description import FRESH_SECONDS, MAX_AGE_SECONDS, Description
from ..wire.interface import CallMessage, Mesh
from .breakers import Breakers
from .calls import Call, CallTable, LookUpCall, OrphanCall, refuse_unless
from .descriptions import Descriptions
from .failures import MESH_UNAVAILABLE, send_failure
from .places import ServicePlaces
from .statistics import MeshStatistics

__all__ = ["CallsInFlight"]

logger = logging.getLogger(__name__)

#: The deadline came before the call was sent.
NO_PLACE: Final = Failure(
    ErrorCode.TOO_MANY_REQUESTS,
    "Other calls of this user to the service took all the time; wait for their answers first",
    retry_after_ms=1000,
)


class CallsInFlight:
    """Sends calls to the mesh and ends each exactly once: by its reply, its return, its deadline, or its caller.

    A call costs an entry in a table, no task and no future. A client's call has a place among those of its user at its
    service until the service has answered or the deadline has come, also when its client has given it up. ``clock`` is
    a monotonic clock, in seconds.
    """

    def __init__(
        self,
        settings: Settings,
        mesh: Mesh,
        policy: Policy,
        limits: SharedLimits,
        statistics: MeshStatistics,
        clock: Callable[[], float],
    ) -> None:
        self._settings = settings
        self._mesh = mesh
        self._policy = policy
        self._limits = limits
        self._statistics = statistics
        self._clock = clock
        self._connection_changed_at = -math.inf
        self.table = CallTable()
        self.breakers = Breakers()
        self.places = ServicePlaces(limits, settings.request_timeout, self._fetch_description, clock)
        self.descriptions = Descriptions(self._fetch_description, clock)
        #: Whether calls are taken: from the start of the gateway's lifespan to its end.
        self.running = False
        #: Called at the end of every call but the gateway's own: service, "ok" or an error code, seconds.
        self.on_call_ended: Callable[[str, str, float], None] = lambda service, code, seconds: None
        #: Writes the line of a call that has ended, with an error code or ``ok`` and the bytes of the answer, if there
        #: is a line for each call.
        self.summarise: Callable[[Call, str, int], None] | None = None

    def close(self) -> None:
        """Take no more calls, and answer those in flight with ``mesh_unavailable``."""
        self.running = False
        # Look-ups end last: the calls that wait for a description would be sent otherwise.
        for correlation_id in sorted(self.table, key=self._is_look_up):
            self.fail(correlation_id, Failure(ErrorCode.MESH_UNAVAILABLE, "The gateway is shutting down"))
        for correlation_id in self.table.orphans:
            self.end_orphan(correlation_id)
        self.places.close()

    def _is_look_up(self, correlation_id: str) -> bool:
        return isinstance(self.table.get(correlation_id), LookUpCall)

    # --- to the mesh ------------------------------------------------------------------------------------------

    def start(self, call: Call) -> None:
        """Send a call, or answer it with the reason why it cannot be sent.

        It may have to wait before: for one of its user's calls to the same service, or for a look-up of the service.
        """
        self.table.add(call)
        caller = call.caller
        if not self._mesh.connected:
            self.fail(call.message.correlation_id, MESH_UNAVAILABLE)
        elif caller is None or self.places.take(call, caller, self._resume):
            self._begin(call)

    def _resume(self, call: Call) -> None:
        """Send a call that has waited for its place, unless all calls are about to be answered."""
        if call.began >= call.message.deadline:
            self.fail(call.message.correlation_id, NO_PLACE)
        elif not self.running:
            return
        elif self._mesh.connected:
            self._begin(call)
        else:
            self.fail(call.message.correlation_id, MESH_UNAVAILABLE)

    def _begin(self, call: Call) -> None:
        message = call.message
        failure = self.breakers.check(call, self._clock()) if self.breakers.troubled else None
        if failure is not None:
            self.fail(message.correlation_id, failure)
            return
        known = self.descriptions.get(message.service)
        if known is None:
            self.descriptions.look_up(message.service, MAX_AGE_SECONDS, lambda found: self._on_described(call, found))
            return
        if self._clock() - known.fetched_at > MAX_AGE_SECONDS:
            self.descriptions.renew(message.service)  # for the next calls; this one does not wait
        self._dispatch(call, known)

    def _on_described(self, call: Call, found: Description | Failure) -> None:
        if call.message.correlation_id not in self.table:
            return  # cancelled, timed out or abandoned during the look-up
        if isinstance(found, Failure):
            self.fail(call.message.correlation_id, found)
        else:
            self._dispatch(call, found)

    def _on_renewed(self, call: Call, found: Description | Failure) -> None:
        # A service that did not answer in time leaves the old description, which must not lead here again.
        if isinstance(found, Description):
            found = msgspec.structs.replace(found, fetched_at=self._clock())
        self._on_described(call, found)

    def _dispatch(self, call: Call, known: Description) -> None:
        """Send a call by its service's description: in clear, encrypted, or not at all."""
        message = call.message
        if known.is_gateway:
            description = f"Calling {message.service}.{message.method} is not allowed"  # as if the policy denied it
            failure = refuse_unless(self._policy.names_service, call, description)
            if failure is not None:
                self.fail(message.correlation_id, failure)
                return
        method = None if known.methods is None else known.methods.get(message.method)
        encrypted = method is not None and method.requires_encryption
        if known.methods is not None and (method is None or encrypted):
            if self._clock() - known.fetched_at > FRESH_SECONDS:
                self.descriptions.look_up(message.service, FRESH_SECONDS, lambda found: self._on_renewed(call, found))
                return
            if encrypted:
                message.public_key = known.public_key
        failure = self._obstacle(call, known) if method is None or encrypted else None
        if failure is not None:
            self.fail(message.correlation_id, failure)
            return
        try:
            self._mesh.send(message)
        except Exception as error:  # no caller above knows which client to answer, and calls may wait for a look-up
            self.fail(message.correlation_id, send_failure(error, message))
            return
        if call.state == "started":
            call.state = "sent"
        if call.trace is not None:
            call.trace.on_sent()

    def _obstacle(self, call: Call, known: Description) -> Failure | None:
        """Return the reason why a call cannot be sent, for one of a method that is unknown or has to be encrypted."""
        message = call.message
        if known.methods is None:
            # Such a service may have methods that it hides from clients, and a wildcard must not include these.
            description = (
                f"Service {message.service} cannot describe itself, and no rule names {message.method} in full"
            )
            return refuse_unless(self._policy.names, call, description)
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

    def take(self, correlation_id: str, *, answered: bool = False) -> Call | None:
        """Remove a call from the table. Its caller must then answer it; a call is removed at most once.

        ``answered`` is true once its service has answered it.
        """
        call = self.table.take(correlation_id, answered=answered)
        if call is not None:
            call.release()
            if self.breakers.troubled:
                self.breakers.on_ended(call)
            self.places.give_back(call)
        return call

    def _give_up(self, correlation_id: str) -> Call | None:
        """Remove a call whose client waits no longer. Its service may work on it, and then it keeps its place."""
        call = self.table.get(correlation_id)
        if call is None or call.state != "sent" or call.caller is None:
            self._mesh.forget(correlation_id)
            return self.take(correlation_id)
        self.table.take(correlation_id)
        call.release()
        self.table.orphan(call)
        self._limits.orphans.add(call.caller)
        return call

    def end_orphan(self, correlation_id: str, *, answered: bool = False) -> OrphanCall | None:
        """Remove a call that its client has given up, for its answer or its deadline has come."""
        orphan = self.table.take_orphan(correlation_id, answered=answered)
        if orphan is not None:
            self._mesh.forget(correlation_id)
            self.breakers.on_ended(orphan)
            if orphan.caller is not None:
                self._limits.orphans.remove(orphan.caller)
            self.places.give_back(orphan)
        return orphan

    def finish(self, call: Call, failure: Failure | None, result: bytes | Raw = b"null") -> None:
        """Answer a removed call."""
        if failure is None:
            call.succeed(result)
        else:
            call.fail(failure)
        if call.trace is not None:
            call.trace.end("ok" if failure is None else failure.code.value)
        message = call.message
        if message.service and not isinstance(call, LookUpCall):
            # A name that no service answered to is a client's invention, and must not become a label.
            service = message.service if self.descriptions.get(message.service) is not None else "other"
            code = "ok" if failure is None else failure.code.value
            self.on_call_ended(service, code, self._clock() - message.deadline + message.timeout)
            if self.summarise is not None:
                self.summarise(call, code, 0 if failure is not None else len(memoryview(result)))

    def fail(self, correlation_id: str, failure: Failure) -> None:
        """End a call with an error, if it is still in flight."""
        call = self.take(correlation_id)
        if call is not None:
            self.finish(call, failure)

    def cancel(self, correlation_id: str) -> None:
        """Answer a call that its client has cancelled."""
        self._statistics.cancelled += 1
        call = self._give_up(correlation_id)
        if call is not None:
            self.finish(call, Failure(ErrorCode.CANCELLED, "Cancelled by the client"))

    def abandon(self, correlation_id: str) -> bool:
        """Remove a call that is not to be answered: its caller is gone. Returns False if it had ended already."""
        call = self._give_up(correlation_id)
        if call is not None and call.trace is not None:
            call.trace.end("abandoned")
        if call is not None and call.message.service and self.summarise is not None:
            self.summarise(call, "abandoned", 0)
        return call is not None

    def sweep(self, now: float) -> None:
        """End the calls whose deadline has passed."""
        for correlation_id in self.table.due(now):
            self._expire(correlation_id, now)
        self.places.sweep(now)

    def _expire(self, correlation_id: str, now: float) -> None:
        orphan = self.end_orphan(correlation_id)
        if orphan is not None:
            self._note_silence(orphan, now)
            return
        call = self.table.get(correlation_id)
        if call is None:
            return
        self._statistics.timeouts += 1
        self._mesh.forget(correlation_id)
        if call.state == "waiting":
            self.fail(correlation_id, NO_PLACE)
            return
        self._note_silence(call, now)
        self.fail(correlation_id, Failure(ErrorCode.TIMEOUT, "No answer in time; whether it ran is unknown"))

    def _note_silence(self, call: Call, now: float) -> None:
        if self.mesh_stayed(call):
            # A call that was lost on a connection which is dead, and is not known to be, proves nothing either.
            self._mesh.when_proven(functools.partial(self._on_silence, call, now))

    def _on_silence(self, call: Call, now: float) -> None:
        """Count a call that its service, and not the mesh, has left without an answer."""
        self.count_error(call)
        self.breakers.on_timeout(call, now)
        self.places.on_silence(call, now)

    def mesh_stayed(self, call: Call) -> bool:
        """Tell whether the mesh was connected all the time since a call began."""
        # A call that was in flight when the mesh came or went proves nothing about its caller or its service.
        return self._mesh.connected and call.began >= self._connection_changed_at

    def count_error(self, call: Call) -> None:
        """Count a failed call of a client; its message may be in the dead-letter queues now."""
        caller = call.caller
        if caller is not None:
            self._limits.budgets.on_error(caller, self._clock())

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
        self._limits.budgets.reset()
        if self.running:
            self._connection_changed_at = self._clock()
