"""A service object on RabbitMQ: other services call it as they call each other, and see no difference."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from typing import Any, Final, Protocol

import msgspec
from aiormq.abc import AbstractChannel
from anyio.abc import TaskGroup

from ...exceptions import MeshUnavailable
from .. import wire
from ..encryption import UndecryptableMessage, decrypt_call, encrypt
from ..service import Outcome, call_service, deliver_event
from ._frames import Incoming

__all__ = ["SERVICE_PREFETCH", "ServiceHost"]

logger = logging.getLogger(__name__)

#: Calls that run at a time, per process.
SERVICE_PREFETCH: Final = 32


class SendReply(Protocol):
    """How a reply gets to the mesh."""

    def __call__(
        self, reply_to: str, *, correlation_id: str, trace_id: str | None, body: bytes, encrypted: bool
    ) -> None:
        """Send it. Raises MeshUnavailable."""


class ServiceHost:
    """Calls ``service`` for messages of its queue, each in a task of ``tasks``, and acknowledges as nuropb does."""

    def __init__(
        self,
        name: str,
        service: object,
        channel: AbstractChannel,
        tasks: TaskGroup,
        *,
        send_reply: SendReply,
        publish: Callable[[str, Any, list[str] | None], None],
    ) -> None:
        self._name = name
        self._service = service
        self._channel = channel
        self._tasks = tasks
        self._send_reply = send_reply
        self._publish = publish

    def on_message(self, message: Incoming) -> None:
        """Take a message of the service's queue."""
        self._tasks.start_soon(self._handle, message, name=f"mesh call of {self._name}")

    async def _handle(self, message: Incoming) -> None:
        tag, body = message.delivery_tag, message.body
        key: bytes | None = None
        try:
            kind = message.kind
            if message.encrypted:
                private_key = getattr(self._service, "_private_key", None)
                if private_key is None:
                    raise UndecryptableMessage("encrypted, and the service has no key")
                key, body = decrypt_call(body, private_key)
            if kind == "response":
                raise wire.InvalidMessage("a response")
            if kind == "event":
                await self._on_event(body)
                await self._channel.basic_ack(tag, wait=False)
                return
            call = wire.decode_service_call(body)
        except (wire.InvalidMessage, UndecryptableMessage) as error:
            # Once, and once only: nuropb rejects such a message twice and loses its channel for it.
            logger.warning("mesh: a message to %s was refused: %s", self._name, error)
            await self._channel.basic_reject(tag, requeue=False, wait=False)
            return
        outcome = await self._call(call, encrypted=key is not None, redelivered=message.redelivered)
        if outcome.action == "requeue":
            await self._channel.basic_nack(tag, requeue=True, wait=False)
            return
        if kind == "request" and message.reply_to:
            call.correlation_id = str(message.correlation_id)
            self._reply(call, outcome, message.reply_to, key)
        for topic, payload, target in outcome.events:
            with contextlib.suppress(MeshUnavailable):
                self._publish(topic, payload, target)
        if outcome.action == "ack":
            await self._channel.basic_ack(tag, wait=False)
        else:
            await self._channel.basic_reject(tag, requeue=False, wait=False)

    async def _on_event(self, body: bytes) -> None:
        event = wire.decode_event(body)
        try:
            payload, context = msgspec.json.decode(event.event), msgspec.json.decode(event.context)
        except (msgspec.MsgspecError, RecursionError) as error:
            raise wire.InvalidMessage("the event cannot be read") from error
        context = context if isinstance(context, dict) else {}
        await deliver_event(self._service, event.topic, payload, event.target, context)

    async def _call(self, call: wire.ServiceCall, *, encrypted: bool, redelivered: bool) -> Outcome:
        method = None if call.method.startswith("_") else getattr(self._service, call.method, None)
        if getattr(method, "__nuropb_requires_encryption__", False) and not encrypted:
            description = f"{call.method} has to be called encrypted"
            return Outcome("reject", error={"error": "NuropbAuthorizationError", "description": description})
        return await call_service(
            self._service,
            service=self._name,
            method=call.method,
            params=call.params,
            context=call.context,
            redelivered=redelivered,
        )

    def _reply(self, call: wire.ServiceCall, outcome: Outcome, reply_to: str, key: bytes | None) -> None:
        body = wire.encode_reply(call, result=outcome.result, error=outcome.error, reply_to=reply_to)
        if key is not None:
            _, body = encrypt(body, self._service._private_key.public_key(), key)  # type: ignore[attr-defined]  # noqa: SLF001
        try:
            self._send_reply(
                reply_to,
                correlation_id=call.correlation_id,
                trace_id=call.trace_id,
                body=body,
                encrypted=key is not None,
            )
        except (MeshUnavailable, wire.InvalidMessage) as error:
            # The call has run; running it again for the sake of its answer would be worse than losing that.
            logger.warning("mesh: the reply to trace %s is lost: %s", call.trace_id, error)
