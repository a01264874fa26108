"""Calls of clients: their frames, their places among the calls of a connection, and their error budgets."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

from ..authentication import Identity
from ..authorization import Policy
from ..handler_manager import Handler
from ..identifiers import new_id
from ..limits.prices import extra_for_methods
from ..limits.shared import SharedLimits
from ..protocol import Cancel, CloseCode, Command, Describe, ErrorCode, Failure, Request, encode_failure, encode_json
from ..settings import Settings
from ..tracing import CallTrace, Tracing
from ..wire.context import context_of
from ..wire.description import MAX_AGE_SECONDS, Description
from ..wire.interface import CallMessage
from .calls import SLOT_SECONDS, Call, ClientCall
from .catalogue import Catalogue
from .descriptions import DESCRIBE_PATIENCE
from .failures import INTERNAL
from .idempotency import IdempotentCall, IdempotentCalls
from .in_flight import CallsInFlight
from .statistics import MeshStatistics

__all__ = ["ClientCalls"]

logger = logging.getLogger(__name__)


class ClientCalls:
    """Makes calls of clients' frames. Each frame is answered exactly once, now or later."""

    def __init__(
        self,
        settings: Settings,
        policy: Policy,
        limits: SharedLimits,
        calls: CallsInFlight,
        catalogue: Catalogue,
        statistics: MeshStatistics,
        clock: Callable[[], float],
        tracing: Tracing | None = None,
    ) -> None:
        self._settings = settings
        self._policy = policy
        self._limits = limits
        self._calls = calls
        self._catalogue = catalogue
        self._statistics = statistics
        self._clock = clock
        self._tracing = tracing
        #: Calls in flight of each session: correlation ids by the ids that the client chose.
        self._sessions: dict[str, dict[str, str]] = {}
        #: Sessions without a connection, by user. Their calls count for the user's other connections, or a client that
        #: breaks its connections would have more and more calls in flight.
        self._parked: dict[str, set[str]] = {}
        self.idempotent = IdempotentCalls(settings.resume_window, clock)

    def __len__(self) -> int:
        return len(self._sessions)

    def in_flight(self, handler: Handler) -> int:
        """Count the calls of a connection that still have to be answered."""
        return len(self._sessions.get(handler.session_id, ()))

    def on_call(self, handler: Handler, frame: Request | Command) -> None:
        """Start a request or command."""
        identity = handler.identity
        assert identity is not None  # noqa: S101 - it is registered
        correlation_id = new_id()
        trace_id = frame.trace_id if frame.trace_id is not None else new_id()
        places = self._sessions.setdefault(handler.session_id, {})
        failure = self._check_budget(handler, identity) or self._reserve(identity, places, frame.id, correlation_id)
        if failure is None and frame.idempotency_key is not None:
            place = correlation_id if frame.id is None else frame.id
            joined = self.idempotent.join(handler, frame, places, place)
            if joined is True:
                return
            if isinstance(joined, Failure):
                places.pop(place, None)
                failure = joined
        if failure is not None:
            handler.send_frame(encode_failure(frame.id, trace_id, failure))
            return
        timeout = self._settings.request_timeout
        kind: Literal["request", "command"] = "command"
        if isinstance(frame, Request):
            kind = "request"
            self._statistics.requests += 1
            if frame.timeout is not None:
                timeout = min(frame.timeout, self._settings.request_timeout_max)
        else:
            self._statistics.commands += 1
        trace: CallTrace | None = None
        carrier: dict[str, str] | None = None
        if self._tracing is not None:
            carrier = self._tracing.unrecorded(frame.trace, handler.session_id)
            if carrier is None:
                trace = self._tracing.call(kind, frame.service, frame.method, frame.trace, handler.session_id)
                carrier = trace.carrier
            is_own = trace is not None or (frame.trace is not None and frame.trace.traceparent is not None)
            if is_own and frame.trace_id is None and carrier:  # else it would be that of all calls of the connection
                trace_id = carrier["traceparent"][3:35]
        message = CallMessage(
            kind,
            correlation_id,
            trace_id,
            frame.service,
            frame.method,
            frame.params,
            context_of(identity, trace_id, handler.session_id, frame.idempotency_key, carrier),
            self._clock() + timeout,
            timeout,
        )
        if frame.idempotency_key is None:
            call = ClientCall(message, handler, frame.id, trace_id, places)
        else:
            call = self.idempotent.make(message, handler, frame, trace_id, places)
        call.trace = trace
        self._calls.start(call)

    def _check_budget(self, handler: Handler, identity: Identity) -> Failure | None:
        """Refuse a user whose calls failed too often; close the connection of one who ignores the refusals."""
        wait = self._limits.budgets.refuses(identity.user_id, self._clock()) if self._calls.running else None
        if wait is None:
            return None
        if self._limits.budgets.exhausted(identity.user_id):
            handler.close(CloseCode.TOO_MANY_ERRORS, "too many failed calls")
        return Failure(ErrorCode.TOO_MANY_REQUESTS, "Too many calls failed", retry_after_ms=int(wait * 1000) + 1)

    def _reserve(
        self, identity: Identity, places: dict[str, str], id_: str | None, correlation_id: str
    ) -> Failure | None:
        """Reserve a place among the connection's calls, or return the reason why there is none."""
        if not self._calls.running:
            return Failure(ErrorCode.MESH_UNAVAILABLE, "The gateway is not running")
        if id_ is not None and id_ in places:
            return Failure(ErrorCode.DUPLICATE_ID, "A request with this id is in flight")
        taken = len(places) + self._limits.orphans.counts.get(identity.user_id, 0)
        if identity.user_id in self._parked:
            taken += sum(len(self._sessions.get(each, ())) for each in self._parked[identity.user_id])
        if taken >= self._settings.max_in_flight:
            description = (
                f"{self._settings.max_in_flight} requests are in flight, cancelled ones included; "
                "wait for an answer first"
            )
            return Failure(ErrorCode.TOO_MANY_REQUESTS, description, retry_after_ms=1000)
        places[correlation_id if id_ is None else id_] = correlation_id
        return None

    def on_cancel(self, handler: Handler, frame: Cancel) -> None:
        """End a call early."""
        correlation_id = self._sessions.get(handler.session_id, {}).get(frame.id)
        if correlation_id is not None:
            self._calls.cancel(correlation_id)

    def forget(self, handler: Handler) -> None:
        """Abandon the calls of a connection that has ended."""
        for correlation_id in tuple(self._sessions.pop(handler.session_id, {}).values()):
            call = self._calls.table.get(correlation_id)
            if isinstance(call, IdempotentCall) and self.idempotent.leave(call, handler):
                self._keep_place(call)
                continue
            if self._calls.abandon(correlation_id):
                self._statistics.abandoned += 1
        self.idempotent.forget(handler.session_id)

    def _keep_place(self, call: IdempotentCall) -> None:
        """Count a call that runs on without a client for its user, once, until it ends."""
        if call.caller is not None and call.let_go is None:
            self._limits.orphans.add(call.caller)
            call.let_go = functools.partial(self._limits.orphans.remove, call.caller)

    # --- sessions that outlive their connections --------------------------------------------------------------

    def park(self, handler: Handler) -> None:
        """Note that a session has no connection."""
        assert handler.identity is not None  # noqa: S101 - it is registered
        if self._sessions.get(handler.session_id):
            self._parked.setdefault(handler.identity.user_id, set()).add(handler.session_id)

    def unpark(self, handler: Handler) -> None:
        """Note that a session has a connection, or is over."""
        user_id = "" if handler.identity is None else handler.identity.user_id
        if user_id in self._parked:
            sessions = self._parked[user_id]
            sessions.discard(handler.session_id)
            if not sessions:
                del self._parked[user_id]

    def knows(self, handler: Handler) -> bool:
        """Tell whether a connection has sent a call."""
        return handler.session_id in self._sessions

    def ids(self, handler: Handler) -> list[str]:
        """Return the client's ids of its calls in flight."""
        ids = []
        for place, correlation_id in self._sessions.get(handler.session_id, {}).items():
            call = self._calls.table.get(correlation_id)
            id_ = call.id_of(place) if isinstance(call, ClientCall) else None
            if id_ is not None:
                ids.append(id_)
        return ids

    def calls_of(self, handler: Handler) -> list[Call]:
        """Return the calls in flight of a connection."""
        found = map(self._calls.table.get, self._sessions.get(handler.session_id, {}).values())
        return [call for call in found if call is not None]

    def places_of(self, handler: Handler) -> dict[str, str]:
        """Return the places of a session's calls: correlation ids by the ids that the client chose."""
        return self._sessions.setdefault(handler.session_id, {})

    def replace(self, handler: Handler, successor: Handler) -> None:
        """Give a connection's calls in flight to another handler with the same session id."""
        for correlation_id in self._sessions.get(handler.session_id, {}).values():
            call = self._calls.table.get(correlation_id)
            if isinstance(call, ClientCall):
                call.follow(handler, successor)

    def rename(self, handler: Handler, old: str) -> None:
        """Have a session's calls under its present id; ``old`` was its id before."""
        new = handler.session_id
        places = self._sessions.pop(old, None)
        if places is not None:
            self._sessions[new] = places
        parked = set() if handler.identity is None else self._parked.get(handler.identity.user_id, set())
        if old in parked:
            parked.discard(old)
            parked.add(new)
        self.idempotent.rename(old, new)

    def detach(self, handler: Handler) -> dict[str, str]:
        """Forget a session but not its calls in flight; return their places."""
        return dict(self._sessions.pop(handler.session_id, {}))

    # --- describe ---------------------------------------------------------------------------------------------

    def on_describe(self, handler: Handler, frame: Describe) -> None:
        """Answer with the descriptions of one service, or of all on which the client may call something."""
        identity = handler.identity
        assert identity is not None  # noqa: S101 - it is registered
        correlation_id, trace_id = new_id(), frame.trace_id if frame.trace_id is not None else new_id()
        places = self._sessions.setdefault(handler.session_id, {})
        failure: Failure | None = None
        if frame.service is None:
            services = self._catalogue.services_for(identity)
        else:
            services = {frame.service}
            if not self._policy.may_describe(identity, frame.service):
                failure = _may_not_describe(frame.service)
        failure = failure or self._reserve(identity, places, frame.id, correlation_id)
        if failure is not None:
            handler.send_frame(encode_failure(frame.id, trace_id, failure))
            return
        # A look-up asks a service twice at most, so all look-ups end before this deadline.
        timeout = 2 * (self._settings.request_timeout + SLOT_SECONDS)
        deadline = self._clock() + timeout
        message = CallMessage("request", correlation_id, trace_id, "", "", b"{}", b"{}", deadline, timeout)
        call = ClientCall(message, handler, frame.id, trace_id, places)
        if self._tracing is not None:
            call.trace = self._tracing.describe(frame.service, frame.trace, handler.session_id)
        self._calls.table.add(call)
        found: dict[str, Description | Failure] = {}
        answer = self._answer_describe(correlation_id, identity, handler.session_id, found, only=frame.service)

        def on_description(service: str, description: Description | Failure) -> None:
            found[service] = description
            if len(found) == len(services):
                self._limits.slices.run(answer)

        for service in sorted(services):
            then = functools.partial(on_description, service)
            self._calls.descriptions.look_up(service, MAX_AGE_SECONDS, then, patience=DESCRIBE_PATIENCE)
        if not services:
            self._limits.slices.run(answer)

    def _answer_describe(
        self,
        correlation_id: str,
        identity: Identity,
        session_id: str,
        found: Mapping[str, Description | Failure],
        *,
        only: str | None,
    ) -> Iterator[None]:
        """Answer a ``describe``. Yields between two slices of the work, and never raises."""
        if correlation_id not in self._calls.table:
            return  # cancelled, or its connection has ended
        methods = sum(len(each.methods or ()) for each in found.values() if isinstance(each, Description))
        if extra := extra_for_methods(methods):
            self._limits.rates.charge(session_id, identity.user_id, self._clock(), extra)
        services: dict[str, Any] = {}
        unavailable = []
        for name, description in sorted(found.items()):
            if isinstance(description, Failure):
                if only is not None:
                    self._calls.fail(correlation_id, description)
                    return
                unavailable.append(name)
                continue
            try:
                entry = yield from self._catalogue.entry(identity, name, description)
            except Exception:  # no caller above knows which client to answer
                logger.exception("the policy failed for service %s", name)
                self._calls.fail(correlation_id, INTERNAL)
                return
            if entry is not None:
                services[name] = entry
                if self._clock() - description.fetched_at > MAX_AGE_SECONDS:
                    unavailable.append(name)  # it was asked anew, and this is its former answer
            elif only is not None:
                self._calls.fail(correlation_id, _may_not_describe(name))
                return
        call = self._calls.take(correlation_id)
        if call is not None:
            self._calls.finish(call, None, encode_json({"services": services, "unavailable": unavailable}))


def _may_not_describe(service: str) -> Failure:
    return Failure(ErrorCode.PERMISSION_DENIED, f"Describing {service} is not allowed")
