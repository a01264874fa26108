"""A service object on RabbitMQ: its methods are called for the messages of its queue, by NuroPb's rules."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Final, Literal, Protocol, TypeAlias

import msgspec
from aiormq.abc import AbstractChannel
from aiormq.exceptions import AMQPException, ChannelInvalidStateError

from ...exceptions import MeshUnavailable, MessageTooLarge
from ...generation_cache import GenerationCache
from ...tasks import TaskOwner
from ...tracing import ServiceTracing
from ...wire import codec
from ...wire.encryption import UndecryptableMessage, decrypt_call, encrypt
from ...wire.services import Outcome, call_service, deliver_event
from ._frames import Incoming

__all__ = ["SERVICE_PREFETCH", "ServiceHost"]

logger = logging.getLogger(__name__)

#: Calls that run at the same time, per process.
SERVICE_PREFETCH: Final = 32
#: Seconds between attempts to send a reply.
RETRY: Final = 0.1
#: Handled messages that are remembered, in case the broker delivers them again after a loss of the connection.
REMEMBERED: Final = 1000

Action: TypeAlias = Literal["ack", "reject", "requeue"]
#: Sends the reply to a call, and returns once the broker has it. Raises MeshUnavailable.
Send: TypeAlias = Callable[[], Awaitable[None]]


class SendReply(Protocol):
    """The function by which a reply goes to the mesh."""

    async def __call__(
        self, reply_to: str, *, correlation_id: str, trace_id: str | None, body: bytes, encrypted: bool
    ) -> None:
        """Send a reply, and wait for the broker's confirm. Raises MeshUnavailable or MessageTooLarge without one."""


class _Running:
    """A message that is being handled, and the delivery to acknowledge: after a reconnection it is another one."""

    __slots__ = ("channel", "tag")

    def __init__(self, channel: AbstractChannel, tag: int) -> None:
        self.channel = channel
        self.tag = tag


class ServiceHost:
    """Calls the object that ``service`` returns for the messages of its queue, each in a task, and acknowledges them.

    An async context manager; its end cancels the running calls. The loss of a connection cancels nothing: a running
    call goes on, and when the broker delivers its message again, the call's outcome settles that delivery.

    A request is acknowledged once the broker has confirmed its reply, so no reply is lost with a connection. Until then
    the request counts as running: replies that cannot be sent hold up further calls, as far as the prefetch goes.
    """

    def __init__(
        self,
        name: str,
        service: Callable[[], object],
        *,
        send_reply: SendReply,
        publish: Callable[[str, Any, list[str] | None], None],
    ) -> None:
        self._name = name
        self._get_service = service
        self._send_reply = send_reply
        self._publish = publish
        #: The spans of calls, if the service traces.
        self.tracing: ServiceTracing | None = None
        self._channel: AbstractChannel | None = None
        #: The tag by which the broker knows the consumer of the queue.
        self.consumer_tag = ""
        self._tasks: TaskOwner | None = None
        self._stack = contextlib.AsyncExitStack()
        self._idle = asyncio.Event()
        self._count = 0
        self._running: dict[str, _Running] = {}
        #: Handled messages by their correlation ids, each with its reply if that could not be sent yet.
        self._handled: GenerationCache[str, Send | None] = GenerationCache(REMEMBERED)

    async def __aenter__(self) -> ServiceHost:
        self._tasks = await self._stack.enter_async_context(TaskOwner())
        self._idle = asyncio.Event()
        self._idle.set()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._tasks = None
        await self._stack.__aexit__(exc_type, exc, traceback)

    @property
    def running(self) -> int:
        """The number of messages that are being handled."""
        return self._count

    @property
    def remembered(self) -> int:
        """The number of handled messages that would be recognised if the broker delivered them again."""
        return len(self._handled)

    @property
    def _service(self) -> object:
        return self._get_service()

    def attach(self, channel: AbstractChannel) -> None:
        """Take the messages that come by ``channel`` from now on."""
        self._channel = channel

    async def finish(self) -> None:
        """Take no more messages, and wait until none is being handled."""
        channel, self._channel = self._channel, None
        if channel is not None and not channel.is_closed:
            with contextlib.suppress(AMQPException, ChannelInvalidStateError):
                await channel.basic_cancel(self.consumer_tag)
        await self._idle.wait()

    def on_message(self, message: Incoming) -> None:
        """Take a message of the service's queue."""
        channel, tasks = self._channel, self._tasks
        if channel is None or tasks is None:
            return  # it was on its way when this host stopped; unacknowledged, it goes to another process
        id_ = message.correlation_id or ""
        if message.redelivered and id_ in self._running:
            running = self._running[id_]
            running.channel, running.tag = channel, message.delivery_tag
            return
        running = _Running(channel, message.delivery_tag)
        if message.redelivered and id_ in self._handled:
            tasks.start_soon(self._send_again, id_, running)
            return
        if id_:
            self._running[id_] = running
        self._count += 1
        self._idle.clear()
        tasks.start_soon(self._run, message, running, name=f"mesh call of {self._name}")

    async def _run(self, message: Incoming, running: _Running) -> None:
        id_ = message.correlation_id or ""
        try:
            action, send = await self._handle_safely(message)
            sent = send is None or await self._deliver(send, running)
            if self._running.get(id_) is running:
                del self._running[id_]
            if id_ and action != "requeue":
                self._handled.add(id_, None if sent else send)
            if sent:
                await self._settle(running, action)
        finally:
            self._count -= 1
            if not self._count:
                self._idle.set()

    async def _send_again(self, id_: str, running: _Running) -> None:
        """Acknowledge a message that was handled before, once its reply has been sent."""
        send = self._handled.get(id_)
        if send is not None and not await self._deliver(send, running):
            return
        if id_ in self._handled:
            self._handled.add(id_, None)
        await self._settle(running, "ack")

    async def _deliver(self, send: Send, running: _Running) -> bool:
        """Send a reply, as often as it takes; return False if the delivery of its request was lost before.

        The call has run, and does not run again for its reply: the broker delivers the request again, here or to
        another process.
        """
        while True:
            try:
                await send()
            except MeshUnavailable as error:
                logger.debug("mesh: a reply of %s has to wait: %s", self._name, error)
            except Exception:
                logger.exception("mesh: a reply of %s cannot be sent", self._name)
                return True
            else:
                return True
            if running.channel.is_closed:
                return False
            await asyncio.sleep(RETRY)

    async def _settle(self, running: _Running, action: Action) -> None:
        """Acknowledge, reject or requeue a message."""
        if running.channel.is_closed:
            return  # the broker delivers it again, and it is recognised
        with contextlib.suppress(AMQPException, ChannelInvalidStateError):
            if action == "ack":
                await running.channel.basic_ack(running.tag, wait=False)
            elif action == "reject":
                await running.channel.basic_reject(running.tag, requeue=False, wait=False)
            else:
                await running.channel.basic_nack(running.tag, requeue=True, wait=False)

    async def _handle_safely(self, message: Incoming) -> tuple[Action, Send | None]:
        """Do as :meth:`_handle`, and refuse a message for which the service itself fails: others have to go on."""
        try:
            return await self._handle(message)
        except Exception:
            logger.exception("mesh: a message to %s could not be handled", self._name)
            return "reject", None

    async def _handle(self, message: Incoming) -> tuple[Action, Send | None]:
        """Make the call that a message asks for; return how to settle the message, and how to send its reply."""
        body = message.body
        key: bytes | None = None
        try:
            kind = message.kind
            if message.encrypted:
                private_key = getattr(self._service, "_private_key", None)
                if private_key is None:
                    raise UndecryptableMessage("encrypted, and the service has no key")
                key, body = decrypt_call(body, private_key)
            if kind == "response":
                raise codec.InvalidMessage("a response")
            if kind == "event":
                await self._on_event(body)
                return "ack", None
            call = codec.decode_service_call(body)
        except (codec.InvalidMessage, UndecryptableMessage) as error:
            # Rejected once; nuropb rejects such a message twice and loses its channel for that.
            logger.warning("mesh: a message to %s was refused: %s", self._name, error)
            return "reject", None
        outcome = await self._call(call, encrypted=key is not None, redelivered=message.redelivered)
        for topic, payload, target in outcome.events:
            try:
                self._publish(topic, payload, target)
            except (MeshUnavailable, MessageTooLarge) as error:
                logger.warning("mesh: an event of %s is lost: %s", self._name, error)
        if kind != "request" or not message.reply_to or outcome.action == "requeue":
            return outcome.action, None
        call.correlation_id = str(message.correlation_id)
        return outcome.action, functools.partial(self._reply, call, outcome, message.reply_to, key)

    async def _on_event(self, body: bytes) -> None:
        event = codec.decode_event(body)
        try:
            payload, context = msgspec.json.decode(event.event), msgspec.json.decode(event.context)
        except (msgspec.MsgspecError, RecursionError) as error:
            raise codec.InvalidMessage("the event cannot be read") from error
        context = context if isinstance(context, dict) else {}
        await deliver_event(self._service, event.topic, payload, event.target, context, event.trace_id)

    async def _call(self, call: codec.ServiceCall, *, encrypted: bool, redelivered: bool) -> Outcome:
        method = None
        if not call.method.startswith("_"):
            with contextlib.suppress(Exception):  # a property's error is the call's: call_service() meets it again
                method = getattr(self._service, call.method, None)
        if getattr(method, "__nuropb_requires_encryption__", False) and not encrypted:
            description = f"{call.method} has to be called encrypted"
            return Outcome("reject", error={"error": "NuropbAuthorizationError", "description": description})
        run = functools.partial(
            call_service,
            self._service,
            service=self._name,
            method=call.method,
            params=call.params,
            context=call.context,
            trace_id=call.trace_id,
            redelivered=redelivered,
        )
        if self.tracing is None:
            return await run()
        with self.tracing.calling(self._name, call.method, call.context) as span:
            outcome = await run()
            if outcome.error is not None:
                self.tracing.fail(span, outcome.error["error"])
            return outcome

    async def _reply(self, call: codec.ServiceCall, outcome: Outcome, reply_to: str, key: bytes | None) -> None:
        """Send a reply, or in the place of one that is too large an error. Raises MeshUnavailable."""
        try:
            await self._send(call, outcome, reply_to, key)
        except MessageTooLarge as error:
            logger.warning("mesh: the result of trace %s cannot be sent: %s", call.trace_id, error)
            refusal = {"error": "NuropbHandlingError", "description": "The result is larger than the broker takes"}
            with contextlib.suppress(MessageTooLarge):  # its context alone is too large, which its caller sent
                await self._send(call, Outcome(outcome.action, error=refusal), reply_to, key)

    async def _send(self, call: codec.ServiceCall, outcome: Outcome, reply_to: str, key: bytes | None) -> None:
        body = codec.encode_reply(call, result=outcome.result, error=outcome.error, reply_to=reply_to)
        if key is not None:
            _, body = encrypt(body, self._service._private_key.public_key(), key)  # type: ignore[attr-defined]  # noqa: SLF001
        try:
            await self._send_reply(
                reply_to,
                correlation_id=call.correlation_id,
                trace_id=call.trace_id,
                body=body,
                encrypted=key is not None,
            )
        except codec.InvalidMessage as error:
            logger.warning("mesh: the reply to trace %s cannot be sent: %s", call.trace_id, error)
