"""The way from a connection to the mesh and back.

Everything between two waits on sockets is plain function calls: a request costs an entry in a table, not a task or a
future. A request ends exactly once, by whatever comes first: its reply, its return, its deadline, its cancellation,
the end of its connection. Whoever takes it out of the table answers it.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import math
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Final, Literal

import anyio
import msgspec
from msgspec import Raw

from .authentication import Identity
from .authorization import Policy
from .controller import ServiceMeshManagerController
from .exceptions import MeshUnavailable, NotStartedError
from .fleet.members import Fleet
from .fleet.online import OnlineWatch
from .fleet.revocations import Revoker
from .fleet.users import Switchboard
from .handler_manager import Handler, HandlerManager
from .identifiers import new_id
from .limits.circuits import EVERYBODY, Circuits
from .protocol import (
    Cancel,
    ClientFrame,
    CloseCode,
    Command,
    Describe,
    ErrorCode,
    Failure,
    Request,
    Subscribe,
    Unsubscribe,
    encode_failure,
    encode_json,
)
from .routing.application import HostInterface, call_error, mesh_unavailable
from .routing.calls import SLOT_SECONDS, Call, CallTable, ClientCall, LookUpCall
from .routing.descriptions import Directory
from .routing.events import EventRouter, EventStatistics
from .settings import Settings
from .wire.context import context_of
from .wire.description import FRESH_SECONDS, MAX_AGE_SECONDS, Description, describe_for_clients
from .wire.interface import CallMessage, EventMessage, Mesh, Reply
from .wire.services import to_json

__all__ = ["MeshStatistics", "ServiceMeshManager", "ServiceMeshManagerController"]

logger = logging.getLogger(__name__)

#: What NuroPb's exceptions mean to a client. A service raises them on purpose, so their text was meant for the caller.
_CODES: Final[Mapping[str, ErrorCode]] = {
    "NuropbMessageError": ErrorCode.BAD_REQUEST,
    "NuropbValidationError": ErrorCode.INVALID_PARAMS,
    "NuropbAuthenticationError": ErrorCode.UNAUTHENTICATED,
    "NuropbAuthorizationError": ErrorCode.PERMISSION_DENIED,
    "NuropbNotDeliveredError": ErrorCode.SERVICE_UNAVAILABLE,
    "NuropbTransportError": ErrorCode.MESH_UNAVAILABLE,
    "NuropbTimeoutError": ErrorCode.TIMEOUT,
    "NuropbDeprecatedError": ErrorCode.DEPRECATED,
    "NuropbHandlingError": ErrorCode.SERVICE_ERROR,
}


_DID_NOT_SAY: Final = Failure(ErrorCode.SERVICE_UNAVAILABLE, "It did not describe itself in time")


class MeshStatistics(EventStatistics):
    """Counters since the start."""

    requests: int = 0
    commands: int = 0
    replies: int = 0
    returned: int = 0
    timeouts: int = 0
    cancelled: int = 0
    #: The client went before its answer came.
    abandoned: int = 0
    late_replies: int = 0
    double_replies: int = 0
    unknown_replies: int = 0


class ServiceMeshManager(HostInterface):
    """Forwards to the mesh, keeps track of what is in flight, and brings replies and events to their connections.

    It is an async context manager: the mesh connection and the tasks that it owns (deadlines, events for the
    controller, and what the processes of the gateway tell each other) live as long as the context. ``name`` tells its
    lines in the log from those of other kinds of connections.
    """

    def __init__(
        self,
        settings: Settings,
        handler_manager: HandlerManager,
        mesh: Mesh,
        policy: Policy,
        service_controller: ServiceMeshManagerController | None = None,
        *,
        name: str = "",
    ) -> None:
        self._name = name
        self._settings = settings
        self._handler_manager = handler_manager
        self._mesh = mesh
        self._policy = policy
        self._controller = service_controller or ServiceMeshManagerController()
        self._controller._service_name = self._controller.service_name or settings.service_name  # noqa: SLF001
        self._controller._instance_id = self._controller.instance_id or settings.instance_id  # noqa: SLF001
        self._controller._bind(self, handler_manager)  # noqa: SLF001
        self.statistics = MeshStatistics()

        self._calls = CallTable()
        #: What each session has in flight: correlation ids by the ids that it chose.
        self._sessions: dict[str, dict[str, str]] = {}
        self._events = EventRouter(
            settings,
            handler_manager,
            mesh,
            policy,
            self._controller,
            self.statistics,
            self._time,
        )
        self._directory = Directory(self._fetch_description, self._now)
        self._stack: contextlib.AsyncExitStack | None = None
        self._clock: Callable[[], float] = _no_clock
        self._fleet = Fleet(mesh, settings.instance_id, self._time, self._answer)
        self._switchboard = Switchboard(settings, handler_manager, self._fleet)
        self._revoker = Revoker(handler_manager, settings.jwt_leeway, mesh.record)
        self._online: OnlineWatch | None = None
        if settings.presence_events == "on":
            self._online = OnlineWatch(
                self._fleet, handler_manager, mesh.address, self._time, self._publish_presence, lambda: mesh.connected
            )
        self._circuits = Circuits()
        self._budgets = handler_manager.process.budgets
        self._connection_changed_at = -math.inf
        #: Told of the end of every call but the gateway's own: service, code ("ok" or an error code), seconds.
        self.on_call_ended: Callable[[str, str, float], None] = _ignore

        handler_manager.bind_receiver(
            self.on_handler_message_received,
            self.on_handler_unregistered,
            on_handler_arriving=self._events.prepare,
            on_handler_registered=self.on_handler_registered,
            on_handler_refreshed=self._events.end_denied,
            in_flight=lambda handler: len(self._sessions.get(handler.session_id, ())),
        )
        mesh.bind(self, self._controller)

    # --- life -------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> ServiceMeshManager:
        self._clock = asyncio.get_running_loop().time
        async with contextlib.AsyncExitStack() as stack:
            tasks = await stack.enter_async_context(anyio.create_task_group())
            stack.callback(tasks.cancel_scope.cancel)
            tasks.start_soon(self._sweep, name="deadlines")
            self._events.start()
            stack.callback(self._events.stop)
            tasks.start_soon(self._events.feed_controller, name="controller events")
            tasks.start_soon(self._fleet.run, name="signs of life")
            tasks.start_soon(self._revoker.run, name="revoked sessions")
            if self._online is not None:
                tasks.start_soon(self._online.run, name="presence")
            await stack.enter_async_context(self._mesh)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Requests that are still in flight are answered with ``mesh_unavailable``."""
        self._fleet.leave()
        stack, self._stack = self._stack, None
        # The look-ups last, for what waits for them would be sent otherwise.
        for correlation_id in sorted(self._calls, key=lambda each: isinstance(self._calls.get(each), LookUpCall)):
            self._fail(correlation_id, Failure(ErrorCode.MESH_UNAVAILABLE, "The gateway is shutting down"))
        if stack is not None:
            await stack.__aexit__(exc_type, exc, traceback)
        self._clock = _no_clock

    def _now(self) -> float:
        return self._clock()

    def _time(self) -> float:
        """The same, and 0 while nothing runs: connections may leave later than the mesh."""
        return self._clock() if self._clock is not _no_clock else 0.0

    @property
    def connected(self) -> bool:
        """Whether the mesh takes messages now."""
        return self._mesh.connected

    @property
    def problem(self) -> str | None:
        """Why the mesh takes none, in words for an operator, or None."""
        return self._mesh.problem

    @property
    def mesh(self) -> Mesh:
        """The mesh."""
        return self._mesh

    @property
    def open_circuits(self) -> list[str]:
        """The services to which calls fail at once, because they do not answer."""
        return self._circuits.open()

    @property
    def started(self) -> bool:
        """Whether the context is entered."""
        return self._stack is not None

    @property
    def in_flight(self) -> int:
        """Requests and commands without an answer yet, those of the host application included."""
        return len(self._calls)

    # --- from clients -----------------------------------------------------------------------------------------

    def on_handler_message_received(self, handler: Handler, frame: ClientFrame) -> None:
        """Take a frame that the HandlerManager has checked; it is answered exactly once, now or later."""
        if isinstance(frame, Request | Command):
            self._on_call(handler, frame)
        elif isinstance(frame, Cancel):
            self._on_cancel(handler, frame)
        elif isinstance(frame, Describe):
            self._on_describe(handler, frame)
        elif isinstance(frame, Subscribe):
            self._events.subscribe(handler, frame)
        elif isinstance(frame, Unsubscribe):
            self._events.unsubscribe(handler, frame)
        else:
            raise TypeError(f"{type(frame).__name__} is not for the mesh")

    def on_handler_registered(self, handler: Handler) -> None:
        """Note that its user came, if this is the first connection here."""
        self._look_at_user(handler)

    def on_handler_unregistered(self, handler: Handler) -> None:
        """Forget what a connection had in flight and what it was subscribed to."""
        self._look_at_user(handler)
        for correlation_id in self._sessions.pop(handler.session_id, {}).values():
            if self._take(correlation_id) is not None:
                self.statistics.abandoned += 1
                self._mesh.forget(correlation_id)
        self._events.forget(handler)

    def _look_at_user(self, handler: Handler) -> None:
        if self._online is not None and handler.identity is not None:
            self._online.look_at(handler.identity.user_id)

    def _on_call(self, handler: Handler, frame: Request | Command) -> None:
        identity = handler.identity
        assert identity is not None  # noqa: S101 - it is registered
        correlation_id = new_id()
        trace_id = frame.trace_id if frame.trace_id is not None else new_id()
        failure = self._check_budget(handler, identity) or self._reserve(handler, frame.id, correlation_id)
        if failure is not None:
            handler.send_frame(encode_failure(frame.id, trace_id, failure))
            return
        timeout = self._settings.request_timeout
        kind: Literal["request", "command"] = "command"
        if isinstance(frame, Request):
            kind = "request"
            self.statistics.requests += 1
            if frame.timeout is not None:
                timeout = min(frame.timeout, self._settings.request_timeout_max)
        else:
            self.statistics.commands += 1
        message = CallMessage(
            kind,
            correlation_id,
            trace_id,
            frame.service,
            frame.method,
            frame.params,
            context_of(identity, trace_id, handler.session_id),
            self._clock() + timeout,
            timeout,
        )
        self._start(ClientCall(message, handler, frame.id, trace_id))

    def _check_budget(self, handler: Handler, identity: Identity) -> Failure | None:
        """Why this user may not call now: too many calls failed. Who goes on all the same is hung up on."""
        wait = self._budgets.refuses(identity.user_id, self._clock()) if self.started else None
        if wait is None:
            return None
        if self._budgets.exhausted(identity.user_id):
            handler.close(CloseCode.TOO_MANY_ERRORS, "too many failed calls")
        return Failure(ErrorCode.TOO_MANY_REQUESTS, "Too many calls failed", retry_after_ms=int(wait * 1000) + 1)

    def _reserve(self, handler: Handler, id_: str | None, correlation_id: str) -> Failure | None:
        """A place among the connection's calls, or why there is none."""
        if not self.started:
            return Failure(ErrorCode.MESH_UNAVAILABLE, "The gateway is not running")
        in_flight = self._sessions.setdefault(handler.session_id, {})
        if id_ is not None and id_ in in_flight:
            return Failure(ErrorCode.DUPLICATE_ID, "A request with this id is in flight")
        if len(in_flight) >= self._settings.max_in_flight:
            description = f"{self._settings.max_in_flight} requests are in flight; wait for an answer first"
            return Failure(ErrorCode.TOO_MANY_REQUESTS, description, retry_after_ms=1000)
        in_flight[correlation_id if id_ is None else id_] = correlation_id
        return None

    def _on_cancel(self, handler: Handler, frame: Cancel) -> None:
        correlation_id = self._sessions.get(handler.session_id, {}).get(frame.id)
        if correlation_id is None:
            return
        self.statistics.cancelled += 1
        self._fail(correlation_id, Failure(ErrorCode.CANCELLED, "Cancelled by the client"))
        self._mesh.forget(correlation_id)

    # --- subscriptions ----------------------------------------------------------------------------------------

    def end_denied_subscriptions(self, handler: Handler) -> None:
        """End what the policy does not allow this connection any longer, and tell the client."""
        self._events.end_denied(handler)

    async def on_policy_changed(self) -> None:
        """End what the policy does not allow any longer, on all connections. It lets others have their turn."""
        for handler in self._handler_manager.handlers:
            self._events.end_denied(handler)
            await asyncio.sleep(0)

    # --- describe ---------------------------------------------------------------------------------------------

    def _on_describe(self, handler: Handler, frame: Describe) -> None:
        identity = handler.identity
        assert identity is not None  # noqa: S101 - it is registered
        correlation_id, trace_id = new_id(), frame.trace_id if frame.trace_id is not None else new_id()
        failure: Failure | None = None
        if frame.service is None:
            services = self._services_for(identity)
        else:
            services = {frame.service}
            if not self._policy.may_describe(identity, frame.service):
                failure = Failure(ErrorCode.PERMISSION_DENIED, f"Describing {frame.service} is not allowed")
        failure = failure or self._reserve(handler, frame.id, correlation_id)
        if failure is not None:
            handler.send_frame(encode_failure(frame.id, trace_id, failure))
            return
        # A look-up asks twice at the most, so all of them end before this.
        timeout = 2 * (self._settings.request_timeout + SLOT_SECONDS)
        message = CallMessage(
            "request",
            correlation_id,
            trace_id,
            "",
            "",
            b"{}",
            b"{}",
            self._clock() + timeout,
            timeout,
        )
        call = ClientCall(message, handler, frame.id, trace_id)
        self._calls.add(call)
        found: dict[str, Description | Failure] = {}

        def on_description(service: str, description: Description | Failure) -> None:
            found[service] = description
            if len(found) == len(services):
                self._answer_describe(correlation_id, identity, found, only=frame.service)

        for service in sorted(services):
            self._directory.look_up(service, MAX_AGE_SECONDS, functools.partial(on_description, service))
        if not services:
            self._answer_describe(correlation_id, identity, found, only=None)

    def _answer_describe(
        self,
        correlation_id: str,
        identity: Identity,
        found: Mapping[str, Description | Failure],
        *,
        only: str | None,
    ) -> None:
        services: dict[str, Any] = {}
        unavailable = []
        for name, description in sorted(found.items()):
            if isinstance(description, Failure):
                if only is not None:
                    self._fail(correlation_id, description)
                    return
                unavailable.append(name)
                continue
            try:
                methods = [m for m in description.methods or () if self._policy.may_call(identity, name, m)]
            except Exception:  # nobody above knows whom to answer
                logger.exception("the policy failed for service %s", name)
                self._fail(correlation_id, _internal())
                return
            services[name] = describe_for_clients(description, methods)
        call = self._take(correlation_id)
        if call is not None:
            call.succeed(encode_json({"services": services, "unavailable": unavailable}))

    def _services_for(self, identity: Identity) -> set[str]:
        """The services, as far as they are known, on which this identity may call something."""
        known = {name for name in self._directory if self._callable(identity, name)}
        return known.union(self._policy.services(identity))

    async def describe_for(self, identity: Identity, *, patience: float) -> dict[str, Description | Failure]:
        """What the services are on which this identity may call something: a description of each, or why there is none.

        All are asked at the same time, unless what is known is fresh. One that does not answer within ``patience``
        seconds is as it was known before, if it was; its answer is remembered when it comes. Raises NotStartedError
        outside the gateway's lifespan.
        """
        self._check_started()
        services = self._services_for(identity)
        found: dict[str, Description | Failure] = {}
        complete = asyncio.Event()

        def on_description(service: str, description: Description | Failure) -> None:
            found[service] = description
            if len(found) == len(services):
                complete.set()

        for service in sorted(services):
            self._directory.look_up(service, MAX_AGE_SECONDS, functools.partial(on_description, service))
        if services:
            with anyio.move_on_after(patience):
                await complete.wait()
        late = {service: self._directory.get(service) or _DID_NOT_SAY for service in services - found.keys()}
        return found | late

    def _callable(self, identity: Identity, service: str) -> bool:
        description = self._directory.get(service)
        methods = () if description is None or description.methods is None else description.methods
        return any(self._policy.may_call(identity, service, method) for method in methods)

    async def describe(self, service: str) -> Description:
        """Ask a service what it is. Its methods are None if it cannot say.

        It is for the host application, so the policy does not apply. Raises CallError when the service is not there or
        does not answer within REQUEST_TIMEOUT, and NotStartedError outside the gateway's lifespan.
        """
        self._check_started()
        future: asyncio.Future[Description | Failure] = asyncio.get_running_loop().create_future()

        def on_description(found: Description | Failure) -> None:
            if not future.done():
                future.set_result(found)

        self._directory.look_up(service, -1.0, on_description)
        found = await future
        if isinstance(found, Failure):
            raise call_error(found)
        return found

    def _fetch_description(self, service: str, done: Callable[[bytes | Raw | Failure], None]) -> None:
        message = CallMessage(
            "request",
            new_id(),
            new_id(),
            service,
            "nuropb_describe",
            b"{}",
            b"{}",
            self._clock() + self._settings.request_timeout,
            self._settings.request_timeout,
        )
        self._calls.add(LookUpCall(message, done))
        self._send(message)

    # --- a call -----------------------------------------------------------------------------------------------

    def _start(self, call: Call) -> None:
        message = call.message
        self._calls.add(call)
        if not self._mesh.connected:
            self._fail(message.correlation_id, mesh_unavailable())
            return
        failure = self._check_circuit(call)
        if failure is not None:
            self._fail(message.correlation_id, failure)
            return
        known = self._directory.get(message.service)
        if known is None:
            self._directory.look_up(message.service, MAX_AGE_SECONDS, lambda found: self._on_found(message, found))
            return
        if self._clock() - known.fetched_at > MAX_AGE_SECONDS:
            self._directory.look_up(message.service, MAX_AGE_SECONDS, _ignore)  # renew it for the next calls
        self._dispatch(message, known)

    def _check_circuit(self, call: Call) -> Failure | None:
        """Why the service may not be called now: it has not answered for a while."""
        message = call.message
        if message.kind == "command":
            return None  # it waits for no answer
        wait = self._circuits.refuses(message.service, call.caller, message.correlation_id, self._clock())
        if wait is None:
            return None
        description = f"Service {message.service} does not answer"
        return Failure(ErrorCode.SERVICE_UNAVAILABLE, description, retry_after_ms=int(wait * 1000) + 1)

    def _on_found(self, message: CallMessage, found: Description | Failure) -> None:
        if message.correlation_id not in self._calls:
            return  # cancelled, timed out or abandoned while it waited
        if isinstance(found, Failure):
            self._fail(message.correlation_id, found)
        else:
            self._dispatch(message, found)

    def _dispatch(self, message: CallMessage, known: Description) -> None:
        if known.methods is None:
            failure = self._refuse_unchecked(message)
            if failure is None:
                self._send(message)
            else:
                self._fail(message.correlation_id, failure)
            return
        method = known.methods.get(message.method)
        fresh = self._clock() - known.fetched_at <= FRESH_SECONDS
        if (method is None or method.requires_encryption) and not fresh:
            self._directory.look_up(message.service, FRESH_SECONDS, lambda found: self._on_renewed(message, found))
        elif method is None:
            description = f"Service {message.service} has no method {message.method}"
            self._fail(message.correlation_id, Failure(ErrorCode.METHOD_NOT_FOUND, description))
        elif not method.requires_encryption:
            self._send(message)
        elif known.public_key is None or known.keys_differ:
            description = f"Service {message.service} cannot be called encrypted: it shows no key, or several"
            self._fail(message.correlation_id, Failure(ErrorCode.SERVICE_ERROR, description))
        else:
            message.public_key = known.public_key
            self._send(message)

    def _refuse_unchecked(self, message: CallMessage) -> Failure | None:
        """Why a client's call is not made although it is allowed: nobody knows which methods this service hides, so a
        wildcard cannot be for all but these.
        """
        call = self._calls.get(message.correlation_id)
        if not isinstance(call, ClientCall) or call.handler.identity is None:
            return None
        try:
            if self._policy.names(call.handler.identity, message.service, message.method):
                return None
        except Exception:  # nobody above knows whom to answer, and others may wait for the same description
            logger.exception("the policy failed for service %s", message.service)
            return _internal()
        description = f"Service {message.service} cannot describe itself, and no rule names {message.method} in full"
        return Failure(ErrorCode.PERMISSION_DENIED, description)

    def _on_renewed(self, message: CallMessage, found: Description | Failure) -> None:
        # A service that did not answer in time leaves the old description, which must not lead here again.
        if isinstance(found, Description):
            found = msgspec.structs.replace(found, fetched_at=self._clock())
        self._on_found(message, found)

    def _send(self, message: CallMessage) -> None:
        try:
            self._mesh.send(message)
        except MeshUnavailable:
            self._fail(message.correlation_id, mesh_unavailable())
        except ValueError as error:  # a name that does not fit AMQP's limits
            self._fail(message.correlation_id, Failure(ErrorCode.BAD_REQUEST, str(error)))
        except Exception:  # nobody above knows whom to answer, and others may wait for the same description
            logger.exception("trace %s: the mesh failed to send", message.trace_id)
            self._fail(message.correlation_id, _internal())

    # --- from the mesh ----------------------------------------------------------------------------------------

    def expects(self, correlation_id: str) -> bool:
        """Whether a request waits for this reply; if none does, the reply is counted."""
        call = self._calls.get(correlation_id)
        if call is not None and call.message.kind == "request":
            return True
        waited_for = self._calls.waited_for(correlation_id)
        if waited_for is None:
            self.statistics.unknown_replies += 1
        elif not waited_for:
            self.statistics.double_replies += 1
        else:
            self.statistics.late_replies += 1
            self._on_answer(waited_for)
        return False

    def on_reply(self, reply: Reply) -> None:
        """A service answered. The first reply wins; nuropb 0.1.8 sends a second one for every failure."""
        call = self._take(reply.correlation_id)
        if call is None:
            return
        self._calls.answered(reply.correlation_id)
        self.statistics.replies += 1
        self._on_answer(call.message.service)
        if reply.error is not None:
            self._count_error(call)
            self._finish(call, self._translate(reply.error, call.message))
        elif isinstance(call, ClientCall) and len(memoryview(reply.result)) > self._settings.outbox_size:
            description = f"The result has more than {self._settings.outbox_size} bytes"
            self._finish(call, Failure(ErrorCode.PAYLOAD_TOO_LARGE, description))
        else:
            self._finish(call, None, reply.result)

    def on_unreadable(self, correlation_id: str) -> None:
        """A service answered with what is JSON for Python only."""
        self._fail(
            correlation_id,
            Failure(ErrorCode.SERVICE_ERROR, "The service's answer holds a value that JSON does not have"),
        )

    def on_returned(self, correlation_id: str) -> None:
        """No such service."""
        call = self._calls.get(correlation_id)
        if call is not None:
            self.statistics.returned += 1
            description = f"Service {call.message.service} is not available"
            self._fail(correlation_id, Failure(ErrorCode.SERVICE_UNAVAILABLE, description))

    def on_confirmed(self, correlation_id: str) -> None:
        """The mesh took a command."""
        call = self._take(correlation_id)
        if call is not None:
            self._finish(call, None)

    def on_rejected(self, correlation_id: str) -> None:
        """The mesh did not take the message after all."""
        self._fail(correlation_id, mesh_unavailable())

    def on_unconfirmed(self, correlation_id: str) -> None:
        """Whether the mesh took the command is not known."""
        self._fail(
            correlation_id,
            Failure(ErrorCode.TIMEOUT, "The connection to the mesh was lost; whether it took the command is unknown"),
        )

    def on_event(self, event: EventMessage) -> None:
        """Bring an event to whom it is for: the connections of its targets, or those that subscribed."""
        self._events.on_event(event)

    def on_gap(self, reason: str) -> None:
        """Events were lost on the way here; ``reason`` says how."""
        self._events.on_gap(reason)

    def on_peer_message(self, message: bytes) -> None:
        """Another process of the gateway says something."""
        self._fleet.on_message(message)

    def on_record(self, record: bytes) -> None:
        """Some process of the gateway revoked a token, now or before this one started."""
        self._revoker.on_record(record)

    def on_connection_change(self, *, connected: bool) -> None:
        """The mesh came or went. Connections of clients stay either way."""
        self._fleet.on_connection_change(connected=connected)
        self._circuits.reset()
        self._budgets.reset()
        if self.started:
            self._connection_changed_at = self._clock()
        level = logging.INFO if connected or not self.started else logging.WARNING
        logger.log(level, "mesh %s%s", _state(connected), f" ({self._name})" if self._name else "")

    def _answer(self, question: Raw) -> bytes:
        return self._switchboard.answer(question)

    def _publish_presence(self, topic: str, event: Any) -> None:
        with contextlib.suppress(MeshUnavailable):  # it is asked for while the mesh is connected
            self._mesh.publish(topic, to_json(event), context=b"{}", trace_id=new_id(), target=None)

    def _translate(self, error: Mapping[str, Any], message: CallMessage) -> Failure:
        """What a service's error is to a client."""
        name, text = str(error.get("error", "")), str(error.get("description", ""))
        details = self._settings.error_details
        code = _CODES.get(name, ErrorCode.SERVICE_ERROR)
        if name == "NuropbHandlingError" and text.startswith("Unknown method"):
            code = ErrorCode.METHOD_NOT_FOUND
        shown = details == "all" or (details == "nuropb" and name in _CODES)
        if shown and len(text) <= self._settings.outbox_size:
            return Failure(code, text, error=name)
        logger.info(
            "trace %s: %s.%s failed with %s", message.trace_id, message.service, message.method, name or "no name"
        )
        neutral = f"{message.service}.{message.method} failed; look for trace_id {message.trace_id}"
        return Failure(code, neutral, error=name if name.startswith("Nuropb") else "")

    # --- the table --------------------------------------------------------------------------------------------

    def _take(self, correlation_id: str) -> Call | None:
        """Remove a call from the table. Who gets it has to answer it, and nobody gets it twice."""
        call = self._calls.take(correlation_id)
        if call is None:
            return None
        if isinstance(call, ClientCall):
            in_flight = self._sessions.get(call.handler.session_id, {})
            in_flight.pop(correlation_id if call.id is None else call.id, None)
        self._circuits.on_ended(call.message.service, call.caller, correlation_id)
        return call

    def _fail(self, correlation_id: str, failure: Failure) -> None:
        call = self._take(correlation_id)
        if call is not None:
            self._finish(call, failure)

    def _finish(self, call: Call, failure: Failure | None, result: bytes | Raw = b"null") -> None:
        """Answer a call that was taken out of the table."""
        if failure is None:
            call.succeed(result)
        else:
            call.fail(failure)
        message = call.message
        if message.service and not isinstance(call, LookUpCall):
            # A name that no service answered to is a client's invention, and those must not become labels.
            service = message.service if self._directory.get(message.service) is not None else "other"
            code = "ok" if failure is None else failure.code.value
            self.on_call_ended(service, code, self._clock() - message.deadline + message.timeout)

    def _on_answer(self, service: str) -> None:
        if self._circuits.on_answer(service):
            logger.warning("service %s answers again", service)

    def _count_error(self, call: Call) -> None:
        if isinstance(call, ClientCall) and call.handler.identity is not None:
            self._budgets.on_error(call.handler.identity.user_id, self._clock())

    async def _sweep(self) -> None:
        """End calls whose time is up, until cancelled."""
        while True:
            await asyncio.sleep(SLOT_SECONDS)
            now = self._clock()
            for correlation_id in self._calls.due(now):
                self._expire(correlation_id)
            self._events.sweep(now)
            self._revoker.sweep(now)

    def _expire(self, correlation_id: str) -> None:
        call = self._calls.get(correlation_id)
        if call is not None:
            self.statistics.timeouts += 1
            self._mesh.forget(correlation_id)
            message = call.message
            # What was under way when the mesh came or went says nothing about the caller, nor about the service.
            counts = self._mesh.connected and message.deadline - message.timeout >= self._connection_changed_at
            if counts:
                self._count_error(call)
            counts = counts and message.kind == "request" and message.service != ""
            opened = counts and self._circuits.on_timeout(
                message.service, call.caller, correlation_id, message.timeout, self._clock()
            )
            if opened is not False:
                whose = "calls to it" if opened is EVERYBODY else "calls of one user to it"
                logger.warning("service %s does not answer; %s fail at once until it does", message.service, whose)
            self._fail(correlation_id, Failure(ErrorCode.TIMEOUT, "No answer in time; whether it ran is unknown"))


def _no_clock() -> float:
    raise NotStartedError("the ServiceMeshManager's context is not entered")


def _ignore(*_: object) -> None:
    """What was asked for has its effect without anybody waiting for it."""


def _state(connected: bool) -> str:
    return "connected" if connected else "disconnected"


def _internal() -> Failure:
    return Failure(ErrorCode.INTERNAL, "The gateway could not handle this frame")
