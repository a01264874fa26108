"""Hosts a NuroPb-style service object on RabbitMQ, for as long as it takes.

nuropb 0.1.8 neither runs on Python 3.12 nor comes back after an outage of the broker. Here a service does, on the same
queues and the same wire; nuropb's own clients and services see no difference.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import AsyncIterator, Sequence
from typing import Any

import anyio

from ..authorization import ExposePolicy
from ..exceptions import MeshUnavailable, SettingsError
from ..handler_manager import HandlerManager
from ..identifiers import new_id
from ..service_mesh_manager import ServiceMeshManager
from ..settings import Settings
from ..tasks import in_own_task
from ..topics import check_topic
from ..wire.services import PublishEvent, Runnable, to_json, with_context
from .rabbitmq import RabbitMQMesh

__all__ = ["PublishEvent", "hosting", "serve", "with_context"]

logger = logging.getLogger(__name__)


async def serve(
    service: object,
    url: str,
    *,
    service_name: str | None = None,
    event_topics: Sequence[str] = (),
    concurrency: int = 32,
    drain_timeout: float = 10.0,
) -> None:
    """Host ``service`` until SIGTERM or SIGINT, or until cancelled. See :func:`hosting` for the arguments.

    On a signal it takes no more calls and answers those that it has, for ``drain_timeout`` seconds at the most. When it
    is cancelled it does the same.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    with contextlib.ExitStack() as signals:
        for number in (signal.SIGTERM, signal.SIGINT):
            # Not within a thread, nor on Windows: then somebody else has to cancel.
            with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
                loop.add_signal_handler(number, stop.set)
                signals.callback(loop.remove_signal_handler, number)
        async with hosting(
            service,
            url,
            service_name=service_name,
            event_topics=event_topics,
            concurrency=concurrency,
            drain_timeout=drain_timeout,
        ):
            await stop.wait()


@in_own_task
@contextlib.asynccontextmanager
async def hosting(
    service: object,
    url: str,
    *,
    service_name: str | None = None,
    event_topics: Sequence[str] = (),
    concurrency: int = 32,
    drain_timeout: float = 10.0,
) -> AsyncIterator[ServiceMeshManager]:
    """Host ``service`` for as long as the context lasts; what it yields calls other services and publishes events.

    ``url`` is an AMQP URL. ``service_name`` is the name by which it is called; the service's own ``_service_name``
    unless given. Methods are called by NuroPb's rules: those that do not start with ``_``, with the context for those
    that are marked by ``nuropb_context``; they may be coroutine functions, and a plain function should not take long,
    as everything else waits for it. ``concurrency`` messages are handled at a time. Events of ``event_topics`` (topic
    patterns) go to ``service._handle_event_(topic, event, target, context)``, which may be a coroutine function; all
    processes of a service share a queue, so each event reaches one of them.

    A service that has a coroutine function ``_run_(publish)`` is given a function by which it publishes events,
    ``publish(topic, event, target=None)``. It may return, or run as long as the context; what it raises ends that.

    Entering does not wait for the broker, and nothing else but the end of the context ends it. At the end no more calls
    are taken, and those that run are waited for ``drain_timeout`` seconds. Calls are made at least once: a process that
    dies leaves its messages to the others. Raises SettingsError for a name or URL that is none.
    """
    name = service_name or getattr(service, "_service_name", None)
    if not isinstance(name, str):
        raise SettingsError("the service has no name: give service_name, or the object a _service_name")
    if concurrency < 1:
        raise SettingsError("concurrency: it has to be 1 or more")
    settings = Settings(mesh_url=url, service_name=name, targeted_topics=())
    if settings.embedded:
        raise SettingsError("a service is hosted on RabbitMQ: amqp://user:password@host:5672/vhost")
    mesh = RabbitMQMesh(
        url,
        service_name=name,
        instance_id=settings.instance_id,
        prefetch=concurrency,
        service_topics=event_topics,
        role="service",
    )
    policy = ExposePolicy((), ())
    manager = ServiceMeshManager(settings, HandlerManager(settings, _nobody, policy), mesh, policy)
    mesh.bind(manager.receiver, service)
    async with manager, anyio.create_task_group() as tasks:
        try:
            if isinstance(service, Runnable):
                tasks.start_soon(service._run_, _publisher(mesh, name), name=f"service {name}")
            yield manager
        finally:
            # Whatever it was that ended it, a call that runs is somebody's.
            with anyio.CancelScope(shield=True), contextlib.suppress(TimeoutError):
                async with asyncio.timeout(drain_timeout):
                    await mesh.finish_calls()
            tasks.cancel_scope.cancel()


def _publisher(mesh: RabbitMQMesh, name: str) -> PublishEvent:
    def publish(topic: str, event: Any, target: list[str] | None = None) -> None:
        reason = check_topic(topic)
        if reason is not None:
            raise ValueError(f"topic: {reason}")
        if isinstance(target, str):  # whose letters would be users
            raise TypeError("target: it has to be a list of user ids")
        body, users = to_json(event), None if target is None else list(target)
        try:
            mesh.publish(topic, body, context=b"{}", trace_id=new_id(), target=users)
        except MeshUnavailable as error:
            logger.warning("service %s: an event of %s is lost: %s", name, topic, error)

    return publish


async def _nobody(token: str) -> Any:
    """A service has no clients of its own."""
    return None
