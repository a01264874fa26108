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
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Literal
from uuid import uuid4

import anyio
import msgspec
from msgspec import Raw

from ._calls import SLOT_SECONDS, Call, CallTable, ClientCall, HostCall, LookUpCall
from ._directory import Directory
from ._guards import Circuits, ErrorBudgets
from .authentication import Identity
from .authorization import Policy
from .controller import ServiceMeshManagerController
from .exceptions import CallError, MeshUnavailable, NotStartedError
from .handler_manager import Handler, HandlerManager
from .mesh.base import CallMessage, EventMessage, Mesh, Reply
from .mesh.description import FRESH_SECONDS, MAX_AGE_SECONDS, Description, describe_for_clients
from .mesh.service import deliver_event, to_json
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
    encode_event,
    encode_failure,
    encode_json,
    encode_response,
    encode_topics,
)
from .settings import Settings
from .topics import TopicTree, check_topic

__all__ = ["MeshStatistics", "ServiceMeshManager", "ServiceMeshManagerController", "context_for"]

logger = logging.getLogger(__name__)

MAX_SUBSCRIPTIONS: Final = 100
#: Events that wait for the controller; more are dropped and counted.
MAX_CONTROLLER_EVENTS: Final = 1000

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


class MeshStatistics(msgspec.Struct):
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
    events: int = 0
    oversized_events: int = 0
    dropped_controller_events: int = 0
    #: Ended because the policy, or a newer token, allows them no longer.
    denied_subscriptions: int = 0


class _Session:
    """What a connection has at the mesh: its calls by id, its topic patterns in the order of subscription."""

    __slots__ = ("calls", "topics")

    def __init__(self) -> None:
        self.calls: dict[str, str] = {}
        self.topics: dict[str, None] = {}


class ServiceMeshManager:
    """Forwards to the mesh, keeps track of what is in flight, and brings replies and events to their connections.

    It is an async context manager: the mesh connection and the two tasks that it owns (deadlines, events for the
    controller) live as long as the context.
    """

    def __init__(
        self,
        settings: Settings,
        handler_manager: HandlerManager,
        mesh: Mesh,
        policy: Policy,
        service_controller: ServiceMeshManagerController | None = None,
    ) -> None:
        self._settings = settings
        self._handler_manager = handler_manager
        self._mesh = mesh
        self._policy = policy
        self._controller = service_controller or ServiceMeshManagerController()
        self._controller._service_name = self._controller.service_name or settings.service_name  # noqa: SLF001
        self._controller._instance_id = self._controller.instance_id or settings.instance_id  # noqa: SLF001
        self._controller._bind(self, handler_manager)  # noqa: SLF001
        self._controller_topics: TopicTree[None] = TopicTree()
        self._controller_events: asyncio.Queue[EventMessage] = asyncio.Queue(MAX_CONTROLLER_EVENTS)

        self._calls = CallTable()
        self._sessions: dict[str, _Session] = {}
        self._subscriptions: TopicTree[Handler] = TopicTree()
        self._directory = Directory(self._fetch_description, self._now)
        self._stack: contextlib.AsyncExitStack | None = None
        self._clock: Callable[[], float] = _no_clock
        self._circuits = Circuits()
        self._budgets = ErrorBudgets()
        self._connection_changed_at = -math.inf
        self.statistics = MeshStatistics()
        #: Told of the end of every call but the gateway's own: service, code ("ok" or an error code), seconds.
        self.on_call_ended: Callable[[str, str, float], None] = _ignore

        handler_manager.bind_receiver(
            self.on_handler_message_received, self.on_handler_unregistered, self.end_denied_subscriptions
        )
        mesh.bind(self, self._controller)

    # --- life -------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> ServiceMeshManager:
        self._clock = asyncio.get_running_loop().time
        # It belongs to the event loop in which it is first waited for, and the next context may run in another one.
        self._controller_events = asyncio.Queue(MAX_CONTROLLER_EVENTS)
        async with contextlib.AsyncExitStack() as stack:
            tasks = await stack.enter_async_context(anyio.create_task_group())
            stack.callback(tasks.cancel_scope.cancel)
            tasks.start_soon(self._sweep, name="deadlines")
            tasks.start_soon(self._feed_controller, name="controller events")
            for topic in self._controller.event_topic_subscriptions:
                self._controller_topics.add(topic, None)
                self._mesh.subscribe(topic, _ignore)
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
        stack, self._stack = self._stack, None
        # The look-ups last, for what waits for them would be sent otherwise.
        for correlation_id in sorted(self._calls, key=lambda each: isinstance(self._calls.get(each), LookUpCall)):
            self._fail(correlation_id, Failure(ErrorCode.MESH_UNAVAILABLE, "The gateway is shutting down"))
        if stack is not None:
            await stack.__aexit__(exc_type, exc, traceback)
        self._clock = _no_clock

    def _now(self) -> float:
        return self._clock()

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
            self._on_subscribe(handler, frame)
        elif isinstance(frame, Unsubscribe):
            self._on_unsubscribe(handler, frame)
        else:
            raise TypeError(f"{type(frame).__name__} is not for the mesh")

    def on_handler_unregistered(self, handler: Handler) -> None:
        """Forget what a connection had in flight and what it was subscribed to."""
        session = self._sessions.pop(handler.session_id, None)
        if session is None:
            return
        for correlation_id in session.calls.values():
            if self._take(correlation_id) is not None:
                self.statistics.abandoned += 1
                self._mesh.forget(correlation_id)
        for topic in session.topics:
            self._unsubscribe(handler, topic)

    def _on_call(self, handler: Handler, frame: Request | Command) -> None:
        identity = handler.identity
        assert identity is not None  # noqa: S101 - it is registered
        correlation_id = uuid4().hex
        trace_id = frame.trace_id if frame.trace_id is not None else uuid4().hex
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
            _context(identity, trace_id, handler.session_id),
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
        session = self._sessions.setdefault(handler.session_id, _Session())
        if id_ is not None and id_ in session.calls:
            return Failure(ErrorCode.DUPLICATE_ID, "A request with this id is in flight")
        if len(session.calls) >= self._settings.max_in_flight:
            description = f"{self._settings.max_in_flight} requests are in flight; wait for an answer first"
            return Failure(ErrorCode.TOO_MANY_REQUESTS, description, retry_after_ms=1000)
        session.calls[correlation_id if id_ is None else id_] = correlation_id
        return None

    def _on_cancel(self, handler: Handler, frame: Cancel) -> None:
        session = self._sessions.get(handler.session_id)
        correlation_id = None if session is None else session.calls.get(frame.id)
        if correlation_id is None:
            return
        self.statistics.cancelled += 1
        self._fail(correlation_id, Failure(ErrorCode.CANCELLED, "Cancelled by the client"))
        self._mesh.forget(correlation_id)

    # --- subscriptions ----------------------------------------------------------------------------------------

    def _on_subscribe(self, handler: Handler, frame: Subscribe) -> None:
        session = self._sessions.setdefault(handler.session_id, _Session())
        topics = dict.fromkeys(frame.topics)
        new = [topic for topic in topics if topic not in session.topics]
        if len(session.topics) + len(new) > MAX_SUBSCRIPTIONS:
            description = f"payload.topics: a connection may have {MAX_SUBSCRIPTIONS} subscriptions"
            handler.send_frame(encode_failure(frame.id, frame.trace_id, Failure(ErrorCode.BAD_REQUEST, description)))
            return
        for topic in new:
            session.topics[topic] = None
            self._subscriptions.add(topic, handler)
        # Answered when events of every one of them arrive, so that nothing published after the answer is missed. That
        # may be so of none yet, even where it was asked for before.
        waiting = set(topics)

        def answer() -> None:
            handler.send_frame(encode_response(frame.id, frame.trace_id, encode_topics(list(session.topics))))

        def on_subscribed(topic: str) -> None:
            waiting.discard(topic)
            if not waiting:
                answer()

        for topic in topics:
            self._mesh.subscribe(topic, functools.partial(on_subscribed, topic))
        if not topics:
            answer()

    def _on_unsubscribe(self, handler: Handler, frame: Unsubscribe) -> None:
        session = self._sessions.setdefault(handler.session_id, _Session())
        for topic in frame.topics:
            if topic in session.topics:
                del session.topics[topic]
                self._unsubscribe(handler, topic)
        handler.send_frame(encode_response(frame.id, frame.trace_id, encode_topics(list(session.topics))))

    def end_denied_subscriptions(self, handler: Handler) -> None:
        """End what the policy does not allow this connection any longer, and tell the client."""
        session = self._sessions.get(handler.session_id)
        if session is None or handler.identity is None:
            return
        denied = [topic for topic in session.topics if not self._still_allows(handler.identity, topic)]
        for topic in denied:
            del session.topics[topic]
            self._unsubscribe(handler, topic)
        if denied:
            self.statistics.denied_subscriptions += len(denied)
            logger.debug("session %s: %d subscriptions ended by the policy", handler.session_id, len(denied))
            handler.send_frame(encode_event("unsubscribed", encode_json({"topics": denied, "reason": "policy"})))

    async def on_policy_changed(self) -> None:
        """End what the policy does not allow any longer, on all connections. It lets others have their turn."""
        for handler in self._handler_manager.handlers:
            self.end_denied_subscriptions(handler)
            await asyncio.sleep(0)

    def _still_allows(self, identity: Identity, topic: str) -> bool:
        try:
            return self._policy.may_subscribe(identity, topic)
        except Exception:  # the host's; the subscriptions of others must not be kept by it
            logger.exception("the policy failed for a subscription, which ends")
            return False

    def _unsubscribe(self, handler: Handler, topic: str) -> None:
        if self._subscriptions.remove(topic, handler) and topic not in self._controller.event_topic_subscriptions:
            self._mesh.unsubscribe(topic)

    # --- describe ---------------------------------------------------------------------------------------------

    def _on_describe(self, handler: Handler, frame: Describe) -> None:
        identity = handler.identity
        assert identity is not None  # noqa: S101 - it is registered
        correlation_id, trace_id = uuid4().hex, frame.trace_id if frame.trace_id is not None else uuid4().hex
        failure: Failure | None = None
        if frame.service is None:
            services = set(self._policy.services(identity))
            services.update(name for name in self._directory if self._callable(identity, name))
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
            error = found.error or found.code.nuropb_class
            raise CallError(found.code.value, error, found.description, retryable=found.code.retryable)
        return found

    def _fetch_description(self, service: str, done: Callable[[bytes | Raw | Failure], None]) -> None:
        message = CallMessage(
            "request",
            uuid4().hex,
            uuid4().hex,
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
            self._fail(message.correlation_id, _mesh_unavailable())
            return
        if message.kind == "request" and not self._circuits.admits(message.service, message.correlation_id):
            description = f"Service {message.service} does not answer"
            failure = Failure(ErrorCode.SERVICE_UNAVAILABLE, description, retry_after_ms=1000)
            self._fail(message.correlation_id, failure)
            return
        known = self._directory.get(message.service)
        if known is None:
            self._directory.look_up(message.service, MAX_AGE_SECONDS, lambda found: self._on_found(message, found))
            return
        if self._clock() - known.fetched_at > MAX_AGE_SECONDS:
            self._directory.look_up(message.service, MAX_AGE_SECONDS, _ignore)  # renew it for the next calls
        self._dispatch(message, known)

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
            self._fail(message.correlation_id, _mesh_unavailable())
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

    def on_taken(self, correlation_id: str) -> None:
        """The mesh took a command."""
        call = self._take(correlation_id)
        if call is not None:
            self._finish(call, None)

    def on_failed(self, correlation_id: str) -> None:
        """The mesh did not take the message after all."""
        self._fail(correlation_id, _mesh_unavailable())

    def on_lost(self, correlation_id: str) -> None:
        """Whether the mesh took the command is not known."""
        self._fail(
            correlation_id,
            Failure(ErrorCode.TIMEOUT, "The connection to the mesh was lost; whether it took the command is unknown"),
        )

    def on_event(self, event: EventMessage) -> None:
        """Bring an event to whom it is for: the connections of its targets, or those that subscribed."""
        self.statistics.events += 1
        if len(memoryview(event.event)) > self._settings.outbox_size:
            # It would be copied for every subscriber, and a slow one be hung up on for it.
            self.statistics.oversized_events += 1
            logger.debug("an event of more than OUTBOX_SIZE was dropped")
            return
        if event.target is None:
            handlers = list(self._subscriptions.match(event.topic))
        else:
            handlers = self._handler_manager.get_user_handlers(event.target)
        if handlers:
            text = encode_event(event.topic, event.event, event.trace_id)
            for handler in handlers:
                handler.send_frame(text)
        if self._controller_topics.match(event.topic):
            try:
                self._controller_events.put_nowait(event)
            except asyncio.QueueFull:
                self.statistics.dropped_controller_events += 1

    def on_connection_change(self, *, connected: bool) -> None:
        """The mesh came or went. Connections of clients stay either way."""
        self._circuits.reset()
        self._budgets.reset()
        if self.started:
            self._connection_changed_at = self._clock()
        logger.log(logging.INFO if connected or not self.started else logging.WARNING, "mesh %s", _state(connected))

    async def _feed_controller(self) -> None:
        while True:
            event = await self._controller_events.get()
            try:
                payload = msgspec.json.decode(event.event)
                context = msgspec.json.decode(event.context)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                self.statistics.dropped_controller_events += 1
                continue
            context = context if isinstance(context, dict) else {}
            await deliver_event(self._controller, event.topic, payload, event.target, context)

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
            session = self._sessions.get(call.handler.session_id)
            if session is not None:
                session.calls.pop(correlation_id if call.id is None else call.id, None)
        self._circuits.on_ended(call.message.service, correlation_id)
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
            for correlation_id in self._calls.due(self._clock()):
                self._expire(correlation_id)

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
            if counts and self._circuits.on_timeout(message.service, correlation_id, message.timeout):
                logger.warning("service %s does not answer; calls to it fail at once until it does", message.service)
            self._fail(correlation_id, Failure(ErrorCode.TIMEOUT, "No answer in time; whether it ran is unknown"))

    # --- for the host application -----------------------------------------------------------------------------

    async def request(
        self,
        service: str,
        method: str,
        params: Mapping[str, Any] | None = None,
        *,
        identity: Identity | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - it becomes the message's expiration, too
        trace_id: str | None = None,
    ) -> Any:
        """Call a method and return what it returned.

        The policy for clients does not apply: this is the host application's own code. ``identity`` is whose call it
        is (none: the service sees no user and no token). ``timeout`` is in seconds, REQUEST_TIMEOUT by default.
        Raises CallError with the protocol's error code, NotStartedError outside the gateway's lifespan, and
        ValueError or TypeError for a timeout without end and for params that are no JSON. When it is cancelled
        nobody waits for the reply any more; the service may run the call all the same.
        """
        result = await self._host_call("request", service, method, params, identity, timeout, trace_id)
        try:
            return msgspec.json.decode(result)
        except (msgspec.MsgspecError, RecursionError) as error:
            code = ErrorCode.SERVICE_ERROR
            raise CallError(code.value, code.nuropb_class, "The result cannot be read", retryable=False) from error

    async def command(
        self,
        service: str,
        method: str,
        params: Mapping[str, Any] | None = None,
        *,
        identity: Identity | None = None,
        trace_id: str | None = None,
    ) -> None:
        """Call a method for its effect; returns once the mesh has taken the command. Raises as :meth:`request`."""
        await self._host_call("command", service, method, params, identity, None, trace_id)

    async def publish_event(
        self,
        topic: str,
        event: Any,
        *,
        target: Sequence[str] | None = None,
        identity: Identity | None = None,
        trace_id: str | None = None,
    ) -> None:
        """Publish an event to the mesh: for everybody, or for the users in ``target``.

        It is handed over without waiting and without a receipt. Raises CallError (``mesh_unavailable``), and
        ValueError for a topic that is none.
        """
        reason = check_topic(topic)
        if reason is not None:
            raise ValueError(f"topic: {reason}")
        self._check_started()
        trace_id = trace_id or uuid4().hex
        users = None if target is None else list(target)
        context = _context(identity, trace_id, None)
        try:
            self._mesh.publish(topic, to_json(event), context=context, trace_id=trace_id, target=users)
        except MeshUnavailable as error:
            failure = _mesh_unavailable()
            raise CallError(
                failure.code.value, failure.code.nuropb_class, failure.description, retryable=True
            ) from error

    async def _host_call(
        self,
        kind: Literal["request", "command"],
        service: str,
        method: str,
        params: Mapping[str, Any] | None,
        identity: Identity | None,
        timeout: float | None,  # noqa: ASYNC109
        trace_id: str | None,
    ) -> bytes | Raw:
        self._check_started()
        trace_id = trace_id or uuid4().hex
        timeout = self._settings.request_timeout if timeout is None else timeout
        if not math.isfinite(timeout):
            raise ValueError("timeout: it has to be a number of seconds")
        future: asyncio.Future[bytes | Raw] = asyncio.get_running_loop().create_future()
        message = CallMessage(
            kind,
            uuid4().hex,
            trace_id,
            service,
            method,
            to_json(dict(params or {})),
            _context(identity, trace_id, None),
            self._clock() + timeout,
            timeout,
        )
        self._start(HostCall(message, future))
        try:
            return await future
        finally:
            if self._take(message.correlation_id) is not None:
                self._mesh.forget(message.correlation_id)

    def _check_started(self) -> None:
        if not self.started:
            raise NotStartedError(
                "the gateway does not run: use gateway.mount(app, path), or FastAPI(lifespan=gateway.lifespan)"
            )


def _no_clock() -> float:
    raise NotStartedError("the ServiceMeshManager's context is not entered")


def _ignore(*_: object) -> None:
    """What was asked for has its effect without anybody waiting for it."""


def _state(connected: bool) -> str:
    return "connected" if connected else "disconnected"


def _internal() -> Failure:
    return Failure(ErrorCode.INTERNAL, "The gateway could not handle this frame")


def _mesh_unavailable() -> Failure:
    return Failure(ErrorCode.MESH_UNAVAILABLE, "The service mesh is not reachable at the moment", retry_after_ms=1000)


def context_for(identity: Identity | None, trace_id: str, session_id: str | None) -> dict[str, str | None]:
    """What a service sees of the caller: made from the identity alone, never from anything that a client sent."""
    return {
        "user_id": None if identity is None else identity.user_id,
        "Authorization": None if identity is None else f"Bearer {identity.token}",
        "trace_id": trace_id,
        "session_id": session_id,
    }


def _context(identity: Identity | None, trace_id: str, session_id: str | None) -> bytes:
    return encode_json(context_for(identity, trace_id, session_id))
