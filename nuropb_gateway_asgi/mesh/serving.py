"""NuroPb-style service objects, hosted on RabbitMQ.

nuropb 0.1.8 neither runs on Python 3.12 nor recovers from an outage of the broker. A service that is hosted here does
both, on the same queues and the same wire: nuropb's own clients and services see no difference.
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
from ..observability.logs import configure_logging
from ..service_mesh_manager import ServiceMeshManager
from ..settings import Settings, hide_password
from ..tasks import in_own_task
from ..topics import check_topic
from ..tracing import ServiceTracing
from ..wire.services import PublishEvent, Runnable, as_target, describe_service, to_json, with_context
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
    tracing: bool = False,
) -> None:
    """Host ``service`` until SIGTERM or SIGINT, or until cancelled. See :func:`hosting` for the arguments.

    Then it takes no more calls, and finishes the running ones within ``drain_timeout`` seconds. In a program that has
    not configured logging, the lines of this package from level info on go to standard error.
    """
    if not logging.getLogger(__name__).hasHandlers():
        configure_logging(Settings())
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    with contextlib.ExitStack() as signals:
        for number in (signal.SIGTERM, signal.SIGINT):
            # Not within a thread, nor on Windows: there the caller has to cancel.
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
            tracing=tracing,
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
    tracing: bool = False,
) -> AsyncIterator[ServiceMeshManager]:
    """Host ``service`` for as long as the context lasts; yield a manager that calls services and publishes events.

    ``url`` is an AMQP URL. ``service_name`` is the name for callers; by default the service's own ``_service_name``.
    Methods are called by NuroPb's rules: methods that do not start with ``_``, and with the context if they are marked
    by ``with_context`` or ``nuropb_context``. They may be coroutine functions; a plain function should be quick, as it
    holds up everything else. ``concurrency`` messages are handled at the same time. Events of ``event_topics`` (topic
    patterns) go to ``service._handle_event_(topic, event, target, context)``, which may be a coroutine function; all
    processes of a service share a queue, so each event reaches one of them.

    A coroutine function ``service._run_(publish)`` runs beside the calls; it gets a function to publish events by,
    ``publish(topic, event, target=None)``. It may return, or run as long as the context, which its exception ends.

    With ``tracing``, each call is a span of OpenTelemetry (the extra ``otel``): a child of its caller's span, and
    current as long as the method runs.

    Entering does not wait for the broker, and only the end of the context stops the service. Then it takes no more
    calls and waits for the running ones for ``drain_timeout`` seconds. Calls are made at least once: when a process
    dies, the broker delivers its messages to another one. Raises SettingsError for an invalid name or URL.
    """
    name = service_name or getattr(service, "_service_name", None)
    if not isinstance(name, str):
        raise SettingsError("the service has no name; pass service_name, or set _service_name on the object")
    if concurrency < 1:
        raise SettingsError(f"concurrency: {concurrency}; expected 1 or more")
    settings = Settings(mesh_url=url, service_name=name, targeted_topics=())
    if settings.embedded:
        raise SettingsError(
            "a service is hosted on RabbitMQ, not on the embedded mesh; expected a URL like amqp://user:password@host:5672/vhost"
        )
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
    mesh.service_host.tracing = ServiceTracing() if tracing else None
    topics = f"; events: {', '.join(event_topics)}" if event_topics else ""
    logger.info("service %s is hosted at %s; methods: %s%s", name, hide_password(url), _methods(service), topics)
    async with manager, anyio.create_task_group() as tasks:
        try:
            if isinstance(service, Runnable):
                tasks.start_soon(service._run_, _publisher(mesh, name), name=f"service {name}")
            yield manager
        finally:
            # The callers of running calls wait for replies, also when an exception ends this.
            with anyio.CancelScope(shield=True), contextlib.suppress(TimeoutError):
                async with asyncio.timeout(drain_timeout):
                    await mesh.finish_calls()
            tasks.cancel_scope.cancel()


def _methods(service: object) -> str:
    """Return the names of the methods that callers see."""
    try:
        return ", ".join(describe_service(service)["methods"]) or "none"
    except Exception as error:  # of a property, for example: only calls that need it fail
        return f"unknown, since the description fails with {type(error).__name__}"


def _publisher(mesh: RabbitMQMesh, name: str) -> PublishEvent:
    def publish(topic: str, event: Any, target: list[str] | None = None) -> None:
        reason = check_topic(topic)
        if reason is not None:
            raise ValueError(f"topic: {reason}")
        body, users = to_json(event), as_target(target)
        try:
            mesh.publish(topic, body, context=b"{}", trace_id=new_id(), target=users)
        except MeshUnavailable as error:
            logger.warning("service %s: an event of %s is lost: %s", name, topic, error)

    return publish


async def _nobody(token: str) -> Any:
    """Refuse every client: a service has none."""
    return None
