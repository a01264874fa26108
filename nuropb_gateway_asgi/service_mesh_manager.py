"""Which calls are in flight, and for whom? The ServiceMeshManager: the way from a connection to the mesh and back.

Between two waits on sockets there are only plain function calls: a request costs an entry in a table, not a task or a
future. A request ends exactly once, by the first of its reply, its return, its deadline, its cancellation, and the end
of its connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol

import anyio

from .authentication import Identity
from .authorization import Policy
from .controller import ServiceMeshManagerController
from .fleet import (
    Connections,
    Fleet,
    FleetUsers,
    LocalUsers,
    Online,
    OnlineWatch,
    Reached,
    Revoker,
    Sessions,
    Whereabouts,
)
from .handler_manager import Handler, HandlerManager
from .limits.prices import extra_for_topics
from .protocol import (
    CALL_FRAMES,
    Ack,
    Cancel,
    ClientFrame,
    CloseCode,
    Describe,
    Failure,
    Resume,
    Subscribe,
    Unsubscribe,
)
from .routing import Application, CallsInFlight, Catalogue, ClientCalls, EventRouter
from .routing.calls import SLOT_SECONDS
from .routing.outcomes import Outcomes
from .routing.receiver import GatewayReceiver
from .routing.statistics import MeshStatistics
from .sessions import Resumption
from .settings import Settings
from .wire import Description, Mesh
from .wire.history import KeptTopic
from .wire.interface import NamedMesh

__all__ = ["MeshStatistics", "ServiceMeshManager", "ServiceMeshManagerController"]

logger = logging.getLogger(__name__)


class ServiceMeshManager:
    """Forwards calls to the mesh, tracks those in flight, and brings replies and events to their connections.

    It is an async context manager: the mesh connection and the tasks that it owns (deadlines, the controller's events,
    messages between the processes of the gateway) live as long as the context. ``kept_topics`` have a history.
    ``name`` tells its log lines from those of other transports; ``clock`` is a monotonic clock, in seconds.

    The methods from :meth:`request` to :meth:`unrevoke` are for the host application: the policy for clients does not
    apply to them, and they raise NotStartedError outside the gateway's lifespan.
    """

    def __init__(
        self,
        settings: Settings,
        handler_manager: HandlerManager,
        mesh: Mesh,
        policy: Policy,
        service_controller: ServiceMeshManagerController | None = None,
        *,
        kept_topics: Iterable[KeptTopic] = (),
        name: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._handler_manager = handler_manager
        self._mesh = mesh
        self._clock = clock
        self._stack: contextlib.AsyncExitStack | None = None
        self.controller = service_controller or ServiceMeshManagerController()
        self.controller._take_names(settings.service_name, settings.instance_id)  # noqa: SLF001
        self.controller._bind(self, handler_manager)  # noqa: SLF001 - its public methods are for other services
        self.statistics = MeshStatistics()
        limits = handler_manager.shared_limits

        self.calls = CallsInFlight(settings, mesh, policy, limits, self.statistics, clock)
        catalogue = Catalogue(policy, self.calls.descriptions, mesh)
        self.client_calls = ClientCalls(
            settings, policy, limits, self.calls, catalogue, self.statistics, clock, handler_manager.tracing
        )
        self.events = EventRouter(
            settings, handler_manager, mesh, policy, self.controller, self.statistics, clock, kept_topics
        )
        self._local = local = LocalUsers(handler_manager, settings.instance_id)
        self.fleet = Fleet(mesh, settings.instance_id, clock, local.answer)
        self.whereabouts = Whereabouts(self.fleet, handler_manager, clock)
        users = FleetUsers(local, self.fleet, self.whereabouts, settings.outbox_size)
        self.revoker = Revoker(handler_manager, mesh.record, leeway=settings.jwt_leeway)
        self._application = Application(settings, mesh, self.calls, catalogue, users, self.revoker, clock)
        self.online: OnlineWatch | None = None
        if settings.presence_events == "on":
            self.online = OnlineWatch(self.fleet, handler_manager, mesh, clock)

        self.resumption = Resumption(
            settings, handler_manager, self.fleet, mesh, self.events, self.calls, self.client_calls, clock
        )
        handler_manager.bind_receiver(self)
        outcomes = Outcomes(settings, self.calls, limits, self.statistics, clock)
        self.receiver = GatewayReceiver(self.calls, outcomes, self.events, self.fleet, self.revoker, name)
        mesh.bind(self.receiver, self.controller)

    # --- life -------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> ServiceMeshManager:
        # The instance id is another one if this process was forked after the construction.
        instance_id = self._settings.instance_id
        self.controller._take_names(self._settings.service_name, instance_id)  # noqa: SLF001
        self.fleet.instance_id = self._local.instance_id = instance_id
        if isinstance(self._mesh, NamedMesh):
            self._mesh.take_instance_id(instance_id)
        async with contextlib.AsyncExitStack() as stack:
            tasks = await stack.enter_async_context(anyio.create_task_group())
            stack.callback(tasks.cancel_scope.cancel)
            parts = (self.calls, self.calls.descriptions, self.events, self.revoker, self.resumption, self.whereabouts)
            tasks.start_soon(_sweep, self._clock, parts, name="deadlines")
            self.events.start()
            stack.callback(self.events.stop)
            tasks.start_soon(self.events.for_controller.feed, name="controller events")
            tasks.start_soon(self.fleet.run, name="signs of life")
            self.revoker.begin()
            tasks.start_soon(self.revoker.run, name="revoked sessions")
            tasks.start_soon(self.revoker.close_connections, name="revoked connections")
            if self.online is not None:
                tasks.start_soon(self.online.run, name="presence")
            await stack.enter_async_context(self.events.history)
            await stack.enter_async_context(self.resumption)
            await stack.enter_async_context(self._mesh)
            if self.online is not None:
                self.online.take_address()
            self._stack = stack.pop_all()
        self.calls.running = True
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Answer the requests that are still in flight with ``mesh_unavailable``, and disconnect from the mesh."""
        stack, self._stack = self._stack, None
        self.calls.close()
        await self.resumption.departures.flush()
        self.fleet.leave()
        if stack is not None:
            await stack.__aexit__(exc_type, exc, traceback)

    @property
    def started(self) -> bool:
        """Whether the context is entered."""
        return self._stack is not None

    @property
    def mesh(self) -> Mesh:
        """The mesh."""
        return self._mesh

    @property
    def connected(self) -> bool:
        """Whether the mesh takes messages now."""
        return self._mesh.connected

    @property
    def problem(self) -> str | None:
        """The reason why the mesh takes no messages, in words for an operator, or None."""
        return self._mesh.problem

    @property
    def warnings(self) -> list[str]:
        """The parts of the gateway that do without a permission of the broker, in words for an operator."""
        return [*self._mesh.warnings, *self.events.own_topics.warnings]

    @property
    def in_flight(self) -> int:
        """The number of calls without an answer yet, those of the host application included."""
        return len(self.calls.table)

    @property
    def open_circuits(self) -> list[str]:
        """The services to which calls fail at once, because they do not answer."""
        return self.calls.breakers.open()

    # --- from clients: see handler_manager.Receiver -----------------------------------------------------------

    def on_handler_message_received(self, handler: Handler, frame: ClientFrame) -> None:
        """Take a frame that the HandlerManager has checked, and answer it exactly once, now or later."""
        if isinstance(frame, CALL_FRAMES):
            self.client_calls.on_call(handler, frame)
        elif isinstance(frame, Cancel):
            self.client_calls.on_cancel(handler, frame)
        elif isinstance(frame, Describe):
            self.client_calls.on_describe(handler, frame)
        elif isinstance(frame, Subscribe):
            self.events.subscribe(handler, frame)
        elif isinstance(frame, Unsubscribe):
            self.events.unsubscribe(handler, frame)
        elif isinstance(frame, Ack):
            self.resumption.on_ack(handler, frame)
        elif isinstance(frame, Resume):
            self.resumption.on_resume(handler, frame)
        else:
            raise TypeError(f"{type(frame).__name__} is not for the mesh")

    async def on_handler_arriving(self) -> None:
        """Have events with a target come to this process before its first connection is registered."""
        await self.events.own_topics.prepare()

    def on_handler_registered(self, handler: Handler) -> None:
        """Note that the handler's user came, if this is the user's first connection here."""
        self.client_calls.unpark(handler)
        if handler.identity is not None:
            self.whereabouts.look_at(handler.identity.user_id)
            if self.online is not None:
                self.online.look_at(handler.identity.user_id)

    def on_handler_unregistered(self, handler: Handler) -> None:
        """Forget a connection's calls in flight and its subscriptions."""
        if handler.identity is not None:
            self.whereabouts.look_at(handler.identity.user_id)
            if self.online is not None:
                self.online.look_at(handler.identity.user_id)
        self.client_calls.unpark(handler)
        self.client_calls.forget(handler)
        self.events.forget(handler)

    def on_handler_parked(self, handler: Handler) -> None:
        """Note that the handler's user left, if this was the user's last connection here."""
        self.client_calls.park(handler)
        if self.online is not None and handler.identity is not None:
            self.online.look_at(handler.identity.user_id)

    def on_handler_refreshed(self, handler: Handler) -> None:
        """End the subscriptions that the newer token does not allow, and tell the client."""
        self.revoker.on_refreshed(handler)
        limits = self._handler_manager.shared_limits
        extra = extra_for_topics(len(self.events.topics_of(handler)))
        if extra and handler.identity is not None:
            limits.rates.charge(handler.session_id, handler.identity.user_id, self._clock(), extra)
        limits.slices.run(self.events.review(handler))

    def calls_in_flight(self, handler: Handler) -> int:
        """Count the calls of a connection that still have to be answered."""
        return self.client_calls.in_flight(handler)

    async def on_policy_changed(self) -> None:
        """End the subscriptions that the policy does not allow any longer, in slices."""
        self._handler_manager.topic_checks.restart()
        for handler in self._handler_manager.handlers:
            for _ in self.events.review(handler):
                await asyncio.sleep(0)
            await asyncio.sleep(0)

    # --- for the host application: services -------------------------------------------------------------------

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
        """Call a method and return its result.

        ``identity`` is the caller that the service sees (none: no user and no token). ``timeout`` is in seconds,
        REQUEST_TIMEOUT by default. Raises CallError with the protocol's error code, and ValueError or TypeError for a
        timeout without end and for params that are not JSON. After a cancellation the reply is dropped; the service may
        run the call all the same.
        """
        return await self._application.request(
            service, method, params, identity=identity, timeout=timeout, trace_id=trace_id
        )

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
        await self._application.command(service, method, params, identity=identity, trace_id=trace_id)

    async def publish_event(
        self,
        topic: str,
        event: Any,
        *,
        target: Sequence[str] | None = None,
        identity: Identity | None = None,
        trace_id: str | None = None,
    ) -> None:
        """Publish an event to the mesh: for all subscribers, or for the users in ``target``.

        The event is handed over without a wait and without a receipt. Raises CallError (``mesh_unavailable``, or
        ``payload_too_large`` above the broker's limit), and ValueError for an invalid topic.
        """
        self._application.publish_event(topic, event, target=target, identity=identity, trace_id=trace_id)

    async def describe(self, service: str) -> Description:
        """Ask a service for its description. Its methods are None if the service cannot describe itself.

        Raises CallError when the service does not exist or does not answer within REQUEST_TIMEOUT.
        """
        return await self._application.describe(service)

    async def describe_for(self, identity: Identity, *, patience: float) -> Mapping[str, Description | Failure]:
        """Return a description, or a failure, for each service on which this identity may call something.

        All services are asked at the same time, unless their descriptions are fresh. A service that does not answer
        within ``patience`` seconds keeps its last description, if it has one; its answer is remembered when it comes.
        """
        return await self._application.describe_for(identity, patience=patience)

    # --- for the host application: users, wherever they are connected -----------------------------------------
    #
    # These reach all processes of the gateway (those with the same SERVICE_NAME on the same vhost) and return totals
    # over them. ``missing`` names, by instance ids, the processes that did not answer within a second; messages to them
    # expire after two. ValueError or TypeError is raised for invalid arguments. A cancellation does not recall the
    # messages to the other processes.

    async def send_to_users(self, user_ids: Iterable[str], topic: str, event: Any) -> Reached:
        """Send an event to all connections of some users, whether they subscribed to its topic or not."""
        return await self._application.users.send_to_users(user_ids, topic, event)

    async def send_to_all(self, topic: str, event: Any) -> Reached:
        """Send an event to every connection."""
        return await self._application.users.send_to_all(topic, event)

    async def send_to_session(self, session_id: str, topic: str, event: Any) -> Reached:
        """Send an event to one connection."""
        return await self._application.users.send_to_session(session_id, topic, event)

    async def disconnect_users(
        self, user_ids: Iterable[str], code: int = CloseCode.DISCONNECTED, reason: str = "disconnected"
    ) -> Reached:
        """Close all connections of some users.

        Clients reconnect at once after a ``code`` from 4000 to 4499. After any other code well-behaved clients stay
        away; only :meth:`revoke` keeps the others out.
        """
        users = user_ids if isinstance(user_ids, str) else list(user_ids)
        reached = await self._application.users.disconnect_users(users, code, reason)
        if (audit := self._handler_manager.journal.audit) is not None:
            audit.closed(list(users), None, code, reason, reached.count)
        return reached

    async def disconnect_session(
        self, session_id: str, code: int = CloseCode.DISCONNECTED, reason: str = "disconnected"
    ) -> Reached:
        """Close one connection."""
        reached = await self._application.users.disconnect_session(session_id, code, reason)
        if (audit := self._handler_manager.journal.audit) is not None:
            audit.closed(None, session_id, code, reason, reached.count)
        return reached

    async def list_sessions(self, user_id: str) -> Sessions:
        """List the connections of a user, the oldest first."""
        return await self._application.users.list_sessions(user_id)

    async def count(self) -> Connections:
        """Count the connections."""
        return await self._application.users.count()

    async def is_online(self, user_ids: Iterable[str]) -> Online:
        """Tell which of some users are connected."""
        return await self._application.users.is_online(user_ids)

    async def revoke(
        self,
        *,
        user_id: str | None = None,
        session_id: str | None = None,
        token_id: str | None = None,
        issued_before: float | None = None,
        until: float | None = None,
    ) -> None:
        """Refuse some tokens from now on, in every process, and close the connections that they opened (4511).

        Exactly one of: ``user_id``, the user's tokens issued before ``issued_before`` (unix seconds; now by default);
        ``session_id``, all tokens that the session has used; ``token_id``, the token with this ``jti``;
        ``issued_before`` alone, all tokens issued before. A token without ``iat`` counts as issued before any time.
        ``until`` (unix seconds, at most 30 days from now; 7 days by default) is when these tokens have expired; a
        session's own tokens know their expiry.

        Takes effect in this process at once, in the others within moments, and in processes that start later. Raises
        CallError (``mesh_unavailable``) when the record may not have been written: the revocation then holds in this
        process alone and has to be repeated. Raises ValueError for any other combination of arguments, and for an
        ``issued_before`` in the future.
        """
        await self._application.revoke(
            user_id=user_id, session_id=session_id, token_id=token_id, issued_before=issued_before, until=until
        )
        if (audit := self._handler_manager.journal.audit) is not None:
            tokens = {"user_id": user_id, "session_id": session_id, "token_id": token_id}
            audit.revoked({**tokens, "issued_before": issued_before}, until)

    async def unrevoke(
        self,
        *,
        user_id: str | None = None,
        session_id: str | None = None,
        token_id: str | None = None,
        issued_before: float | None = None,
    ) -> None:
        """Take a revocation back, in every process: these tokens are accepted again until they expire.

        The arguments are those of :meth:`revoke`, without ``until``. With ``user_id`` all revocations of the user's
        tokens are taken back, or those up to ``issued_before`` if that is given too; ``issued_before`` alone takes back
        the revocations of all tokens up to this time. Closed connections stay closed. Raises as :meth:`revoke`.
        """
        await self._application.unrevoke(
            user_id=user_id, session_id=session_id, token_id=token_id, issued_before=issued_before
        )
        if (audit := self._handler_manager.journal.audit) is not None:
            tokens = {"user_id": user_id, "session_id": session_id, "token_id": token_id}
            audit.taken_back({**tokens, "issued_before": issued_before})


class _Sweeps(Protocol):
    def sweep(self, now: float) -> None:
        """Do the work that is due at ``now``, a time of the manager's clock."""


async def _sweep(clock: Callable[[], float], parts: Sequence[_Sweeps]) -> None:
    """Act on the deadlines of ``parts``, until cancelled."""
    while True:
        await asyncio.sleep(SLOT_SECONDS)
        now = clock()
        for part in parts:
            part.sweep(now)
