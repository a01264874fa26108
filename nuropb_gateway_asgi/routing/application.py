"""The host application's interface to the mesh: calls, events, users and revocations."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import msgspec
from msgspec import Raw

from ..authentication import Identity
from ..exceptions import MeshUnavailable, MessageTooLarge, NotStartedError
from ..fleet import FleetUsers, Revoker
from ..identifiers import new_id
from ..protocol import ErrorCode, Failure
from ..settings import Settings
from ..topics import check_topic
from ..wire.context import context_of
from ..wire.description import Description
from ..wire.interface import CallMessage, Mesh
from ..wire.services import as_target, to_json
from .calls import ApplicationCall
from .catalogue import Catalogue
from .failures import MESH_UNAVAILABLE, call_error
from .in_flight import CallsInFlight

__all__ = ["Application"]


class Application:
    """Calls, events and users for the application's own code, to which the policy for clients does not apply.

    Every method raises NotStartedError outside the gateway's lifespan. The ServiceMeshManager has the same methods, and
    their documentation.
    """

    def __init__(
        self,
        settings: Settings,
        mesh: Mesh,
        calls: CallsInFlight,
        catalogue: Catalogue,
        users: FleetUsers,
        revoker: Revoker,
        clock: Callable[[], float],
    ) -> None:
        self._settings = settings
        self._mesh = mesh
        self._calls = calls
        self._catalogue = catalogue
        self._users = users
        self._revoker = revoker
        self._clock = clock

    def _check_started(self) -> None:
        if not self._calls.running:
            raise NotStartedError(
                "the gateway does not run: use gateway.mount(app, path), or FastAPI(lifespan=gateway.lifespan)"
            )

    # --- services ---------------------------------------------------------------------------------------------

    async def request(
        self,
        service: str,
        method: str,
        params: Mapping[str, Any] | None,
        *,
        identity: Identity | None,
        timeout: float | None,  # noqa: ASYNC109 - it becomes the message's expiration, too
        trace_id: str | None,
    ) -> Any:
        """Call a method and return its result."""
        result = await self._call("request", service, method, params, identity, timeout, trace_id)
        try:
            return msgspec.json.decode(result)
        except (msgspec.MsgspecError, RecursionError) as error:
            raise call_error(Failure(ErrorCode.SERVICE_ERROR, "The result cannot be read")) from error

    async def command(
        self,
        service: str,
        method: str,
        params: Mapping[str, Any] | None,
        *,
        identity: Identity | None,
        trace_id: str | None,
    ) -> None:
        """Call a method for its effect; returns once the mesh has taken the command."""
        await self._call("command", service, method, params, identity, None, trace_id)

    async def _call(
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
            raise ValueError("timeout: not a finite number; give it in seconds")
        future: asyncio.Future[bytes | Raw] = asyncio.get_running_loop().create_future()
        message = CallMessage(
            kind,
            new_id(),
            trace_id,
            service,
            method,
            to_json(dict(params or {})),
            context_of(identity, trace_id, None),
            self._clock() + timeout,
            timeout,
        )
        self._calls.start(ApplicationCall(message, future))
        try:
            return await future
        finally:
            self._calls.abandon(message.correlation_id)

    def publish_event(
        self,
        topic: str,
        event: Any,
        *,
        target: Sequence[str] | None,
        identity: Identity | None,
        trace_id: str | None,
    ) -> None:
        """Publish an event to the mesh: for all subscribers, or for the users in ``target``."""
        reason = check_topic(topic)
        if reason is not None:
            raise ValueError(f"topic: {reason}")
        self._check_started()
        trace_id = trace_id or new_id()
        users = as_target(target)
        context = context_of(identity, trace_id, None)
        try:
            self._mesh.publish(topic, to_json(event), context=context, trace_id=trace_id, target=users)
        except MeshUnavailable as error:
            raise call_error(MESH_UNAVAILABLE) from error
        except MessageTooLarge as error:
            raise call_error(Failure(ErrorCode.PAYLOAD_TOO_LARGE, str(error))) from error

    async def describe(self, service: str) -> Description:
        """Ask a service for its description."""
        self._check_started()
        return await self._catalogue.describe(service)

    async def describe_for(self, identity: Identity, *, patience: float) -> Mapping[str, Description | Failure]:
        """Return a description, or a failure, for each service on which this identity may call something."""
        self._check_started()
        return await self._catalogue.describe_for(identity, patience=patience)

    # --- users, wherever they are connected -------------------------------------------------------------------

    @property
    def users(self) -> FleetUsers:
        """The users of all processes of the gateway. Raises NotStartedError outside the gateway's lifespan."""
        self._check_started()
        return self._users

    async def revoke(
        self,
        *,
        user_id: str | None,
        session_id: str | None,
        token_id: str | None,
        issued_before: float | None,
        until: float | None,
    ) -> None:
        """Refuse some tokens from now on, in every process, and close the connections that they opened."""
        self._check_started()
        try:
            await self._revoker.revoke(
                user_id=user_id, session_id=session_id, token_id=token_id, issued_before=issued_before, until=until
            )
        except MeshUnavailable as error:
            raise call_error(MESH_UNAVAILABLE) from error

    async def unrevoke(
        self, *, user_id: str | None, session_id: str | None, token_id: str | None, issued_before: float | None
    ) -> None:
        """Take a revocation back, in every process."""
        self._check_started()
        try:
            await self._revoker.unrevoke(
                user_id=user_id, session_id=session_id, token_id=token_id, issued_before=issued_before
            )
        except MeshUnavailable as error:
            raise call_error(MESH_UNAVAILABLE) from error
