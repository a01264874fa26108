"""What the application around the gateway may do: call services, publish events, and reach users wherever they are."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import msgspec
from msgspec import Raw

from ..authentication import Identity
from ..exceptions import CallError, MeshUnavailable, NotStartedError
from ..fleet.revocations import Revoker
from ..fleet.users import Connections, Online, Reached, Sessions, Switchboard
from ..identifiers import new_id
from ..protocol import CloseCode, ErrorCode, Failure
from ..settings import Settings
from ..topics import check_topic
from ..wire.context import context_of
from ..wire.interface import CallMessage, Mesh
from ..wire.services import to_json
from .calls import Call, HostCall

__all__ = ["HostInterface", "call_error", "mesh_unavailable"]


class HostInterface:
    """The part of the ServiceMeshManager that is for the application's own code; the policy for clients does not apply.

    Everything raises NotStartedError outside the gateway's lifespan.
    """

    _settings: Settings
    _mesh: Mesh
    _switchboard: Switchboard
    _revoker: Revoker

    @property
    def started(self) -> bool:
        """Whether the context is entered."""
        raise NotImplementedError

    def _now(self) -> float:
        raise NotImplementedError

    def _start(self, call: Call) -> None:
        raise NotImplementedError

    def _take(self, correlation_id: str) -> Call | None:
        raise NotImplementedError

    # --- services ---------------------------------------------------------------------------------------------

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
        trace_id = trace_id or new_id()
        users = None if target is None else list(target)
        context = context_of(identity, trace_id, None)
        try:
            self._mesh.publish(topic, to_json(event), context=context, trace_id=trace_id, target=users)
        except MeshUnavailable as error:
            raise call_error(mesh_unavailable()) from error

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
        trace_id = trace_id or new_id()
        timeout = self._settings.request_timeout if timeout is None else timeout
        if not math.isfinite(timeout):
            raise ValueError("timeout: it has to be a number of seconds")
        future: asyncio.Future[bytes | Raw] = asyncio.get_running_loop().create_future()
        message = CallMessage(
            kind,
            new_id(),
            trace_id,
            service,
            method,
            to_json(dict(params or {})),
            context_of(identity, trace_id, None),
            self._now() + timeout,
            timeout,
        )
        self._start(HostCall(message, future))
        try:
            return await future
        finally:
            if self._take(message.correlation_id) is not None:
                self._mesh.forget(message.correlation_id)

    # --- users, wherever they are connected -------------------------------------------------------------------
    #
    # Each of these concerns all processes of the gateway (those with the same SERVICE_NAME on the same vhost), and
    # answers with totals over them. ``missing`` names, by their instance ids, those that have not answered within a
    # second; what is for them expires after two. Raises ValueError or TypeError for arguments that mean nothing. When
    # one of them is cancelled, the others have been asked all the same.

    async def send_to_users(self, user_ids: Iterable[str], topic: str, event: Any) -> Reached:
        """Send an event to all connections of some users, whether they subscribed to its topic or not."""
        self._check_started()
        return await self._switchboard.send_to_users(user_ids, topic, event)

    async def send_to_all(self, topic: str, event: Any) -> Reached:
        """Send an event to every connection."""
        self._check_started()
        return await self._switchboard.send_to_all(topic, event)

    async def send_to_session(self, session_id: str, topic: str, event: Any) -> Reached:
        """Send an event to one connection."""
        self._check_started()
        return await self._switchboard.send_to_session(session_id, topic, event)

    async def disconnect_users(
        self, user_ids: Iterable[str], code: int = CloseCode.DISCONNECTED, reason: str = "disconnected"
    ) -> Reached:
        """Hang up on all connections of some users. With a ``code`` from 4000 to 4499 clients connect again at once;
        after any other nothing keeps them from it but their own manners, and :meth:`revoke`.
        """
        self._check_started()
        return await self._switchboard.disconnect_users(user_ids, code, reason)

    async def disconnect_session(
        self, session_id: str, code: int = CloseCode.DISCONNECTED, reason: str = "disconnected"
    ) -> Reached:
        """Hang up on one connection."""
        self._check_started()
        return await self._switchboard.disconnect_session(session_id, code, reason)

    async def list_sessions(self, user_id: str) -> Sessions:
        """The connections of a user, the oldest first."""
        self._check_started()
        return await self._switchboard.list_sessions(user_id)

    async def count(self) -> Connections:
        """How many connections there are."""
        self._check_started()
        return await self._switchboard.count()

    async def is_online(self, user_ids: Iterable[str]) -> Online:
        """Which of some users are connected."""
        self._check_started()
        return await self._switchboard.is_online(user_ids)

    async def revoke(
        self,
        *,
        user_id: str | None = None,
        session_id: str | None = None,
        token_id: str | None = None,
        issued_before: float | None = None,
        until: float | None = None,
    ) -> None:
        """Accept some tokens no longer, in any process, and close the connections that they opened (4511).

        Those of a user that were issued before ``issued_before`` (unix seconds; now, unless given); or the one that a
        session was authorised with; or the one with a ``jti`` of ``token_id``; or all that were issued before
        ``issued_before``. A token that does not say when it was issued (``iat``) was issued before any time. ``until``
        (unix seconds, in 30 days at the most) is when these tokens have expired; in 7 days, unless given. A session's
        own token says so itself.

        Done in this process when it is called, in the others within moments, and in processes that start later, too.
        Raises CallError (``mesh_unavailable``) when it is not certain that the others learn of it: then it holds here
        alone, and has to be done again. ValueError for a combination that means nothing.
        """
        self._check_started()
        try:
            await self._revoker.revoke(
                user_id=user_id, session_id=session_id, token_id=token_id, issued_before=issued_before, until=until
            )
        except MeshUnavailable as error:
            raise call_error(mesh_unavailable()) from error

    def _check_started(self) -> None:
        if not self.started:
            raise NotStartedError(
                "the gateway does not run: use gateway.mount(app, path), or FastAPI(lifespan=gateway.lifespan)"
            )


def mesh_unavailable() -> Failure:
    """What a call ends with that the mesh cannot take."""
    return Failure(ErrorCode.MESH_UNAVAILABLE, "The service mesh is not reachable at the moment", retry_after_ms=1000)


def call_error(failure: Failure) -> CallError:
    """The exception for the host application."""
    error = failure.error or failure.code.nuropb_class
    return CallError(failure.code.value, error, failure.description, retryable=failure.code.retryable)
